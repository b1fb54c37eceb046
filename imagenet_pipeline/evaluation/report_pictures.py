"""The pictures of a report, as HTML that needs nothing else: a reliability diagram, confusions, mistakes, curves."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from imagenet_pipeline.errors import printable
from imagenet_pipeline.evaluation.calibration import Calibration
from imagenet_pipeline.evaluation.per_class import classes_met
from imagenet_pipeline.evaluation.report_tables import certainty
from imagenet_pipeline.evaluation.results import Findings, Mistake
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import decode_rgb, encode_jpeg, encode_png, shrink
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.curves import separate_curves
from imagenet_pipeline.training.journal import Journal

NUMBERED_CELLS = 25
"""Up to so many classes a cell has room for its count."""
_THUMBNAIL_PIXELS = 176
_PLOT, _LEFT, _TOP, _COUNTS = 300, 46, 8, 60
"""Of the diagram, in its own units: the side of the square, what lies left and above, and the height of the counts."""


def text(value: str) -> str:
    """Text that HTML shows as it is."""
    return escape(printable(value))


def reliability(calibration: Calibration) -> str:
    """Right guesses by confidence, with 95 % whiskers; the dashed line is where they agree. Below, images a bin."""
    bottom, foot = _TOP + _PLOT, _TOP + _PLOT + 14 + _COUNTS
    parts = [*_grid(bottom, foot)]
    most = max(one.right.images for one in calibration.bins)
    for one in calibration.bins:
        left, width = _x(one.low), _x(one.high) - _x(one.low)
        share, (low, high) = one.right.percent / 100, (_y(edge / 100) for edge in one.right.interval)
        told = f"{one.low:.2f} to {one.high:.2f}: {one.right.hits:,} of {one.right.images:,} right"
        told += f", mean confidence {one.confidence:.3f}"
        middle, height = _x(one.confidence), _COUNTS * one.right.images / most
        parts.append(
            f"<g><title>{told}</title>"
            f'<rect class="bar" x="{left + 1:.1f}" y="{_y(share):.1f}" width="{width - 2:.1f}"'
            f' height="{bottom - _y(share):.1f}"/>'
            f'<path class="whisker" d="M{middle:.1f} {low:.1f}V{high:.1f}"/>'
            f'<circle class="dot" cx="{middle:.1f}" cy="{_y(share):.1f}" r="3.5"/>'
            f'<rect class="count" x="{left + 1:.1f}" y="{foot - height:.1f}" width="{width - 2:.1f}"'
            f' height="{height:.1f}"/></g>'
        )
    parts.append(f'<path class="ideal" d="M{_LEFT} {bottom}L{_LEFT + _PLOT} {_TOP}"/>')
    parts.append(f'<text class="small" x="{_LEFT - 6}" y="{foot - _COUNTS + 9}" text-anchor="end">{most:,}</text>')
    size = f"{_LEFT + _PLOT + 14} {foot + 40}"
    name = "Reliability diagram: the share that is right by confidence"
    return f'<svg class="plot" viewBox="0 0 {size}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _grid(bottom: int, foot: int) -> Iterator[str]:
    for tenth in range(0, 11, 2):
        at = tenth / 10
        yield f'<path class="grid" d="M{_LEFT} {_y(at):.1f}H{_LEFT + _PLOT}M{_x(at):.1f} {_TOP}V{bottom}"/>'
        yield f'<text x="{_LEFT - 6}" y="{_y(at) + 4:.1f}" text-anchor="end">{10 * tenth}</text>'
        yield f'<text x="{_x(at):.1f}" y="{foot + 15}" text-anchor="middle">{10 * tenth}</text>'
    yield f'<path class="grid" d="M{_LEFT} {foot}H{_LEFT + _PLOT}"/>'
    yield f'<text x="{_LEFT + _PLOT / 2}" y="{foot + 34}" text-anchor="middle">confidence, %</text>'
    centre = _TOP + _PLOT / 2
    yield f'<text x="12" y="{centre}" text-anchor="middle" transform="rotate(-90 12 {centre})">right, %</text>'


def _x(share: float) -> float:
    return _LEFT + _PLOT * share


def _y(share: float) -> float:
    return _TOP + _PLOT * (1 - share)


def confusion_square(findings: Findings) -> str:
    """A row a class, a column a prediction, shaded by the share of the row: blue where right, orange where not."""
    labels = classes_met(findings.examination.outcomes)
    square = findings.confusion.square(labels)
    shares = square / np.maximum(1, square.sum(axis=1, keepdims=True))
    names = [text(findings.class_name(label)) for label in labels.tolist()]
    numbered = len(labels) <= NUMBERED_CELLS
    head = "".join(f"<th><span>{name}</span></th>" for name in names)
    rows = []
    for place, name in enumerate(names):
        cells = "".join(
            _cell(count, share, place == other, numbered, f"{name} taken for {names[other]}: {count}")
            for other, (count, share) in enumerate(zip(square[place].tolist(), shares[place].tolist(), strict=True))
        )
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    kind = "square" if numbered else "square fine"
    table = f'<table class="{kind}"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _cell(count: int, share: float, right: bool, numbered: bool, told: str) -> str:
    if not count:
        return "<td></td>"
    # The root lets single mistakes be seen beside hundreds of hits.
    strength = 0.08 + 0.92 * share**0.5
    colour = "31,95,168" if right else "194,87,26"
    ink = ' class="dark"' if strength > 0.6 else ""
    return f'<td{ink} style="background:rgba({colour},{strength:.2f})" title="{told}">{count if numbered else ""}</td>'


def mistakes(findings: Findings) -> str:
    """The records behind the surest mistakes, as thumbnails with what they are and what they were taken for."""
    examination = findings.examination
    with RecordSet.open(examination.data.folder, examination.result.split) as records:
        shown = [_mistake(findings, one, decode_rgb(records.read(one.position).image)) for one in findings.mistakes]
    return f'<div class="mistakes">{"".join(shown)}</div>'


def _mistake(findings: Findings, mistake: Mistake, pixels: Pixels) -> str:
    is_small = min(pixels.shape[:2]) < _THUMBNAIL_PIXELS
    encoded = encode_png(pixels) if is_small else encode_jpeg(shrink(pixels, _THUMBNAIL_PIXELS), 85)
    source = _inline(encoded, "png" if is_small else "jpeg")
    coarse = ' class="coarse"' if max(pixels.shape[:2]) <= 64 else ""
    predicted, true = (text(findings.class_name(label)) for label in (mistake.predicted, mistake.label))
    sure = text(certainty(mistake.probability)).replace(" ", "&nbsp;")
    return (
        f'<figure><img{coarse} alt="record {mistake.number}" src="{source}"><figcaption><b>{predicted}</b><br>'
        f"{sure}, is {true}<br><small>record {mistake.number}</small></figcaption></figure>"
    )


def curves(run: Path) -> str:
    """The loss and rank-1 by epoch of a run that was trained here; nothing of another."""
    if not (run / "curves.png").is_file() or not Journal(run).exists():
        return ""
    pictures = zip(("loss", "rank-1"), separate_curves(run), strict=True)
    shown = [f'<img alt="{name} by epoch" src="{_inline(picture, "png")}">' for name, picture in pictures]
    return f'<div class="curves">{"".join(shown)}</div>'


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
