"""Results as a notebook shows them: HTML that needs nothing else, and takes the notebook's own letters and colours."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagenet_pipeline.errors import counted
from imagenet_pipeline.evaluation.predict import Prediction, read_picture
from imagenet_pipeline.evaluation.report import curves, text
from imagenet_pipeline.records.image import Rejected, encode_jpeg, encode_png, shrink
from imagenet_pipeline.training.journal import Event, figures_of
from imagenet_pipeline.training.metrics import NAMES, says_rank5

if TYPE_CHECKING:
    from imagenet_pipeline.evaluation.results import EvaluationReport

THUMBNAILS = 24
"""Pictures of predictions that are shown; the others are counted."""
_SIDE_PIXELS = 128
_CLASSES_SHOWN = 3


def evaluation_html(report: EvaluationReport) -> str:
    """The head of a report: its figures with their 95 % intervals."""
    hits = f"{_share(report.rank1_hits, report.images)}; chance: {report.rank1_chance:.3g} %"
    rows = [("rank-1", f"{report.rank1:.2f} %", _span(report.rank1_interval), hits)]
    if says_rank5(report.scored_classes):
        hits = _share(report.rank5_hits, report.images)
        rows.append(("rank-5", f"{report.rank5:.2f} %", _span(report.rank5_interval), hits))
    rows.append(("loss", f"{report.loss:z.4f}", _span(report.loss_interval, 4), report.loss_kind.replace("_", "-")))
    rows.append(("calibration error", f"{100 * report.calibration_error:.2f} %", "", "expected, 15 bins"))
    title = f"{report.network}, {report.checkpoint}: {counted(report.images, f'{report.split} image')}"
    return _table(title, ("", "", "95 %", "of"), rows)


def run_html(folder: Path, state: str, row: Event) -> str:
    """A run's last figures, and the curves of its loss and rank-1."""
    columns = {"loss": "loss", "rank-1 %": "rank1", "rank-5 %": "rank5"}
    if row and "train_rank1" not in row:
        columns = {"loss": "loss"} | {NAMES[figure]: figure for figure in figures_of([row])}
    rows = [
        (name, *(f"{row[f'{part}_{key}']:.4g}" if f"{part}_{key}" in row else "" for part in ("train", "validation")))
        for name, key in columns.items()
    ]
    pictures = curves(folder).replace("<img ", '<img style="max-width:48%" ')
    return _table(f"{folder}: {state}", ("", "train", "validation"), rows if row else []) + pictures


def predictions_html(predictions: Sequence[Prediction]) -> str:
    """Each picture with its most probable classes below it."""
    shown = "".join(map(_figure, predictions[:THUMBNAILS]))
    left = len(predictions) - THUMBNAILS
    more = f"<p>and {left:,} more</p>" if left > 0 else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{shown}</div>{more}'


def _figure(prediction: Prediction) -> str:
    lines = [
        f"{100 * choice.probability:.1f} %&nbsp; {text(choice.name)}" for choice in prediction.top[:_CLASSES_SHOWN]
    ]
    lines += [f"{amount.value:.4g}&nbsp; {text(amount.name)}" for amount in prediction.numbers]
    said = (
        "<br>".join(lines)
        or ("none of the classes" if not prediction.reason else "")
        or f"not read: {text(prediction.reason)}"
    )
    return (
        f'<figure style="margin:0;width:{_SIDE_PIXELS}px;overflow-wrap:anywhere">{_thumbnail(prediction.path)}'
        f"<figcaption>{said}<br><small>{text(prediction.path.name)}</small></figcaption></figure>"
    )


def _thumbnail(path: Path) -> str:
    try:
        pixels = read_picture(path).whole()
    except Rejected:
        return ""
    is_small = min(pixels.shape[:2]) < _SIDE_PIXELS
    encoded = encode_png(pixels) if is_small else encode_jpeg(shrink(pixels, _SIDE_PIXELS), 85)
    source = f"data:image/{'png' if is_small else 'jpeg'};base64,{base64.b64encode(encoded).decode()}"
    style = f"width:{_SIDE_PIXELS}px;height:{_SIDE_PIXELS}px;object-fit:cover"
    return f'<img style="{style}" alt="" src="{source}">'


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f"<p><b>{text(title)}</b></p>{table}"


def _span(interval: Sequence[float] | None, digits: int = 2) -> str:
    return "" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _share(hits: int, images: int) -> str:
    return f"{hits:,} of {images:,}"
