"""Import of MXNet, here and nowhere else, with what it needs before and after."""

from __future__ import annotations

import ctypes
import glob
import importlib
import importlib.metadata
import os
import site
import sys
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import numpy as np

from imagenet_pipeline.processes import available_processors, without_collecting

# Libraries mxnet-cu112's wheel expects to find on the system; the nvidia-*-cu11 packages carry them.
_CUDA_LIBRARIES = (
    "libcudart.so.11.0",
    "libnvToolsExt.so.1",
    "libcublas.so.11",
    "libcufft.so.10",
    "libcurand.so.10",
    "libcusolver.so.11",
    "libnvrtc.so.11.2",
    "libcudnn.so.8",
    "libnccl.so.2",
)
_UNASKED = {
    "sklearn": {},  # base class of the deprecated FeedForward, where scikit-learn is there
    "scipy.stats": {"mxnet.test_utils": "ss", "mxnet.contrib.quantization": "stats"},
    "pandas": {"mxnet.notebook.callback": "pd"},
    "onnx": {f"mxnet.onnx.mx2onnx._op_translations._op_translations_opset{version}": "onnx" for version in (12, 13)},
}
"""Packages that MXNet imports where they are installed, half of its own time, and its names for them."""


def import_mxnet() -> Any:
    """Import MXNet 1.9.1 on a NumPy that no longer has `np.bool` (apache/mxnet#21165, fixed in no release)."""
    # MXNet takes half of the processors for hyper-threads and leaves them idle; measured: twice the speed on 2.
    os.environ.setdefault("OMP_NUM_THREADS", str(available_processors()))
    if "bool" not in np.__dict__:
        np.bool = np.bool_  # type: ignore[attr-defined]
    if _is_installed("mxnet-cu112"):
        _preload_cuda()
    with warnings.catch_warnings(), without_collecting(), refused(_UNASKED) as missed:
        # distutils and ndarray.tostring are deprecated; MXNet will not be mended.
        warnings.simplefilter("ignore")
        import mxnet
    for package in missed:
        for module, name in _UNASKED[package].items():
            setattr(sys.modules[module], name, _Later(package))
    return mxnet


@contextmanager
def refused(packages: Collection[str]) -> Iterator[set[str]]:
    """Refuse these packages to imports of this thread, as if they were not installed; collects those asked for.

    A package that is imported already is not refused, and other threads import what they like.
    """
    finder = _Refusing(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield finder.missed
    finally:
        # A new list: a thread that is just walking along the old one would miss the next finder.
        sys.meta_path = [other for other in sys.meta_path if other is not finder]


class _Refusing(MetaPathFinder):
    def __init__(self, packages: Collection[str]) -> None:
        self._packages, self._thread = packages, threading.get_ident()
        self.missed: set[str] = set()

    def find_spec(self, name: str, *_: Any) -> None:
        if name in self._packages and threading.get_ident() == self._thread:
            self.missed.add(name)
            raise ModuleNotFoundError(f"not imported now: {name}", name=name)


class _Later(ModuleType):
    """A module's place: the module is imported when a name of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def gpu_count() -> int:
    """Number of GPUs that MXNet can use: the first so many, of those that its CUDA knows."""
    try:
        gpus = int(mx.context.num_gpus())
    except mx.base.MXNetError:
        return 0  # `why_no_gpu` says it where it matters
    return next((number for number in range(gpus) if not _is_known(number)), gpus)


def why_no_gpu() -> str:
    """Say why MXNet can use no GPU: its build, the environment, the driver or the GPU."""
    if not mx.runtime.Features().is_enabled("CUDA"):
        return "this MXNet is built without CUDA: pip install 'imagenet-pipeline[gluon-cu112]'"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides them"
    try:
        gpus = int(mx.context.num_gpus())
    except mx.base.MXNetError as error:
        return f"the NVIDIA driver is missing or too old: {str(error).strip().splitlines()[-1][:200]}"
    return "MXNet's CUDA 11.2 ends with Ampere and Ada, and the GPU is newer" if gpus else "there is none"


_NEWEST_GPUS = 8
"""Major compute capability of Ampere and Ada, the newest that CUDA 11.2 makes kernels for."""
_MAJOR_CAPABILITY = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, cuda.h


def _is_known(number: int) -> bool:
    """Tell whether CUDA 11.2 knows this GPU; also true where the driver does not answer."""
    major = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    failed = driver.cuInit(0) or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR_CAPABILITY, number)
    return bool(failed) or major.value <= _NEWEST_GPUS


def compute_threads() -> int:
    """Number of threads MXNet computes with, as OpenMP reads it: of a list, a number a level, the first."""
    word = os.environ["OMP_NUM_THREADS"].partition(",")[0].strip()
    return int(word) if word.isdecimal() else available_processors()


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _preload_cuda() -> None:
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    for name in _CUDA_LIBRARIES:
        for path in (found for folder in folders for found in glob.glob(f"{folder}/nvidia/*/lib/{name}")):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


mx: Any = import_mxnet()
# Its arrays have products of matrices as a function alone; the written update rules say `@`.
mx.nd.NDArray.__matmul__ = mx.nd.dot
