#!/usr/bin/env bash
# A zoo for recipes with network = "gluoncv:NAME" or "timm:NAME". Done again, it does nothing.
#   bash scripts/install_zoo.sh gluoncv     into .venv, seconds
#   bash scripts/install_zoo.sh timm        into .venv-timm, gigabytes; ZOO=timm bash scripts/train.sh ... uses it
usage="use: bash scripts/install_zoo.sh gluoncv|timm"
zoo="${1:-}"
case "$zoo" in
    gluoncv) unset ZOO ;;
    # timm needs torchvision, and that the very torch it was built for: an environment of its own.
    timm) export ZOO=timm ;;
    *) echo "error: no zoo is called '$zoo'; $usage" >&2; exit 2 ;;
esac
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

put() { python -m pip install --quiet --disable-pip-version-check --no-deps "$@"; }

has() { python -c 'import importlib.metadata, sys; importlib.metadata.version(sys.argv[1])' "$1" 2>/dev/null; }

if [ "$zoo" = gluoncv ] && ! { has gluoncv && has portalocker && has tqdm; }; then
    echo "installing gluoncv without its requirements (pip check will miss some; the networks do not) ..." >&2
    put --constraint "$constraints" gluoncv portalocker tqdm
fi
# Every OpenCV package is the same folder cv2: the last one installed wins, and all but the headless one want libGL.
for other in opencv-python opencv-contrib-python opencv-contrib-python-headless; do
    if has "$other"; then
        echo "removing $other, and putting the headless cv2 back ..." >&2
        python -m pip uninstall --quiet --yes "$other" opencv-python-headless
        put --constraint "$constraints" opencv-python-headless
    fi
done
python -c 'import cv2; cv2.imdecode'
echo "$zoo is in $venv: imagenet-pipeline networks $zoo: lists its networks" >&2
