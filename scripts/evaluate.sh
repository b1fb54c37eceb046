#!/usr/bin/env bash
# Rank-1 and rank-5 of a run's best checkpoint.
#   bash scripts/evaluate.sh output/runs/demo [--split val] [--checkpoint 12] [--json]
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

exec imagenet-pipeline evaluate "$@"
