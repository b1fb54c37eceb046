"""Grad-CAM: the paper's formula, its likeness to CAM, the right class, and a sheet that shows the map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.drawing import tile
from imagenet_pipeline.engines import Blueprint, create_engine
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.predict import open_classifier, read_picture
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.pictures.layers import _overlaid, draw_grad_cam, heat_maps, label_of, view_of
from imagenet_pipeline.records.classes import ClassTable

numbers = st.floats(-100, 100, width=32)
maps = st.tuples(*[st.integers(1, 3)] * 4).flatmap(
    lambda shape: st.tuples(arrays(np.float32, shape, elements=numbers), arrays(np.float32, shape, elements=numbers))
)


@given(maps)
def test_the_formula_is_the_paper_s(pair: tuple[Any, Any]) -> None:
    activations, gradients = pair
    images, channels, height, width = activations.shape
    found = heat_maps(activations, gradients)
    for image in range(images):
        for y in range(height):
            for x in range(width):
                total = 0.0
                for channel in range(channels):
                    alpha = sum(map(float, gradients[image, channel].ravel())) / (height * width)
                    total += alpha * float(activations[image, channel, y, x])
                assert found[image, y, x] == pytest.approx(max(0.0, total), abs=1e-6)


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
@pytest.mark.parametrize(("name", "size", "layer"), [("resnet18", 64, "stage4"), ("minigooglenet", 32, "inception4b")])
def test_before_a_mean_and_a_dense_layer_it_is_cam_over_the_number_of_positions(
    engine: str, name: str, size: int, layer: str
) -> None:
    """Class activation mapping (Zhou et al. 2016): the maps weighted by the class's weights of the dense layer."""
    network = catalog.entry(name).build(5)
    values = initial_values(network, (3, size, size), "he", 1)
    recipe = Recipe(network="", records="", devices="cpu", precision="float64")
    blueprint = Blueprint(network, size, (120.0,) * 3, (60.0,) * 3, recipe)
    built = create_engine(engine, blueprint, values)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    classes = np.array([1, 4])
    activations, gradients = built.layer_gradients(images, layer, classes)
    weights = values["classifier.weight"].astype(np.float64)[classes]
    cam = np.maximum((weights[:, :, None, None] * activations).sum(1), 0)
    positions = activations.shape[2] * activations.shape[3]
    assert positions > 1
    assert cam.max() > 0
    np.testing.assert_allclose(heat_maps(activations, gradients), cam / positions, rtol=1e-9, atol=1e-12 * cam.max())


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("lenet") / "run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{number} [x]=.png" for number in range(3)]
    for path in paths:
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path.write_bytes(cv2.imencode(".png", cv2.resize(coarse, (64, 48)))[1].tobytes())
    return paths


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_it_looks_for_the_most_probable_class_at_the_last_map(
    run: Path, photos: list[Path], tmp_path: Path, engine: str
) -> None:
    made = draw_grad_cam(run, photos, tmp_path / "g.png", overrides={"engine": engine})
    classifier = open_classifier(run, overrides={"engine": engine, "precision": "float32"})
    probabilities = classifier.probabilities([read_picture(path).whole() for path in photos])
    assert (made.layer, made.shape, made.engine, made.precision) == ("pool2", (50, 4, 4), engine, "float32")
    assert [one.class_id for one in made.images] == [classifier.classes.ids[row.argmax()] for row in probabilities]
    np.testing.assert_allclose([one.probability for one in made.images], probabilities.max(1), rtol=1e-5)
    views = np.stack([view_of(path, classifier.checkpoint) for path in photos])
    wanted = heat_maps(*classifier.engine.layer_gradients(views, "pool2", probabilities.argmax(1)))
    np.testing.assert_allclose([one.heat for one in made.images], wanted.max(axis=(1, 2)), rtol=1e-4)


def test_a_named_class_and_layer_are_looked_at(run: Path, photos: list[Path], tmp_path: Path) -> None:
    made = draw_grad_cam(run, photos[:1], tmp_path / "g.png", "relu1", "class3", overrides={"precision": "float64"})
    assert (made.layer, made.precision, made.images[0].class_id) == ("relu1", "float64", "class3")
    classifier = open_classifier(run)
    probability = classifier.probabilities([read_picture(photos[0]).whole()])[0, 3]
    assert made.images[0].probability == pytest.approx(probability)


def test_the_sheet_has_each_photo_and_beside_it_its_map(run: Path, photos: list[Path], tmp_path: Path) -> None:
    draw_grad_cam(run, photos[:1], tmp_path / "one.png")
    draw_grad_cam(run, photos, tmp_path / "three.png")
    one, three = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "three"))
    assert one.shape[1] == 3 * 14 + 2 * 240
    assert three.shape[1] == 5 * 14 + 4 * 240
    bar = one[-20, 70:190].astype(int)  # from none, a grey, to most
    assert np.ptp(bar[0]) < 15
    assert bar[-1].sum() > bar[0].sum() + 200
    view = view_of(photos[0], open_classifier(run).checkpoint)
    large = np.asarray(Image.fromarray(view).resize((240, 240), Image.Resampling.BICUBIC))
    assert float(cv2.matchTemplate(one, large, cv2.TM_SQDIFF).min()) < 1.0


def test_white_does_not_pass_for_heat_and_the_photo_shows_through() -> None:
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[:20] = 255
    heat = np.zeros((4, 4))
    np.testing.assert_array_equal(_overlaid(photo, heat), np.round(0.55 * photo))
    heat[:, 3] = 1
    drawn = _overlaid(photo, heat).astype(int)
    np.testing.assert_array_equal(drawn[:, 0], np.round(0.55 * photo[:, 0]))
    assert drawn[30, 39].sum() > drawn[10, 0].sum()  # heat on black outshines a white place without
    assert np.ptp(drawn[30, 39]) > 50  # and has a colour
    assert drawn[10, 39].sum() > drawn[30, 39].sum() + 50


def test_where_nothing_speaks_for_a_class_the_picture_stays_and_says_so(
    make_run: Callable[..., Path], photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_run(tmp_path / "run")
    nothing = np.zeros((1, 50, 4, 4))
    monkeypatch.setattr("imagenet_pipeline.pictures.layers.heat_maps", lambda *_: nothing[:, 0])
    drawn: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        "imagenet_pipeline.pictures.layers.tile",
        lambda pixels, side, lines: (drawn.append((pixels, lines)), tile(pixels, side, lines))[1],
    )
    made = draw_grad_cam(place, photos[:1], tmp_path / "g.png")
    assert made.images[0].heat == 0
    (photo, _), (picture, (caption,)) = drawn
    np.testing.assert_allclose(picture, 0.55 * photo.mean(axis=2, keepdims=True).repeat(3, axis=2), atol=0.51)
    assert caption.endswith("%, found nowhere")
    monkeypatch.setattr("imagenet_pipeline.pictures.layers.heat_maps", lambda *_: nothing[:, 0] + np.nan)
    with pytest.raises(BadInput, match="gradients of the network are not finite"):
        draw_grad_cam(place, photos[:1], tmp_path / "g.png")


def test_classes_by_name_or_id() -> None:
    table = ClassTable("wnid", ("n1", "n2", "n3", "crane"), ("crane", "crane", "tench", "lift"))
    assert [label_of(name, table) for name in ("n1", "n2", "tench", "crane", "lift")] == [0, 1, 2, 3, 3]
    with pytest.raises(BadRecipe, match="no class is called 'tensh'; did you mean tench"):
        label_of("tensh", table)
    twice = ClassTable("wnid", ("n1", "n2"), ("crane", "crane"))
    with pytest.raises(BadRecipe, match="2 classes are called 'crane'; expected n1 or n2"):
        label_of("crane", twice)


def test_what_cannot_be_looked_at_is_one_line_and_leaves_no_file(
    run: Path, make_run: Callable[..., Path], photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "g.png"
    with pytest.raises(BadRecipe, match=r"layer dense1: Grad-CAM needs a layer with positions.*found a vector of 500"):
        draw_grad_cam(run, photos, out, "dense1")
    with pytest.raises(BadRecipe, match="no layer is called 'pool3'; did you mean pool"):
        draw_grad_cam(run, photos, out, "pool3")
    with pytest.raises(BadRecipe, match="no class is called 'cat'"):
        draw_grad_cam(run, photos, out, class_name="cat")
    with pytest.raises(BadRecipe, match=r"the number of photos to draw is out of range; expected 1\.\.100; found 101"):
        draw_grad_cam(run, photos[:1] * 101, out)
    with pytest.raises(BadInput, match="cannot be used"):
        draw_grad_cam(run, [*photos, tmp_path / "none.png"], out)
    with pytest.raises(BadRecipe, match="would overwrite an input"):
        draw_grad_cam(run, photos, photos[1])
    assert list(tmp_path.iterdir()) == []
