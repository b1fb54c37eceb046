"""Fixtures that several folders share: the shared real data, where it is; small records, and runs of drawn weights."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from imagenet_pipeline.engines import choose_engine, is_installed

# The machines are shared and slow now and then; a slow example is no failure.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

# Python before 3.11.4 unpacks without a filter; the archives are our own.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
REPOSITORY = Path(__file__).resolve().parent.parent
THERE: dict[str, Callable[[], bool]] = {
    "gluon": lambda: is_installed("gluon"),
    "pytorch": lambda: is_installed("pytorch"),
    "faces": lambda: hasattr(importlib.import_module("cv2"), "CascadeClassifier"),
}
"""What a test may need, by the name of its marker, and whether it is in this environment."""
REQUIRED = "IMAGENET_PIPELINE_TESTS_NEED"
"""Variable of the environment: those of them that shall be there, so that none of their tests is skipped unseen."""


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run without what shall be there."""
    missing = [name for name in os.environ.get(REQUIRED, "").split() if not THERE[name]()]
    if missing:
        raise pytest.UsageError(f"{REQUIRED}: {', '.join(missing)} is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip a test of what is not there: one marked with its name, or with a parameter that begins with it.

    A module that imports MXNet at its head begins with
    `pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")`.
    """
    for name, is_there in THERE.items():
        if not is_there():
            skip = pytest.mark.skip(reason=f"needs {name}, which is not in this environment")
            for item in items:
                parameters = item.name.partition("[")[2].rstrip("]").split("-")
                if item.get_closest_marker(name) or name in [word.split(" ")[0] for word in parameters]:
                    item.add_marker(skip)


@pytest.fixture(scope="session")
def mx() -> Any:
    """MXNet itself, to compare with."""
    pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")
    from imagenet_pipeline.engines.gluon.runtime import mx

    return mx


@pytest.fixture(scope="session", autouse=True)
def unpainted_curves() -> Iterator[None]:
    """The curves that a training draws as it goes are laid out, and left blank.

    Painting takes matplotlib a third of a second, of a training that may take a tenth.
    """
    from PIL import Image

    from imagenet_pipeline.training import curves, saving

    def blank(figure: Any) -> bytes:
        stream, (width, height) = io.BytesIO(), figure.get_size_inches()
        Image.new("L", (round(110 * width), round(110 * height))).save(stream, "PNG")
        return stream.getvalue()

    def draw_curves(*words: Any, **named: Any) -> bool:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(curves, "png", blank)
            return curves.draw_curves(*words, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(saving, "draw_curves", draw_curves)
        yield


@pytest.fixture(scope="session")
def class_of() -> Callable[[str], Any]:
    """`class_of("gluon")`: an engine's class, a method of which a test may replace."""

    def find(engine: str) -> Any:
        module = importlib.import_module(f"imagenet_pipeline.engines.{engine}.engine")
        return module.GluonEngine if engine == "gluon" else module.PyTorchEngine

    return find


@pytest.fixture
def engine_class(class_of: Callable[[str], Any]) -> Any:
    """The class of the engine that a recipe's "auto" is here."""
    return class_of(choose_engine("cpu"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared real data: IMAGENET_PIPELINE_DATA, or else ../shared/data."""
    folder = Path(os.environ.get("IMAGENET_PIPELINE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder} (IMAGENET_PIPELINE_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def unpacked(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`unpacked("odd_images_shared.tar.xz")` is a folder with that archive's content, unpacked once a session."""
    folders: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in folders:
            archive = shared_data / name
            if not archive.is_file():
                pytest.skip(f"no {name} in {shared_data}")
            folder = tmp_path_factory.mktemp(name.partition(".")[0])
            with tarfile.open(archive) as tar:
                tar.extractall(folder, **SAFELY)
            folders[name] = folder
        return folders[name]

    return unpack


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`drawn_run("happy", "sad", names=("Happy", "Sad"), network="lenet", size=28)`: a run of drawn weights."""
    from imagenet_pipeline.config import InputRecipe, LoaderRecipe, Recipe, recipe_text
    from imagenet_pipeline.networks import catalog
    from imagenet_pipeline.networks.initial import initial_values
    from imagenet_pipeline.training.checkpoint import State, save_checkpoint

    def draw(
        *ids: str, names: tuple[str, ...] = (), network: str = "lenet", size: int = 28, engine: Any = "pytorch"
    ) -> Path:
        place = tmp_path_factory.mktemp("run")
        recipe = Recipe(
            network=network, records="nowhere", engine=engine, batch_size=5, devices="cpu", precision="float32",
            input=InputRecipe(size=size), loader=LoaderRecipe(threads=0),
        )  # fmt: skip
        (place / "recipe.toml").write_text(recipe_text(recipe))
        values = initial_values(catalog.entry(network).build(len(ids)), (3, size, size), "he", 1)
        state = State(
            1, 6, network, size, ids, names or ids, "folder", (128.0,) * 3, (60.0,) * 3, "0" * 64, engine, {},
            {"validation_rank1": 10.0}, {}, 1.0,
        )  # fmt: skip
        save_checkpoint(place, state, values, {})
        return place

    return draw


@pytest.fixture(scope="session")
def emotion_run(drawn_run: Callable[..., Path]) -> Path:
    """An untrained run with FER2013's seven classes."""
    names = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    return drawn_run(*names, network="emotion_vggnet", size=48)


@pytest.fixture(scope="session")
def portraits() -> tuple[Any, Any]:
    """Two photos with one face each, RGB: Eileen Collins (scikit-image) and Grace Hopper (matplotlib)."""
    import matplotlib.cbook
    import skimage.data

    from imagenet_pipeline.loading.reduced import upright_image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=True) as stream:
        hopper = upright_image(stream.read()).whole()
    return skimage.data.astronaut(), hopper


@pytest.fixture(scope="session")
def two_faces(portraits: tuple[Any, Any]) -> Callable[[int], Any]:
    """`two_faces(i)`: frame i of a scene of 640 x 360 pixels in which both portraits move to the right."""
    import cv2
    import numpy as np

    collins, hopper = portraits[0][0:300, 80:380], cv2.resize(portraits[1], (256, 300))

    def frame(number: int) -> Any:
        pixels = np.full((360, 640, 3), (120, 130, 125), np.uint8)
        pixels[30:330, 10 + number : 310 + number] = collins
        pixels[20:320, 340 + number : 596 + number] = hopper
        return pixels

    return frame


class Inline(Executor):
    """Runs each task at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def inline() -> Executor:
    return Inline()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 smooth colour JPEGs of several sizes, 0.jpg .. 29.jpg."""
    import cv2
    import numpy as np

    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(7)
    for i in range(30):
        height, width = (int(side) for side in generator.integers(20, 90, 2))
        noise = generator.integers(0, 256, (5, 5, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), cv2.resize(noise, (width, height)))
    return folder


@pytest.fixture(scope="session")
def small_plan(photos: Path) -> Any:
    """18 train, 6 val and 6 test images of three classes."""
    import numpy as np

    from imagenet_pipeline.records.classes import ClassTable
    from imagenet_pipeline.records.plan import Images, Plan

    classes = ClassTable("folder", ("cat", "dog", "emu"), ("Cat", "Dog", "Emu"))
    rows = np.arange(30)
    cuts = {"train": rows[:18], "val": rows[18:24], "test": rows[24:]}
    splits = {name: Images([f"{i}.jpg" for i in cut], cut % 3) for name, cut in cuts.items()}
    return Plan(photos, splits, classes, {"builder": "test"})


@pytest.fixture(scope="session")
def data_set(small_plan: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_plan` built with short edge 32 into two train shards; not to be changed."""
    from imagenet_pipeline.records.build import BuildOptions, build

    out = tmp_path_factory.mktemp("data") / "set"
    build(small_plan, out, BuildOptions(resize=32, shards=2, workers=1), executor=Inline())
    return out


@pytest.fixture(scope="session")
def stock_record() -> Callable[..., bytes]:
    """`stock_record(3, 7, image)`: a framed record as MXNet packs it, number 7; label 3, or (3, 0) for several."""
    import struct

    from imagenet_pipeline.records.recordio import frame

    def packed(label: Any, number: int, image: bytes) -> bytes:
        labels = [] if isinstance(label, int | float) else list(label)
        head = struct.pack("<IfQQ", len(labels), 0.0 if labels else label, number, 0)
        return frame(head + struct.pack(f"<{len(labels)}f", *labels) + image)

    return packed


@pytest.fixture(scope="session")
def digits_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as records, 1,197 train, 300 val, 300 test; not to be changed."""
    from imagenet_pipeline.record_builders import digits
    from imagenet_pipeline.records.build import BuildOptions, build

    folder = tmp_path_factory.mktemp("digits")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1))
    return folder


@pytest.fixture(scope="session")
def photo_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of six brightnesses: 30 train, 6 val, 12 test images."""
    import cv2
    import numpy as np

    from imagenet_pipeline.record_builders import folder
    from imagenet_pipeline.records.build import BuildOptions, build

    classes, photos, side = 6, 8, 40
    root, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("records")
    random = np.random.default_rng(0)
    for label in range(classes):
        (root / f"class{label}").mkdir()
        for number in range(photos):
            pixels = random.integers(0, 100, (side, side, 3), dtype=np.uint8) + 30 * label
            cv2.imwrite(str(root / f"class{label}" / f"{number}.png"), pixels.astype(np.uint8))
    build(folder.plan(root, 0.125, 0.25), out, BuildOptions(resize=0, workers=1))
    return out


@pytest.fixture(scope="session")
def make_run(photo_records: Path) -> Callable[..., Path]:
    """`make_run(folder, network="lenet", size=28, engine="pytorch", seed=1, classes=None, crop_fraction=0.875)`."""
    from imagenet_pipeline.config import InputRecipe, LoaderRecipe, Recipe, recipe_text
    from imagenet_pipeline.networks import catalog
    from imagenet_pipeline.networks.initial import initial_values
    from imagenet_pipeline.records.manifest import read_data_set
    from imagenet_pipeline.training.checkpoint import State, save_checkpoint

    def make(
        place: Path,
        network: str = "lenet",
        size: int = 28,
        engine: Any = "pytorch",
        seed: int = 1,
        classes: tuple[str, ...] | None = None,
        crop_fraction: float = 0.875,
    ) -> Path:
        data = read_data_set(photo_records)
        ids = classes or data.classes.ids
        recipe = Recipe(
            network=network, records=str(photo_records), engine=engine, batch_size=5, devices="cpu",
            precision="float64", input=InputRecipe(size=size, crop_fraction=crop_fraction),
            loader=LoaderRecipe(threads=0),
        )  # fmt: skip
        place.mkdir(parents=True)
        (place / "recipe.toml").write_text(recipe_text(recipe))
        values = initial_values(catalog.entry(network).build(len(ids)), (3, size, size), "he", seed)
        state = State(
            1, 6, network, size, ids, ids, data.classes.order, data.mean, data.std, data.digest, engine, {},
            {"validation_rank1": 10.0}, {}, crop_fraction,
        )  # fmt: skip
        save_checkpoint(place, state, values, {})
        return place

    return make


class ObjectStore:
    """A bucket of a real S3 server on this machine. `url` is its address; `endpoint` that of the server.

    `fail("500", 2, "GET", "train.rec")`: the next two such requests of objects named so fail. Faults are "500" or a
    status, "cut" (half of the answer, then the line closes), "wrong" (a byte of it changed), "slow" (a second), or a
    function that is called before the answer. `requests` are those that came: method, path and range.
    """

    def __init__(self, application: Any) -> None:
        self._application, self._faults = application, []  # type: ignore[var-annotated]
        self.requests: list[tuple[str, str, str]] = []
        self.endpoint = self.url = ""

    def fail(self, fault: str | Callable[[], None], times: int = 1, method: str = "", ending: str = "") -> None:
        self._faults += [(fault, method, ending)] * times

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path, environ.get("HTTP_RANGE", "")))
        meant = [entry for entry in self._faults if entry[1] in ("", method) and path.endswith(entry[2])]
        fault = meant[0][0] if meant else ""
        if meant:
            self._faults.remove(meant[0])
        if callable(fault):
            fault()
        if fault == "slow":
            time.sleep(1)
        if str(fault).isdigit():
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{fault} Fault", [("Content-Length", "0")])
            return []
        content = b"".join(self._application(environ, start_response))
        if fault == "cut":
            return [content[: len(content) // 2]]
        return [bytes([content[0] ^ 1]) + content[1:] if fault == "wrong" else content]


@pytest.fixture(scope="session")
def _object_server() -> Iterator[ObjectStore]:
    server = pytest.importorskip("moto.server")
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    store = ObjectStore(server.DomainDispatcherApplication(server.create_backend_app))
    http_server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Quiet)
    store.endpoint = f"http://127.0.0.1:{http_server.server_port}"
    thread = threading.Thread(target=http_server.serve_forever, daemon=True)
    thread.start()
    yield store
    http_server.shutdown()
    http_server.server_close()
    thread.join()


_buckets = itertools.count()


@pytest.fixture
def object_store(_object_server: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStore:
    """An empty bucket, with the environment in which this process and those it starts find it."""
    pytest.importorskip("s3fs")
    from urllib.request import Request, urlopen

    bucket = f"bucket{next(_buckets)}"
    environment = {
        "AWS_ENDPOINT_URL": _object_server.endpoint, "AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(tmp_path / "no"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no"), "NO_PROXY": "127.0.0.1",
        "IMAGENET_PIPELINE_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(urlopen(Request(f"{_object_server.endpoint}/{bucket}", method="PUT"))):
        pass
    _object_server.url = f"s3://{bucket}"
    _object_server._faults.clear()
    _object_server.requests.clear()
    return _object_server
