#!/usr/bin/env bash
# Faces and their emotions in a picture, a folder, a video or before a camera, with a run's best checkpoint.
#   bash scripts/emotion.sh output/runs/fer2013 film.mp4 [--out annotated.mp4] [--every 3] [--json]
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

exec imagenet-pipeline emotion "$@"
