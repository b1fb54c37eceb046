"""A network from outside the repository (mobilenet.py, to copy): registered, trained, exported, drawn and listed."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.catalog import NetworkEntry, register_network
from imagenet_pipeline.networks.layers import Dense, Flatten, Sequential, stack
from imagenet_pipeline.networks.summary import network_rows, network_table
from imagenet_pipeline.registry import Registry

HERE = Path(__file__).parent
RECIPE = """
network = "mobilenet"
records = "{records}"
epochs = 1
batch_size = 30
devices = "cpu"
precision = "float64"
input.size = 16
optimizer.learning_rate = 0.05
loader.threads = 0
"""


def small(classes: int) -> Sequential:
    """one dense layer

    and more to say of it"""
    return stack(flatten=Flatten(), classifier=Dense(classes))


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of this test's own, with what is shipped."""
    monkeypatch.setattr(catalog, "_NETWORKS", Registry("network", "networks", catalog._SHIPPED))


@pytest.fixture
def mobilenet(catalogue: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Sequential]:
    """The example, registered as a program does it."""
    monkeypatch.syspath_prepend(HERE)
    from mobilenet import mobilenet as build

    register_network("mobilenet", build)
    return build


@pytest.fixture
def offered(tmp_path: Path) -> Callable[[str], None]:
    """`offered("name = module:object")`: a package with these entry points lies in `tmp_path`, not yet on the path."""

    def offer(points: str) -> None:
        info = tmp_path / "foreign-2.0.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 2.0\n")
        info.joinpath("entry_points.txt").write_text(f"[imagenet_pipeline.networks]\n{points}\n")

    return offer


def test_a_mobilenet_has_the_published_numbers(mobilenet: Any) -> None:
    """https://keras.io/api/applications/mobilenet: 4.3 million with the running statistics, 4,231,976 trained."""
    table = network_table("mobilenet")
    assert (table.parameters, table.input_shape) == (4_231_976, (3, 224, 224))
    assert table.multiply_adds == pytest.approx(569e6, rel=0.001)  # the paper's table 4
    assert table.summary == "Depthwise separable convolutions (Howard et al. 2017)"
    assert len((HERE / "mobilenet.py").read_text().splitlines()) <= 31


@pytest.mark.gluon
def test_it_trains_on_both_engines_and_leaves_as_onnx_and_mxnet(
    mobilenet: Any, photo_records: Path, tmp_path: Path
) -> None:
    """Measured in float64: weights after a step within 4e-13 of each other; exports, in float32, within 4e-7."""
    from imagenet_pipeline.cli import main
    from imagenet_pipeline.engines.gluon.runtime import mx
    from imagenet_pipeline.training.loop import train
    from imagenet_pipeline.training.resume import open_run

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(records=photo_records))
    runs = {name: open_run(recipe, {"engine": name}, tmp_path / name) for name in ("gluon", "pytorch")}
    begun = runs["gluon"].engine.values()
    for run in runs.values():
        train(run)
    first, second = (run.engine.values() for run in runs.values())
    changed = [name for name in begun if np.abs(first[name] - begun[name]).max() > 1e-3]
    assert {"stem.conv.weight", "block13.depthwise.conv.weight", "classifier.weight"} <= set(changed)
    assert max(np.abs(first[name] - second[name]).max() for name in first if "running" not in name) < 1e-9

    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    logits, pixels = runs["pytorch"].engine.logits(images), images.transpose(0, 3, 1, 2).astype(np.float32)
    for form in ("onnx", "mxnet"):
        with pytest.raises(SystemExit, match="0"):
            main(["export", str(tmp_path / "pytorch"), "--format", form, "--out", str(tmp_path / "exported")])
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "exported.onnx"), providers=["CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot decide type")
        files = [str(tmp_path / "exported") + ending for ending in ("-symbol.json", "-0000.params")]
        symbol = mx.gluon.SymbolBlock.imports(files[0], ["data"], files[1])
    for found in (session.run(None, {"images": pixels})[0], symbol(mx.nd.array(pixels)).asnumpy()):
        assert np.abs(found - logits).max() < 1e-4 * np.abs(logits).max()


def test_it_is_drawn_and_listed(mobilenet: Any, tmp_path: Path) -> None:
    from imagenet_pipeline.pictures.graphviz import draw_network

    assert draw_network("mobilenet", tmp_path / "net.dot").parameters == 4_231_976
    assert (tmp_path / "net.dot").read_text().count("32 groups") == 1
    assert network_rows()[-1].name == "mobilenet"


def test_an_installed_package_is_known_to_the_command_line(offered: Callable[[str], None], tmp_path: Path) -> None:
    offered("mobilenet = mobilenet:mobilenet")
    command = f"import sys; sys.path[:0] = {[str(tmp_path), str(HERE)]}; from imagenet_pipeline.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "networks", "mobilenet", "--json"], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["parameters"] == 4_231_976


def test_an_entry_point_is_an_entry_or_a_function(
    offered: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_networks.py").write_text(
        "from imagenet_pipeline.networks.catalog import NetworkEntry\n"
        "from imagenet_pipeline.networks.layers import stack, Flatten, Dense\n"
        "def tiny(classes):\n    'as small as can be'\n    return stack(flatten=Flatten(), classifier=Dense(classes))\n"
        "entry = NetworkEntry('as its author calls it', tiny, 32, 'for 32 pixels')\n"
        "wrong = lambda classes: stack(flatten=Flatten(), classifier=Dense(7))\n"
        "number = 3\nnothing = lambda classes: None\nfailing = lambda classes: 1 / 0\n"
    )
    names = {"a": "tiny", "b": "entry", "c": "number", "d": "nothing", "e": "missing", "f": "failing", "g": "wrong"}
    offered("\n".join(f"{name} = foreign_networks:{found}" for name, found in names.items()))
    monkeypatch.syspath_prepend(tmp_path)
    a, b = catalog.entry("a"), catalog.entry("b")
    assert (a.name, a.input_size, a.summary) == ("a", 224, "as small as can be")
    assert (b.name, b.input_size, b.summary) == ("b", 32, "for 32 pixels")
    assert catalog.build("b", 7).shapes((3, 32, 32))["classifier.weight"] == (7, 3 * 32 * 32)
    rows = {row.name: row for row in network_rows(10)}
    assert rows["a"].parameters == 10 * 3 * 224**2 + 10
    lines = {name: rows[name].summary for name in "cdefg"}
    assert lines["c"] == (
        "network 'c': the function does not return layers; expected a function of the number of "
        "classes that gives a stack(...); found int"
    )
    assert lines["d"].endswith("found NoneType")
    assert "'e' of package foreign 2.0: the entry point 'foreign_networks:missing' cannot be imported" in lines["e"]
    assert lines["f"] == "network 'f': the function fails for 1000 classes (ZeroDivisionError: division by zero)"
    assert lines["g"] == "network 'g': it does not end in an output for each class; expected (1000,); found (7,)"


def test_a_name_of_one_s_own_replaces_itself_and_nothing_else() -> None:
    register_network("small", small, 28)
    register_network("small", small, 30, "other words")
    assert catalog.entry("small") == NetworkEntry("small", small, 30, "other words")
    register_network("small", small)
    assert catalog.entry("small").summary == "one dense layer"
    for name in ("resnet50", "timm:small", "timm", "GluonCV", "", "a b", "a/b"):
        with pytest.raises(BadRecipe, match="cannot register a network under this name"):
            register_network(name, small)
    with pytest.raises(BadRecipe, match=r"network 'broken': the function does not return layers; .*; found list"):
        register_network("broken", lambda classes: [classes])  # type: ignore[arg-type, return-value]
    with pytest.raises(BadRecipe, match="no network is called 'smal'; did you mean small"):
        catalog.entry("smal")
