"""Photos several times as large as the network's input are decoded reduced: nearly the same view, the same answers.

The bound: no pixel of a view differs by more than 6 grey levels from that of the photo decoded whole, and half a grey
level on average.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from imagenet_pipeline.evaluation.predict import Classifier, least_edge_for, open_classifier, predict
from imagenet_pipeline.loading.augment import evaluation_transform
from imagenet_pipeline.loading.reduced import ReducedImage, resize_photo_into, upright_image
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import LazyImage, Rejected, encode_jpeg

MOST, MEAN = 6, 0.5
SIZE, FRACTION = 64, 0.875
LEAST_EDGE = 293  # four times 64 / 0.875
END = b"\xff\xd9"


def large_jpeg(photo: Pixels, height: int, width: int, orientation: int = 1) -> bytes:
    """A phone's photo of this size as it lies: enlarged from a small one, with the noise of a sensor."""
    pixels = cv2.resize(photo, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.empty(pixels.shape, np.int16)
    cv2.setRNGSeed(height)
    cv2.randn(noise, (0, 0, 0), (4, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(stream, "JPEG", quality=92, exif=exif)
    return stream.getvalue()


@pytest.fixture(scope="module")
def drawn() -> Pixels:
    """A picture with edges and textures of every direction, 96 x 128."""
    random = np.random.default_rng(5)
    picture = cv2.resize(random.integers(0, 256, (24, 32, 3), np.uint8), (128, 96), interpolation=cv2.INTER_NEAREST)
    cv2.circle(picture, (64, 48), 30, (250, 240, 20), 3)
    return np.asarray(picture, np.uint8)


def views(image: LazyImage, crops: int = 1) -> npt.NDArray[np.int64]:
    out = np.empty((crops, SIZE, SIZE, 3), np.uint8)
    evaluation_transform(image, FRACTION, out, resize_photo_into)
    return out.astype(np.int64)


@pytest.mark.parametrize("crops", [1, 10])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_views_of_photos_that_lie_any_way_are_those_of_the_whole(drawn: Pixels, orientation: int, crops: int) -> None:
    data = large_jpeg(drawn, 1187, 1613, orientation)  # neither a multiple of eight
    reduced, whole = upright_image(data, None, LEAST_EDGE), upright_image(data)
    assert isinstance(reduced, ReducedImage)
    assert reduced.reduction == 4
    assert (reduced.height, reduced.width) == (whole.height, whole.width)
    difference = np.abs(views(reduced, crops) - views(whole, crops))
    assert difference.max() <= MOST
    assert difference.mean() <= MEAN


@pytest.mark.parametrize(("edge", "reduction"), [(585, 1), (586, 2), (1171, 2), (1172, 4), (2344, 8), (4000, 8)])
def test_a_photo_is_reduced_as_far_as_its_shorter_edge_allows(edge: int, reduction: int) -> None:
    image = upright_image(encode_jpeg(np.full((edge, 4100, 3), 90, np.uint8), 90), None, LEAST_EDGE)
    assert image.whole().shape == (-(-edge // reduction), -(-4100 // reduction), 3)
    assert (image.height, image.width) == (edge, 4100)


def test_pictures_that_are_small_or_no_jpeg_keep_their_pixels(drawn: Pixels) -> None:
    small = large_jpeg(drawn, 480, 640, 6)
    assert np.array_equal(upright_image(small, None, LEAST_EDGE).whole(), upright_image(small).whole())
    png = cv2.imencode(".png", cv2.resize(drawn, (1200, 900)))[1].tobytes()
    assert np.array_equal(upright_image(png, None, LEAST_EDGE).whole(), upright_image(png).whole())


def told(data: bytes, least_edge: int | None) -> tuple[str, list[str]]:
    """The reason why a photo is refused, and the damage that is named."""
    damage: list[str] = []
    try:
        upright_image(data, damage.append, least_edge)
    except Rejected as reason:
        return str(reason), damage
    return "", damage


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_is_told_in_the_same_words(drawn: Pixels, progressive: bool) -> None:
    stream = io.BytesIO()
    Image.fromarray(cv2.resize(drawn, (1600, 1200))).save(stream, "JPEG", quality=92, progressive=progressive)
    data, chance = stream.getvalue(), np.random.default_rng(1)
    late = len(data) - len(data) // 10  # below the crop
    forms = {
        "whole": data,
        "cut": data[:late],
        "cut_with_end_marker": data[:late] + END,
        "zeroed": data[:late] + bytes(len(data) - late - 2) + END,
        **{f"random {n}": data[:late] + chance.bytes(300) + data[late + 300 :] for n in range(5)},
    }
    answers = {form: told(changed, LEAST_EDGE) for form, changed in forms.items()}
    assert answers == {form: told(changed, None) for form, changed in forms.items()}
    assert answers.pop("whole") == ("", [])
    assert all(reason or damage for reason, damage in answers.values())


def test_large_photos_are_answered_as_when_decoded_whole(
    make_run: Callable[..., Path],
    drawn: Pixels,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    unpacked: Callable[[str], Path],
) -> None:
    """Real photos enlarged to twelve megapixels, read from their files."""
    classifier = open_classifier(make_run(tmp_path / "run"))
    found = sorted(unpacked("imagenet_samples_300.tar").rglob("*.JPEG"))[5:300:150]
    for number, path in enumerate(found):
        data = large_jpeg(upright_image(path.read_bytes()).whole(), 3024, 4032, orientation=1 + 5 * (number % 2))
        (tmp_path / f"{number}.jpg").write_bytes(data)
    paths = sorted(tmp_path.glob("*.jpg"))
    caplog.set_level(logging.WARNING)
    for prediction in predict(classifier, paths, top=len(classifier.classes)):
        whole = _whole_answer(classifier, prediction.path.read_bytes())
        assert prediction.top[0].class_id == classifier.classes.ids[int(whole.argmax())]
        reduced = {choice.class_id: choice.probability for choice in prediction.top}
        np.testing.assert_allclose([reduced[name] for name in classifier.classes.ids], whole, atol=0.01)
    assert caplog.messages == []


def _whole_answer(classifier: Classifier, data: bytes) -> npt.NDArray[np.float64]:
    state = classifier.checkpoint.state
    assert isinstance(upright_image(data, None, least_edge_for(state)), ReducedImage)
    return classifier.probabilities([upright_image(data).whole()])[0]
