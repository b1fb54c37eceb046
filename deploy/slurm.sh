#!/usr/bin/env bash
# A training on several machines of a Slurm cluster, over as many jobs as it takes:
#   sbatch deploy/slurm.sh config/imagenet/resnet50.toml /shared/runs/resnet50 records=s3://bucket/imagenet \
#       loader.cache=/local/imagenet
# The recipe, the run folder (on storage that all machines share), then keys of the recipe, as in `train`.
# A rank a GPU, whatever `devices` the recipe names: a later devices=... counts instead.
# Shards out of object storage are kept on a disk of each machine, where loader.cache says, else in TMPDIR or /tmp; not
# in the home folder, which often lies on a disk that all share.
# Five minutes before the time limit, and when the job is preempted, the ranks finish their step, save and leave; the
# job is queued again and goes on at the last checkpoint. A machine that dies ends the job; Slurm queues it again.
# sbatch's own options change what stands below: sbatch --nodes 4 --gpus-per-node 4 --time 12:00:00 deploy/slurm.sh ...
# Run here with stand-ins for Slurm's commands on one machine (tests/test_deploy.py), never on a real cluster.
#SBATCH --job-name=imagenet-pipeline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "error: sbatch deploy/slurm.sh RECIPE RUN [KEY=VALUE ...]" >&2
    exit 2
fi
recipe=$1 run=$2
shift 2

# A finished run that is resumed ends at once, with code 0.
resume=()
if compgen -G "$run/checkpoints/*" > /dev/null; then
    resume=(--resume latest)
fi
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts%%$'\n'*}
processes=${SLURM_GPUS_ON_NODE:-1}
processors=${SLURM_CPUS_PER_TASK:-1}
threads=$((processors / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export IMAGENET_PIPELINE_CACHE=${IMAGENET_PIPELINE_CACHE:-${TMPDIR:-/tmp}/imagenet-pipeline-$(id -u)}

# The batch shell alone hears --signal: it tells the ranks, which have the rest of the five minutes to save.
asked=
leave() {
    asked=yes
    scancel --signal=TERM "$SLURM_JOB_ID.0" || true
}
trap leave TERM

# Whoever has saved first must not have the others killed: they notice by themselves who is gone.
# shellcheck disable=SC2016  # the machine's number is known there
srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task="$processors" \
    bash -c 'exec torchrun --node-rank "$SLURM_NODEID" "$@"' torchrun --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "$processes" --master-addr "$first" --master-port 29500 \
    -m -- imagenet_pipeline train "$recipe" engine=pytorch devices=auto "$@" --run "$run" "${resume[@]}" &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2> /dev/null; do # a signal ends `wait`, not the step
    code=0
    wait "$step" || code=$?
done

if [ -n "$asked" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
