"""MXNet's import: what it would bring along is left out, and is there for whoever asks later."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

runtime = pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that can be imported, and is not yet."""
    (tmp_path / "rarely_asked_for.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "rarely_asked_for"
    sys.modules.pop("rarely_asked_for", None)


def test_what_mxnet_was_refused_is_there_afterwards() -> None:
    pytest.importorskip("onnx")
    program = """
import gc, sys
finders = list(sys.meta_path)
from imagenet_pipeline.engines.gluon.runtime import mx
assert not {"sklearn", "scipy.stats", "onnx", "pandas"} & sys.modules.keys()
assert [finder for finder in sys.meta_path if finder not in finders] == [] and gc.isenabled()
operators = mx.onnx.mx2onnx._op_translations
helper = operators._op_translations_opset12.onnx.helper
assert helper is operators._op_translations_opset13.onnx.helper
import onnx, scipy.stats, sklearn.base
assert helper is onnx.helper
assert mx.test_utils.ss.norm.ppf(0.5) == 0
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_thread_imports_what_this_thread_is_refused(package: str) -> None:
    with ThreadPoolExecutor(1) as pool, runtime.refused({package}) as missed:
        with pytest.raises(ModuleNotFoundError, match=package):
            importlib.import_module(package)
        assert missed == {package}
        assert pool.submit(importlib.import_module, package).result().value == 7
        assert importlib.import_module(package).value == 7  # it is there now


def test_nothing_stays_refused_after_an_error(package: str) -> None:
    finders = list(sys.meta_path)
    with pytest.raises(OSError, match="no CUDA"), runtime.refused({package}):
        raise OSError("no CUDA")
    assert sys.meta_path == finders
    assert importlib.import_module(package).value == 7
