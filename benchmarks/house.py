"""The size of the house: what a newcomer reads to follow a training run, and which files should not be there.

    python benchmarks/house.py                     (prints; --check exits 1 where a limit is broken)
    python benchmarks/house.py --engine pytorch --no-run

Files and functions that `train` passes through, files it imports, crumbs (small files with a single importer),
circles of imports, files that are too long, lines by folder, and the processor time of a start. Half a minute.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("imagenet_pipeline", "record_builders")
# 82: the compiled jpeg_crop and area_average count as files, too.
MOST_PASSED, MOST_IMPORTED, LONGEST, SMALL, MOST_START_SECONDS = 53, 82, 440, 60, 0.35
ALONE_FOR_A_REASON = {
    "imagenet_pipeline/networks/*.py": "a network family a file",
    "imagenet_pipeline/training/loggers/*.py": "a logger a file",
    "imagenet_pipeline/engines/*/*.py": "each engine has the same rooms",
    "*/__init__.py": "the face of a folder",
    "*/__main__.py": "python -m",
}
"""Small files with one importer that stay, by pattern."""

STARTS = (("-m", "imagenet_pipeline", "--help"), ("-c", "import imagenet_pipeline"), ("-c", ""))

Graph = dict[str, set[str]]


def modules(root: Path, folders: Iterable[str] = FOLDERS) -> dict[str, Path]:
    """Every module under `folders`, by its dotted name; record_builders as it is imported."""
    found = {}
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        words = path.relative_to(root).with_suffix("").parts
        found[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return found


def imports(known: Mapping[str, Path], whole: bool) -> Graph:
    """The modules that each module imports: at its top level alone, or on the `whole` also inside functions."""
    graph: Graph = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text())
        nodes = ast.walk(tree) if whole else _top_level(tree.body)
        graph[name] = {module for node in nodes for module in _named(node, package, known)} - {name}
    return graph


def _top_level(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _top_level(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _top_level(node.body)
        else:
            yield node


def _named(node: ast.AST, package: str, known: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1]]) if node.level else ""
        module = ".".join(filter(None, [base, node.module]))
        # A builder's name is that of the wheel; its file lies at the top of the checkout.
        module = module.removeprefix("imagenet_pipeline.") if ".record_builders" in module else module
        for alias in node.names:
            inner = f"{module}.{alias.name}"
            yield from (name for name in [inner if inner in known else module] if name in known)


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or by way of others."""
    reached = {name: _reached(graph, name) for name in graph}
    found = {frozenset(other for other in names if name in reached[other]) for name, names in reached.items()}
    return sorted(sorted(group) for group in found if group)


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def crumbs(known: Mapping[str, Path], root: Path) -> list[tuple[str, int, str]]:
    """Files under `SMALL` lines with a single importer, without a reason: path, lines, importer."""
    importers = defaultdict(set)
    for name, imported in imports(known, whole=True).items():
        for other in imported:
            importers[other].add(name)
    found = []
    for name, path in known.items():
        below = path.relative_to(root)
        alone = len(importers[name]) == 1 and not any(below.match(pattern) for pattern in ALONE_FOR_A_REASON)
        if alone and lines_of(path) < SMALL:
            found.append((below.as_posix(), lines_of(path), next(iter(importers[name]))))
    return found


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


class Passed:
    """Functions of this house that are called, but not those that an import calls."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str, int]] = set()
        self._importing = threading.local()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event not in ("call", "return"):
            return
        code, depth = frame.f_code, getattr(self._importing, "depth", 0)
        if code.co_name == "<module>":
            self._importing.depth = depth + (1 if event == "call" else -1)
        elif event == "call" and not depth and _folder_of(code.co_filename) and code.co_name[0] != "<":
            self.functions.add((code.co_filename, code.co_qualname, code.co_firstlineno))


def _folder_of(file: str) -> str | None:
    path = Path(os.path.abspath(file))
    return next((folder for folder in FOLDERS if path.is_relative_to(REPOSITORY / folder)), None)


@dataclass(frozen=True)
class Followed:
    """The trace of a training run: functions (file, name, line), the files of those, and the files imported."""

    functions: set[tuple[str, str, int]]
    passed: set[str]
    imported: set[str]


def follow_training(engine: str) -> Followed:
    """Train digits for an epoch in this process."""
    from imagenet_pipeline.cli import main

    with tempfile.TemporaryDirectory() as folder:
        records = f"{folder}/digits"
        build = [sys.executable, "-m", "imagenet_pipeline", "build", "digits", "--workers", "1", "--out", records]
        subprocess.run(build, check=True, capture_output=True)
        words = [
            "train",
            str(REPOSITORY / "config" / "demo.toml"),
            "epochs=1",
            "devices=cpu",
            f"engine={engine}",
            f"records={records}",
        ]
        passed = Passed()
        threading.setprofile(passed)
        sys.setprofile(passed)
        try:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                main([*words, "--run", f"{folder}/run"])
        except SystemExit as ended:
            if ended.code:
                raise
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    loaded = {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    return Followed(
        passed.functions,
        {_below(file) for file, *_ in passed.functions},
        {_below(file) for file in loaded if file and _folder_of(file)},
    )


def _below(file: str) -> str:
    return Path(os.path.abspath(file)).relative_to(REPOSITORY).as_posix()


def start_seconds(*words: str, repeats: int = 5) -> float:
    """Processor seconds, user and system, of a Python that is given `words`: the least of some."""
    spent = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


def lines_by_folder(known: Mapping[str, Path], root: Path) -> dict[str, int]:
    """Lines of code of each folder, one level below the packages."""
    counts: Counter[str] = Counter()
    for path in known.values():
        words = path.relative_to(root).parts
        counts["/".join(words[: 2 if len(words) > 2 else 1])] += lines_of(path)
    return dict(sorted(counts.items()))


def plan_faults(root: Path = REPOSITORY) -> list[str]:
    """What is wrong with the files as they lie there, a line each."""
    known = modules(root)
    sizes = [(path.relative_to(root).as_posix(), lines_of(path)) for path in known.values()]
    faults = [f"{name}: {lines} lines, more than {LONGEST}" for name, lines in sizes if lines > LONGEST]
    faults += [f"{name}: {lines} lines, and {alone} alone imports it" for name, lines, alone in crumbs(known, root)]
    return faults + [f"a circle of imports: {', '.join(circle)}" for circle in circles(imports(known, whole=False))]


def measured_faults(engine: str, names: bool) -> list[str]:
    """Follow a training, time a start, print both (and the files' `names`); what breaks a limit, a line each."""
    run = follow_training(engine)
    for file in sorted(run.imported) if names else []:
        say(f"{'passed' if file in run.passed else 'imported':8}  {file}")
    say(f"train ({engine}): {len(run.functions)} functions in {len(run.passed)} files; {len(run.imported)} imported")
    help_seconds, import_seconds, python_seconds = (start_seconds(*words) for words in STARTS)
    say(
        f"processor time: --help {help_seconds:.2f} s, the import {import_seconds:.2f} s, Python {python_seconds:.2f} s"
    )
    limits = [
        (len(run.passed), MOST_PASSED, "files passed through by train"),
        (len(run.imported), MOST_IMPORTED, "files imported by train"),
        (help_seconds, MOST_START_SECONDS, "seconds of --help"),
    ]
    return [f"{found:g} {what}, more than {most:g}" for found, most, what in limits if found > most]


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="gluon", help="engine of the training that is followed")
    parser.add_argument("--no-run", action="store_true", help="look at the files alone: a second")
    parser.add_argument("--names", action="store_true", help="name the files that train passes through and imports")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a limit is broken")
    options = parser.parse_args()
    known = modules(REPOSITORY)
    counts = lines_by_folder(known, REPOSITORY)
    for folder, lines in counts.items():
        say(f"{lines:7,}  {folder}")
    say(f"{sum(counts.values()):7,}  lines in {len(known)} files")
    faults = plan_faults() + ([] if options.no_run else measured_faults(options.engine, options.names))
    for fault in faults:
        say(f"fault: {fault}")
    say(f"{len(faults)} faults")
    sys.exit(1 if faults and options.check else 0)


if __name__ == "__main__":
    main()
