"""The workers that train together through MXNet's distributed KVStore: each adds up with all the others.

Float32 arrays are added by MXNet's servers, in the order in which the workers come: of two the sum is always the same,
of more its last bits may differ between runs, but never between workers. Float64 they may round to float32: MXNet
1.9.1 never sets its `multi_precision_` at first (`src/kvstore/kvstore_dist_server.h`), and what happened to lie in
that byte decides (seen here: both). So float64 travels in 16-bit pieces, which float32 carries exactly, each worker's
in a row of its own that all others leave at 0; every worker then adds the rows in the order of the ranks.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import Array
from imagenet_pipeline.engines.gluon.cluster import end_process
from imagenet_pipeline.engines.gluon.membership import Membership, join
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.errors import WorkerLost

_PIECES = np.dtype(np.float64).itemsize // np.dtype(np.uint16).itemsize
_Wanted = tuple[int, tuple[int, ...], str]


class Workers:
    """All workers of this cluster. What is marked collective every one of them calls, in the same order."""

    def __init__(self, membership: Membership) -> None:
        self._store: Any = _start_store(membership)
        self.rank = int(self._store.rank)
        self.ranks = int(self._store.num_workers)
        self._keys: dict[_Wanted, int] = {}
        membership.say_rank(self.rank)
        membership.close = self._close

    def add_up(self, gradients: list[list[Any]]) -> None:
        """Replace each array, which has a copy on every context, by its sum over contexts and workers. Collective.

        The arrays must come in the same order on each worker. Of float32 it returns before the sums are there.
        """
        if any(copies[0].dtype == np.float64 for copies in gradients):
            self._add_up_exactly(gradients)
            return
        keys = self._keys_of([(copies[0].shape, "gradient") for copies in gradients])
        for position, (key, copies) in enumerate(zip(keys, gradients, strict=True)):
            self._store.pushpull(key, copies, out=copies, priority=-position)

    def total(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Their sums over the workers, as float64 adds. Collective; waits for the slowest worker, for no device."""
        rows = np.zeros((self.ranks, numbers.size * _PIECES), np.float32)
        rows[self.rank] = np.ascontiguousarray(numbers, np.float64).reshape(-1).view(np.uint16)
        if numbers.size:
            shared = mx.nd.array(rows, ctx=mx.cpu(), dtype="float32")
            (key,) = self._keys_of([(rows.shape, "pieces")])
            self._store.pushpull(key, shared, out=shared)
            rows = shared.asnumpy()
        added: npt.NDArray[np.float64] = functools.reduce(np.add, rows.astype(np.uint16).view(np.float64))
        return added.reshape(numbers.shape)

    def mean(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """The mean of each array over the workers, in its own precision. Collective."""
        if not arrays:
            return {}
        means = self.total(_flat(arrays.values())) / self.ranks
        return {
            name: part.astype(array.dtype)
            for (name, array), part in zip(arrays.items(), _parts(means, arrays.values()), strict=True)
        }

    def _add_up_exactly(self, gradients: list[list[Any]]) -> None:
        own = [np.sum([copy.asnumpy() for copy in copies], axis=0) for copies in gradients]
        for copies, part in zip(gradients, _parts(self.total(_flat(own)), own), strict=True):
            for copy in copies:
                copy[:] = mx.nd.array(part, ctx=copy.context, dtype="float64")

    def _keys_of(self, kinds: list[tuple[tuple[int, ...], str]]) -> list[int]:
        """A key for each array, made on first use. A process's later engine gets the keys of the earlier."""
        wanted = [(position, shape, kind) for position, (shape, kind) in enumerate(kinds)]
        new = [array for array in wanted if array not in self._keys]
        if new:
            for array in new:
                self._keys[array] = len(self._keys)
            self._store.init([self._keys[array] for array in new], [mx.nd.zeros(shape) for _, shape, _ in new])
        return [self._keys[array] for array in wanted]

    def _close(self, clean: bool) -> None:
        if not clean:
            # Freeing it would wait for workers that are asked at this moment to end.
            self._store.handle = None
        self._store = None


class Reducer:
    """Adds the gradients of these parameters up over contexts and workers."""

    def __init__(self, workers: Workers, parameters: list[Any]) -> None:
        self._workers = workers
        self._parameters = parameters

    def allreduce_grads(self) -> None:
        """Add the gradients up; the name is that of `mxnet.gluon.Trainer`'s method."""
        self._workers.add_up([parameter.list_grad() for parameter in self._parameters if parameter.grad_req != "null"])


_workers: Workers | None = None


def all_workers() -> Workers | None:
    """The workers of this process's cluster, the same object on each call; None without DMLC variables."""
    global _workers
    if _workers is None:
        membership = join()
        _workers = Workers(membership) if membership is not None else None
    return _workers


def _flat(arrays: Collection[Array]) -> npt.NDArray[np.float64]:
    return np.concatenate([array.ravel() for array in arrays], dtype=np.float64)


def _parts(flat: npt.NDArray[np.float64], arrays: Collection[Array]) -> list[npt.NDArray[np.float64]]:
    """Split what `_flat` joined into the shapes of the arrays."""
    ends = np.cumsum([array.size for array in arrays])
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends[:-1]), arrays, strict=True)]


def _start_store(membership: Membership) -> Any:
    """Everybody is there, so this takes a second, or for ever where a port is closed."""
    cluster = membership.cluster
    line = WorkerLost(
        f"MXNet's own connections did not open within {cluster.patience_seconds:.0f} s",
        where=f"worker at {cluster.host}:{cluster.port}",
        advice="every port above 1023 must be open between the machines; DMLC_NODE_HOST is the address of this machine",
    )
    timer = threading.Timer(cluster.patience_seconds, end_process, args=(str(line),))
    timer.daemon = True
    timer.start()
    store = mx.kv.create("dist_device_sync")
    timer.cancel()
    return store
