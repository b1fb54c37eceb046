"""A linear classifier on features: how much a layer knows of the classes.

Features are standardised by mean and deviation of the records a classifier is fitted on. The strength of its
regularisation, C, is that of the best mean rank-1 in a stratified cross-validation on train; then the classifier is
fitted on all of train, and val and test are scored once.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom, counted
from imagenet_pipeline.evaluation.features import FeatureFile, FeatureSplit, new_archive, write_array
from imagenet_pipeline.evaluation.scoring import Whole
from imagenet_pipeline.processes import available_memory_bytes
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.training.metrics import rank_hits, top_classes

log = logging.getLogger("imagenet_pipeline")

Kind = Literal["logistic", "svm"]
Rows = npt.NDArray[np.float32]
GRID = tuple(10.0**power for power in range(-6, 2))
FOLDS = 5
MOST_ITERATIONS = {"logistic": 1000, "svm": 200}
BYTES_A_NUMBER = {"logistic": 12, "svm": 36}
"""Memory for each number of the training features: themselves, a fold's copy, what the solver makes of it.

liblinear turns everything into float64 (8 bytes) and then into pairs of index and value (16).
"""
_PIECE_ROWS = 1024


@dataclass(frozen=True)
class Tried:
    """A value of C: rank-1 in percent on the fold left out, mean and standard deviation over the folds.

    Where not every fit `converged` within MOST_ITERATIONS they are approximate.
    """

    c: float
    rank1: float
    deviation: float
    converged: bool


@dataclass(frozen=True)
class Scored:
    """Exact counts of a split; ranks are percent."""

    images: int
    rank1: float
    rank5: float
    rank1_hits: int
    rank5_hits: int


@dataclass(frozen=True)
class Probe:
    """A fitted probe and its metrics. `about` says what the features are."""

    file: str
    kind: Kind
    seed: int
    c: float
    folds: int
    tried: list[Tried]
    images: int
    features: int
    classes: int
    splits: dict[str, Scored]
    about: dict[str, Any] = field(default_factory=dict)


def probe(path: Path, kind: Kind = "logistic", seed: int = 42, out: Path | None = None) -> Probe:
    """Fit a probe on a file of features; `out` gets its weights, for features as they are in the file.

    Raises BadInput for a file that is none of features, without train, or with fewer than two records of a class or
    classes; BadRecipe for an `out` that no archive can be written to; OutOfRoom where memory or the disk will not do.
    All of that is looked at before anything is fitted.
    """
    file = FeatureFile.read(path)
    if "train" not in file.shapes:
        raise BadInput("the file has no training features", where=path, found=f"features of {', '.join(file.shapes)}")
    if out is not None:
        _require_writable(out, file)
    _require_memory(file, kind)
    train = file.load("train")
    folds = _folds(train, path)
    with _gathered_warnings():
        tried = _search(train, folds, kind, seed)
        best = max(tried, key=lambda trial: (trial.rank1, -trial.c)).c
        centre, scale = _standard(train.features)
        model = _model(kind, seed).set_params(C=best)
        converged = _fit(model, _standardised(train.features, centre, scale), train.labels)
    unfinished = [f"{trial.c:g}" for trial in tried if not (trial.converged and (converged or trial.c != best))]
    if unfinished:
        what = "no convergence in %d iterations with C = %s: what is said of them is approximate"
        log.info(what, MOST_ITERATIONS[kind], ", ".join(unfinished))
    if best in (GRID[0], GRID[-1]):
        log.info("the best C, %g, is at the end of those tried: a better value may lie beyond", best)
    splits = {split: _scored(model, file.load(split), centre, scale) for split in file.shapes if split != "train"}
    if out is not None:
        _write_weights(out, model, centre, scale, file.classes)
    (images, features), classes = file.shapes["train"], len(file.classes)
    return Probe(str(path), kind, seed, best, folds, tried, images, features, classes, splits, dict(file.about))


@contextmanager
def _gathered_warnings() -> Iterator[None]:
    """Gather all that scikit-learn warns of while fitting in a single log line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if caught:
        kinds = Counter(warning.category.__name__ for warning in caught)
        counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
        first = str(caught[0].message).partition("\n")[0]
        log.info("scikit-learn warned while fitting: %s; the first: %s", counts, first)


def _require_writable(out: Path, file: FeatureFile) -> None:
    files.require_separate((out,), (file.path,))
    if out.is_dir():
        raise BadRecipe("a folder, not a file to write", where=f"--out {out}")
    files.require_ending(out, ".npz", "weights are written as a NumPy archive")
    with files.explaining(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    width = file.shapes["train"][1]
    files.check_free_space(out, 4 * len(file.classes) * (width + 1) + 2**20)


def _require_memory(file: FeatureFile, kind: Kind) -> None:
    images, features = file.shapes["train"]
    others = max((4 * rows * width for split, (rows, width) in file.shapes.items() if split != "train"), default=0)
    needed = max(BYTES_A_NUMBER[kind] * images * features, 4 * images * features + others)
    free = available_memory_bytes()
    if free is not None and needed > free:
        raise OutOfRoom(
            f"not enough memory to fit {kind} on {images:,} x {features:,} features",
            where=file.path,
            expected=f"{needed:,} bytes",
            found=f"{free:,} bytes free",
            advice="--kind logistic takes a third" if kind == "svm" else "take a layer of fewer numbers",
        )


def _folds(train: FeatureSplit, path: Path) -> int:
    counts = np.bincount(train.labels)
    counts = counts[counts > 0]
    if len(counts) < 2 or counts.min() < 2:
        expected, found = "2 classes or more, each of 2 records or more", counted(len(counts), "class")
        found += f", the smallest of {counts.min()}" if len(counts) else ""
        raise BadInput("too few training records for a probe", where=path, expected=expected, found=found)
    return min(FOLDS, int(counts.min()))


def _search(train: FeatureSplit, folds: int, kind: Kind, seed: int) -> list[Tried]:
    """Try every C from the smallest on, until the mean has fallen below its best twice in a row: it falls further then,
    and the largest take longest to fit.
    """
    cuts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(train.labels, train.labels))
    models = [_model(kind, seed) for _ in cuts]
    tried: list[Tried] = []
    with Bar("cross-validation", "fits") as bar:
        for c in GRID:
            rank1, converged = [], True
            for model, (fitted, left_out) in zip(models, cuts, strict=True):
                found, finished = _left_out_rank1(model.set_params(C=c), train, fitted, left_out)
                rank1.append(found)
                converged &= finished
                bar.show(len(tried) * folds + len(rank1), len(GRID) * folds)
            tried.append(Tried(c, float(np.mean(rank1)), float(np.std(rank1)), converged))
            best = max(trial.rank1 for trial in tried)
            if all(trial.rank1 < best for trial in tried[-2:]):
                break
    return tried


def _left_out_rank1(model: Any, train: FeatureSplit, fitted: Whole, left_out: Whole) -> tuple[float, bool]:
    """Rank-1 in percent on the records left out, and whether the fit on the others converged."""
    centre, scale = _standard(train.features, fitted)
    rows = _standardised(train.features[fitted], centre, scale)
    converged = _fit(model, rows, train.labels[fitted])
    part = FeatureSplit(train.features[left_out], train.labels[left_out], train.records[left_out])
    return _scored(model, part, centre, scale).rank1, converged


def _fit(model: Any, rows: Rows, labels: Whole) -> bool:
    """Fit, and tell whether it converged; scikit-learn's own warning names no option of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*number of iterations", ConvergenceWarning)
        model.fit(rows, labels)
    return bool(np.max(model.n_iter_) < model.max_iter)


def _model(kind: Kind, seed: int) -> Any:
    if kind == "svm":
        return LinearSVC(dual="auto", random_state=seed, max_iter=MOST_ITERATIONS["svm"])
    # From a small C to a large one, each fit starts where the last ended.
    return LogisticRegression(max_iter=MOST_ITERATIONS["logistic"], warm_start=True)


def _standard(features: Rows, chosen: Whole | None = None) -> tuple[Rows, Rows]:
    """Mean and standard deviation of each column, over the chosen rows, summed in float64 a piece at a time."""
    chosen = np.arange(len(features)) if chosen is None else chosen
    pieces = [chosen[start : start + _PIECE_ROWS] for start in range(0, len(chosen), _PIECE_ROWS)]
    centre = sum(features[piece].sum(0, dtype=np.float64) for piece in pieces) / len(chosen)
    squares = sum(np.square(features[piece] - centre).sum(0) for piece in pieces)
    deviation = np.sqrt(squares / len(chosen))
    # A constant column says nothing; float32 noise must not make it seem to.
    constant = deviation <= 1e-6 * np.abs(centre)
    return centre.astype(np.float32), np.where(constant, 1, deviation).astype(np.float32)


def _standardised(features: Rows, centre: Rows, scale: Rows) -> Rows:
    """Standardise the features in place and return them: a second copy would double the memory."""
    features -= centre
    features /= scale
    return features


def _scored(model: Any, part: FeatureSplit, centre: Rows, scale: Rows) -> Scored:
    hits = np.zeros(2, np.int64)
    for start in range(0, len(part.labels), _PIECE_ROWS):
        rows = (part.features[start : start + _PIECE_ROWS] - centre) / scale
        top = model.classes_[top_classes(_scores(model, rows))]
        hits += rank_hits(top, part.labels[start : start + _PIECE_ROWS])
    images = len(part.labels)
    rank1, rank5 = (100.0 * hits / max(1, images)).tolist()
    return Scored(images, rank1, rank5, int(hits[0]), int(hits[1]))


def _scores(model: Any, rows: Rows) -> npt.NDArray[np.floating[Any]]:
    """[n, classes that were trained]; of two classes scikit-learn gives the second's alone."""
    scores = model.decision_function(rows)
    return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores


def _write_weights(out: Path, model: Any, centre: Rows, scale: Rows, classes: tuple[str, ...]) -> None:
    """Scores are features @ weights.T + biases, row i for the class labels[i]."""
    weights = (np.vstack([-model.coef_, model.coef_]) if len(model.classes_) == 2 else model.coef_) / scale
    own = np.concatenate([-model.intercept_, model.intercept_]) if len(model.classes_) == 2 else model.intercept_
    with new_archive(out) as archive:
        write_array(archive, "weights", weights.astype("<f4"))
        write_array(archive, "biases", (own - weights @ centre).astype("<f4"))
        write_array(archive, "labels", model.classes_.astype("<i8"))
        write_array(archive, "classes", np.array(classes))
