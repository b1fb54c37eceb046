#!/usr/bin/env bash
# Several MXNet workers on this one machine, to try out what docs/scaling.md does on many.
#   bash scripts/cluster_gluon.sh 2 train config/demo.toml devices=cpu        2 workers, a server, a scheduler
. "$(dirname "$0")/environment.sh" "${EXTRAS:-}"

workers=$1
shift
export DMLC_PS_ROOT_URI=127.0.0.1 DMLC_NODE_HOST=127.0.0.1 DMLC_PS_ROOT_PORT=${DMLC_PS_ROOT_PORT:-9091}
export DMLC_NUM_SERVER=1 DMLC_NUM_WORKER=$workers
processors=$(($(python -c "from imagenet_pipeline.processes import available_processors as count; print(count())") / workers))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((processors > 0 ? processors : 1))}

DMLC_ROLE=scheduler imagenet-pipeline "$@" &
processes=($!)
DMLC_ROLE=server imagenet-pipeline "$@" &
processes+=($!)
for ((worker = 0; worker < workers; worker++)); do
    DMLC_ROLE=worker imagenet-pipeline "$@" &
    processes+=($!)
done
trap 'kill "${processes[@]}" 2>/dev/null' INT TERM

code=0
for process in "${processes[@]}"; do
    wait "$process" || code=$?
done
exit "$code"
