"""Losses and hits as PyTorch tensors, left on the device; `engines/gluon/losses.py` states the same for MXNet."""

from __future__ import annotations

from typing import Any

from imagenet_pipeline.config import DistillationRecipe, LossRecipe, log_odds
from imagenet_pipeline.engines import LEAST_MISSING
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.records.classes import LabelKind


def losses_of(logits: Any, targets: Any, loss: LossRecipe, training: bool, label_kind: LabelKind = "class") -> Any:
    """Loss of each image [n], as `engines/__init__.py` writes it; NaN where a logit is not finite.

    `logits` [n, classes] float32 or float64; `targets` classes [n] int64, or shares [n, classes].
    Of several classes or numbers an image they are label vectors [n, classes], of the logits' kind.
    Raises BadRecipe for hinge with shares.
    """
    if loss.kind == "hinge":
        return _hinge(logits, targets, loss.margin)
    if loss.kind in ("mae", "mse", "huber"):
        return _distances(logits - targets, loss)
    if loss.kind == "binary_cross_entropy" and label_kind == "classes":
        return _binary_cross_entropy(logits, targets)
    if loss.kind == "binary_cross_entropy":
        logits = logits + logits.new_tensor([0.0, log_odds(loss.threshold)])
    logs = _log_softmax(logits)
    if loss.kind == "focal":
        logs = logs * (-torch.expm1(logs)).clamp(min=LEAST_MISSING) ** loss.gamma
    own = _own(logs, targets)
    share = loss.label_smoothing if training else 0.0
    return -((1 - share) * own + share * logs.mean(1)) if share else -own


def distilled(losses: Any, logits: Any, teacher: Any, recipe: DistillationRecipe) -> Any:
    """The losses [n] mixed with those against a teacher's logits [n, classes], as `engines/__init__.py` writes it."""
    if recipe.kind == "hard":
        own = -_own(_log_softmax(logits), teacher.argmax(1))
    else:
        aims = torch.log_softmax(teacher / recipe.temperature, 1)
        misses = aims - _log_softmax(logits / recipe.temperature)
        own = recipe.temperature**2 * (aims.exp() * misses).sum(1)
    return (1 - recipe.share) * losses + recipe.share * own


def weighted(losses: Any, targets: Any, class_weights: Any | None) -> Any:
    """The losses [n], each times the weight [classes] of its image's class, or the mean by its shares."""
    if class_weights is None:
        return losses
    return losses * (class_weights[targets] if targets.ndim == 1 else (targets * class_weights).sum(1))


def metrics_of(losses: Any, logits: Any, labels: Any) -> Any:
    """[sum of losses, rank-1 hits, rank-5 hits]; ties go to the lower class, soft labels count their largest."""
    column = (labels if labels.ndim == 1 else labels.argmax(1)).unsqueeze(1)
    own = logits.gather(1, column)
    classes = torch.arange(logits.shape[1], device=logits.device)
    rank = ((logits > own) | ((logits == own) & (classes < column))).sum(1)
    return torch.stack([losses.sum(), (rank < 1).sum(), (rank < 5).sum()]).detach()


def _log_softmax(logits: Any) -> Any:
    # The second term is 0, or NaN where a logit is not finite: -inf alone would pass unseen.
    return torch.log_softmax(logits, 1) + (logits * 0).sum(1, keepdim=True)


def _own(logs: Any, targets: Any) -> Any:
    if targets.ndim == 1:
        return logs.gather(1, targets.unsqueeze(1)).squeeze(1)
    return (logs * targets).sum(1)


def _hinge(logits: Any, labels: Any, margin: float) -> Any:
    if labels.ndim > 1:
        raise BadRecipe("the hinge loss takes no soft labels", where="loss.kind", advice="take cross_entropy")
    margins = (logits - logits.gather(1, labels.unsqueeze(1)) + margin).relu()
    others = torch.ones_like(margins).scatter(1, labels.unsqueeze(1), 0)
    return (margins * others).sum(1) + (logits * 0).sum(1)


def _binary_cross_entropy(logits: Any, targets: Any) -> Any:
    # log(1 + exp(s)) - t s, in the form that overflows nowhere.
    rest = torch.log1p(torch.exp(-logits.abs()))
    return (logits.relu() - logits * targets + rest).mean(1) + (logits * 0).sum(1)


def _distances(errors: Any, loss: LossRecipe) -> Any:
    if loss.kind == "mse":
        return errors.square().mean(1)
    absolute = errors.abs()
    if loss.kind == "huber":
        near = absolute.clamp(max=loss.delta)
        absolute = near * (absolute - near / 2)
    return absolute.mean(1)


def decisions_of(losses: Any, logits: Any, targets: Any) -> Any:
    """[sum of losses, right decisions, images with no wrong one]; a target above 1/2 is a yes."""
    right = ((logits > 0) == (targets > 0.5)).to(losses.dtype)
    return torch.stack([losses.sum(), right.sum(), right.amin(1).sum()]).detach()


def errors_of(losses: Any, logits: Any, targets: Any) -> Any:
    """[sum of losses, of absolute errors, of squared errors], each the mean over an image's numbers."""
    errors = logits - targets
    return torch.stack([losses.sum(), errors.abs().mean(1).sum(), errors.square().mean(1).sum()]).detach()


METRICS = {"class": metrics_of, "classes": decisions_of, "number": errors_of}
"""Figures counted beside the loss, by the kind of label."""
