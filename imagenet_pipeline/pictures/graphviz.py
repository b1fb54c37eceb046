"""A network's diagram to a file: DOT as it is, or drawn by Graphviz."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.layer_engine import own_network
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.dot import dot_text
from imagenet_pipeline.networks.shapes import Shape, describe, multiply_adds, parameter_count
from imagenet_pipeline.networks.summary import CHANNELS
from imagenet_pipeline.networks.zoo import is_zoo_name
from imagenet_pipeline.pictures.diagram import diagram, is_folded

FORMATS = ("dot", "svg", "png", "pdf")
DOTS_PER_INCH = 120
SECONDS_LIMIT = 300


@dataclass(frozen=True)
class Diagram:
    """A diagram drawn, and of what."""

    file: str
    network: str
    input_shape: Shape
    classes: int
    parameters: int
    multiply_adds: int


def draw_network(
    name: str, out: Path, input_size: int | None = None, classes: int | None = None, full: bool = False
) -> Diagram:
    """Draw the network `name`, or that of the run folder `name`, to a .dot, .svg, .png or .pdf file.

    Size and number of classes are the run's, or the network's own and 1000. `full`: every layer by itself.
    Raises BadRecipe for an unknown or a zoo's network and for another ending, and, but for .dot, where Graphviz is
    not installed.
    """
    kind = out.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise BadRecipe("unknown kind of picture", where=out, expected=f"a name that ends in .{', .'.join(FORMATS)}")
    network, title, side, count = _network_of(name)
    count = classes or count
    description = own_network(network, count)
    size = input_size or side or catalog.entry(network).input_size
    shape = (CHANNELS, size, size)
    reports = describe(description, shape)
    made = Diagram(str(out), network, shape, count, parameter_count(reports), multiply_adds(reports))
    remarks = [
        catalog.entry(network).summary,
        f"{made.parameters:,} parameters, {made.multiply_adds / 1e6:,.0f} million multiply-adds, {count:,} classes",
        "right in each box: the shape of its output (channels \u00d7 height \u00d7 width), and below it its parameters",
    ]
    parts = diagram(description, shape, full)
    if is_folded(parts):
        remarks.append("\u00d7 2 in a box or frame: two alike in a row; a \u2026 b: numbers of the first and the last")
    text = dot_text(parts, shape, title, remarks)
    files.write_whole(out, text if kind == "dot" else drawn(text, kind))
    return made


def drawn(text: str, kind: str) -> bytes:
    """A DOT text as Graphviz draws it. Raises BadRecipe where that is not installed, BadInput where it fails."""
    words = ["dot", f"-T{kind}", *([f"-Gdpi={DOTS_PER_INCH}"] if kind == "png" else [])]
    try:
        done = subprocess.run(words, input=text.encode(), capture_output=True, check=True, timeout=SECONDS_LIMIT)
    except FileNotFoundError as error:
        advice = "install Graphviz (Debian: apt-get install graphviz), or take a name that ends in .dot"
        raise BadRecipe(f"a .{kind} needs the program dot of Graphviz, which is not here", advice=advice) from error
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"Graphviz took longer than {SECONDS_LIMIT} s", advice="leave out --full") from error
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"").decode(errors="replace").strip() or error
        raise BadInput(f"Graphviz could not draw the network ({reason})") from error
    return done.stdout


def _network_of(name: str) -> tuple[str, str, int | None, int]:
    """Of a network's name or a run folder: the network, a title, a run's side of the input in pixels, classes."""
    run = Path(name)
    if name in catalog.names() or is_zoo_name(name) or not run.is_dir():
        return name, name, None, 1000
    _, checkpoint = open_checkpoint(run, "best", {})
    state = checkpoint.state
    title = f"{state.network}, {checkpoint.folder.name} of {run.resolve().name}"
    return state.network, title, state.input_size, len(state.classes)
