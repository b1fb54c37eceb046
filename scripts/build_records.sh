#!/usr/bin/env bash
# Build and verify a data set.
#   bash scripts/build_records.sh imagenet --root ILSVRC2015 --out output/imagenet
#   bash scripts/build_records.sh folder --root photos --out output/photos
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

imagenet-pipeline build "$@"
while [ $# -gt 1 ] && [ "$1" != --out ]; do shift; done
case " $* " in *" --lists-only "*) ;; *) imagenet-pipeline verify "$2" ;; esac
