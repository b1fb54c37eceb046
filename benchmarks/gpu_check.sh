#!/usr/bin/env bash
# The acceptance for a GPU that the maintainers share (shared/tools/gpu_check), with gpu_check.patch for what has moved
# in the project since it was written. Not yet run on a GPU.
#   bash benchmarks/gpu_check.sh ../shared                       packs .gpu/, which goes along to the GPU machine; there:
#   bash .gpu/run.sh --budget 470                                under eight minutes; .gpu/out/result.md
#   KEEP_PACKAGES=1 OUT=output/gpu bash .gpu/run.sh --device cpu --tiny --budget 3000 --patience 20     the dry run here
set -euo pipefail
cd "$(dirname "$0")/.."
bash "${1:?the shared folder}/tools/gpu_check/pack.sh" "$1/data"
patch --quiet .gpu/gpu_check.py benchmarks/gpu_check.patch
