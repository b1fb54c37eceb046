"""Diagnosis of a trained run: bias, variance, mismatch and over-fitting to validation, each with its evidence.

The four-part recipe (A. Ng, "Nuts and bolts of applying deep learning", 2016, as the books teach it) compares the
error on train, on a part of train that was not trained on (train_val), on validation and on test. All are scored as
in evaluation, by the same checkpoint. A gap counts where its 95 % interval leaves out 0 and it is worth the trouble.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.drawing import COLOURS, png, require_png
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.evaluate import candidate_of, open_checkpoint, score_candidates
from imagenet_pipeline.evaluation.stats import Interval, Rate, rate
from imagenet_pipeline.records.manifest import no_split
from imagenet_pipeline.records.plan import SPLITS
from imagenet_pipeline.training.journal import Event, Journal, branches

WORTH_POINTS = 2.0
"""Percentage points of rank-1 below which a gap is not worth the trouble."""
PLATEAU_SHARE = 0.01
"""Least fall of the training loss over the last quarter of the epochs, as a share of it, that is no plateau."""
WAITING_PERCENT = 10.0
FEWEST_EPOCHS = 4


@dataclass(frozen=True)
class Score:
    """Rank-1 and mean loss on a split."""

    split: str
    rank1: Rate
    loss: float


@dataclass(frozen=True)
class Gap:
    """Rank-1 that is lost from a split to the next, percentage points, with its interval (Newcombe 1998, method 10)."""

    points: float
    interval: Interval

    @property
    def counts(self) -> bool:
        """True where it is not by chance, and worth the trouble."""
        return self.interval[0] > 0 and self.points >= WORTH_POINTS


@dataclass(frozen=True)
class Finding:
    """A thing that was seen: `found` says whether it is there, `evidence` by what, `advice` what to try."""

    name: str
    found: bool
    evidence: str
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The scores of a checkpoint side by side, and what they and the history say."""

    run: str
    checkpoint: str
    scores: list[Score]
    findings: list[Finding]


ADVICE = {
    "bias": (
        "a larger network, or less regularisation (optimizer.weight_decay, dropout, augmentation)",
        "more epochs, or another learning rate (find-rate RECIPE)",
        "weights to start from (initial.weights)",
    ),
    "variance": (
        "more training images",
        "augmentation (augmentation.policy, mixup, erasing) or optimizer.weight_decay",
        "a smaller network, dropout, or fine-tuning with frozen layers (transfer.frozen)",
    ),
    "mismatch": (
        "training images like those of validation: look at both (picture augmentation, inspect --montage)",
        "augmentation that makes train look like validation (blur, colours, crops)",
    ),
    "over-fitting to validation": (
        "more validation images",
        "fewer choices made by validation figures (checkpoints, recipes tried)",
    ),
}


def diagnose(
    run: Path, which: str = "best", target: float = 100.0, train_images: int = 10_000, records: Path | None = None,
    overrides: dict[str, object] | None = None,
) -> Diagnosis:  # fmt: skip
    """Score a checkpoint on every split, of train about `train_images` at even distances, and compare.

    `target` is the rank-1 in percent that is within reach, as people's own. Raises BadRecipe as `evaluate` does, for a
    target that is none, and where there are no training records to compare with.
    """
    if not 0 < target <= 100:
        raise BadRecipe("the target is no rank-1", where="--target", expected="percent, above 0 to 100", found=target)
    opened = open_checkpoint(run, which, overrides or {}, "diagnose")
    data = None
    if records is not None:
        from imagenet_pipeline.training.data import records_to_read

        data = records_to_read(opened[0], records)
    first = candidate_of(run, opened, "train", data)
    if not first.data.counts.get("train"):
        raise no_split(first.data.name, "train", [split for split, images in first.data.counts.items() if images])
    scores, engine = [], first.engine()
    for split in (split for split in SPLITS if first.data.counts.get(split)):
        every = max(1, first.data.counts[split] // train_images) if split == "train" else 1
        (found,) = score_candidates([first], split, 1, every, [engine]).evaluations
        scores.append(Score(split, rate(found.rank1_hits, found.images), found.loss))
    events = Journal(run).events() if Journal(run).exists() else []
    rows = branches(events)[-1]
    findings = [*compared(scores, target), *of_history(rows)]
    return Diagnosis(str(run), first.checkpoint.folder.name, scores, findings)


def gap(first: Rate, second: Rate) -> Gap:
    """The rank-1 that is lost from the first split to the second, of other images."""
    below = math.hypot(first.percent - first.interval[0], second.interval[1] - second.percent)
    above = math.hypot(first.interval[1] - first.percent, second.percent - second.interval[0])
    points = first.percent - second.percent
    return Gap(points, (points - below, points + above))


def compared(scores: Sequence[Score], target: float) -> list[Finding]:
    """The four parts, as far as the splits tell them apart."""
    of = {score.split: score.rank1 for score in scores}
    findings = [_bias(of["train"], target)]
    unseen = "train_val" if "train_val" in of else "val"
    steps = [("variance", "train", unseen)]
    if "train_val" in of:
        steps.append(("mismatch", "train_val", "val"))
    steps.append(("over-fitting to validation", "val", "test"))
    for name, before, after in steps:
        if before in of and after in of:
            findings.append(_step(name, before, after, of))
    if "train_val" not in of and any(finding.found for finding in findings[1:2]):
        words = "without a split train_val it may be a mismatch of train and val as well (build --train-val-fraction)"
        findings[1] = Finding(findings[1].name, True, f"{findings[1].evidence}; {words}", findings[1].advice)
    return findings


def _bias(train: Rate, target: float) -> Finding:
    (low, high), missed = train.interval, target - train.percent
    evidence = f"train {train.percent:.2f} % (95 %: {low:.2f} to {high:.2f}), {missed:.2f} points below {target:g} %"
    found = high < target and missed >= WORTH_POINTS
    return Finding("bias", found, evidence, ADVICE["bias"] if found else ())


def _step(name: str, before: str, after: str, of: dict[str, Rate]) -> Finding:
    lost = gap(of[before], of[after])
    evidence = (
        f"{before} {of[before].percent:.2f} % to {after} {of[after].percent:.2f} %: {lost.points:.2f} points "
        f"(95 %: {lost.interval[0]:.2f} to {lost.interval[1]:.2f})"
    )
    return Finding(name, lost.counts, evidence, ADVICE[name] if lost.counts else ())


def of_history(rows: Sequence[Event]) -> list[Finding]:
    """Read the curves: training that was still getting better, validation that got worse, waiting for data."""
    if len(rows) < FEWEST_EPOCHS:
        return []
    quarter = rows[-max(2, len(rows) // 4) :]
    first, last = quarter[0]["train_loss"], quarter[-1]["train_loss"]
    fall = (first - last) / first if first > 0 else 0.0
    span = f"epochs {quarter[0]['epoch']} to {quarter[-1]['epoch']}"
    going_on = fall > PLATEAU_SHARE
    more = ("more epochs: a new run, or a higher `epochs` with --resume",) if going_on else ()
    findings = [Finding("still learning", going_on, f"the training loss fell by {100 * fall:.1f} % in {span}", more)]
    validated = [row for row in rows if "validation_loss" in row]
    if validated:
        findings.append(_turned(validated))
    waited = sum(row.get("wait_percent", 0.0) * row.get("seconds", 0.0) for row in rows)
    percent = waited / max(1e-9, sum(row.get("seconds", 0.0) for row in rows))
    slow = percent > WAITING_PERCENT
    faster = ("loader.threads, smaller stored photos (build --resize), see docs/scaling.md",) if slow else ()
    return [*findings, Finding("waiting for data", slow, f"{percent:.1f} % of the time", faster)]


def _turned(rows: Sequence[Event]) -> Finding:
    """The epoch from which the validation loss rose while the training loss fell."""
    lowest = min(rows, key=lambda row: (row["validation_loss"], row["epoch"]))
    last = rows[-1]
    rise = last["validation_loss"] - lowest["validation_loss"]
    turned = last["train_loss"] < lowest["train_loss"] and rise > PLATEAU_SHARE * lowest["validation_loss"]
    evidence = (
        f"the validation loss is lowest, {lowest['validation_loss']:.4f}, at epoch {lowest['epoch']} of "
        f"{last['epoch']}, and {last['validation_loss']:.4f} at the end"
    )
    advice = ("early stopping (stopping.patience_epochs), or regularise as for variance",) if turned else ()
    return Finding("over-fitting by epochs", turned, evidence, advice)


def draw_diagnosis(diagnosis: Diagnosis, out: Path, target: float) -> None:
    """Draw the error of each split as a bar with its interval, the target's as a line (PNG)."""
    from matplotlib.figure import Figure  # only where it is asked for

    require_png(out)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    names = [f"{score.split}\n{score.rank1.images:,}" for score in diagnosis.scores]
    errors = [100 - score.rank1.percent for score in diagnosis.scores]
    spans: list[list[float]] = [
        [score.rank1.interval[1] - score.rank1.percent for score in diagnosis.scores],
        [score.rank1.percent - score.rank1.interval[0] for score in diagnosis.scores],
    ]
    bars = axes.bar(names, errors, yerr=spans, color=COLOURS[0], ecolor="#444444", capsize=4, width=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axhline(100 - target, color="#666666", linestyle="--", linewidth=1)
    axes.set_ylabel("rank-1 error, %")
    axes.set_title(f"{Path(diagnosis.run).name}, {diagnosis.checkpoint}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    files.write_whole(out, png(figure))
