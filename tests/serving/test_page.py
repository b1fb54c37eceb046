"""The page without a browser: answers, refusals, limits, names of hosts."""

from __future__ import annotations

import base64
import html
import io
import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from imagenet_pipeline.errors import BadRecipe, OutOfRoom
from imagenet_pipeline.evaluation.predict import open_classifier
from imagenet_pipeline.faces.drawing import BOX_COLOUR
from imagenet_pipeline.loading.reduced import upright_image
from imagenet_pipeline.serving.address import address, listen, own_names
from imagenet_pipeline.serving.answers import SHOWN_PIXELS

ODD_NAMES = ("<script>alert(1)</script>", "cats & \"dogs\" 'n' $more", "犬")


def encoded(pixels: Any, ending: str = ".png") -> bytes:
    return cv2.imencode(ending, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def picture_of(answer: Any) -> Any:
    head, _, data = answer["picture"].partition(",")
    assert head == "data:image/jpeg;base64"
    return upright_image(base64.b64decode(data)).whole()


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("photo.jpg", b"x" * 1000)
    return content.getvalue()


def bomb() -> bytes:
    """20,000 x 20,000 pixels in 50 kB."""
    content = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(content, "PNG")
    return content.getvalue()


def test_the_page_says_the_run_and_its_classes_escaped(odd_site: Any, odd_run: Any) -> None:
    status, headers, body = odd_site.ask("GET", "/")
    page = body.decode()
    assert status == 200
    assert f"<title>{odd_run.name}: lenet, epoch 1, 28 pixels, 3 classes</title>" in page
    assert html.escape(", ".join(ODD_NAMES)) in page
    assert "<script>alert" not in page
    assert "$" not in page.replace("$more", "")
    assert "default-src 'none'" in headers["content-security-policy"]


def test_the_page_asks_nothing_of_other_machines(odd_site: Any) -> None:
    files = [odd_site.ask("GET", path) for path in ("/", "/files/page.css", "/files/page.js")]
    assert [status for status, _, _ in files] == [200, 200, 200]
    assert not any(b"http://" in body or b"https://" in body for _, _, body in files)


@pytest.mark.parametrize(
    "path", ["/files/../page.py", "/files/%2e%2e/page.py", "/page.html", "/docs", "/files/", "/look"]
)
def test_nothing_else_is_served(odd_site: Any, path: str) -> None:
    status, headers, body = odd_site.ask("GET", path)
    assert status in (404, 405)
    assert set(json.loads(body)) == {"error"}
    assert headers.get("allow") == ("POST" if status == 405 else None)


def test_a_photo_gets_the_probabilities_the_run_gives_it(odd_site: Any, odd_run: Any) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    status, answer = odd_site.look(encoded(photo))
    row = open_classifier(odd_run).probabilities([photo])[0]
    expected = sorted(zip(row, ODD_NAMES, strict=True), reverse=True)[:2]
    assert (status, answer["message"]) == (200, "")
    (subject,) = answer["subjects"]
    assert [choice["name"] for choice in subject["choices"]] == [name for _, name in expected]
    assert [choice["probability"] for choice in subject["choices"]] == pytest.approx([one for one, _ in expected])
    assert picture_of(answer).shape == photo.shape


def test_a_turned_photo_is_shown_upright_and_a_large_one_smaller(odd_site: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.new("RGB", (3000, 1000)).save(content, "JPEG", exif=exif)
    _, answer = odd_site.look(content.getvalue())
    assert picture_of(answer).shape == (SHOWN_PIXELS, round(SHOWN_PIXELS / 3), 3)


@pytest.mark.faces
def test_emotions_of_one_of_several_and_of_no_face(emotion_site: Any, two_faces: Callable[[int], Any]) -> None:
    scene = two_faces(0)
    _, two = emotion_site.look(encoded(scene))
    assert [subject["title"] for subject in two["subjects"]] == ["Face 1", "Face 2"]
    assert two["message"] == "2 faces, from the left."
    _, one = emotion_site.look(encoded(scene[:, :330]))
    (subject,) = one["subjects"]
    assert len(subject["choices"]) == 7
    assert sum(choice["probability"] for choice in subject["choices"]) == pytest.approx(1)
    green = [(np.abs(picture_of(each).astype(int) - BOX_COLOUR).max(axis=2) < 40).sum() for each in (two, one)]
    assert green[0] > green[1] > 100
    _, none = emotion_site.look(encoded(np.full((200, 200, 3), 128, np.uint8)))
    assert none["subjects"] == []
    assert "No face found" in none["message"]


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 415, "empty file"),
        (b"only text", 415, "not an image"),
        (b"<svg></svg>", 415, "text (HTML or SVG)"),
        (zipped(), 415, "not an image"),
        (bomb(), 415, "more than 50,000,000 pixels"),
        (encoded(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8), ".jpg")[:-200], 415, "truncated"),
    ],
    ids=["empty", "text", "svg", "zip", "bomb", "truncated"],
)
def test_what_is_no_photo_is_refused_in_a_line(odd_site: Any, content: bytes, status: int, says: str) -> None:
    got, answer = odd_site.look(content)
    assert got == status
    assert says in answer["error"]
    assert "\n" not in answer["error"]
    assert odd_site.look(encoded(np.zeros((9, 9, 3), np.uint8)))[0] == 200


def test_a_photo_that_memory_does_not_hold_is_refused_and_the_next_is_answered(
    odd_site: Any, class_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = encoded(np.zeros((9, 9, 3), np.uint8))

    def full(engine: Any, images: Any) -> Any:
        raise OutOfRoom("out of memory", where="gpu:0")

    with monkeypatch.context() as patched:
        patched.setattr(class_of("pytorch"), "issue_logits", full)
        assert odd_site.look(photo) == (503, {"error": "There is too little memory for this photo."})
        patched.setattr(class_of("pytorch"), "issue_logits", lambda *_: 1 / 0)
        status, answer = odd_site.look(photo)
        assert (status, list(answer)) == (500, ["error"])
    assert odd_site.look(photo)[0] == 200


def test_many_at_once_are_all_answered(odd_site: Any) -> None:
    photos = [encoded(np.full((40, 40, 3), 10 * number, np.uint8)) for number in range(20)]
    with ThreadPoolExecutor(10) as pool:
        given = list(pool.map(odd_site.look, photos))
    assert [status for status, _ in given] == [200] * 20
    for (_, answer), photo in zip(given, photos, strict=True):
        np.testing.assert_allclose(picture_of(answer), upright_image(photo).whole(), atol=3)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:6", "Host": "localhost:5"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "localhost:5", "Origin": "http://localhost:5", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_another_site_s_page_may_not_ask(odd_site: Any, headers: dict[str, str], status: int) -> None:
    assert odd_site.look(encoded(np.zeros((9, 9, 3), np.uint8)), **headers)[0] == status


@pytest.mark.parametrize(
    ("host", "bound", "shown", "guarded"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2", True),
        ("localhost", "127.0.0.1", "localhost", True),
        ("myself", "127.0.1.1", "myself", True),
        ("::1", "::1", "[::1]", True),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0", False),
        ("192.0.2.7", "192.0.2.7", "192.0.2.7", False),
        ("::", "::", "[::]", False),
    ],
)
def test_an_address_can_be_opened_and_loopback_has_only_its_own_names(
    host: str, bound: str, shown: str, guarded: bool
) -> None:
    class Listening:
        def getsockname(self) -> tuple[str, int]:
            return bound, 7860

    listening: Any = Listening()
    assert address(host, listening) == f"http://{shown}:7860/"
    names = own_names(host, listening)
    assert bool(names) is guarded
    assert not guarded or {shown, "localhost"} <= set(names)


@pytest.mark.parametrize("host", ["::1", "127.0.0.2"])
def test_every_loopback_address_is_guarded(serving: Callable[..., Any], odd_run: Any, host: str) -> None:
    try:
        listen(host, 0).close()
    except BadRecipe as error:
        pytest.skip(f"no {host} on this machine ({error})")
    with serving(odd_run, host=host) as site:
        assert site.ask("GET", "/")[0] == 200
        assert site.ask("GET", "/", Host=f"localhost:{site.port}")[0] == 200
        assert site.ask("GET", "/", Host=f"evil.example:{site.port}")[0] == 400


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("127.0.0.1:1", 200), ("evil.example", 400)])
def test_on_loopback_only_its_own_names_are_answered(odd_site: Any, host: str, status: int) -> None:
    assert odd_site.ask("GET", "/", Host=host)[0] == status


def test_a_port_that_is_taken_and_an_address_that_is_not_ours(odd_site: Any) -> None:
    with pytest.raises(BadRecipe, match=rf"127\.0\.0\.1:{odd_site.port}: no page .*in use.*--port"):
        listen("127.0.0.1", odd_site.port)
    with pytest.raises(BadRecipe, match="no page can be served here"):
        listen("192.0.2.1", 0)
    with pytest.raises(BadRecipe, match=r"\[2001:db8::1\]:0: no page can be served here"):
        listen("2001:db8::1", 0)
    for host in ("no such host", "a..b", "x" * 300):
        with pytest.raises(BadRecipe, match="no page can be served here"):
            listen(host, 0)
