"""Pictures of weights while a run trains: at the steps asked for, the same after a restart, and as an animation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imagenet_pipeline as ip
from imagenet_pipeline.config import Recipe
from imagenet_pipeline.drawing import signed_colours
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, Pool, stack
from imagenet_pipeline.training.weight_pictures import animate, layer_to_draw, weights_sheet

SMALL = {"network": "shallownet", "input.size": 8, "epochs": 1, "batch_size": 10, "loader.threads": 0}


def test_a_dense_layer_is_drawn_as_the_image_it_reads() -> None:
    network = stack(
        conv=Conv(4, 3, pad=1), relu=Activation("relu"), pool=Pool("max", 2, stride=2), flatten=Flatten(),
        fc1=Dense(5), tanh=Activation("tanh"), fc2=Dense(3),
    )  # fmt: skip
    assert layer_to_draw(network, (3, 8, 8)).path == "conv"
    assert layer_to_draw(network, (3, 8, 8), "fc1").image == (4, 4, 4)
    assert layer_to_draw(network, (3, 8, 8), "fc2").image is None
    alike = stack(flatten=Flatten(), fc1=Dense(20), relu=Activation("relu"), fc2=Dense(3))
    assert layer_to_draw(alike, (1, 4, 5), "fc2").image is None, "as many units as pixels are no image"
    first = stack(flatten=Flatten(), fc=Dense(6))
    drawn = layer_to_draw(first, (1, 4, 5))
    assert (drawn.path, drawn.image) == ("fc", (1, 4, 5))
    weights = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    sheet, count = weights_sheet(drawn, weights, "test")
    assert count == 6
    pixels, wanted = np.asarray(sheet), signed_colours(weights[0].reshape(4, 5).astype(np.float64))
    times = 66 // 5
    large = np.repeat(np.repeat(wanted, times, 0), times, 1)
    rows, columns = np.nonzero((pixels == large[0, 0]).all(2))
    assert any(
        np.array_equal(pixels[y : y + large.shape[0], x : x + large.shape[1]], large)
        for y, x in zip(rows, columns, strict=True)
    )


def test_a_run_draws_at_its_steps_and_animates(photo_records: Path, tmp_path: Path) -> None:
    drawing = {"log.pictures": ["classifier"], "log.pictures_every_steps": 1}
    options = {**SMALL, "records": str(photo_records), **drawing}
    ip.train("demo", run=tmp_path / "run", options=options)
    drawn = sorted(path.name for path in (tmp_path / "run" / "pictures" / "classifier").iterdir())
    assert drawn == [f"step-0000000{step}.png" for step in range(4)]
    with Image.open(tmp_path / "run" / "pictures" / "classifier.gif") as animation:
        assert animation.n_frames == 4
    before = (tmp_path / "run" / "pictures" / "classifier" / drawn[2]).read_bytes()
    ip.train(tmp_path / "run", resume="latest", options={"epochs": 2})
    assert (tmp_path / "run" / "pictures" / "classifier" / drawn[2]).read_bytes() == before
    assert len(list((tmp_path / "run" / "pictures" / "classifier").iterdir())) == 7


def test_an_epoch_that_steps_cut_short_is_drawn_too(photo_records: Path, tmp_path: Path) -> None:
    without_epochs = {key: value for key, value in SMALL.items() if key != "epochs"}
    options = {**without_epochs, "records": str(photo_records), "steps": 4, "log.pictures": ["classifier"]}
    base = Recipe(network="shallownet", records=str(photo_records))
    ip.train(base, run=tmp_path / "run", options=options)
    drawn = sorted(path.name for path in (tmp_path / "run" / "pictures" / "classifier").iterdir())
    assert drawn == [f"step-0000000{step}.png" for step in (0, 3, 4)], "three steps are an epoch"


def test_a_layer_that_is_none_is_a_line_before_anything_is_trained(photo_records: Path, tmp_path: Path) -> None:
    options = {**SMALL, "records": str(photo_records), "log.pictures": ["classifer"]}
    with pytest.raises(BadRecipe, match=r"log\.pictures.*did you mean classifier"):
        ip.train("demo", run=tmp_path / "run", options=options)
    assert not (tmp_path / "run").exists()


def test_a_single_picture_is_no_animation(tmp_path: Path) -> None:
    assert animate(tmp_path, ["conv"]) == []
