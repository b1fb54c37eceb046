"""The logits of some classes alone, against a statement of it in NumPy on the network's own outputs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_pipeline.builders import plan_of
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.compare import examine
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.evaluation.predict import open_classifier
from imagenet_pipeline.evaluation.results import as_json, findings_of
from imagenet_pipeline.record_builders import imagenet_test
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.image import LazyImage, decode_rgb
from imagenet_pipeline.records.reader import RecordSet

KIT = ("n3", "n0", "n5", "n1", "n4", "n2")
"""The network's classes, in no order of their names."""


def made(place: Path, ids: tuple[str, ...], name: str = "") -> Path:
    """A data set of noise, four images a class, all test."""
    random = np.random.default_rng(5)
    for class_id in ids:
        (place / "photos" / class_id).mkdir(parents=True)
        for number in range(4):
            stream = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (28, 28, 3), np.uint8)).save(stream, "PNG")
            (place / "photos" / class_id / f"{number}.png").write_bytes(stream.getvalue())
    words = {"set": name} if name else {"val_fraction": 0.0, "test_fraction": 1 / 2}
    plan = plan_of("imagenet-test" if name else "folder", place / "set", {"root": place / "photos", **words})
    build(plan, place / "set", BuildOptions(resize=0, workers=1))
    return place / "set"


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_the_logits_of_the_records_classes_alone_are_scored(
    drawn_run: Callable[..., Path], tmp_path: Path, engine: str
) -> None:
    run, ids = drawn_run(*KIT, engine=engine), ("n1", "n2", "n3")
    data = made(tmp_path, ids)
    classifier = open_classifier(run)
    ranks, losses, labels = [], [], []
    with RecordSet.open(data, "test") as records:
        for position in range(len(records)):
            record = records.read(position)
            views = classifier.views(LazyImage.of(decode_rgb(record.image)))
            logits = classifier.engine.issue_logits(views)()[0].astype(np.float64)
            own = np.array([logits[KIT.index(name)] for name in ids])
            labels.append(int(record.labels[0]))
            ranks.append(int(np.argmax(own)))
            losses.append(np.log(np.exp(own).sum()) - own[labels[-1]])
    found = examine([run], records=data, subset=True)
    result, whole = found.result, evaluate(run, records=data)
    assert [found.table.ids[label] for label in found.outcomes.top[:, 0]] == [ids[rank] for rank in ranks]
    assert result.rank1_hits == np.count_nonzero(np.equal(ranks, labels))
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert (result.classes, result.scored_classes, whole.scored_classes) == (6, 3, 6)
    assert found.notes == ["scored on the logits of the 3 classes that the records have, of the network's 6"]
    assert as_json(findings_of(found))["rank1_chance"] == pytest.approx(100 / 3)
    assert whole.loss > result.loss


@pytest.mark.pytorch
def test_imagenet_a_by_name_is_scored_as_its_authors_do_without_a_word(
    drawn_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wnids = tuple(f"n{number:08d}" for number in range(5))
    monkeypatch.setitem(imagenet_test.CLASSES, "imagenet-a", 3)
    run, data = drawn_run(*wnids), made(tmp_path, wnids[1:4], "imagenet-a")
    assert evaluate(run, records=data).scored_classes == 3
    assert evaluate(run, records=data, subset=False).scored_classes == 5


@pytest.mark.pytorch
def test_classes_that_are_none_of_the_network_s_are_named(drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    run, data = drawn_run(*KIT), made(tmp_path, ("goldfish", "n2", "n3"))
    line = (
        r"1 of the 3 classes are none of the network's; expected ids as the network's, n3; found goldfish \(1 in all\)"
    )
    with pytest.raises(BadInput, match=line):
        evaluate(run, records=data, subset=True)


@pytest.mark.pytorch
def test_all_of_the_classes_are_no_subset(drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    run, data = drawn_run("n0", "n1"), made(tmp_path, ("n0", "n1"))
    found = examine([run], records=data, subset=True)
    assert (found.result.scored_classes, found.notes) == (2, [])
