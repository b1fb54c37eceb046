"""What each ingredient of an imagenette recipe brings: the recipe, without each, and with others.

    python benchmarks/ablation.py OUT records=output/imagenette [key=value ...] [--epochs 10|5] [--seeds 1 2 3]
                                  [--jobs 2] [--json]

Rank-1 on the validation photos after the last epoch, no checkpoint chosen. Every row has the same seeds, so the same
photos in the same order. Runs are ordinary run folders below OUT, a job on a core each; what is finished is not run
again, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "config" / "imagenette"
_RANGER = (
    "optimizer.name=radam optimizer.lookahead_steps=6 optimizer.beta1=0.95 optimizer.beta2=0.99 "
    "optimizer.epsilon=1e-6 optimizer.learning_rate=8e-3 optimizer.weight_decay=1e-2 optimizer.nesterov=false "
    "schedule.kind=flat_cosine schedule.warmup_epochs=0 schedule.flat_share=0.72"
)
ROWS: dict[int, dict[str, list[str]]] = {
    10: {
        "the recipe": [],
        "stem and shortcuts of ResNet-18, not -D": ["network=resnet18"],
        "no label smoothing": ["loss.label_smoothing=0"],
        "no averages": ["average_decay=0"],
        "no cosine: drops of ten after 6 and 8 epochs": ["schedule.kind=steps", "schedule.drops=[6,8]"],
        "no warm-up": ["schedule.warmup_epochs=0"],
        "no weight decay": ["optimizer.weight_decay=0"],
        "crops from 8 % of the area, not 35 %": ["augmentation.area=[0.08,1.0]"],
        "and the last scale zero, no decay of biases and norms": [
            "initial.zero_last_scale=true",
            "optimizer.decay_all=false",
        ],
        "and mixup 0.2": ["augmentation.mixup=0.2"],
        "and TrivialAugment": ["augmentation.policy=trivial_augment"],
    },
    5: {
        "the recipe": [],
        "ReLU, not Mish": ["network_options.activation=own"],
        "no squeeze-and-excitation": ["network_options.squeeze_excitation=own"],
        "maxima without blur": ["network_options.blur_pool=own"],
        "none of the three": [
            "network_options.activation=own",
            "network_options.squeeze_excitation=own",
            "network_options.blur_pool=own",
        ],
        "RAdam and Lookahead, flat and then cosine, as the board has them": _RANGER.split(),
    },
}
"""Rows by the epochs of the recipe, `resnet18_N_epochs`, and the keys that make them."""


def main() -> None:
    arguments = parse()
    names = ROWS[arguments.epochs]
    work = list(product(arguments.seeds, names))
    with ThreadPoolExecutor(arguments.jobs) as jobs:
        figures = dict(zip(work, jobs.map(lambda item: rank1(arguments, *item), work), strict=True))
    rows = {name: [figures[seed, name] for seed in arguments.seeds] for name in names}
    sys.stdout.write(json.dumps(rows, indent=1) + "\n" if arguments.json else table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the runs")
    parser.add_argument("overrides", nargs="*", default=[], help="recipe keys for all runs")
    parser.add_argument("--epochs", type=int, default=10, choices=list(ROWS), help="which recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def rank1(arguments: argparse.Namespace, seed: int, row: str) -> float:
    """Train a row with a seed, or take it up again; its last validation rank-1 in percent."""
    rows, recipe = ROWS[arguments.epochs], RECIPES / f"resnet18_{arguments.epochs}_epochs.toml"
    folder = arguments.out / f"{list(rows).index(row):02}-{seed}"
    restart = ["--resume", "latest"] if (folder / "checkpoints" / "latest").exists() else []
    keys = [*arguments.overrides, *rows[row], f"seed={seed}", "checkpoint.keep=1", "loader.threads=1"]
    words = [sys.executable, "-m", "imagenet_pipeline", "train", str(recipe), *keys, "--run", str(folder), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, *restart], check=True, stdout=subprocess.DEVNULL, env=environment)
    state = json.loads((folder / "checkpoints" / "latest" / "state.json").read_text())
    return float(state["metrics"]["validation_rank1"])


def table(rows: dict[str, list[float]]) -> str:
    base = statistics.mean(next(iter(rows.values())))
    lines = []
    for name, figures in rows.items():
        mean = statistics.mean(figures)
        lines.append(f"{name:66}" + "".join(f"{figure:7.1f}" for figure in figures) + f"{mean:8.1f}{mean - base:+7.1f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
