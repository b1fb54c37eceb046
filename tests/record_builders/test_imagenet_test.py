"""ImageNet-A, -R, -Sketch and V2 by name: their folders, all of them test; what cannot be the set is a line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from imagenet_pipeline.builders import plan_of
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.record_builders import imagenet_test


def lay(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.jpg").touch()
    (root / "README.txt").write_text("n01443537 goldfish")
    return root


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_two_hundred_folders_of_word_net_ids_are_a_test_split(tmp_path: Path, name: imagenet_test.Name) -> None:
    wnids = [f"n{number:08d}" for number in range(200)]
    plan = imagenet_test.plan(lay(tmp_path / "set", wnids), name)
    assert plan.counts == {"test": 200}
    assert plan.classes.ids == tuple(wnids)
    assert plan.source == {"builder": "imagenet-test", "set": name}


def test_imagenetv2_s_folders_are_numbers(tmp_path: Path) -> None:
    plan = imagenet_test.plan(lay(tmp_path / "v2", map(str, range(1000))), "imagenetv2")
    images = dict(zip(plan.splits["test"].paths, plan.splits["test"].labels.tolist(), strict=True))
    assert plan.classes.ids[images["10/0.jpg"]] == "10"
    assert plan.classes.ids[:4] == ("0", "1", "10", "100")


@pytest.mark.parametrize(
    ("name", "folders", "line"),
    [
        ("imagenet-a", [f"n{number:08d}" for number in range(199)], r"200 class folders .*; found 199; build folder"),
        (
            "imagenet-r",
            ["goldfish", *(f"n{n:08d}" for n in range(199))],
            r"found 200, goldfish \(1 in all\) among them",
        ),
        ("imagenet-sketch", [f"n{number:08d}" for number in range(200)], r"expected 1,000 class folders"),
        ("imagenetv2", [str(number) for number in range(1, 1001)], r"1,000 class folders 0 to 999; found 1,000;"),
    ],
)
def test_folders_of_something_else_are_a_line(
    tmp_path: Path, name: imagenet_test.Name, folders: list[str], line: str
) -> None:
    with pytest.raises(BadInput, match=rf"the folders are not those of {name}; {line}|{line}"):
        imagenet_test.plan(lay(tmp_path / "set", folders), name)


def test_a_set_of_another_name_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="no such set; expected imagenet-a or imagenet-r or imagenet-sketch"):
        plan_of("imagenet-test", tmp_path / "out", {"root": tmp_path, "set": "imagenet-c"})
