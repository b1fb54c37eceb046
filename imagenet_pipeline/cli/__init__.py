"""Words in, a call, answer out. Results go to stdout, progress and log lines to stderr."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from imagenet_pipeline import __version__
from imagenet_pipeline.cli import (
    build,
    emotion,
    evaluate,
    fetch,
    interchange,
    measure,
    pictures,
    predict,
    records,
    train,
)
from imagenet_pipeline.cli.output import say
from imagenet_pipeline.errors import BadInput, Negative, OutOfRoom, PipelineError, is_out_of_memory
from imagenet_pipeline.processes import end_with_launcher, tell_launcher, this_process

app = typer.Typer(
    help="From folders of photos to a trained, evaluated image classifier at ImageNet scale.\n\n"
    "build -> verify -> train -> evaluate. Every verb has --help with examples; --debug shows tracebacks.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 128 + signal.SIGINT
_TALKATIVE = ("botocore", "aiobotocore")
"""Loggers of other packages that tell with every command where they found what they were given."""


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    # Read by `main`, wherever it stands.
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        say(__version__)


app.add_typer(build.build_app, name="build")
for command in (
    records.verify,
    records.inspect,
    records.mean_image,
    evaluate.baseline,
    train.networks,
    train.keys,
    train.recipes,
    train.recipe,
    train.train,
    evaluate.evaluate,
    evaluate.diagnose,
    predict.calibrate,
    train.plot,
):
    app.command()(command)
app.command()(records.export_records)
app.command()(predict.predict)
app.command()(predict.submit)
app.add_typer(pictures.picture_app, name="picture")
app.command()(emotion.emotion)
app.command()(predict.serve)
app.command()(measure.doctor)
app.add_typer(measure.benchmark_app, name="benchmark")
app.command()(measure.find_rate)
app.command()(evaluate.features)
app.command()(evaluate.probe)
app.command()(interchange.export)
app.command(name="import")(interchange.import_network)
app.command()(fetch.fetch)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; what a user can cause is one line on stderr and an exit code of its own."""
    execute(app, words, "imagenet-pipeline")


def execute(command: typer.Typer, words: Sequence[str] | None = None, name: str | None = None) -> NoReturn:
    """Execute `command`, this command line or that of an extra, by the words of the process, and exit as `main`."""
    given = list(sys.argv[1:] if words is None else words) or ["--help"]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for talkative in _TALKATIVE:
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # At the end all goes with the process: Python need not look among a framework's million objects for garbage.
    atexit.register(gc.freeze)
    launched = False
    try:
        launched = _join_ranks()
        code = command([word for word in given if word != "--debug"], prog_name=name, standalone_mode=False, obj=given)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt  # which typer makes a code without a word
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in given:
            traceback.print_exc()
        code = _explain(error, given[0])
        if "DMLC_ROLE" in os.environ:
            # MXNet's threads do not survive an exit in which the other processes take no part.
            sys.stderr.flush()
            os._exit(code)
    if launched:
        # What PyTorch's network threads meet while the interpreter is taken down aborts it now and then.
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code or 0)


def _join_ranks() -> bool:
    """As one of several processes: end with their launcher, and speak for rank 0 alone; True if there are several."""
    end_with_launcher()
    if this_process().rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        logging.getLogger().setLevel(logging.ERROR)
    return this_process().launched


def _explain(error: BaseException, verb: str) -> int:
    match error:
        case Negative():
            tell_launcher("")
            return 1
        case PipelineError():
            return _fail(str(error), error.exit_code)
        case TyperException():
            message = getattr(error, "format_message", error.__str__)()
            return _fail(f"{message.replace('Value error, ', '')} (--help shows how)", 2)  # pydantic's words
        case KeyboardInterrupt() | typer.Abort():
            goes_on = "; what was finished is kept, and the same command goes on" if verb == "build" else ""
            return _fail(f"interrupted{goes_on}", _INTERRUPTED)
        case Exception() if is_out_of_memory(error):
            advice = "take a smaller batch_size, or fewer threads or workers"
            return _fail(f"out of memory; {advice}", OutOfRoom.exit_code)
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        case OSError(errno=errno.ENOSPC):
            return _fail(str(error), OutOfRoom.exit_code)
        case OSError(errno=errno.ENAMETOOLONG | errno.EACCES) if error.filename:
            return _fail(f"{error.filename}: cannot be used ({error.strerror})", BadInput.exit_code)
    return _fail(f"unexpected {type(error).__name__}: {error}; --debug shows where, please report it", 70)


def _fail(line: str, code: int) -> int:
    line = " ".join(line.split())
    if not tell_launcher(line):
        sys.stderr.write(f"error: {line}\n")
    return code
