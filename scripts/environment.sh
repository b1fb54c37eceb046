# Sourced by the other scripts: goes to the repository's root and puts .venv, made where it is missing, on the PATH.
# Installs again when setup.cfg, setup.py, the C sources or the constraints change; what else is in it stays.   use: . scripts/environment.sh [EXTRAS]
# Other environments than .venv, which has Gluon: ZOO=timm takes .venv-timm (scripts/install_zoo.sh says why); for the
# tests, ENVIRONMENT=free takes .venv-free (PyTorch without MXNet and its pins), ENVIRONMENT=313 .venv-313 (no engine).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON_313="python3.13 $(echo "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python3.13)"
limit=13
case "${ZOO:-${ENVIRONMENT:-}}" in
    timm) venv=.venv-timm constraints=tests/constraints-timm.txt base=gluon,timm ;;
    free) venv=.venv-free constraints=tests/constraints-free.txt base=pytorch ;;
    313) venv=.venv-313 constraints=tests/constraints-free.txt base="" limit=14 PYTHON=$PYTHON_313 ;;
    "") venv=.venv constraints=tests/constraints.txt base=gluon ;;
    *) echo "error: no environment is called '$ENVIRONMENT'; it is free, 313 or none" >&2; exit 2 ;;
esac
extras="$base${base:+${1:+,}}${1:-}"

find_python() {
    local python tried="${PYTHON:-python3.11 python3.12 python3}" found
    for python in $tried; do
        if "$python" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, $limit))" 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    found="$(for python in $tried; do echo "$python ($("$python" --version 2>&1 | tail -1))"; done | paste -sd, | sed 's/,/, /g')"
    echo "error: Python 3.11 to 3.$((limit - 1)) is needed (PYTHON=... names one); found $found" >&2
    return 1
}

make_environment() {
    local target=".${extras:+[$extras]}" stamp
    stamp="$(cat setup.cfg setup.py imagenet_pipeline/records/*.[ch] "$constraints" | sha256sum)"
    if [ ! -x "$venv/bin/python" ]; then
        local python
        python="$(find_python)" || exit 1
        "$python" -m venv "$venv"
    elif grep -qsxF "$target $stamp" "$venv/made-for" || { [ "$extras" = "$base" ] && grep -qsF "$stamp" "$venv/made-for"; }; then
        return
    fi
    echo "installing $target into $venv (first time only) ..." >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" \
        --editable "$target" >&2
    echo "$target $stamp" >> "$venv/made-for"
}

make_environment
PATH="$PWD/$venv/bin:$PATH"
