"""Losses and hits as MXNet arrays, left on the device."""

from __future__ import annotations

from typing import Any

from imagenet_pipeline.engines.gluon_import import mx


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Loss of each image [n], in nats; NaN where a logit is not finite."""
    return -mx.nd.pick(_log_softmax(logits), labels)


def _log_softmax(logits: Any) -> Any:
    # oneDNN's float32 kernel makes numbers of a NaN; the second term is 0, or NaN where a logit is not finite.
    return mx.nd.broadcast_add(mx.nd.log_softmax(logits), (logits * 0).sum(axis=1, keepdims=True))


def mean_over_crops(logits: Any, crops: int) -> Any:
    """Logs of the probabilities averaged over each image's crops: [n * crops, classes] to [n, classes]."""
    if crops == 1:
        return logits
    logs = _log_softmax(logits).reshape((-1, crops, logits.shape[1]))
    # Relative to the most certain crop: a probability too small for the precision must not become log 0.
    most = logs.max(axis=1, keepdims=True)
    return mx.nd.broadcast_sub(logs, most).exp().mean(axis=1).log() + most.squeeze(axis=1)


def marks_of(losses: Any, logits: Any, labels: Any) -> Any:
    """[sum of losses, rank-1 hits, rank-5 hits]; ties go to the lower class, as a stable sort has them."""
    own = mx.nd.pick(logits, labels, keepdims=True)
    classes = mx.nd.arange(logits.shape[1], ctx=logits.context, dtype=logits.dtype)
    column = labels.astype(logits.dtype).expand_dims(1)
    ahead = mx.nd.broadcast_greater(logits, own)
    tied = mx.nd.broadcast_equal(logits, own) * mx.nd.broadcast_lesser(classes.expand_dims(0), column)
    rank = (ahead + tied).sum(axis=1)
    return mx.nd.stack(losses.sum(), (rank < 1).sum(), (rank < 5).sum()).reshape(3)
