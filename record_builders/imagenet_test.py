"""Test sets that others have made for networks of ImageNet's classes, as they are distributed: one folder a class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from imagenet_pipeline.errors import BadInput, first_few
from imagenet_pipeline.records.class_names import names_of
from imagenet_pipeline.records.classes import WNID, ClassTable
from imagenet_pipeline.records.plan import Plan

from . import folder

Name = Literal["imagenet-a", "imagenet-r", "imagenet-sketch", "imagenetv2"]
CLASSES: dict[Name, int] = {"imagenet-a": 200, "imagenet-r": 200, "imagenet-sketch": 1000, "imagenetv2": 1000}


def plan(
    root: Annotated[Path, "The unpacked set, or its archive: class folders, n01440764 or, of ImageNetV2, 0 to 999."],
    set: Annotated[Name, "Which it is; ImageNetV2 in any of its three variants."],
    classes: Path | None = None,
) -> Plan:
    """Build ImageNet-A, ImageNet-R, ImageNet-Sketch or ImageNetV2, as distributed, to evaluate networks on.

    All images are test. `evaluate RUN --records OUT` then scores a network of ImageNet's 1,000 classes as the set's
    authors do: ImageNet-A and -R on the logits of their 200 classes alone, Sketch and V2 on all. V2's folders 0 to 999
    are ImageNet's classes in the order of WordNet ids.

    \b
    Examples:
      imagenet-pipeline build imagenet-test --set imagenet-a --root imagenet-a.tar --out output/imagenet-a
      imagenet-pipeline build imagenet-test --set imagenetv2 --root imagenetv2-threshold0.7-format-val --out output/v2

    Raises BadInput for folders that are not those of the set.
    """
    found = folder.plan(root, val_fraction=0.0, test_fraction=0.0)
    ids = found.classes.ids
    _require_set(set, ids, root)
    return replace(
        found,
        splits={"test": found.splits["train"]},
        classes=ClassTable("folder", ids, names_of(ids, classes) if classes else ids),
        source={"builder": "imagenet-test", "set": set},
    )


def _require_set(name: Name, ids: tuple[str, ...], root: Path) -> None:
    """Raise BadInput unless the class folders can be those of the set."""
    count = CLASSES[name]
    if name == "imagenetv2":
        fit, kind = frozenset(ids) == {str(number) for number in range(count)}, "0 to 999"
        other = [class_id for class_id in ids if not class_id.isdecimal()]
    else:
        other = [class_id for class_id in ids if not WNID.fullmatch(class_id)]
        fit, kind = not other and len(ids) == count, "named by WordNet id, as n01440764"
    if not fit:
        shown = f", {first_few(other)} among them" if other else ""
        raise BadInput(
            f"the folders are not those of {name}",
            where=root,
            expected=f"{count:,} class folders {kind}",
            found=f"{len(ids):,}{shown}",
            advice="build folder takes any others, and evaluate --subset scores their logits alone",
        )
