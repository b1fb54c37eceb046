"""The verb start: from a folder of photos to a report, by the other verbs, each of which it shows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_pipeline.cli.output import Json, Overrides, announce, list_names, overrides_of, say, say_json
from imagenet_pipeline.errors import BadInput, BadRecipe, PipelineError, counted, first_few, printable
from imagenet_pipeline.progress import Bar

if TYPE_CHECKING:
    from imagenet_pipeline.config import Recipe
    from imagenet_pipeline.records.plan import Plan
    from imagenet_pipeline.records.survey import Survey
    from imagenet_pipeline.training.proposal import Proposal, TimeNeeded, Weights

OUTPUT = Path("output")
USUAL_FRACTION = 0.1
_COLUMNS = 100
_LABELS = (r"^(n\d{8})_", r"^([^\W\d_]+)")
"""Beginnings of file names that may be classes: ImageNet's ids, and words, as in cat.0.jpg."""
_LEAST_OF_A_CLASS = 3
"""Photos of each class from which on beginnings of names are taken for classes."""
_OF_CAMERAS = {"dsc", "dscf", "dscn", "ilsvrc", "image", "img", "mvimg", "n", "photo", "picture", "pxl", "screenshot"}
"""Words that cameras, telephones and ImageNet begin file names with, whatever is in the photo."""


@dataclasses.dataclass(frozen=True)
class _Places:
    """The folders and files of a start: where the photos are, and what is made of them."""

    root: Path
    records: Path
    recipe: Path
    run: Path

    @classmethod
    def of(cls, root: Path, out: Path) -> _Places:
        name = re.sub(r"\.(zip|tar(\.\w+)?|tgz)$", "", root.resolve().name) or "photos"
        return cls(root, out / name, out / f"{name}.toml", out / "runs" / name)

    @property
    def report(self) -> Path:
        return self.run / "report.html"


def start(
    root: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of photos, or a zip or tar of one.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for records, recipe and run.")] = OUTPUT,
    weights: Annotated[
        Path | None,
        typer.Option(help="Run to fine-tune [default: one under OUT/runs that knows 50 classes or more]"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run the proposal without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Look at photos, propose a recipe, and run it: from a folder to a report.

    It says what is there (classes, sizes, formats, damage, grey photos, the same photo in two splits), proposes a
    network, its input and epochs with reasons, measures the time on this machine, and writes the recipe to
    OUT/NAME.toml. Then build, verify, train and evaluate, each shown as the command it is. The same command again goes
    on where it was stopped; a recipe that is there is kept. Without --yes it asks on a terminal, and elsewhere only
    shows the commands.

    \b
    Examples:
      imagenet-pipeline start photos/
      imagenet-pipeline start photos.zip --yes epochs=10
      imagenet-pipeline start photos/ --weights output/runs/resnet50 --yes
    """
    announce(f"{root}: looking at the photos")
    changes, places = overrides_of(overrides), _Places.of(root, out)
    plan, options = _planned(places)
    survey = _survey(plan)
    if not as_json:
        for line in _seen_lines(plan, survey, "label_from" in options):
            say(line)
    proposal, needed = _proposal(places, plan, survey, weights, changes)
    commands = list(_commands(places, survey, options))
    if not as_json:
        for line in _proposal_lines(places, proposal, needed):
            say(line)
        for words in commands:
            say(f"  {_shown(words)}")
    answers = {}
    if yes or _agreed(as_json):
        for words in commands:
            answers[words[0]] = _run(words, places, as_json)
        if not as_json:
            say()
            say(f"report: {places.report}")
    elif not as_json:
        say()
        say("--yes runs them")
    if as_json:
        say_json(_answer(places, survey, proposal, needed, commands, answers))


def _planned(places: _Places) -> tuple[Plan, dict[str, Any]]:
    """The plan of the photos by their folders, or else by the beginnings of their names; the builder's options.

    Where there are folders of splits, and none for val, a tenth is cut out.
    """
    from imagenet_pipeline.builders import plan_of
    from imagenet_pipeline.records.archives import is_archive

    def planned(**options: Any) -> tuple[Plan, dict[str, Any]]:
        plan = plan_of("folder", places.records, {"root": root, **options})
        if "val" in plan.splits:
            return plan, options
        if "val_fraction" in options:
            what, advice = "too few training photos to cut val out of", "add photos, or some in a folder val"
            raise BadInput(what, where=root, found=plan.counts["train"], advice=advice)
        return planned(**options, val_fraction=USUAL_FRACTION)

    root = places.root
    if root.is_file() and not is_archive(root):
        expected, advice = "a folder of photos, or a zip or tar of one", "`predict RUN FILE` names a single photo"
        raise BadInput("a file, not a folder", where=root, expected=expected, advice=advice)
    try:
        return planned()
    except BadInput as error:
        if "--val-fraction" in (error.advice or ""):
            raise error.replaced(where=root, advice="add images of that class") from error
        if "no class folders" not in error.what:
            raise
        for expression in _LABELS:
            with contextlib.suppress(PipelineError):
                plan, options = planned(label_from=expression)
                if _looks_like_classes(plan):
                    return plan, options
        raise


def _looks_like_classes(plan: Plan) -> bool:
    import numpy as np

    if _OF_CAMERAS & {name.lower() for name in plan.classes.names}:
        return False
    return int(np.bincount(plan.splits["train"].labels).min()) >= _LEAST_OF_A_CLASS


def _survey(plan: Plan) -> Survey:
    from imagenet_pipeline.records.survey import survey

    with Bar("start", "photos") as bar:
        return survey(plan, bar.show)


def _proposal(
    places: _Places, plan: Plan, survey: Survey, weights: Path | None, changes: dict[str, Any]
) -> tuple[Proposal | None, TimeNeeded | None]:
    """The proposal, its recipe written, and its time; none where a recipe is there, which is kept.

    Keys replace a proposal that was made without any, and that nobody has changed or begun to run.
    """
    from imagenet_pipeline import files
    from imagenet_pipeline.config import load_recipe
    from imagenet_pipeline.training.proposal import measure_time, propose

    if places.recipe.exists():
        given = _not_as_kept(places.recipe, weights, changes)
        if not given:
            _require_its_own_run(places, plan, load_recipe(places.recipe))
            return None, None
        if not _is_of_a_look(places, survey):
            found, advice = ", ".join(given), "change it there, or remove it for a new proposal"
            raise BadRecipe("the recipe is there already, and is kept", where=places.recipe, found=found, advice=advice)
    proposal = propose(survey, places.records, _weights(places, weights), changes)
    _require_its_own_run(places, plan, proposal.recipe)
    announce(f"{proposal.recipe.network}: measuring a step on this machine")
    needed = measure_time(plan, survey, proposal)
    files.write_whole(places.recipe, proposal.text)
    return proposal, needed


def _is_of_a_look(places: _Places, survey: Survey) -> bool:
    """Tell whether the recipe is that of a first look, without keys, since when nothing was changed or run."""
    from imagenet_pipeline.training.journal import Journal
    from imagenet_pipeline.training.proposal import propose

    if Journal(places.run).last_event():
        return False
    return places.recipe.read_text() == propose(survey, places.records, _weights(places, None), {}).text


def _not_as_kept(recipe: Path, weights: Path | None, changes: dict[str, Any]) -> list[str]:
    """The keys and options given that say other than the recipe: none where the same command is given again."""
    from imagenet_pipeline.config import load_recipe

    kept = load_recipe(recipe)
    given = [key for key, value in changes.items() if load_recipe(recipe, {key: value}) != kept]
    return [*given, *(["--weights"] if weights and kept.initial.weights != str(weights) else [])]


def _require_its_own_run(places: _Places, plan: Plan, recipe: Recipe) -> None:
    """Raise BadRecipe where the run has ended with another recipe: its figures are not those of this one."""
    from imagenet_pipeline.training.journal import Journal
    from imagenet_pipeline.training.restart import keys_unlike

    if Journal(places.run).last_event() != "end":
        return
    if keys := keys_unlike(recipe, places.run, plan.classes):
        what, advice = "the finished run here is of another recipe", "move it away to train anew"
        if places.recipe.exists():
            words = ["train", str(places.recipe), "--run", str(places.run), "--resume", "latest"]
            advice += f", or try to go on with it: {_shown(words)}"
        raise BadRecipe(what, where=places.run, found=f"another {', '.join(keys)}", advice=advice)


def _weights(places: _Places, weights: Path | None) -> Weights | None:
    from imagenet_pipeline.training.proposal import weights_at_hand, weights_of

    return weights_of(weights) if weights else weights_at_hand(places.run.parent, places.run)


def _commands(places: _Places, survey: Survey, options: dict[str, Any]) -> Iterator[list[str]]:
    """The words of each verb, in the order of the work."""
    build = ["build", "folder", "--root", str(places.root), "--out", str(places.records)]
    for name, value in options.items():
        build += [f"--{name.replace('_', '-')}", str(value)]
    allowed = len(survey.unusable)
    if survey.looked_at < survey.total:
        # Of a sample there are more among the others: up to 3 for none seen in it, by the rule of three.
        allowed = 10 + round((2 * allowed + 3) * survey.total / survey.looked_at)
    if allowed:
        build += ["--max-rejects", str(allowed)]
    yield build
    yield ["verify", str(places.records)]
    yield ["train", str(places.recipe), "--run", str(places.run)]
    yield ["evaluate", str(places.run), "--report", str(places.report)]


def _run(words: list[str], places: _Places, as_json: bool) -> Any:
    """Run a verb, a training that was begun gone on with; its answer. Ends this program as the verb, where it fails."""
    from imagenet_pipeline.processes import run_along
    from imagenet_pipeline.training.journal import Journal

    if words[0] == "train":
        event = Journal(places.run).last_event()
        if event == "end":
            announce(f"{places.run}: trained already")
            return None
        words = [*words, "--resume", "latest"] if event else words
    announce(f"$ {_shown(words)}")
    code, answer = run_along([*words, *(["--json"] if as_json else [])], captured=as_json)
    if code:
        raise typer.Exit(code)
    if words[0] == "train" and Journal(places.run).last_event() == "stop":
        raise KeyboardInterrupt
    return json.loads(answer) if as_json else None


def _agreed(as_json: bool) -> bool:
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return typer.confirm("\nRun it?", default=True)


def _seen_lines(plan: Plan, survey: Survey, by_names: bool) -> Iterator[str]:
    """What is there, a line a matter."""
    counts = survey.class_counts
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    each = f"{counts[fewest]:,}" if counts[fewest] == counts[most] else (
        f"{counts[fewest]:,} ({fewest}) to {counts[most]:,} ({most})")  # fmt: skip
    cut = ", cut out here" if "fractions" in plan.source and any(plan.source["fractions"].values()) else ""
    yield f"photos      {survey.total:,} in {counted(len(counts), 'class')}: {list_names(survey.images)}{cut}"
    yield f"classes     {first_few(list(counts))}; {each} training photos each"
    if by_names:
        yield "            there are no folders of classes: these are the beginnings of the files' names"
    width, height = survey.size
    low, middle, high = survey.edges
    sample = f", of a sample of {survey.looked_at:,}" if survey.looked_at < survey.total else ""
    yield f"sizes       mostly {width}x{height}; shorter edge {low:,} to {high:,} pixels, median {middle:,}{sample}"
    yield f"formats     {list_names(survey.formats)}"
    yield f"grey        {survey.grey:,} of {survey.usable:,}"
    yield f"damaged     {len(survey.unusable) or 'none'}{sample}" + "".join(
        f"{'; ' if number else ': '}{path} ({reason})" for number, (path, reason) in enumerate(survey.unusable[:3])
    )
    alike = "; ".join(" = ".join(pair) for pair in survey.repeated[:3])
    where, pairs = (" in two splits or classes", f": {alike}") if alike else ("", "")
    yield f"repeated    {len(survey.repeated) or 'none'}{where}{sample}{pairs}"
    if alike:
        yield "            keep either of each: a photo that was trained on flatters the figure of a test"


def _proposal_lines(places: _Places, proposal: Proposal | None, needed: TimeNeeded | None) -> Iterator[str]:
    yield ""
    if proposal is None or needed is None:
        yield f"recipe      {places.recipe}, as it is there"
    else:
        yield f"recipe      {places.recipe}"
        for reason in proposal.reasons:
            yield from textwrap.wrap(reason, _COLUMNS, initial_indent=" " * 12, subsequent_indent=" " * 14)
        speed = f"a step of {proposal.recipe.images_per_step} takes {1000 * needed.step_seconds:.0f} ms here"
        yield f"time        about {_duration(needed.seconds)} ({speed})"
    yield ""


def _duration(seconds: float) -> str:
    """A time for people, in two figures."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.0f} seconds"


def _shown(words: list[str]) -> str:
    return printable(shlex.join(["imagenet-pipeline", *words]))


def _answer(
    places: _Places,
    survey: Survey,
    proposal: Proposal | None,
    needed: TimeNeeded | None,
    commands: list[list[str]],
    answers: dict[str, Any],
) -> dict[str, Any]:
    return {
        "photos": places.root,
        "seen": dataclasses.asdict(survey),
        "recipe": places.recipe,
        "proposal": proposal and proposal.values,
        "reasons": proposal and proposal.reasons,
        "time": needed and {**dataclasses.asdict(needed), "seconds": needed.seconds},
        "commands": [_shown(words) for words in commands],
        "run": places.run,
        "report": places.report if answers else None,
        "answers": answers,
    }
