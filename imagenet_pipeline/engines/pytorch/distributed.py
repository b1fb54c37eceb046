"""The processes that train together, each with a device of its own.

Gradients are averaged by DistributedDataParallel, over NCCL between GPUs and gloo between CPUs. Counts go through
gloo alone: they never wait for a GPU, and gloo notices at once when a process is gone.
"""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.errors import BadRecipe, WorkerLost, is_out_of_memory
from imagenet_pipeline.processes import this_process

distributed = torch.distributed
PATIENCE = timedelta(minutes=10)
"""Time a rank waits for the others: longer than any of them takes to validate, save or read."""
_lost = threading.Event()
"""Set for good once a rank is gone: gloo has been seen to wait for the whole of PATIENCE in what is exchanged after."""
_STATISTICS = ("running_mean", "running_var")
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def naming_lost_ranks(call: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """The same function, but WorkerLost where it talks with the other ranks and any of them is gone, now or before."""

    @functools.wraps(call)
    def guarded(*arguments: _Given.args, **named: _Given.kwargs) -> _Result:
        if _lost.is_set():
            raise _lost_rank()
        try:
            return call(*arguments, **named)
        except RuntimeError as error:
            if not _is_of_network(error):
                raise
            _lost.set()
            raise _lost_rank() from error

    return guarded


def _lost_rank() -> WorkerLost:
    what = f"rank {this_process().rank} has lost another rank, which has ended or cannot be reached"
    return WorkerLost(what, advice="see why, and go on with --resume latest")


class ProcessGroup:
    """The ranks of a run, seen from one of them; also of a run with a single rank, where nothing is sent."""

    def __init__(self, control: Any | None) -> None:
        here = this_process()
        self.rank, self.ranks = here.rank, here.ranks
        self._control = control

    def seed(self, seed: int) -> int:
        """A seed of this rank's own: no two draw the same dropout."""
        # In 32 bits: of a CPU's generator the upper half of a seed changes nothing.
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]) if self.rank else seed

    def parallel(self, network: Any, compression: str = "none") -> Any:
        """The network, whose gradients `backward` now leaves averaged over the ranks. Collective.

        They lie in the buffers that are exchanged, so none is copied back: a step sets them to None, not to zero.
        `compression` is the recipe's `gradient_compression`.
        """
        if self.ranks == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        # Compiled, it would warn the user of profiler annotations that it leaves out.
        logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # Newer releases would have the first word said in two, which older ones do not know.
            warnings.simplefilter("ignore", FutureWarning)
            parallel = torch.nn.parallel.DistributedDataParallel(
                network, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )
        if compression == "bfloat16":
            parallel.register_comm_hook(None, lambda _, bucket: _averaged_in_bfloat16(bucket))
        return parallel

    def no_sync(self, parallel: Any) -> AbstractContextManager[Any]:
        """Let `backward` add up this rank's own gradients; the next outside this context averages the sums."""
        alone: AbstractContextManager[Any] = parallel.no_sync() if hasattr(parallel, "no_sync") else nullcontext()
        return alone

    @naming_lost_ranks
    def sum(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sums over the ranks, the same on each; exact for whole numbers below 2**53. Collective."""
        sums = np.array(numbers, np.float64)
        if self.ranks > 1:
            distributed.all_reduce(torch.from_numpy(sums), group=self._control)
        return sums

    def with_mean_statistics(self, values: dict[str, Array]) -> dict[str, Array]:
        """The values, running statistics replaced by their means over the ranks. Collective."""
        names = [name for name in values if name.rpartition(".")[2] in _STATISTICS]
        if self.ranks == 1 or not names:
            return values
        means = self.sum(np.concatenate([values[name].ravel() for name in names], dtype=np.float64)) / self.ranks
        ends = np.cumsum([values[name].size for name in names])
        parts = zip(names, np.split(means, ends[:-1]), strict=True)
        return values | {name: part.reshape(values[name].shape).astype(values[name].dtype) for name, part in parts}

    def require_equal(self, values: Values) -> None:
        """Raise BadRecipe where the ranks hold different values. Collective."""
        digests = np.zeros(self.ranks)
        for name in sorted(values):
            digest = zlib.crc32(name.encode(), int(digests[self.rank]))
            digests[self.rank] = zlib.crc32(np.ascontiguousarray(values[name]).tobytes(), digest)
        digests = self.sum(digests)
        odd = np.flatnonzero(digests != digests[0])
        if len(odd):
            raise BadRecipe(
                "the weights to start from differ from those of rank 0",
                where=f"rank {', '.join(map(str, odd))} of {self.ranks}",
                advice="give every machine the same recipe, initial.weights, checkpoints and versions",
            )


def _averaged_in_bfloat16(bucket: Any) -> Any:
    # PyTorch's own hook for it refuses all but NCCL; gloo, too, adds this format up.
    gradients = bucket.buffer()
    shares = gradients.to(torch.bfloat16).div_(distributed.get_world_size())
    sums = distributed.all_reduce(shares, async_op=True).get_future()
    return sums.then(lambda done: gradients.copy_(done.value()[0]))


def normalised_over_ranks(x: Any, weight: Any, bias: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Batch normalisation of [n, channels, ...] by all ranks' values; mean and variance [channels] besides. Collective.

    Every rank has as many values. The gradient is that of a single process with the whole batch. Not PyTorch's
    SyncBatchNorm, which runs on GPUs alone.
    """
    normalised, mean, variance = _NormalisedOverRanks.apply(x, weight, bias, epsilon)
    return normalised, mean, variance


class _NormalisedOverRanks(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(context: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> tuple[Any, Any, Any]:
        mean, variance = _statistics_over_ranks(x.to(weight.dtype))
        context.save_for_backward(x, weight, mean, variance)
        context.mark_non_differentiable(mean, variance)
        context.epsilon = epsilon
        return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, epsilon, True), mean, variance

    @staticmethod
    def backward(context: Any, gradient: Any, *_: Any) -> tuple[Any, ...]:
        x, weight, mean, variance = context.saved_tensors
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, context.epsilon, [False, True, True]
        )
        # Ioffe & Szegedy 2015, section 3; DistributedDataParallel averages the parameters' own gradients.
        means = torch.stack([of_weight, of_bias])
        distributed.all_reduce(means)
        means *= x.shape[1] / (x.numel() * distributed.get_world_size())
        per_channel = (1, -1, *[1] * (x.ndim - 2))
        inverse = (variance + context.epsilon).rsqrt()
        slope, level, centre, scale = (
            numbers.view(per_channel) for numbers in (means[0] * inverse, means[1], mean, weight * inverse)
        )
        return ((gradient - level - (x - centre) * slope) * scale).to(x.dtype), of_weight, of_bias, None


def _statistics_over_ranks(x: Any) -> tuple[Any, Any]:
    """Mean and variance of each channel over all ranks' values, from those of each rank: no squares that cancel."""
    table = x.new_zeros(distributed.get_world_size(), 2, x.shape[1])
    variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    table[distributed.get_rank()] = torch.stack([mean, variance])
    distributed.all_reduce(table)
    means, variances = table.unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


@functools.cache
@naming_lost_ranks
def joined_group(device: Any) -> ProcessGroup:
    """The group of this process's launcher, joined once for all engines of the process; `device` is the rank's own.

    Raises WorkerLost where another rank does not come.
    """
    if this_process().ranks == 1:
        return ProcessGroup(None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        control = distributed.new_group(backend="gloo", timeout=PATIENCE)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)
        control = distributed.group.WORLD
    atexit.register(distributed.destroy_process_group)
    return ProcessGroup(control)


def _is_of_network(error: RuntimeError) -> bool:
    words = str(error).lower()
    if is_out_of_memory(error):
        return False
    return isinstance(error, distributed.DistError) or any(word in words for word in ("gloo", "nccl", "connection"))
