"""Import of MXNet, here and nowhere else, with what it needs before and after."""

from __future__ import annotations

import ctypes
import glob
import importlib.metadata
import os
import site
import warnings
from typing import Any

import numpy as np

from imagenet_pipeline.processes import available_processors

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


def import_mxnet() -> Any:
    """Import MXNet 1.9.1 on a NumPy that no longer has `np.bool` (apache/mxnet#21165, fixed in no release)."""
    # MXNet takes half of the processors for hyper-threads and leaves them idle; measured: twice the speed on 2.
    os.environ.setdefault("OMP_NUM_THREADS", str(available_processors()))
    if "bool" not in np.__dict__:
        np.bool = np.bool_  # type: ignore[attr-defined]
    if _is_installed("mxnet-cu112"):
        _preload_cuda()
    with warnings.catch_warnings():
        # distutils and ndarray.tostring are deprecated; MXNet will not be mended.
        warnings.simplefilter("ignore")
        import mxnet
    return mxnet


def gpu_count() -> int:
    """Number of GPUs that MXNet can use."""
    return int(mx.context.num_gpus())


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
