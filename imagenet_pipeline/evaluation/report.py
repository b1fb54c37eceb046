"""One self-contained page about an evaluation: the figures, the curves, and what they depend on."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.evaluation.ensemble import Ensemble
from imagenet_pipeline.evaluation.evaluate import Evaluation

LOSSES = {"cross_entropy": "cross-entropy, nats", "hinge": "hinge loss"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2.5rem auto;
       padding: 0 1.5rem; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 2rem 0 .5rem; }
.sub { color: #666; margin: .2rem 0 1.6rem; }
.figures { display: flex; gap: 3rem; flex-wrap: wrap; }
.figures b { display: block; font-size: 2.2rem; font-weight: 600; line-height: 1.2; color: #1f5fa8; }
.figures span { color: #666; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid #e5e5e5; padding: .3rem .8rem .3rem 0;
       vertical-align: top; overflow-wrap: anywhere; } td:first-child { color: #666; white-space: nowrap; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""


def write_report(evaluation: Evaluation | Ensemble, out: Path) -> Path:
    """Write `out`, one HTML file with its pictures inside; a run's curves and recipe are taken from its folder.

    Of an ensemble every member's own figures stand below those of all together.
    """
    members = evaluation.members if isinstance(evaluation, Ensemble) else [evaluation]
    if isinstance(evaluation, Ensemble):
        name = f"{len(members)} runs together"
        parts = [_figures(evaluation, LOSSES["cross_entropy"]), *map(_member, members)]
    else:
        name = evaluation.network
        parts = [_figures(evaluation, LOSSES[evaluation.loss_kind]), *_dependences(evaluation)]
    title = f"{name} on {evaluation.images:,} {evaluation.split} images"
    sources = ", ".join(f"{member.checkpoint} of {member.run}" for member in members)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(sources)}</p>{"".join(parts)}</body></html>\n'
    )
    files.write_whole(out, page)
    return out


def _member(member: Evaluation) -> str:
    heading = f"<h2>{escape(member.network)}, {escape(member.checkpoint)} of {escape(member.run)}</h2>"
    own = (
        f"<p>alone: rank-1 {member.rank1:.2f} % ({member.rank1_hits:,} of {member.images:,}), "
        f"rank-5 {member.rank5:.2f} %, cross-entropy {member.loss:.4f} nats</p>"
    )
    return heading + own + _table(member)


def _dependences(evaluation: Evaluation) -> list[str]:
    run = Path(evaluation.run)
    heading = "<h2>What the figures depend on</h2>"
    return [_curves(run / "curves.png"), heading, _table(evaluation), _recipe(run / "recipe.toml")]


def _figures(evaluation: Evaluation | Ensemble, loss: str) -> str:
    rows = [
        (f"{evaluation.rank1:.2f} %", f"rank-1: {evaluation.rank1_hits:,} of {evaluation.images:,}"),
        (f"{evaluation.rank5:.2f} %", f"rank-5: {evaluation.rank5_hits:,} of {evaluation.images:,}"),
        (f"{evaluation.loss:.4f}", loss),
    ]
    cells = "".join(f"<div><b>{value}</b><span>{escape(label)}</span></div>" for value, label in rows)
    return f'<div class="figures">{cells}</div>'


def _curves(path: Path) -> str:
    if not path.exists():
        return ""
    picture = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>Training</h2><img alt="loss and rank-1 by epoch" src="data:image/png;base64,{picture}">'


def _table(evaluation: Evaluation) -> str:
    rows = {
        "engine": f"{evaluation.engine} on {', '.join(evaluation.devices)}, {evaluation.precision}",
        "versions": ", ".join(f"{name} {version}" for name, version in evaluation.versions.items()),
        "input": f"{evaluation.input_size} px, {evaluation.crop_fraction:g} of the shorter edge, "
        f"crops: {evaluation.crops}",
        "classes": str(evaluation.classes),
        "weights, SHA-256": evaluation.weights_digest,
        "data, SHA-256 of the manifest": evaluation.data_digest,
    }
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _recipe(path: Path) -> str:
    return f"<h2>Recipe</h2><pre>{escape(path.read_text(encoding='utf-8'))}</pre>"
