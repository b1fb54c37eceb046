# Sourced by the other scripts: goes to the repository's root and puts .venv, made where it is missing, on the PATH.
# Installs again when setup.cfg or the constraints change; what else is in it stays.   use: . scripts/environment.sh [EXTRAS]
# ZOO=timm takes .venv-timm instead (scripts/install_zoo.sh says why).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${ZOO:-}" = timm ]; then
    venv=.venv-timm constraints=tests/constraints-timm.txt extras="timm${1:+,$1}"
else
    venv=.venv constraints=tests/constraints.txt extras="${1:-}"
fi

find_python() {
    local python
    for python in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "error: Python 3.11 or 3.12 is needed (PYTHON=... names one); found $(python3 --version 2>&1)" >&2
    return 1
}

make_environment() {
    local target=".${1:+[$1]}" stamp
    stamp="$(cat setup.cfg "$constraints" | sha256sum)"
    if [ ! -x "$venv/bin/python" ]; then
        "$(find_python)" -m venv "$venv"
    elif grep -qsxF "$target $stamp" "$venv/made-for" || { [ -z "${1:-}" ] && grep -qsF "$stamp" "$venv/made-for"; }; then
        return
    fi
    echo "installing $target into $venv (first time only) ..." >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" \
        --editable "$target" >&2
    echo "$target $stamp" >> "$venv/made-for"
}

make_environment "$extras"
PATH="$PWD/$venv/bin:$PATH"
