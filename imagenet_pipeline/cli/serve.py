"""The verb serve: a local page on which a trained run looks at photos."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from imagenet_pipeline.cli.output import Checkpoint, Overrides, say
from imagenet_pipeline.config import parse_overrides
from imagenet_pipeline.errors import BadRecipe

log = logging.getLogger("imagenet_pipeline")


def serve(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    changes: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any that is free.")] = 7860,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    checkpoint: Checkpoint = "best",
) -> None:
    """Serve a page that looks at photos.

    Dropped, chosen or from the camera: their most probable classes, or faces and emotions.

    It listens on this machine alone, unless --host says otherwise, and works offline. A photo has 20
    seconds to arrive. Needs the extra "serve".

    \b
    Examples:
      imagenet-pipeline serve output/runs/demo
      imagenet-pipeline serve output/runs/fer2013 --port 0 engine=pytorch
    """
    try:
        from imagenet_pipeline.serving.page import address, listen, own_names, page_app
        from imagenet_pipeline.serving.page import serve as serve_page
    except ModuleNotFoundError as error:
        advice = "pip install '.[serve]' in the repository"
        raise BadRecipe("the page needs Starlette and uvicorn", found=f"no {error.name}", advice=advice) from error
    from imagenet_pipeline.serving.answers import open_answers

    # The port first: opening the run takes longer.
    with contextlib.closing(listen(host, port)) as listening, contextlib.suppress(KeyboardInterrupt):
        answers = open_answers(run, checkpoint, parse_overrides(changes or []), top)
        answers.warm_up()
        names = own_names(host, listening)
        if not names:
            log.warning("warning: whoever reaches %s can send photos; there is no password and no encryption", host)
        say(f"{address(host, listening)}  (Ctrl-C ends it)")
        sys.stdout.flush()
        serve_page(page_app(answers, names), listening)
    say("ended")
