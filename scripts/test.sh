#!/usr/bin/env bash
# Format, lint, types, borders, and the tests in three environments; sets itself up from a machine with Python alone.
#   bash scripts/test.sh                 about twenty-five minutes on two cores
#   bash scripts/test.sh --long          and the long checks: every network, kills by the hundred, damaged files by the million, timm
#   bash scripts/test.sh -k records -x   other words go to pytest, in .venv alone
#   ENVIRONMENT=free bash scripts/test.sh [WORDS]    in .venv-free alone: NumPy 2 and OpenCV 5, without MXNet
#   ENVIRONMENT=313 bash scripts/test.sh [WORDS]     in .venv-313 alone: Python 3.13, no engine, and what needs none
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --long ]; then
    export IMAGENET_PIPELINE_LONG=1
    shift
fi

# What an environment is for has to be in it, so that none of its tests is skipped unseen.
tests_free() (
    export ENVIRONMENT=free IMAGENET_PIPELINE_TESTS_NEED=pytorch
    . scripts/environment.sh test
    python -m pytest "$@"
)

tests_313() (
    export ENVIRONMENT=313 IMAGENET_PIPELINE_TESTS_NEED=
    . scripts/environment.sh test
    python -m pytest --override-ini \
        "testpaths=tests/records tests/loading tests/networks tests/record_builders tests/test_config.py" "$@"
)

case "${ENVIRONMENT:-}" in free | 313)
    "tests_$ENVIRONMENT" "$@"
    exit
    ;;
esac

. scripts/environment.sh "test,pytorch${EXTRAS:+,$EXTRAS}"
bash scripts/install_zoo.sh gluoncv
export IMAGENET_PIPELINE_TESTS_NEED="gluon pytorch faces"
ruff format --check .
ruff check .
mypy
lint-imports
bash scripts/docs.sh
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi

# Two suites at a time, a thread each; the one in the background is heard of when it has ended.
export OMP_NUM_THREADS=1
log=output/tests-elsewhere.log
mkdir -p output
set -m
{
    tests_free
    if limit=14 PYTHON="$PYTHON_313" find_python; then
        tests_313
    else
        echo "no Python 3.13 on this machine: the tests in it are left out"
    fi
} > "$log" 2>&1 &
elsewhere=$!
set +m
trap 'kill -- -$elsewhere 2>/dev/null || true' EXIT
code=0
python -m pytest || code=$?
echo "without MXNet, on NumPy 2 and OpenCV 5, and on Python 3.13 ($log):"
if wait "$elsewhere"; then
    grep -E " passed|^no Python" "$log"
else
    cat "$log"
    exit 1
fi
[ "$code" = 0 ] || exit "$code"

if [ -n "${IMAGENET_PIPELINE_LONG:-}" ]; then
    EXTRAS=test bash scripts/install_zoo.sh timm
    .venv-timm/bin/python -m pytest tests/zoos/test_timm.py tests/zoos/test_torchvision.py
fi
