"""Words in, one call, answer out. Results go to stdout, progress and log lines to stderr."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer

from imagenet_pipeline import __version__
from imagenet_pipeline.cli_build import build_app
from imagenet_pipeline.errors import OutOfRoom, PipelineError
from imagenet_pipeline.printing import say, say_table

log = logging.getLogger("imagenet_pipeline")

app = typer.Typer(
    name="imagenet-pipeline",
    help="From folders of photos to a trained, evaluated image classifier at ImageNet scale.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(build_app, name="build")
benchmark_app = typer.Typer(help="This machine's own figures.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(benchmark_app, name="benchmark")

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]
