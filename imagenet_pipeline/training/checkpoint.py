"""Checkpoints: a folder that is there whole or not at all, and that proves itself when read.

    checkpoints/epoch-0042/                weights.safetensors  optimizer.safetensors  state.json  SHA256SUMS
    checkpoints/epoch-0042-step-00012345/  the same, saved inside epoch 43: the latest such alone is kept

Beside them lies network.json where the network is a file: the checkpoint's own copy, for its number of classes.
An older run's later epochs, left behind by a restart, move to checkpoints/branch-NN/. A folder that is damaged, or
not of the epoch it is named after, is refused where it is read, and elsewhere said.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from imagenet_pipeline import files
from imagenet_pipeline.config import StoppingRecipe, pair
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.catalog import FILE_NAME
from imagenet_pipeline.records.classes import ClassTable, LabelKind
from imagenet_pipeline.training.journal import goodness

log = logging.getLogger("imagenet_pipeline")

Arrays = Mapping[str, npt.NDArray[Any]]
_FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
Count = Annotated[int, Field(ge=0)]
Figures = dict[str, int | float]
Side = Annotated[int, Field(ge=1, le=4096)]
Channels = Field(min_length=1, max_length=3)
TRAINED = "trained/"
Scores = Mapping[Path, float | Damaged | None]
"""The figure of whole epochs that says which is best, higher being better; None without it, or what is wrong."""
_MOST_DIGITS = 20
_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{8,}))?")


@dataclass(frozen=True)
class State:
    """The contents of a checkpoint besides its arrays.

    `epoch` counts finished epochs, `step` finished steps; `partial` holds images, rank1_hits, rank5_hits and
    loss_sum of an epoch that was interrupted, or, beside its metrics, that the run's last step cut short; that one
    counts as finished. `input_size` is a side, or height and width; mean and std are of RGB, or of grey alone. A
    network that is a file has its path here, that of the checkpoint's own
    copy once it is read.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    epoch: Count
    step: Count
    network: str
    input_size: Side | tuple[Side, Side]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    class_names: tuple[str, ...]
    class_order: str
    mean: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Channels]
    std: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Channels]
    data_digest: str
    engine: str
    versions: dict[str, str]
    metrics: Figures = field(default_factory=dict)
    partial: Figures = field(default_factory=dict)
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875
    label_kind: LabelKind = "class"

    @property
    def is_within_epoch(self) -> bool:
        """True where the epoch after the finished ones has begun."""
        return bool(self.partial and not self.metrics)

    @property
    def is_cut_short(self) -> bool:
        """True where the last of the finished epochs has steps to come, should the run have more."""
        return bool(self.partial and self.metrics)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (len(self.mean), *pair(self.input_size))

    @property
    def class_table(self) -> ClassTable:
        """The classes the network tells apart."""
        return ClassTable(self.class_order, self.classes, self.class_names, self.label_kind)

    @property
    def network_name(self) -> str:
        """The network's name to show people. Raises BadInput where it is a file that cannot be read."""
        return catalog.title(self.network)


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
    def optimizer_state(self) -> Arrays:
        """The optimizer's state alone."""
        return {name: array for name, array in self.optimizer.items() if not name.startswith(TRAINED)}


def with_trained(optimizer_state: Arrays, values: Arrays) -> Arrays:
    """An optimizer's state, and beside it the values that training goes on with where the weights are averages."""
    return {**optimizer_state, **{f"{TRAINED}{name}": value for name, value in values.items()}}


def _trained(optimizer: Arrays) -> Arrays:
    return {name.removeprefix(TRAINED): array for name, array in optimizer.items() if name.startswith(TRAINED)}


def save_checkpoint(run: Path, state: State, weights: Arrays, optimizer: Arrays) -> Path:
    """Write a checkpoint under the run folder and read its digests back. Raises OutOfRoom when the disk is full.

    Anything else that has its name moves to a branch.
    """
    target = run / "checkpoints" / _name(state)
    contents = {
        "weights.safetensors": save(_contiguous(weights)),
        "optimizer.safetensors": save(_contiguous(optimizer)),
        "state.json": _state_bytes(state),
    }
    if catalog.is_custom(state.network):
        contents["state.json"] = _state_bytes(replace(state, network=FILE_NAME))
        contents[FILE_NAME] = catalog.file_copy(state.network, len(state.classes)).encode()
    if _holds(target, contents):
        return target
    files.check_free_space(target, sum(map(len, contents.values())) + 2**20)
    if os.path.lexists(target):
        branch = _new_branch(run)
        files.rename(target, branch / target.name)
        log.warning("%s: was there with other content, which is kept in %s", target, branch)
    with files.whole_folder(target) as folder:
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        sums = "".join(f"{files.sha256_of(folder / file)}  {file}\n" for file in contents)
        (folder / "SHA256SUMS").write_text(sums)
    _check_sums(target)
    return target


def _state_bytes(state: State) -> bytes:
    """The state as JSON; the kind of label is there where it is not one class, so that earlier versions refuse it."""
    fields = asdict(state)
    if state.label_kind == "class":
        del fields["label_kind"]
    return files.json_bytes(fields)


def _name(state: State) -> str:
    return f"epoch-{state.epoch:04d}" + (f"-step-{state.step:08d}" if state.is_within_epoch else "")


def _holds(target: Path, contents: Mapping[str, bytes]) -> bool:
    """Tell whether a checkpoint is there already, byte for byte: its journal line was all that was missing."""
    if not os.path.lexists(target):
        return False
    try:
        sums = _check_sums(target)
    except Damaged:
        return False
    return all(sums.get(file) == hashlib.sha256(content).hexdigest() for file, content in contents.items())


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises Damaged where a byte differs from what was written, a weight is not finite or the folder has the name of
    another checkpoint; it names the best of the others in the folder that are whole.
    """
    try:
        return _load(folder)
    except Damaged as error:
        raise error.replaced(advice=_instead_of(folder)) from error


def _load(folder: Path) -> Checkpoint:
    sums = _check_sums(folder)
    try:
        state = _read_state(folder)
        weights, optimizer = (load((folder / name).read_bytes()) for name in _FILES[:2])
    except (TypeError, KeyError, ValueError, OverflowError, SafetensorError) as error:
        raise Damaged(f"not a checkpoint of this version ({_reason(error)})", where=folder) from error
    _require_own_name(folder, _name(state))
    for name, weight in (*weights.items(), *_trained(optimizer).items()):
        if not np.isfinite(weight).all():
            raise Damaged(f"{name} holds infinities or NaN", where=folder)
    return Checkpoint(folder, state, weights, optimizer, sums["weights.safetensors"])


def _read_state(folder: Path) -> State:
    """Read a checkpoint's state; a network that is a file is the one beside it. Raises ValueError."""
    state = _STATE.validate_json((folder / "state.json").read_bytes())
    if len(state.mean) not in (1, 3) or len(state.std) != len(state.mean):
        raise ValueError(f"mean, std: of {len(state.mean)} and {len(state.std)} channels, not 3 or 1")
    if not catalog.is_file_name(state.network):
        return state
    if state.network != FILE_NAME:
        raise ValueError(f"network: {state.network[:80]!a} is not {FILE_NAME}")
    return replace(state, network=str(folder / FILE_NAME))


def state_beside(file: Path) -> State | None:
    """The state of the checkpoint that a file of weights lies in; None where it lies in none.

    Raises Damaged where either is not as it was written.
    """
    folder = file.parent
    if not (folder / "state.json").is_file():
        return None
    if (folder / "SHA256SUMS").exists():
        _check_sums(folder, [name for name in _FILES if name in (file.name, "state.json")])
    try:
        return _read_state(folder)
    except ValueError:
        log.warning("%s: is not of a checkpoint of ours, so it says nothing about %s", folder / "state.json", file.name)
        return None


def has_checkpoint(run: Path) -> bool:
    """Tell whether there is anything to resume."""
    return bool(_checkpoints(run))


def whole_epochs(run: Path) -> list[int]:
    """The epochs that a run keeps checkpoints of, in order."""
    return [epoch_of(folder) for folder in _checkpoints(run) if _is_whole(folder)]


def find_checkpoint(run: Path, which: str) -> Path:
    """The folder of "latest", "best" or an epoch number, unread. Raises BadRecipe listing what there is."""
    found = _checkpoints(run)
    if not run.is_dir():
        advice = (
            "`predict` and `serve` take the file; `import --onnx` makes a run of it" if run.suffix == ".onnx" else None
        )
        expected = "a folder that `train` or `import` made"
        raise BadRecipe("there is no run here", where=run, expected=expected, advice=advice)
    if not found:
        raise BadRecipe("the folder holds no checkpoint", where=run, advice="train without --resume to start the run")
    if which == "latest":
        return found[-1]
    if which == "best":
        return _best(run, _scores(found, best_figure(run))) or found[-1]
    whole = {_position(folder)[0]: folder for folder in found if _is_whole(folder)}
    # No epoch has as many digits as Python refuses to read.
    if not which.isdecimal() or len(which) > _MOST_DIGITS or int(which) not in whole:
        there = ", ".join(map(str, whole))
        wanted = f"of epoch {which[:_MOST_DIGITS]}" if which.isdecimal() else f"called {which[:80]!r}"
        raise BadRecipe(f"no checkpoint {wanted}", where=run, expected=f"latest, best or one of {there}")
    return whole[int(which)]


def set_aside_later(run: Path, kept: Path) -> Path | None:
    """Move the checkpoints after `kept` to a branch folder; they are another history now."""
    later = [folder for folder in _checkpoints(run) if _position(folder) > _position(kept)]
    if not later:
        return None
    branch = _new_branch(run)
    for folder in later:
        files.rename(folder, branch / folder.name)
    return branch


def _new_branch(run: Path) -> Path:
    taken = [folder.name.removeprefix("branch-") for folder in (run / "checkpoints").glob("branch-*")]
    number = 1 + max((int(word) for word in taken if word.isdecimal()), default=0)
    return run / "checkpoints" / f"branch-{number:02d}"


def prune(run: Path, keep: int | Literal["all"]) -> None:
    """Keep the last `keep` epochs (or all) and the best, and point `latest` and `best` at theirs.

    The best is so by the figure that the run's recipe names. A folder whose score cannot be read is kept too: it may be
    the best.
    """
    found = _checkpoints(run)
    scores = _scores(found, best_figure(run))
    best, whole = _best(run, scores), list(scores)
    unread = [folder for folder, score in scores.items() if isinstance(score, Damaged)]
    kept = {*(whole if keep == "all" else whole[-keep:]), found[-1], best, *unread}
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


def epoch_of(folder: Path) -> int:
    """Finished epochs of a checkpoint, by its name."""
    return _position(folder)[0]


def best_figure(run: Path) -> str:
    """The figure that says which epoch of a run is best, by its own recipe; the default where none can be read."""
    with suppress(OSError, ValueError, AttributeError):
        stopping = tomllib.loads((run / "recipe.toml").read_text()).get("stopping", {})
        return StoppingRecipe(figure=stopping.get("figure", "auto")).followed
    return StoppingRecipe().followed


def best_row(run: Path, rows: Sequence[Figures]) -> Figures:
    """The row of a run's best epoch among those of its history, the earliest of equals; {} where none is scored."""
    figure = best_figure(run)
    scored = [(score, row) for row in rows if (score := goodness(row, figure)) is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else {}


def _is_whole(folder: Path) -> bool:
    return "-step-" not in folder.name


def _best(run: Path, scores: Scores) -> Path | None:
    """The best checkpoint of a whole epoch, the first of equals, so that it does not wander.

    What cannot be read is said and passed over, unless it was the best when there was last a checkpoint to compare.
    """
    unread = {folder: score for folder, score in scores.items() if isinstance(score, Damaged)}
    for error in unread.values():
        log.warning("%s; it stays as it is, and nothing is compared with it", error)
    was_best = (run / "checkpoints" / "best").resolve()
    damaged_best = [folder for folder in unread if folder.resolve() == was_best]
    scored = [(score, folder) for folder, score in scores.items() if isinstance(score, float)]
    return damaged_best[0] if damaged_best else max(scored, key=lambda pair: pair[0], default=(0.0, None))[1]


def _scores(found: Iterable[Path], figure: str) -> Scores:
    return {folder: _score(folder, figure) for folder in found if _is_whole(folder)}


def _score(folder: Path, figure: str) -> float | Damaged | None:
    try:
        _check_sums(folder, ("state.json",))
        state = _read_state(folder)
        _require_own_name(folder, _name(state))
    except Damaged as error:
        return error
    except ValueError as error:
        return Damaged(f"not a checkpoint of this version ({_reason(error)})", where=folder)
    return goodness(state.metrics, figure)


def _require_own_name(folder: Path, name: str) -> None:
    """Raise Damaged for a checkpoint in a folder named as another checkpoint; elsewhere it may be called anything."""
    called = folder.resolve().name
    if _NAME.fullmatch(called) and called != name:
        raise Damaged("the folder has the name of another checkpoint", where=folder, expected=called, found=name)


def _instead_of(folder: Path) -> str:
    """The advice where a checkpoint cannot be read: the best of its neighbours that can."""
    run = folder.resolve().parent.parent
    others = _scores((other for other in _checkpoints(run) if other.name != folder.name), best_figure(run))
    scored = [(-score, _position(other)[0], other) for other, score in others.items() if isinstance(score, float)]
    # Without validation the latest is the best.
    unscored = [other for other, score in others.items() if score is None]
    for neighbour in (*(other for _, _, other in sorted(scored)), *reversed(unscored)):
        with suppress(Damaged):
            _load(neighbour)
            return f"take another checkpoint: the best that is whole is that of epoch {_position(neighbour)[0]}"
    return "take another checkpoint"


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return ascii(text)[1:-1][:200]


def _contiguous(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    # Not np.ascontiguousarray, which gives a scalar array an axis.
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _check_sums(folder: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """The digests of a checkpoint's files, those of `names` compared, or else of all. Raises Damaged."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for name in names or (*_FILES, *(name for name in sums if name == FILE_NAME)):
            if files.sha256_of(folder / name) != sums.get(name):
                raise Damaged("the file has changed since it was written", where=folder / name)
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"the checkpoint is incomplete ({error})", where=folder) from error
    return sums
