"""The one place that imports PyTorch, with what it needs before and after."""

from __future__ import annotations

import os
from typing import Any

from imagenet_pipeline.processes import place


def import_torch() -> Any:
    """Import PyTorch, to use its share of the processors this process and its neighbours may use."""
    here = place()
    if here.launched:
        # What the network layer has to say of a rank that is gone, we say in one line.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here.local_ranks))
    torch.backends.cudnn.benchmark = True
    # float32 means float32: cuDNN would round the factors of convolutions to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    return torch


torch: Any = import_torch()
