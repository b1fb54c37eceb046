#!/usr/bin/env bash
# The whole pipeline on data that is always there: digits -> records -> training -> rank-1 -> pictures.
#   bash scripts/demo.sh            a minute or a few the first time (installation), seconds after that
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

run=output/runs/demo
imagenet-pipeline build digits --out output/digits
imagenet-pipeline verify output/digits
imagenet-pipeline inspect output/digits --records 0:24 --montage output/digits.png
if [ -e "$run/journal.jsonl" ]; then
    imagenet-pipeline train config/demo.toml --resume latest
else
    imagenet-pipeline train config/demo.toml
fi
imagenet-pipeline evaluate "$run" --split test
