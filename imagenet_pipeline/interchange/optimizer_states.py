"""The `.states` files of MXNet: the momentum of SGD that Module and Gluon's Trainer save, read without MXNet.

Each is a pickle. Module's `NAME-0005.states` (`save_checkpoint(..., save_optimizer_states=True)`) is a dictionary from
a parameter's number, or of a KVStore its name, to its momentum; Trainer's `save_states` is a pair of that and of the
optimizer. A momentum is an NDArray, None where the momentum is 0, and for float16 a pair with the float32 weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.engines.optimizer_state import SCALES, is_matrix
from imagenet_pipeline.errors import BadInput, first_few
from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.interchange.params import AnyArray, finite_float32, read_array, read_params
from imagenet_pipeline.interchange.pickles import Instance, Maker, instance_of, read_pickle
from imagenet_pipeline.interchange.symbol import VARIABLE, Attributes, read_symbol

ARRAYS = ("mxnet.ndarray.ndarray.NDArray", "mxnet.ndarray.NDArray", "mxnet.numpy.multiarray.ndarray")
BYTES = ("builtins.bytearray", "__builtin__.bytearray")
SGD = ("mxnet.optimizer.optimizer.SGD", "mxnet.optimizer.SGD", "mxnet.optimizer.sgd.SGD")
SCHEDULES = ("LRScheduler", "FactorScheduler", "MultiFactorScheduler", "PolyScheduler", "CosineScheduler")
CONTENTS = "optimizer state of MXNet's SGD"
LARGEST_EPOCH = 9999
MODULE_DECAYS = ("_weight", "_gamma")
"""Ends of the names of parameters that Module lets decay, where their variables do not say otherwise."""
Momentum = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SavedStates:
    """The content of a file: arrays by number or name of their parameter, and of a Trainer its optimizer's settings.

    An entry has the momentum (None where SGD keeps none) and of float16 parameters the float32 weight.
    """

    arrays: dict[int | str, tuple[AnyArray | None, AnyArray | None]]
    settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class Continued:
    """A training elsewhere that a run goes on with, after its finished epochs.

    `displacements` are MXNet's momenta by our names of the trained parameters: u' = m u - r (g + d w), w' = w + u'.
    `options` are the recipe keys that its files state. `notes` are sentences on what could not be kept.
    """

    epoch: int
    displacements: dict[str, Momentum]
    options: dict[str, Any]
    weights: dict[str, Momentum] = field(default_factory=dict)
    """The float32 weights that a training in float16 keeps beside its own."""
    notes: tuple[str, ...] = ()


def read_states(path: Path) -> SavedStates:
    """Read a file of states; nothing in it is executed.

    Raises BadInput for another format, another optimizer's, and for damage. Memory is bounded by the file's size.
    """
    with files.regular_file(path) as (stream, size):
        content = stream.read(size)
    known: dict[str, Maker | None] = {name: instance_of(name) for name in (*ARRAYS, *SGD)}
    known |= {f"mxnet.lr_scheduler.{name}": instance_of(name) for name in SCHEDULES}
    known |= dict.fromkeys(BYTES, _bytes)
    value, length = read_pickle(memoryview(content), path, known, contents=CONTENTS)
    if length != len(content):
        raise BadInput("bytes follow the end of the pickle", where=path, found=f"{len(content) - length:,} of them")
    optimizer = None
    if isinstance(value, tuple) and len(value) == 2:
        value, optimizer = value
        if not isinstance(optimizer, Instance) or optimizer.name not in SGD or not isinstance(optimizer.state, dict):
            raise BadInput("the file has no optimizer beside its arrays", where=path, expected="MXNet's SGD")
    if not isinstance(value, dict) or not value:
        raise BadInput("not MXNet's optimizer states", where=path, expected="an array for each parameter")
    arrays = {key: _entry(key, entry, path) for key, entry in value.items()}
    return SavedStates(arrays, None if optimizer is None else optimizer.state)


def _bytes(arguments: tuple[Any, ...]) -> bytes:
    """The bytes that `bytearray` would hold: of bytes, or of a text of protocols that have no bytes."""
    match arguments:
        case (bytes() as content,):
            return content
        case (str() as text, "latin-1"):
            return text.encode("latin-1")
    raise ValueError


def _entry(key: object, entry: object, path: Path) -> tuple[AnyArray | None, AnyArray | None]:
    where = f"{path}: parameter {str(key)[:80]!a}"
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise BadInput("not the number or name of a parameter", where=where)
    if isinstance(entry, tuple | list) and len(entry) == 2:
        return _array(entry[0], where), _array(entry[1], where)
    return _array(entry, where), None


def _array(value: object, where: str) -> AnyArray | None:
    if value is None:
        return None
    state = value.state if isinstance(value, Instance) and value.name in ARRAYS else None
    content = state.get("handle") if isinstance(state, dict) else None
    if not isinstance(content, bytes):
        raise BadInput("no array, as SGD keeps one for each parameter", where=where, found=type(value).__name__)
    return read_array(content, where)


def epoch_of(path: Path) -> int | None:
    """The epoch in a name as MXNet gives it, `NAME-0005.states`."""
    match = re.search(r"-(\d{4})\.[a-z]+$", path.name)
    return int(match[1]) if match else None


def continued(states: Path, symbol: Path, params: Path, imported: Imported, epoch: int) -> Continued:
    """The state that a run of `imported`, read from `symbol` and `params`, goes on with after `epoch` epochs.

    Raises BadInput where the states are not those of these parameters.
    """
    saved, stored = read_states(states), read_params(params)
    by_name = _by_name(saved, _names_in_order(saved, symbol, stored), stored, states)
    displacements, weights, unkept = {}, {}, []
    for ours, theirs in imported.sources.items():
        momentum, master = by_name.get(theirs, (None, None))
        value, array = imported.values[ours], _stored(stored, theirs)
        where = f"{states}: {theirs[:80]!a}"
        if array is None or not np.array_equal(value, array.astype(np.float32)):
            unkept.append(theirs)
            continue
        if master is not None:
            weights[ours] = _master(master, array, where)
        if momentum is not None:
            displacements[ours] = finite_float32(momentum, where)
    notes = (
        [f"their momentum begins anew, since they are written otherwise here: {first_few(unkept)}"] if unkept else []
    )
    apart = _apart(symbol, imported, by_name, saved.settings is None)
    if apart:
        notes.append(
            f"{first_few(apart)} have a rate or a decay of their own in MXNet (lr_mult, wd_mult, or a name that no "
            "decay acts on); not here: transfer.rates gives layers a rate"
        )
    options, more = stated_options(saved)
    return Continued(epoch, displacements, options, weights, (*notes, *more))


def _apart(symbol: Path, imported: Imported, trained: Mapping[str, object], is_module: bool) -> list[str]:
    """The trained parameters to which MXNet gives another rate or decay than a run here; Module goes by names."""
    stated = {node.name: node.attributes for node in read_symbol(symbol).nodes if node.op == VARIABLE}
    apart = []
    for ours, theirs in imported.sources.items():
        if theirs in trained:
            multipliers = Attributes(stated.get(theirs, {}), f"{symbol}: {theirs[:80]!a}")
            is_decaying = not is_module or is_matrix(ours, imported.values[ours].shape) or ours.endswith(SCALES)
            usual = float(not is_module or theirs.endswith(MODULE_DECAYS))
            found = multipliers.real("__lr_mult__", 1.0), multipliers.real("__wd_mult__", usual)
            if found != (1.0, float(is_decaying)):
                apart.append(theirs)
    return apart


def _names_in_order(saved: SavedStates, symbol: Path, stored: Mapping[str, AnyArray]) -> list[Sequence[str]]:
    """The orders that numbers may count parameters in: Module's is its symbol's, Trainer's has the statistics too."""
    variables = [node.name for node in read_symbol(symbol).nodes if node.op == VARIABLE]
    known = [name for name in variables if _stored(stored, name) is not None]
    if saved.settings is None:
        return [[name for name in known if f"aux:{name}" not in stored]]
    return [sorted(known), known]  # MXNet 1.7 and later sort them


def _stored(stored: Mapping[str, AnyArray], name: str) -> AnyArray | None:
    return next((stored[key] for key in (f"arg:{name}", f"aux:{name}", name) if key in stored), None)


def _by_name(
    saved: SavedStates, orders: list[Sequence[str]], stored: Mapping[str, AnyArray], where: Path
) -> dict[str, tuple[AnyArray | None, AnyArray | None]]:
    """The entries by the names of parameters; of several devices, whose arrays are alike, the first one's."""
    numbers = [key for key in saved.arrays if isinstance(key, int)]
    if not numbers:
        named = {str(key): entry for key, entry in saved.arrays.items()}
        if _fits(named, stored):
            return named
    elif len(numbers) == len(saved.arrays):
        for order in orders:
            devices = max(1, -(-(max(numbers) + 1) // max(1, len(order))))
            places = {number: divmod(number, devices) for number in numbers}
            if min(numbers) >= 0 and all(place < len(order) for place, _ in places.values()):
                found = {order[place]: saved.arrays[number] for number, (place, device) in places.items() if not device}
                if _fits(found, stored):
                    return found
    raise BadInput(
        "the states are not those of these parameters",
        where=where,
        expected=f"arrays of the shapes of {first_few(orders[0])}",
        found=f"{len(saved.arrays)} arrays, of {first_few([str(key) for key in saved.arrays])}",
    )


def _fits(found: Mapping[str, tuple[AnyArray | None, ...]], stored: Mapping[str, AnyArray]) -> bool:
    arrays = {name: _stored(stored, name) for name in found}
    return all(
        (array := arrays[name]) is not None and all(part is None or part.shape == array.shape for part in entry)
        for name, entry in found.items()
    )


def _master(master: AnyArray, stored: AnyArray, where: str) -> Momentum:
    """The float32 weight of a float16 parameter. Raises BadInput for an array that is no such weight."""
    weight = finite_float32(master, where)
    if not np.allclose(weight, stored.astype(np.float32), rtol=2e-3, atol=1e-6):
        what = "two arrays a parameter, the second of which is not its weight"
        raise BadInput(what, where=where, expected="the states of SGD with momentum", advice="of another optimizer?")
    return weight


def stated_options(saved: SavedStates) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The recipe keys that the states say, and notes on what no key says. Module lets scales decay, but no biases."""
    if saved.settings is None:
        return {"optimizer.decay_all": "scales"}, ()
    settings, notes = saved.settings, []
    schedule = settings.get("lr_scheduler")
    rate = settings.get("lr")
    if isinstance(schedule, Instance) and isinstance(schedule.state, dict):
        latest = schedule.state.get("base_lr")
        rate = latest if isinstance(latest, int | float) else rate if isinstance(rate, int | float) else None
        notes.append(f"its {schedule.name} stood at a rate of {rate}: the recipe's schedule takes its place")
    keys = {"learning_rate": rate, "momentum": settings.get("momentum"), "weight_decay": settings.get("wd")}
    options = {f"optimizer.{key}": float(value) for key, value in keys.items() if isinstance(value, int | float)}
    unkept = [key for key in ("clip_gradient", "lr_mult", "wd_mult") if settings.get(key)]
    if unkept:
        notes.append(f"not kept: {', '.join(unkept)} of its optimizer")
    return {**options, "optimizer.decay_all": True}, tuple(notes)
