"""Writes the pages of docs/reference/ that are made from the code: never by hand, never committed.

python scripts/docs.py      (scripts/docs.sh does it, and builds the site)
"""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import typer

import imagenet_pipeline
from imagenet_pipeline.cli import app
from imagenet_pipeline.config import Recipe, recipe_keys
from imagenet_pipeline.networks.summary import network_rows

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = REPOSITORY / "docs" / "reference"
RESULTS = (
    "imagenet_pipeline.records.build.BuildSummary",
    "imagenet_pipeline.api.TrainingResult",
    "imagenet_pipeline.evaluation.results.EvaluationReport",
    "imagenet_pipeline.api.Predictions",
    "imagenet_pipeline.evaluation.predict.Prediction",
    "imagenet_pipeline.loading.loader.Loader",
    "imagenet_pipeline.loading.loader.Batch",
)
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    for row in (header, None, *rows):
        cells = ["---"] * len(list(header)) if row is None else [cell.replace("|", "\\|") for cell in row]
        yield f"| {' | '.join(cells)} |"
    yield ""


def keys_page() -> Iterator[str]:
    """Every recipe key with default, limits and meaning, section by section."""
    schema = Recipe.model_json_schema()
    sections: dict[str, list[Any]] = {}
    for key in recipe_keys():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    yield "# Recipe keys\n"
    yield "A recipe is a TOML file that says what differs from these defaults. `imagenet-pipeline keys WORD` searches"
    yield "this list, also by the names that other programs use (`lr`, `wd`, `amp`, ...).\n"
    for section, keys in sections.items():
        model = section_model(section)
        yield f"## {section or 'The run'}\n"
        yield f"{inspect.cleandoc(model.__doc__ or '')}\n" if section else "Keys at the top of the file.\n"
        properties = schema["$defs"][model.__name__]["properties"] if section else schema["properties"]
        rows = []
        for key in keys:
            name = key.name.rpartition(".")[2]
            default = "required" if key.required else f"`{json.dumps(key.default)}`"
            rows.append((f"`{key.name}`", default, f"{key.meaning} {limits(properties[name], key.choices)}"))
        yield from table(("key", "default", "meaning"), rows)


def section_model(section: str) -> type[Any]:
    """The pydantic model of a section; of "" the recipe itself."""
    return Recipe.model_fields[section].annotation if section else Recipe  # type: ignore[return-value]


def limits(schema: dict[str, Any], choices: Iterable[str]) -> str:
    """The words or the range that a key may have, as a sentence; nothing where all is allowed."""
    parts = [f"`{json.dumps(word)}`" for word in choices]
    for part in (schema, *schema.get("anyOf", ())):
        bounds = [f"{word} {part[name]}" for name, word in LIMITS.items() if name in part]
        parts += [" and ".join(bounds)] if bounds else []
    return f"({' or '.join(parts)})" if parts else ""


def recipes_page() -> Iterator[str]:
    """Every recipe of this repository, under the comment at its head."""
    yield "# Recipes\n"
    yield "The recipes that are shipped, each with the comment at its head: its source, and the figure to expect."
    yield "`imagenet-pipeline recipes` lists them; `train` takes the name or the path.\n"
    for path in sorted(set(REPOSITORY.glob("config/**/*.toml")) - set(REPOSITORY.glob("config/networks/*.toml"))):
        lines = path.read_text().splitlines()
        head = list(takewhile(lambda line: line.startswith("#"), lines))
        yield f"## {path.relative_to(REPOSITORY / 'config').with_suffix('').as_posix()}\n"
        yield "\n".join(("```output", *(line[1:].removeprefix(" ") for line in head), "```\n"))
        yield "\n".join(("```toml", *lines[len(head) :], "```\n"))


def command_line_page() -> Iterator[str]:
    """The help of every verb."""
    yield "# Command line\n"
    yield "What `--help` says of every verb.\n"
    yield from helps(typer.main.get_command(app), "imagenet-pipeline", None)


def helps(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name, parent=parent, max_content_width=84, terminal_width=84)
    words = context.command_path.removeprefix("imagenet-pipeline").strip()
    yield f"## {words}\n" if words else ""
    yield f"```text\n{command.get_help(context)}\n```\n"
    for inner, subcommand in getattr(command, "commands", {}).items():
        yield from helps(subcommand, inner, context)


def python_page() -> Iterator[str]:
    """The public functions, their docstrings filled in by mkdocstrings."""
    yield "# Python\n"
    yield "`import imagenet_pipeline as ip` gives these names; each is imported when first used."
    yield '`logging.basicConfig(level="INFO")` shows what they say while they work.\n'
    for name in imagenet_pipeline.__all__:
        thing = getattr(imagenet_pipeline, name)
        yield f"::: {thing.__module__}.{thing.__qualname__}"
        # The keys have a page of their own.
        yield "    options:\n      members: false\n\n[All its keys](keys.md).\n" if thing is Recipe else ""
    yield "## What they return\n"
    yield from (f"::: {name}\n    options:\n      heading_level: 3\n" for name in RESULTS)


def networks_page() -> Iterator[str]:
    """Every network with its size, as `networks` lists them."""
    yield "# Networks\n"
    yield "What `imagenet-pipeline networks` lists: parameters and multiply-adds of one image, for 1,000 classes.\n"
    rows = network_rows(1000, None)
    yield from table(
        ("network", "input", "parameters", "million multiply-adds", "what it is"),
        (
            (f"`{r.name}`", str(r.input_size), f"{r.parameters:,}", f"{(r.multiply_adds or 0) / 1e6:,.0f}", r.summary)
            for r in rows
        ),
    )


def write_pages() -> None:
    """Write every page of docs/reference/, and take away what is none of them."""
    pages = {
        "keys": keys_page(),
        "recipes": recipes_page(),
        "command-line": command_line_page(),
        "python": python_page(),
        "networks": networks_page(),
    }
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.iterdir():
        old.unlink()
    for name, lines in pages.items():
        (PAGES / f"{name}.md").write_text("\n".join(lines) + "\n")
    for name, source in (("benchmarks", "benchmarks/README.md"), ("changes", "CHANGELOG.md")):
        text = (REPOSITORY / source).read_text()
        # Their links are from where they stand.
        (PAGES / f"{name}.md").write_text(re.sub(r"\]\((?:\.\./)?docs/", "](../", text))


def check_menu() -> None:
    """Exit unless the menu of zensical.toml has every page, and no other: Zensical takes a dead entry for a name."""
    nav = tomllib.loads((REPOSITORY / "zensical.toml").read_text())["project"]["nav"]
    menu = re.findall(r"[\w/-]+\.md", json.dumps(nav))
    pages = [path.relative_to(PAGES.parent).as_posix() for path in PAGES.parent.rglob("*.md")]
    differing = sorted({*menu} ^ {*pages})
    if differing:
        raise SystemExit(f"error: zensical.toml: the menu and the pages of docs/ differ; found {', '.join(differing)}")


if __name__ == "__main__":
    write_pages()
    check_menu()
