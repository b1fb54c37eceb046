#!/usr/bin/env bash
# Build a data set; each record file is read back before it gets its name.
#   bash scripts/build_records.sh imagenet --root ILSVRC2015 --out output/imagenet
#   bash scripts/build_records.sh folder --root photos --out output/photos
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

exec imagenet-pipeline build "$@"
