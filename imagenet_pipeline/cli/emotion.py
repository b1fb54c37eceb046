"""The verb emotion: faces and what they show, in pictures, a video or before a camera."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_pipeline.cli.completion import complete_run
from imagenet_pipeline.cli.output import Checkpoint, Json, Overrides, overrides_of, say, say_json
from imagenet_pipeline.errors import BadInput, BadRecipe

if TYPE_CHECKING:
    from imagenet_pipeline.faces.annotate import Source, Tally

log = logging.getLogger("imagenet_pipeline")


SourceWord = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Picture, folder of pictures, video, or camera, camera:1, 1.")
]
Out = Annotated[
    Path | None, typer.Option(help="Where the annotated copy goes [default: NAME-emotion here; of a camera nowhere]")
]
JsonLines = Annotated[
    Path | None, typer.Option(help="Where the detections go, a line a frame [default: beside --out, .jsonl]")
]
Every = Annotated[
    int, typer.Option(min=1, help="Look at every so many frames of a video or camera; boxes stay between.")
]
MinFace = Annotated[
    int, typer.Option(min=0, help="Smallest face, pixels; 0 is a 32nd of the root of the area, 30 at least.")
]
LimitFrames = Annotated[int, typer.Option(min=0, help="End a video or camera after so many frames; 0 is never.")]
NoWindow = Annotated[bool, typer.Option("--no-window", help="Open no window, even on a screen.")]


def emotion(
    run: Annotated[Path, typer.Argument(help="Run folder of a network trained on faces.", autocompletion=complete_run)],
    source: SourceWord,
    changes: Overrides = None,
    out: Out = None,
    json_lines: JsonLines = None,
    every: Every = 1,
    min_face: MinFace = 0,
    limit_frames: LimitFrames = 0,
    checkpoint: Checkpoint = "best",
    no_window: NoWindow = False,
    as_json: Json = False,
) -> None:
    """Box every face and name its emotion.

    In a copy, over a bar of its probability; the detections are written down as JSON lines.

    A video keeps its size and rate, not its sound (.mp4, .mov, .mkv, .avi). Of a cut video, and on Ctrl-C, what was
    annotated is kept. On a screen a window shows it (q ends it), where OpenCV has windows.

    \b
    Examples:
      imagenet-pipeline emotion output/runs/fer2013 party.jpg
      imagenet-pipeline emotion output/runs/fer2013 film.mp4 --out annotated.mp4 --every 3
      imagenet-pipeline emotion output/runs/fer2013 camera --out me.mp4 --limit-frames 200
    """
    from imagenet_pipeline.faces.annotate import annotate, output_paths, parse_source
    from imagenet_pipeline.faces.emotions import open_emotion_reader
    from imagenet_pipeline.faces.video import Window

    subject = parse_source(source)
    if subject.kind in ("picture", "folder"):
        _require_unused({"--every": every > 1, "--limit-frames": limit_frames > 0}, subject)
    out, json_lines = output_paths(subject, out, json_lines)
    reader = open_emotion_reader(run, checkpoint, overrides_of(changes), min_face)
    with contextlib.closing(Window(not no_window and subject.kind != "folder")) as window:
        tally = annotate(reader, subject, out, json_lines, window, every, limit_frames)
    if as_json:
        facts = {"source": source, "kind": subject.kind, "out": out, "json_lines": json_lines}
        speed = {"pictures_per_second": tally.pictures_per_second}
        say_json({**facts, **dataclasses.asdict(tally), **speed})
    else:
        _say(tally, subject, [path for path in (out, json_lines) if path])
    _end(tally, subject, source)


def _require_unused(options: dict[str, bool], subject: Source) -> None:
    for name, used in options.items():
        if used:
            raise BadRecipe(f"has no effect on a {subject.kind}", where=name, expected="a video or a camera")


def _end(tally: Tally, subject: Source, source: str) -> None:
    """Raise what the exit code is to say."""
    if tally.interrupted and subject.kind != "camera":
        log.info("interrupted; what was annotated is kept")
        raise KeyboardInterrupt
    if tally.trouble:
        raise BadInput(tally.trouble, where=source, advice="what was annotated is kept")
    if tally.unreadable:
        raise BadInput(f"{_count(len(tally.unreadable), 'picture')} could not be read", where=source)


def _say(tally: Tally, subject: Source, written: list[Path]) -> None:
    unit = "frame" if subject.kind in ("video", "camera") else "picture"
    looked = f" ({tally.looked_at:,} looked at)" if tally.looked_at < tally.pictures else ""
    without = f", none in {_count(tally.without_faces, unit)}" if tally.without_faces and tally.pictures > 1 else ""
    say(f"{_count(tally.faces, 'face')} in {_count(tally.pictures, unit)}{looked}{without}")
    if subject.kind != "picture":
        say(f"{tally.pictures_per_second:.1f} {unit}s a second")
    for path in written:
        say(f"wrote {path}")


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}" if number else f"no {thing}"
