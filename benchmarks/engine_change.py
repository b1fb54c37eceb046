"""A recipe on Gluon, on PyTorch, and changing from either to the other half-way: final rank-1 over several seeds.

    python benchmarks/engine_change.py RECIPE OUT [key=value ...] [--epochs 4] [--seeds 1 2 3] [--json]

Each seed: all epochs on either engine, then both runs copied, taken back to half of their epochs with
`--resume N engine=...` and finished on the other engine. Runs are ordinary run folders below OUT; what is finished
there is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("gluon", "pytorch", "gluon then pytorch", "pytorch then gluon")


def main() -> None:
    arguments = parse()
    rows = [of_seed(seed, arguments) for seed in arguments.seeds]
    sys.stdout.write(json.dumps(rows, indent=1) + "\n" if arguments.json else table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path, help="folder for the runs")
    parser.add_argument("overrides", nargs="*", default=[], help="recipe keys for all runs")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def of_seed(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Final validation rank-1 in percent of the four runs of a seed."""
    row: dict[str, Any] = {"seed": seed}
    for engine in ("gluon", "pytorch"):
        row[engine] = rank1(arguments, seed, engine, f"{engine}-{seed}", [])
    for first, second in (("gluon", "pytorch"), ("pytorch", "gluon")):
        name = f"{first}-then-{second}-{seed}"
        if not (arguments.out / name).exists():
            shutil.copytree(arguments.out / f"{first}-{seed}", arguments.out / name, symlinks=True)
            restart = ["--resume", str(arguments.epochs // 2)]
        else:
            restart = ["--resume", "latest"]
        row[f"{first} then {second}"] = rank1(arguments, seed, second, name, restart)
    return row


def rank1(arguments: argparse.Namespace, seed: int, engine: str, name: str, restart: list[str]) -> float:
    folder = arguments.out / name
    if not restart and (folder / "checkpoints" / "latest").exists():
        restart = ["--resume", "latest"]
    keys = [*arguments.overrides, f"epochs={arguments.epochs}", f"seed={seed}", f"engine={engine}"]
    words = [sys.executable, "-m", "imagenet_pipeline", "train", str(arguments.recipe), *keys, "--run", str(folder)]
    subprocess.run([*words, *restart], check=True, stdout=subprocess.DEVNULL)
    state = json.loads((folder / "checkpoints" / f"epoch-{arguments.epochs:04d}" / "state.json").read_text())
    if state["engine"] != engine:
        raise SystemExit(f"{folder}: the last epoch was trained on {state['engine']}, not {engine}")
    return float(state["metrics"]["validation_rank1"])


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'seed':>6}" + "".join(f"{column:>20}" for column in COLUMNS)]
    lines += [f"{row['seed']:>6}" + "".join(f"{row[column]:20.2f}" for column in COLUMNS) for row in rows]
    for name, figure in (("mean", statistics.mean), ("stdev", statistics.stdev)):
        if len(rows) > 1:
            lines.append(f"{name:>6}" + "".join(f"{figure(row[column] for row in rows):20.2f}" for column in COLUMNS))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
