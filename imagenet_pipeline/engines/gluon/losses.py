"""Losses and hits as MXNet arrays, left on the device; `engines/pytorch/losses.py` states the same for PyTorch."""

from __future__ import annotations

from typing import Any

from imagenet_pipeline.config import DistillationRecipe, LossRecipe, log_odds
from imagenet_pipeline.engines import LEAST_MISSING
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.records.classes import LabelKind


def losses_of(logits: Any, targets: Any, loss: LossRecipe, training: bool, label_kind: LabelKind = "class") -> Any:
    """Loss of each image [n], as `engines/__init__.py` writes it; NaN where a logit is not finite.

    `logits` [n, classes] float32 or float64; `targets` classes [n] int32, or shares [n, classes].
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
        shift = mx.nd.array([[0.0, log_odds(loss.threshold)]], ctx=logits.context, dtype=logits.dtype)
        logits = mx.nd.broadcast_add(logits, shift)
    logs = _log_softmax(logits)
    if loss.kind == "focal":
        logs = logs * mx.nd.maximum(-mx.nd.expm1(logs), LEAST_MISSING) ** loss.gamma
    own = mx.nd.pick(logs, targets) if targets.ndim == 1 else (logs * targets).sum(axis=1)
    share = loss.label_smoothing if training else 0.0
    return -((1 - share) * own + share * logs.mean(axis=1)) if share else -own


def distilled(losses: Any, logits: Any, teacher: Any, recipe: DistillationRecipe) -> Any:
    """The losses [n] mixed with those against a teacher's logits [n, classes], as `engines/__init__.py` writes it."""
    if recipe.kind == "hard":
        own = -mx.nd.pick(_log_softmax(logits), mx.nd.argmax(teacher, axis=1))
    else:
        aims = mx.nd.log_softmax(teacher / recipe.temperature)
        misses = aims - _log_softmax(logits / recipe.temperature)
        own = recipe.temperature**2 * (mx.nd.exp(aims) * misses).sum(axis=1)
    return (1 - recipe.share) * losses + recipe.share * own


def weighted(losses: Any, targets: Any, class_weights: Any | None) -> Any:
    """The losses [n], each times the weight [classes] of its image's class, or the mean by its shares."""
    if class_weights is None:
        return losses
    own = class_weights.as_in_context(losses.context)
    return losses * (mx.nd.take(own, targets) if targets.ndim == 1 else mx.nd.dot(targets, own))


def _log_softmax(logits: Any) -> Any:
    # oneDNN's float32 kernel makes numbers of a NaN.
    return mx.nd.broadcast_add(mx.nd.log_softmax(logits), _zero_or_nan(logits).expand_dims(1))


def _hinge(logits: Any, labels: Any, margin: float) -> Any:
    if labels.ndim > 1:
        raise BadRecipe("the hinge loss takes no soft labels", where="loss.kind", advice="take cross_entropy")
    margins = mx.nd.relu(mx.nd.broadcast_sub(logits, mx.nd.pick(logits, labels, keepdims=True)) + margin)
    others = mx.nd.one_hot(labels, logits.shape[1], on_value=0, off_value=1, dtype=logits.dtype)
    return (margins * others).sum(axis=1) + _zero_or_nan(logits)


def _zero_or_nan(logits: Any) -> Any:
    # [n]: 0, or NaN where a logit of the image is not finite.
    return (logits * 0).sum(axis=1)


def metrics_of(losses: Any, logits: Any, labels: Any) -> Any:
    """[sum of losses, rank-1 hits, rank-5 hits]; ties go to the lower class, as a stable sort has them.

    Shares [n, classes] count their largest.
    """
    chosen = labels.astype(logits.dtype) if labels.ndim == 1 else mx.nd.argmax(labels, axis=1)
    column = chosen.expand_dims(1)
    own = mx.nd.pick(logits, chosen, keepdims=True)
    classes = mx.nd.arange(logits.shape[1], ctx=logits.context, dtype=logits.dtype)
    ahead = mx.nd.broadcast_greater(logits, own)
    tied = mx.nd.broadcast_equal(logits, own) * mx.nd.broadcast_lesser(classes.expand_dims(0), column)
    rank = (ahead + tied).sum(axis=1)
    return mx.nd.stack(losses.sum(), (rank < 1).sum(), (rank < 5).sum()).reshape(3)


def _binary_cross_entropy(logits: Any, targets: Any) -> Any:
    # log(1 + exp(s)) - t s, in the form that overflows nowhere.
    rest = mx.nd.log1p(mx.nd.exp(-logits.abs()))
    return (mx.nd.relu(logits) - logits * targets + rest).mean(axis=1) + _zero_or_nan(logits)


def _distances(errors: Any, loss: LossRecipe) -> Any:
    if loss.kind == "mse":
        return errors.square().mean(axis=1)
    absolute = errors.abs()
    if loss.kind == "huber":
        near = mx.nd.minimum(absolute, loss.delta)
        absolute = near * (absolute - near / 2)
    return absolute.mean(axis=1) + _zero_or_nan(errors)


def decisions_of(losses: Any, logits: Any, targets: Any) -> Any:
    """[sum of losses, right decisions, images with no wrong one]; a target above 1/2 is a yes."""
    right = mx.nd.broadcast_equal(logits > 0, targets > 0.5)
    return mx.nd.stack(losses.sum(), right.sum(), right.min(axis=1).sum()).reshape(3)


def errors_of(losses: Any, logits: Any, targets: Any) -> Any:
    """[sum of losses, of absolute errors, of squared errors], each the mean over an image's numbers."""
    errors = logits - targets
    return mx.nd.stack(losses.sum(), errors.abs().mean(axis=1).sum(), errors.square().mean(axis=1).sum()).reshape(3)


METRICS = {"class": metrics_of, "classes": decisions_of, "number": errors_of}
"""Figures counted beside the loss, by the kind of label."""
