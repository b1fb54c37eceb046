"""The rules of the house that a machine can check: nothing unsafe, each framework in its own engine alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for package in ("imagenet_pipeline", "record_builders") for path in (REPOSITORY / package).rglob("*.py")
)
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "mx.nd.load",
    "mx.nd.save", "mx.sym.load", "nd.load", "np.save", "pd.read_pickle",
}  # fmt: skip
GENERATED = {"imagenet_pipeline/engines/pytorch/programs.py": "exec"}
"""The one call that runs a text: the module that `interchange/torch_export.py` has just written, to be compiled."""
EXTRAS = ("torch", "extras")
"""A framework and the folder that has it apart from the engines; nothing imports that (setup.cfg)."""
FRAMEWORKS = {"mxnet": "gluon", "torch": "pytorch"}
"""The wing of engines/ that alone may import it; and extras/, which stands apart."""
LOGGERS_FOLDER = REPOSITORY / "imagenet_pipeline" / "training" / "loggers"
LOGGERS = ("tensorboard", "wandb", "mlflow")
"""Each may be imported by the logger of its name alone."""
UNSAFE_METHODS = {"load_parameters", "load_states", "load_params"}
"""Gluon's own loaders: MXNet parses nothing that was not checked."""


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(path: Path, source: str) -> Iterator[str]:
    tree = ast.parse(source)
    wing = path.parent.name if path.parent.parent.name == "engines" or path.parent.name == "extras" else ""
    for module in imported(tree):
        if module.split(".")[0] in UNSAFE_MODULES:
            yield f"imports {module}"
        framework = module.split(".")[0]
        if framework in LOGGERS and path != LOGGERS_FOLDER / f"{framework}.py":
            yield f"imports {framework} outside its logger"
        if framework in FRAMEWORKS and wing != FRAMEWORKS[framework] and (framework, path.parent.name) != EXTRAS:
            yield f"imports {framework} outside its engine"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield "assert"
        if isinstance(node, ast.Attribute) and dotted(node).startswith(("mx.io", "mx.image", "mx.recordio", "mxnet.")):
            yield f"{dotted(node)}: MXNet reads no files here"
        if isinstance(node, ast.Call):
            yield from call_faults(node, path)


def call_faults(node: ast.Call, path: Path) -> Iterator[str]:
    name = dotted(node.func)
    if path.is_absolute() and GENERATED.get(relative(path)) == name:
        return
    if name in UNSAFE_CALLS or name.rpartition(".")[2] in UNSAFE_METHODS:
        yield f"calls {name}"
    if name == "print" and not {"cli", EXTRAS[1]} & {*path.parts}:  # which have command lines of their own
        yield "print outside the command line"
    for keyword in node.keywords:
        value = keyword.value
        if keyword.arg in ("shell", "allow_pickle") and not (isinstance(value, ast.Constant) and value.value is False):
            yield f"{keyword.arg}={ast.unparse(value)}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_unsafe(path: Path) -> None:
    assert list(faults(path, path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from yaml import load", "eval('1')", "exec('')", "torch.load('x')", "mx.nd.load('x')",
        "np.load('x', allow_pickle=True)", "np.load('x', allow_pickle=flag)", "subprocess.run('x', shell=True)",
        "assert x", "print(1)", "import mxnet", "from mxnet import nd", "import mxnet.recordio",
        "import torch", "from torch.nn import Linear", "from tensorboard.compat import proto",
        "import wandb", "from mlflow.tracking import MlflowClient",
        "mx.io.ImageRecordIter()", "mx.image.imread('x')", "net.load_parameters('x')",
    ],
)  # fmt: skip
def test_the_check_finds_what_it_looks_for(source: str) -> None:
    assert list(faults(Path("some.py"), source))


def test_no_file_is_named_after_nothing_in_particular() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler", "base"}
    assert [relative(path) for path in SOURCES if vague & set(path.stem.split("_"))] == []
