"""Text in pictures: every letter drawn or written out, never an empty box; never wider than its room."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from imagenet_pipeline import drawing as module
from imagenet_pipeline.drawing import lettering, shortened, written_out

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
SURROGATES = ("Cs",)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What was found out about installed fonts does not outlive a test."""
    for remembered in (module._path_for, module._installed):
        monkeypatch.setattr(module, remembered.__name__, remembered.__wrapped__)
    return monkeypatch


@given(st.text(st.characters(exclude_categories=SURROGATES), max_size=20))
def test_every_letter_has_a_glyph(text: str) -> None:
    drawn, font = lettering(text, 14)
    assert {ord(letter) for letter in drawn} <= set(FT2Font(font.path).get_charmap())
    assert "\n" not in drawn
    assert {ord(letter) for letter in written_out(text)} <= set(FT2Font(str(FONTS / "DejaVuSans.ttf")).get_charmap())


def test_names_of_many_scripts_stay_as_they_are() -> None:
    for name in ("tabby, tabby cat", "Ägyptische Katze", "кошка", "γάτα", "قط"):
        assert lettering(name, 14)[0] == name


def test_what_no_font_has_is_written_out(forgetful: pytest.MonkeyPatch) -> None:
    forgetful.setattr(font_manager, "findSystemFonts", list)
    drawn, _ = lettering("犬 dog\x1b[31m\n\udcff", 14)
    assert drawn == r"\u72ac dog\x1b[31m \udcff"


def test_an_installed_font_is_taken_where_ours_lacks_a_letter(forgetful: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    others = [str(tmp_path / "broken.ttf"), str(FONTS / "STIXGeneral.ttf")]
    forgetful.setattr(font_manager, "findSystemFonts", lambda: others)
    ours = set(FT2Font(str(FONTS / "DejaVuSans.ttf")).get_charmap())
    letter = next(
        chr(code) for code in FT2Font(others[1]).get_charmap() if code not in ours and chr(code).isprintable()
    )
    drawn, font = lettering(f"a {letter}", 14)
    assert drawn == f"a {letter}"
    assert Path(str(font.path)).name == "STIXGeneral.ttf"


@given(st.text(st.characters(exclude_categories=SURROGATES), max_size=60), st.integers(20, 200))
def test_a_text_is_cut_to_its_room_and_no_further(text: str, width: int) -> None:
    drawn, font = lettering(text, 14)
    cut = shortened(drawn, font, width)
    assert font.getlength(cut) <= width
    if cut != drawn:
        assert cut.endswith("…")
        longer = drawn[: len(cut)].rstrip() + "…"
        assert longer == cut or font.getlength(longer) > width or drawn.startswith(cut[:-1])


def test_a_file_name_that_is_cut_keeps_its_end() -> None:
    text, font = lettering("98.7 % a_photo_of_the_holidays_0012.jpeg", 11)
    cut = shortened(text, font, 150)
    assert cut.startswith("98.7 % a_ph")
    assert cut.endswith("…0012.jpeg")
    assert font.getlength(cut) <= 150
    assert shortened(text, font, 60).endswith("…")
