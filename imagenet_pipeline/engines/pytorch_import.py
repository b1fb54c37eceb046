"""The one place that imports PyTorch, with what it needs before and after."""

from __future__ import annotations

import os
from typing import Any


def import_torch() -> Any:
    """Import PyTorch, to use all the processors this process may use."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    # float32 means float32: cuDNN would round the factors of convolutions to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    return torch


torch = import_torch()
