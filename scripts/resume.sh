#!/usr/bin/env bash
# Take a run up again after an epoch, with another learning rate.
#   bash scripts/resume.sh RECIPE EPOCH LEARNING_RATE [key=value ...]
#   bash scripts/resume.sh config/demo.toml 8 0.002
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

if [ $# -lt 3 ]; then
    echo "usage: resume.sh RECIPE EPOCH LEARNING_RATE [key=value ...]" >&2
    exit 2
fi
recipe=$1 epoch=$2 rate=$3
shift 3
exec imagenet-pipeline train "$recipe" --resume "$epoch" "optimizer.learning_rate=$rate" "$@"
