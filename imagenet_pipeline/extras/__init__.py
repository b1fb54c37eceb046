"""Systems of the courses that are no classification: detection, style transfer, GANs. Nothing else imports them.

python -m imagenet_pipeline.extras.detection --help
python -m imagenet_pipeline.extras.style --help
python -m imagenet_pipeline.extras.gan --help
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def execute(command: Callable[..., None]) -> NoReturn:
    """Execute an extra's command by the words given to the process; an error is a line, as of the verbs."""
    import typer

    from imagenet_pipeline import cli

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command)
    cli.execute(app)


def make_folder(out: Path) -> None:
    """Make the folder for what is trained, before it is. Raises BadInput where it cannot be."""
    from imagenet_pipeline import files

    with files.explaining(out):
        out.mkdir(parents=True, exist_ok=True)
