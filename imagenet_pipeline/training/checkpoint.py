"""Checkpoints: a folder that is there whole or not at all, and that proves itself when read.

    checkpoints/epoch-0042/                weights.safetensors  optimizer.safetensors  state.json  SHA256SUMS
    checkpoints/epoch-0042-step-00012345/  the same, saved inside epoch 43: the latest such alone is kept

An older run's later epochs, left behind by a restart, move to checkpoints/branch-NN/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.records.classes import ClassTable

Arrays = Mapping[str, npt.NDArray[Any]]
_FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
Count = Annotated[int, Field(ge=0)]
Figures = dict[str, int | float]
Three = Field(min_length=3, max_length=3)
TRAINED = "trained/"
_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{8,}))?")


@dataclass(frozen=True)
class State:
    """What a checkpoint knows beside its arrays.

    `epoch` counts finished epochs, `step` finished steps; `partial` holds images, rank1_hits, rank5_hits and
    loss_sum of an epoch that was interrupted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    epoch: Count
    step: Count
    network: str
    input_size: Annotated[int, Field(ge=1, le=4096)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    class_names: tuple[str, ...]
    class_order: str
    mean: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Three]
    std: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Three]
    data_digest: str
    engine: str
    versions: dict[str, str]
    metrics: Figures = field(default_factory=dict)
    partial: Figures = field(default_factory=dict)
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875

    @property
    def class_table(self) -> ClassTable:
        """The classes the network tells apart."""
        return ClassTable(self.class_order, self.classes, self.class_names)


_STATE = TypeAdapter(State)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read and checked.

    `weights` are what is scored: moving averages, where the run keeps some. `optimizer` then has the values that
    training goes on with as well, as `trained/NAME`.
    """

    folder: Path
    state: State
    weights: Arrays
    optimizer: Arrays
    weights_digest: str

    @property
    def trained(self) -> Arrays:
        """The values training goes on with."""
        return _trained(self.optimizer) or self.weights

    @property
    def remembered(self) -> Arrays:
        """The optimizer's state alone."""
        return {name: array for name, array in self.optimizer.items() if not name.startswith(TRAINED)}


def with_trained(remembered: Arrays, values: Arrays) -> Arrays:
    """An optimizer's state, and beside it the values that training goes on with where the weights are averages."""
    return {**remembered, **{f"{TRAINED}{name}": value for name, value in values.items()}}


def _trained(optimizer: Arrays) -> Arrays:
    return {name.removeprefix(TRAINED): array for name, array in optimizer.items() if name.startswith(TRAINED)}


def save_checkpoint(run: Path, state: State, weights: Arrays, optimizer: Arrays) -> Path:
    """Write a checkpoint under the run folder and read its digests back. Raises OutOfRoom when the disk is full."""
    name = f"epoch-{state.epoch:04d}" + (f"-step-{state.step:08d}" if state.partial else "")
    target = run / "checkpoints" / name
    if target.exists():
        _check_sums(target)
        return target
    contents = {
        "weights.safetensors": save(_contiguous(weights)),
        "optimizer.safetensors": save(_contiguous(optimizer)),
    }
    files.check_free_space(target, sum(map(len, contents.values())) + 2**20)
    with files.whole_folder(target) as folder:
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        files.write_json(folder / "state.json", asdict(state))
        sums = "".join(f"{files.sha256_of(folder / file)}  {file}\n" for file in _FILES)
        (folder / "SHA256SUMS").write_text(sums)
    _check_sums(target)
    return target


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint. Raises Damaged where a byte differs from what was written, or a weight is not finite."""
    sums = _check_sums(folder)
    try:
        state = _STATE.validate_json((folder / "state.json").read_bytes())
        weights, optimizer = (load((folder / name).read_bytes()) for name in _FILES[:2])
    except (TypeError, KeyError, ValueError, OverflowError, SafetensorError) as error:
        raise Damaged(f"not a checkpoint of this version ({_reason(error)})", where=folder) from error
    for name, weight in (*weights.items(), *_trained(optimizer).items()):
        if not np.isfinite(weight).all():
            raise Damaged(f"{name} holds infinities or NaN", where=folder, advice="take another checkpoint")
    return Checkpoint(folder, state, weights, optimizer, sums["weights.safetensors"])


def has_checkpoint(run: Path) -> bool:
    """Whether there is anything to resume."""
    return bool(_checkpoints(run))


def find_checkpoint(run: Path, which: str) -> Path:
    """The folder of "latest", "best" or an epoch number. Raises BadRecipe listing what there is."""
    found = _checkpoints(run)
    if not run.is_dir():
        raise BadRecipe("there is no run here", where=run, expected="a folder that `train` or `import` made")
    if not found:
        raise BadRecipe("no checkpoint here", where=run, advice="train without --resume to start the run")
    if which == "latest":
        return found[-1]
    if which == "best":
        return _best(found) or found[-1]
    whole = {_position(folder)[0]: folder for folder in found if _is_whole(folder)}
    if not which.isdecimal() or int(which) not in whole:
        there = ", ".join(map(str, whole))
        wanted = f"of epoch {which}" if which.isdecimal() else f"called {which!r}"
        raise BadRecipe(f"no checkpoint {wanted}", where=run, expected=f"latest, best or one of {there}")
    return whole[int(which)]


def set_aside_later(run: Path, kept: Path) -> Path | None:
    """Move the checkpoints after `kept` to a branch folder; they are another history now."""
    later = [folder for folder in _checkpoints(run) if _position(folder) > _position(kept)]
    if not later:
        return None
    taken = [folder.name.removeprefix("branch-") for folder in (run / "checkpoints").glob("branch-*")]
    number = 1 + max((int(word) for word in taken if word.isdecimal()), default=0)
    branch = run / "checkpoints" / f"branch-{number:02d}"
    for folder in later:
        files.rename(folder, branch / folder.name)
    return branch


def prune(run: Path, keep: int | Literal["all"]) -> None:
    """Keep the last `keep` epochs (or all) and the best one, and point `latest` and `best` at theirs."""
    found = _checkpoints(run)
    best = _best(found)
    whole = [folder for folder in found if _is_whole(folder)]
    kept = {*(whole if keep == "all" else whole[-keep:]), found[-1], best}
    for folder in found:
        if folder not in kept:
            files.remove_folder(folder)
    files.point(run / "checkpoints" / "latest", found[-1].name)
    if best is not None:
        files.point(run / "checkpoints" / "best", best.name)


def _checkpoints(run: Path) -> list[Path]:
    folders = (run / "checkpoints").glob("epoch-*")
    return sorted((folder for folder in folders if _NAME.fullmatch(folder.name)), key=_position)


def _position(folder: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise Damaged("not the name of a checkpoint", where=folder)
    return int(match[1]), int(match[2] or 0)


def _is_whole(folder: Path) -> bool:
    return "-step-" not in folder.name


def _best(found: list[Path]) -> Path | None:
    ranked = [(_validation_rank1(folder), folder) for folder in found if _is_whole(folder)]
    scored = [(rank1, folder) for rank1, folder in ranked if rank1 is not None]
    # The first of equals, so that the best does not wander.
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _validation_rank1(folder: Path) -> float | None:
    _check_sums(folder, ("state.json",))
    try:
        rank1 = files.read_json(folder / "state.json")["metrics"].get("validation_rank1")
        return None if rank1 is None else float(rank1)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise Damaged("not the state of a checkpoint", where=folder / "state.json") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return ascii(text)[1:-1][:200]


def _contiguous(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    # Not np.ascontiguousarray, which gives an array without axes one.
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _check_sums(folder: Path, names: Sequence[str] = _FILES) -> dict[str, str]:
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for name in names:
            if files.sha256_of(folder / name) != sums.get(name):
                raise Damaged(
                    "its bytes are not those that were written",
                    where=folder / name,
                    advice="take another checkpoint",
                )
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"the checkpoint is not whole ({error})", where=folder) from error
    return sums
