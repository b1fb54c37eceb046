"""A small detector learns to find digits in scenes, out of records whose labels are boxes."""

from __future__ import annotations

import math
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.extras import detection
from imagenet_pipeline.extras.boxes import mean_average_precision
from imagenet_pipeline.extras.detection import draw_boxes, main, read_scenes, train_detector
from imagenet_pipeline.extras.scenes import write_scenes
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.image import encode_jpeg


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


def packed(path: Path, labels: list[float], image: bytes = b"") -> Path:
    path.write_bytes(recordio.frame(recordio.pack(labels, 0, image)))
    return path


def test_a_box_beyond_the_image_is_cut_to_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = encode_jpeg(np.full((20, 30, 3), 90, np.uint8), 95)
    path = packed(tmp_path / "x.rec", [4, 5, 30, 20, 1, -0.1, 0.5, 0.5, 1.2], image)
    (scene,) = read_scenes(path)
    np.testing.assert_allclose(scene.objects, [[1, 0, 0.5, 0.5, 1]])
    assert "beyond their image" in caplog.text
    caplog.clear()
    packed(path, [2, 5, 0, 0.0, 0.5, 0.5, 1.0000001], image)
    assert read_scenes(path)[0].objects.max() == 1
    assert not caplog.text


@pytest.mark.parametrize(
    "labels", [[2, 5, 1.5, 0, 0, 1, 1], [2, 5, 1, 0, 0, 1, math.nan], [math.nan, 5], [2, 5, 0, 1.1, 0, 1.2, 1]]
)
def test_labels_that_say_nothing_are_a_line(tmp_path: Path, labels: list[float]) -> None:
    with pytest.raises(BadInput, match="record 0"):
        read_scenes(packed(tmp_path / "x.rec", labels, encode_jpeg(np.zeros((8, 8, 3), np.uint8), 95)))


def test_an_image_that_cannot_be_decoded_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"x\.rec, record 0: .*decoded"):
        read_scenes(packed(tmp_path / "x.rec", [2, 5, 0, 0, 0, 1, 1], b"no image"))


def test_records_without_an_object_are_a_line(tmp_path: Path) -> None:
    for split in ("train", "test"):
        packed(tmp_path / f"{split}.rec", [2, 5], encode_jpeg(np.zeros((8, 8, 3), np.uint8), 95))
    with pytest.raises(BadInput, match="no record has an object"):
        main(tmp_path, tmp_path / "out")


def test_records_of_im2rec_with_longer_headers_train(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "mxnet_files_shared.tar.xz") as archive:
        (member,) = [member for member in archive if member.name.endswith("transfer_learning/train.rec")]
        content = archive.extractfile(member).read()  # type: ignore[union-attr]
    (tmp_path / "train.rec").write_bytes(content)
    scenes = read_scenes(tmp_path / "train.rec")
    assert [len(scenes), *scenes[0].objects.shape] == [12, 1, 5]
    _, losses = train_detector(scenes, classes=1, epochs=8)
    assert losses[-1] < losses[0]
