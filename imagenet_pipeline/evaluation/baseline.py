"""Baselines before networks: scikit-learn's classic classifiers on small pictures, scored as a network is.

Features of an image are the pixels of its centre square at `size` x `size`, their histogram of oriented gradients
(HOG, Dalal & Triggs 2005) or of colours. Linear models learn by stochastic gradient descent, piece by piece
(`partial_fit`), on standardised features: memory is that of a piece where the whole does not fit, and the result the
same. So are the neighbours of k-NN found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import sklearn
import tomli_w
from sklearn.linear_model import Perceptron, SGDClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.compare import Examination
from imagenet_pipeline.evaluation.evaluate import Evaluation
from imagenet_pipeline.evaluation.scoring import CROSS_ENTROPY, Logs, Outcomes, Whole, outcomes_of
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.processes import available_memory_bytes, available_processors
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.classes import require_one_class
from imagenet_pipeline.records.manifest import DataSet, no_split
from imagenet_pipeline.records.reader import RecordSet

Model = Literal["knn", "perceptron", "sgd", "logistic", "svm"]
Penalty = Literal["none", "l1", "l2", "elasticnet"]
Features = Literal["pixels", "hog", "colour-histogram"]
Rows = npt.NDArray[np.float32]

PIECE_IMAGES = 1024
CONSTANT_RATE = 0.1
PIECE_NUMBERS = 2**26
"""Pixels times channels of a piece at most, where its images are large."""
CELL_PIXELS, BLOCK_PIXELS, DIRECTIONS = 8, 16, 9
COLOUR_BINS = (8, 8, 8)
"""Bins of hue, saturation and value."""
SHARE_OF_MEMORY = 0.5
"""Share of the free memory that features may take."""


@dataclass(frozen=True)
class Baseline:
    """A classifier on features of the images.

    strength: times the penalty, scikit-learn's alpha. epochs: passes over train. neighbours: of k-NN.
    """

    model: Model = "logistic"
    penalty: Penalty = "l2"
    features: Features = "pixels"
    size: int = 32
    strength: float = 1e-4
    epochs: int = 20
    neighbours: int = 5
    seed: int = 42

    def __post_init__(self) -> None:
        falls = self.model in ("logistic", "svm")
        if not math.isfinite(self.strength) or self.strength < 0 or (falls and not self.strength):
            expected = f"a finite number {'above 0, by which the rate falls' if falls else 'from 0'}"
            raise BadRecipe("no such factor of the penalty", where="--strength", expected=expected, found=self.strength)
        if self.features == "hog" and (self.size < BLOCK_PIXELS or self.size % CELL_PIXELS):
            expected = f"a multiple of {CELL_PIXELS} from {BLOCK_PIXELS}"
            raise BadRecipe(
                "HOG cannot divide this size into cells", where="--size", expected=expected, found=self.size
            )
        if self.features == "hog" and not hasattr(cv2, "HOGDescriptor"):
            what, advice = f"OpenCV {cv2.__version__} has no HOG", "pip install 'opencv-python-headless<5'"
            raise BadRecipe(what, where="--features hog", advice=advice)

    @property
    def piece_images(self) -> int:
        """Images of a piece."""
        return min(PIECE_IMAGES, max(1, PIECE_NUMBERS // (3 * self.size**2)))

    @property
    def name(self) -> str:
        """Its name in folders and reports: "sgd-l2-pixels-32"."""
        penalty = [] if self.model == "knn" else [self.penalty]
        return "-".join([self.model, *penalty, self.features, str(self.size)])


class Piece(NamedTuple):
    """Features [n, k] of consecutive records, their classes and their numbers."""

    features: Rows
    labels: Whole
    numbers: Whole


def run_baseline(baseline: Baseline, data: DataSet, split: str, out: Path) -> Examination:
    """Fit on train and score `split`; `out`, the folder of its report, gets the settings as recipe.toml.

    Raises BadRecipe where the data set has no such split, or no training images, or records without a class each.
    """
    require_one_class(data.classes, data.name, "a baseline")
    for wanted in ("train", split):
        if not data.counts.get(wanted):
            raise no_split(data.name, wanted, list(data.counts))
    settings = dataclasses.asdict(baseline) | {"records": str(data.name)}
    files.write_whole(out / "recipe.toml", tomli_w.dumps(settings))
    train, scored = Pieces(data, "train", baseline), Pieces(data, split, baseline)
    with Bar(baseline.name, "images") as bar:
        fit = _nearest if baseline.model == "knn" else _linear
        classifier = fit(baseline, train, scored, len(data.classes), bar)
        started = time.monotonic()
        parts = [classifier.outcomes(piece, number) for number, piece in enumerate(scored)]
    outcomes = Outcomes(*(np.concatenate(columns) for columns in zip(*map(_columns, parts), strict=True)))
    result = _evaluation(baseline, data, split, out, outcomes, classifier.digest, time.monotonic() - started)
    return Examination(result, outcomes, [outcomes], data.classes, data)


def _columns(outcomes: Outcomes) -> list[Any]:
    return [getattr(outcomes, field.name) for field in dataclasses.fields(outcomes)]


class Pieces:
    """Features of a split in the order of its records; kept where they fit in memory, else computed for each pass."""

    def __init__(self, data: DataSet, split: str, baseline: Baseline) -> None:
        self._data, self._split, self._baseline = data, split, baseline
        self._kept: list[Piece] | None = None
        self.images = data.count(split)

    def __iter__(self) -> Iterator[Piece]:
        if self._kept is not None:
            return iter(self._kept)
        return self._computed()

    def _computed(self) -> Iterator[Piece]:
        describe = FEATURES[self._baseline.features]
        kept: list[Piece] | None = []
        with RecordSet.of(self._data, self._split) as records:
            loader = Loader(records, self._baseline.size, self._baseline.piece_images, classes=len(self._data.classes))
            with loader.evaluation(crop_fraction=1.0) as batches:
                for batch in batches:
                    features = np.stack([describe(image) for image in batch.images])
                    piece = Piece(features, batch.labels.copy(), batch.records.copy())
                    if not _fits(features.nbytes / len(features) * self.images):
                        kept = None
                    if kept is not None:
                        kept.append(piece)
                    yield piece
        self._kept = kept


def _fits(size_bytes: float) -> bool:
    free = available_memory_bytes()
    return free is None or size_bytes <= SHARE_OF_MEMORY * free


def pixels(image: Pixels) -> Rows:
    """Every value of [height, width, 3], in 0..1."""
    return image.reshape(-1).astype(np.float32) / 255


def oriented_gradients(image: Pixels) -> Rows:
    """The histogram of oriented gradients: cells of 8 pixels, blocks of 2 x 2 of them, 9 directions."""
    side, block, cell = (image.shape[1], image.shape[0]), (BLOCK_PIXELS,) * 2, (CELL_PIXELS,) * 2
    found = cv2.HOGDescriptor(side, block, cell, cell, DIRECTIONS).compute(image)
    return np.asarray(found, np.float32).reshape(-1)


def colour_histogram(image: Pixels) -> Rows:
    """The share of the pixels in each bin of hue, saturation and value."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    counts = cv2.calcHist([hsv], [0, 1, 2], None, list(COLOUR_BINS), [0, 180, 0, 256, 0, 256])
    return np.asarray(counts, np.float32).reshape(-1) / image[..., 0].size


FEATURES: dict[str, Callable[[Pixels], Rows]] = {
    "pixels": pixels,
    "hog": oriented_gradients,
    "colour-histogram": colour_histogram,
}


@dataclass(frozen=True)
class _Linear:
    """A linear model on standardised features of a length of about 1, a score a class."""

    model: Any
    scaler: StandardScaler

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model.coef_.tobytes() + self.model.intercept_.tobytes()).hexdigest()

    def outcomes(self, piece: Piece, _: int) -> Outcomes:
        scores = self.model.decision_function(self.rows(piece.features))
        if scores.ndim == 1:  # of two classes, that of the second
            scores = np.stack([-scores, scores], 1)
        return outcomes_of(piece.numbers, piece.labels, scores, self._logs(scores), CROSS_ENTROPY)

    def rows(self, features: Rows) -> Rows:
        """The features as the model reads them: steps of the same size suit any number of them."""
        rows: Rows = self.scaler.transform(features) / np.float32(np.sqrt(features.shape[1]))
        return rows

    def _logs(self, scores: npt.NDArray[np.float64]) -> Logs:
        # Of the logistic loss as scikit-learn has them: a sigmoid for each class, their sum brought to 1.
        logs = -np.logaddexp(0, -scores) if getattr(self.model, "loss", "") == "log_loss" else scores
        normalised: Logs = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
        return normalised


def _linear(baseline: Baseline, train: Pieces, _: Pieces, classes: int, bar: Bar) -> _Linear:
    fitted, total = _Linear(linear_model(baseline), StandardScaler()), train.images * (1 + baseline.epochs)
    done = 0
    for piece in train:
        fitted.scaler.partial_fit(piece.features)
        bar.show(done := done + len(piece.labels), total)
    for epoch in range(baseline.epochs):
        for number, piece in enumerate(train):
            order = np.random.default_rng([baseline.seed, epoch, number]).permutation(len(piece.labels))
            rows = fitted.rows(piece.features[order])
            try:
                fitted.model.partial_fit(rows, piece.labels[order], classes=np.arange(classes))
            except ValueError as error:  # scikit-learn's word for weights that are infinite
                if "overflow" not in str(error):
                    raise
                advice = "take a smaller --strength"
                raise BadInput("the model's weights are not finite", where=baseline.name, advice=advice) from error
            bar.show(done := done + len(order), total)
    return fitted


def linear_model(baseline: Baseline) -> SGDClassifier | Perceptron:
    """The model of scikit-learn, not fitted.

    "sgd" is the logistic loss at a constant rate; "logistic" and "svm" (hinge loss) let
    the rate fall and average the weights of all steps, but with an L1 penalty, whose zeros an average would lose.
    """
    common = {
        "penalty": None if baseline.penalty == "none" else baseline.penalty,
        "alpha": baseline.strength,
        "random_state": baseline.seed,
        "n_jobs": available_processors(),
    }
    falling = {"average": baseline.penalty in ("none", "l2")} | common
    match baseline.model:
        case "perceptron":
            return Perceptron(**common)
        case "sgd":
            return SGDClassifier(loss="log_loss", learning_rate="constant", eta0=CONSTANT_RATE, **common)
        case "logistic":
            return SGDClassifier(loss="log_loss", **falling)
    return SGDClassifier(loss="hinge", **falling)


@dataclass(frozen=True)
class _Nearest:
    """The classes of the nearest training images of each image that is scored, [n, k] a piece."""

    neighbours: list[Whole]
    classes: int
    digest: str

    def outcomes(self, piece: Piece, number: int) -> Outcomes:
        near = self.neighbours[number]
        votes = np.zeros((len(near), self.classes))
        np.add.at(votes, (np.arange(len(near))[:, None], near), 1)
        # A vote is shared by all classes, so that no probability is 0.
        logs = np.log((votes + 1 / self.classes) / (near.shape[1] + 1))
        return outcomes_of(piece.numbers, piece.labels, votes, logs, CROSS_ENTROPY)


def _nearest(baseline: Baseline, train: Pieces, scored: Pieces, classes: int, bar: Bar) -> _Nearest:
    best: list[tuple[Rows, Whole]] = [
        (np.empty((len(piece.labels), 0), np.float32), np.empty((len(piece.labels), 0), np.int64)) for piece in scored
    ]
    digest, done, total = hashlib.sha256(), 0, train.images * max(1, scored.images)
    for piece in train:
        digest.update(piece.features.tobytes())
        search = NearestNeighbors(n_neighbors=min(baseline.neighbours, len(piece.labels)), algorithm="brute")
        search.fit(piece.features)
        for number, other in enumerate(scored):
            distances, rows = search.kneighbors(other.features)
            found = np.hstack([best[number][0], distances]), np.hstack([best[number][1], piece.labels[rows]])
            # Stable: of equally near images the earlier record counts.
            order = np.argsort(found[0], axis=1, kind="stable")[:, : baseline.neighbours]
            best[number] = np.take_along_axis(found[0], order, 1), np.take_along_axis(found[1], order, 1)
            bar.show(done := done + len(piece.labels) * len(other.labels), total)
    return _Nearest([labels for _, labels in best], classes, digest.hexdigest())


def _evaluation(
    baseline: Baseline, data: DataSet, split: str, out: Path, outcomes: Outcomes, digest: str, seconds: float
) -> Evaluation:
    images = len(outcomes)
    if not np.isfinite(outcomes.losses).all():
        raise BadInput("the model's scores are not finite", where=baseline.name, advice="take another --strength")
    rank1_hits, rank5_hits = int(outcomes.rank1_right.sum()), int(outcomes.rank5_right.sum())
    return Evaluation(
        run=str(out),
        checkpoint="fitted on train",
        epoch=0 if baseline.model == "knn" else baseline.epochs,
        split=split,
        images=images,
        rank1=100.0 * rank1_hits / images,
        rank5=100.0 * rank5_hits / images,
        loss=float(outcomes.losses.mean()),
        loss_kind="cross_entropy",
        rank1_hits=rank1_hits,
        rank5_hits=rank5_hits,
        crops=1,
        network=baseline.name,
        input_size=baseline.size,
        crop_fraction=1.0,
        classes=len(data.classes),
        scored_classes=len(data.classes),
        temperature=None,
        fitted_here=False,
        engine="scikit-learn",
        devices=["cpu"],
        precision="float64",
        process=0,
        processes=1,
        images_per_second=round(images / max(seconds, 1e-9), 1),
        weights_digest=digest,
        data_digest=data.digest,
        recipe_digest=files.sha256_of(out / "recipe.toml"),
        versions={"scikit-learn": sklearn.__version__, "opencv": cv2.__version__, "numpy": np.__version__},
    )
