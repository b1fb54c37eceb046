#!/usr/bin/env bash
# Format, lint, types, borders, tests; sets itself up from a machine with Python alone.
#   bash scripts/test.sh                 about twelve minutes on two cores
#   bash scripts/test.sh --long          and the long checks: every network, kills by the hundred, damaged files by the million, timm
#   bash scripts/test.sh -k records -x   other words go to pytest
. "$(dirname "$0")/environment.sh" "test,pytorch${EXTRAS:+,$EXTRAS}"
bash scripts/install_zoo.sh gluoncv

if [ "${1:-}" = --long ]; then
    export IMAGENET_PIPELINE_LONG=1
    shift
fi
ruff format --check .
ruff check .
mypy
lint-imports
python -m pytest "$@"
bash scripts/docs.sh
if [ -n "${IMAGENET_PIPELINE_LONG:-}" ]; then
    EXTRAS=test bash scripts/install_zoo.sh timm
    .venv-timm/bin/python -m pytest tests/zoos/test_timm.py
fi
