#!/usr/bin/env bash
# Train a recipe.
#   bash scripts/train.sh config/demo.toml [key=value ...]
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

exec imagenet-pipeline train "$@"
