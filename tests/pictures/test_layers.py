"""Filters and activations: the colours on the sheet are those of the numbers, bad input is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from imagenet_pipeline.drawing import signed_colours, signed_levels
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.features import engine_until
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import (
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Graph,
    Join,
    Reduce,
    Reshape,
    Transpose,
    stack,
)
from imagenet_pipeline.pictures.layers import (
    draw_activations,
    draw_filters,
    draw_grad_cam,
    view_of,
)
from imagenet_pipeline.registry import Registry

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("lenet") / "run")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "größe $1$.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def sheet_of(path: Path) -> Array:
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def holds(sheet: Array, small: Array, times: int) -> bool:
    """Whether the sheet shows `small` [h, w, 3] somewhere, each of its pixels `times` wide and high."""
    large = np.repeat(np.repeat(small, times, axis=0), times, axis=1)
    differences = cv2.matchTemplate(sheet, large, cv2.TM_SQDIFF)
    return float(differences.min()) < 0.5 * large.size


def test_filters_of_three_inputs_are_in_colour_each_on_its_own_scale(run: Path, tmp_path: Path) -> None:
    made = draw_filters(run, tmp_path / "f.png")
    assert (made.network, made.layer, made.shape, made.drawn) == ("lenet", "conv1", (20, 3, 5, 5), 20)
    weights = open_checkpoint(run, "best", {})[1].weights["conv1.weight"].astype(np.float64)
    sheet = sheet_of(tmp_path / "f.png")
    for one in weights:
        assert holds(sheet, signed_levels(one.transpose(1, 2, 0)), 13)
    assert not holds(sheet, signed_levels(-weights[0].transpose(1, 2, 0)), 13)


def test_filters_of_many_inputs_are_a_table(run: Path, tmp_path: Path) -> None:
    made = draw_filters(run, tmp_path / "f.png", "conv2")
    assert (made.shape, made.drawn) == ((50, 20, 5, 5), 16)
    weights = open_checkpoint(run, "best", {})[1].weights["conv2.weight"].astype(np.float64)
    sheet = sheet_of(tmp_path / "f.png")
    row = signed_colours(np.concatenate(list(weights[15, :16]), axis=1))
    assert holds(sheet, row[:, :5], 6)
    assert holds(sheet, row[:, -5:], 6)


def test_activations_are_those_of_the_layer_for_the_photo(run: Path, photo: Path, tmp_path: Path) -> None:
    made = draw_activations(run, photo, "relu1", tmp_path / "a.png", channels=9)
    assert (made.layer, made.shape, made.drawn) == ("relu1", (20, 24, 24), 9)
    recipe, checkpoint = open_checkpoint(run, "best", {})
    engine, _ = engine_until(recipe, checkpoint, "relu1", "a test")
    values = engine.logits(view_of(photo, checkpoint)[None])[0]
    sheet = sheet_of(tmp_path / "a.png")
    assert [holds(sheet, signed_colours(one), 3) for one in values[:10]] == [True] * 9 + [False]


@pytest.mark.gluon
def test_a_vector_is_bars_and_both_engines_draw_the_same(run: Path, photo: Path, tmp_path: Path) -> None:
    for engine in ("gluon", "pytorch"):
        out = tmp_path / f"{engine}.png"
        made = draw_activations(run, photo, "dense1", out, overrides={"engine": engine})
        assert (made.shape, made.drawn) == ((500,), 500)
    first, second = sheet_of(tmp_path / "gluon.png"), sheet_of(tmp_path / "pytorch.png")
    # float64 on both: a bar may end at a neighbouring pixel where rounding decides.
    assert np.count_nonzero((first != second).any(axis=2)) < 20
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("name", ["resnet18_v2", "minigooglenet"])
def test_groups_bodies_and_branches_are_layers_too(
    make_run: Callable[..., Path], photo: Path, tmp_path: Path, name: str
) -> None:
    place = make_run(tmp_path / "run", name, 32)
    layers = {"resnet18_v2": ("stage1", "stage2.unit1.norm1"), "minigooglenet": ("inception3a", "inception3a.branch3")}
    for layer in layers[name]:
        made = draw_activations(place, photo, layer, tmp_path / "a.png", channels=5)
        assert (made.drawn, len(made.shape)) == (5, 3)


@pytest.fixture
def branching(make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a network with a channel shuffle in a Graph."""
    monkeypatch.setattr(catalog, "_NETWORKS", Registry("network", "networks", catalog._SHIPPED))
    unit = Graph(
        (("left", Conv(4, 3)), ("right", Conv(4, 3)), ("both", Join()), ("groups", Reshape((2, 4, 26, 26))),
         ("turned", Transpose((1, 0, 2, 3))), ("rows", Reduce("mean", (0, 1))), ("end", Reshape((8, 26, 26)))),
        (("",), ("",), ("left", "right"), ("both",), ("groups",), ("turned",), ("turned",)),
    )  # fmt: skip
    head = {"pool": GlobalAveragePool(), "flatten": Flatten()}
    catalog.register_network("branching", lambda classes: stack(unit=unit, **head, classifier=Dense(classes)), 28)
    return make_run(tmp_path / "run", "branching")


def test_arrays_of_two_and_four_axes_are_drawn_as_channels(branching: Path, photo: Path, tmp_path: Path) -> None:
    for layer, shape, drawn in (("unit.turned", (4, 2, 26, 26), 8), ("unit.rows", (26, 26), 1)):
        made = draw_activations(branching, photo, layer, tmp_path / "a.png")
        assert (made.layer, made.shape, made.drawn) == (layer, shape, drawn)
        recipe, checkpoint = open_checkpoint(branching, "best", {})
        engine, _ = engine_until(recipe, checkpoint, layer, "")
        values = engine.logits(view_of(photo, checkpoint)[None])[0].reshape(-1, 26, 26)
        for channel in values:
            assert holds(sheet_of(tmp_path / "a.png"), signed_colours(channel), 3)


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_grad_cam_looks_at_what_leaves_a_graph(branching: Path, photo: Path, tmp_path: Path, engine: str) -> None:
    made = draw_grad_cam(branching, [photo], tmp_path / "g.png", overrides={"engine": engine})
    assert (made.layer, made.shape) == ("unit.end", (8, 26, 26))
    assert draw_grad_cam(branching, [photo], tmp_path / "g.png", "unit.left").shape == (4, 26, 26)
    with pytest.raises(BadRecipe, match=r"needs a layer with positions.*an array of 2x4x26x26"):
        draw_grad_cam(branching, [photo], tmp_path / "g.png", "unit.groups")


def test_what_cannot_be_drawn_is_one_line_and_leaves_no_file(
    run: Path, make_run: Callable[..., Path], photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.png"
    with pytest.raises(
        BadRecipe, match=r"layer relu1: only convolutions and dense layers have .*; expected conv1 or conv2 or dense1"
    ):
        draw_filters(run, out, "relu1")
    with pytest.raises(BadRecipe, match="no layer is called 'conv9'; did you mean conv"):
        draw_filters(run, out, "conv9")
    with pytest.raises(BadRecipe, match="no layer is called 'conv9'; did you mean conv"):
        draw_activations(run, photo, "conv9", out)
    with pytest.raises(BadRecipe, match=r"ends in \.png"):
        draw_filters(run, tmp_path / "x.jpg")
    with pytest.raises(BadRecipe, match="'epochs' does not apply"):
        draw_activations(run, photo, "conv1", out, overrides={"epochs": 1})
    with pytest.raises(BadInput, match=r"none\.png: the photo cannot be used"):
        draw_activations(run, tmp_path / "none.png", "conv1", out)
    with pytest.raises(BadRecipe, match="would overwrite an input"):
        draw_activations(run, photo, "conv1", photo)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(BadInput, match=r"text\.png: the photo cannot be used \(not an image that can be read\)"):
        draw_activations(run, tmp_path / "text.png", "conv1", out)
    assert {path.name for path in tmp_path.iterdir()} == {"text.png"}
