"""Words in, a call, answer out. Results go to stdout, progress and log lines to stderr."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from imagenet_pipeline import __version__
from imagenet_pipeline.cli.output import say, say_first
from imagenet_pipeline.errors import BadInput, Negative, OutOfRoom, PipelineError, is_out_of_memory
from imagenet_pipeline.processes import end_with_launcher, tell_launcher, this_process

SECTIONS = {
    "Look at data": {
        "start": "start:start",
        "inspect": "records:inspect",
        "picture": "pictures:picture_app",
    },
    "Build": {
        "build": "build:build_app",
        "verify": "records:verify",
        "mean-image": "records:mean_image",
    },
    "Train": {
        "networks": "train:networks",
        "recipes": "train:recipes",
        "keys": "train:keys",
        "find-rate": "measure:find_rate",
        "tune": "tune:tune",
        "train": "train:train",
        "average": "train:average",
        "plot": "train:plot",
    },
    "Evaluate": {
        "evaluate": "evaluate:evaluate",
        "diagnose": "evaluate:diagnose",
        "calibrate": "predict:calibrate",
        "baseline": "evaluate:baseline",
        "features": "evaluate:features",
        "probe": "evaluate:probe",
    },
    "Use": {
        "predict": "predict:predict",
        "submit": "predict:submit",
        "emotion": "emotion:emotion",
        "serve": "predict:serve",
    },
    "Exchange": {
        "import": "interchange:import_network",
        "export": "interchange:export",
        "export-records": "records:export_records",
        "recipe": "train:recipe",
        "fetch": "fetch:fetch",
    },
    "Measure": {
        "doctor": "doctor:doctor",
        "benchmark": "measure:benchmark_app",
    },
}
"""The verbs in the order of the work: in which file of this folder each is, and its function or group of commands."""
_PLACES = {verb: place for verbs in SECTIONS.values() for verb, place in verbs.items()}


@cache
def _command(verb: str) -> Any:
    """The command of a verb, its file imported; KeyError where there is none."""
    module, _, name = _PLACES[verb].partition(":")
    found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    alone = typer.Typer(callback=lambda: None, add_completion=False, rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=verb)
    else:
        alone.command(verb)(found)
    command = typer.main.get_command(alone).commands[verb]  # type: ignore[attr-defined]
    _make_it_speak(command, verb)
    return command


def _make_it_speak(command: Any, words: str) -> None:
    """Let a command, and those below it, say their first line before their work begins."""
    for name, inner in getattr(command, "commands", {}).items():
        _make_it_speak(inner, f"{words} {name}")
    invoke = command.invoke

    def speak_and_invoke(context: Any) -> Any:
        say_first(words, context.params)
        return invoke(context)

    command.invoke = speak_and_invoke


class _Commands(Mapping[str, Any]):
    """The commands by verb; a verb's file is imported when the verb is asked for."""

    def __getitem__(self, verb: str) -> Any:
        return _command(verb)

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


class _Verbs(TyperGroup):
    """The command line as a whole, whose help has the verbs section by section."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, _PLACES))
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                limit = formatter.width - width - 6
                # Padded, so that the second column begins at the same place in each section.
                rows = [(verb.ljust(width), self.commands[verb].get_short_help_str(limit)) for verb in verbs]
                formatter.write_dl(rows)


app = typer.Typer(
    cls=_Verbs,
    help="From folders of photos to a trained, evaluated image classifier at ImageNet scale.\n\n"
    "start does it all: build -> verify -> train -> evaluate. Every verb has --help with examples; --debug shows "
    "tracebacks.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 128 + signal.SIGINT
_TALKATIVE = ("botocore", "aiobotocore")
"""Loggers of other packages that tell with every command where they found what they were given."""


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version, and those of the engines.")] = False,
    # Read by `main`, wherever it stands.
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        from imagenet_pipeline.cli.doctor import engine_versions

        say(__version__)
        for engine, installed in engine_versions().items():
            say(f"{engine:<8} {installed or 'not installed'}")


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
            keeps = verb in ("build", "start")
            goes_on = "; what was finished is kept, and the same command goes on" if keeps else ""
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
