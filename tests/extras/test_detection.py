"""A small detector learns to find digits in scenes, out of records whose labels are boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.extras import detection
from imagenet_pipeline.extras.boxes import mean_average_precision
from imagenet_pipeline.extras.detection import draw_boxes, read_scenes, train_detector
from imagenet_pipeline.extras.scenes import write_scenes
from imagenet_pipeline.records import recordio


def test_a_detector_learns_from_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At half its side, a quarter of the seconds."""
    monkeypatch.setattr(detection, "SIDE", 48)
    write_scenes(tmp_path, 160)
    scenes, unseen = read_scenes(tmp_path / "train.rec"), read_scenes(tmp_path / "test.rec")
    objects = [scene.objects for scene in unseen]
    untrained, _ = train_detector(scenes[:16], classes=3, epochs=1)
    trained, losses = train_detector(scenes, classes=3, epochs=6, batch_size=16)
    before, after = (
        mean_average_precision(detector.detect([scene.image for scene in unseen]), objects, 3)
        for detector in (untrained, trained)
    )
    assert losses[-1] < losses[0] / 2
    assert before < 0.05
    assert after > before + 0.2
    picture = draw_boxes(unseen[0], trained.detect([unseen[0].image])[0], ["0", "1", "2"])
    assert np.asarray(picture).std() > 10


def test_scenes_come_back_as_they_were_packed(tmp_path: Path) -> None:
    write_scenes(tmp_path, 8, seed=1)
    scenes = read_scenes(tmp_path / "train.rec")
    assert len(scenes) == 8
    for scene in scenes:
        assert scene.objects.shape[1] == 5
        assert set(scene.objects[:, 0]) <= {0.0, 1.0, 2.0}


@pytest.mark.parametrize("labels", [[3.0], [2, 5, 1, 0.5, 0.5, 0.2], [2, 5, 1, 0.5, 0.5, 0.2, 0.9], [0, 0, 1, 2, 3, 4]])
def test_labels_that_are_no_boxes_are_a_line(tmp_path: Path, labels: list[float]) -> None:
    path = tmp_path / "x.rec"
    path.write_bytes(recordio.frame(recordio.pack(labels, 0, b"")))
    with pytest.raises(BadInput, match="record 0"):
        read_scenes(path)
