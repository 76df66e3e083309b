#!/bin/bash
# Run a program on all nodes of a SLURM job, which form a Ray cluster:
#
#   sbatch --nodes 4 examples/slurm_ray.sh agents.benchmark --envs ALE/Pong-v5 --presets fast rainbow --seeds 1 2 3
#   sbatch --nodes 2 --gpus-per-node 4 examples/slurm_ray.sh core.seeds vision.classify --ray-gpus 1 -- --data cifar10
#
# Submit it in the folder with runs/, which all nodes must share. Five minutes before the time limit the driver gets
# SIGTERM and lets all runs save; submit the same command again to resume. So it does after a node has failed.
#SBATCH --job-name=zerokara
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
set -euo pipefail

program=${1:?name a program: agents.benchmark, agents.sweep or core.seeds}
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # `head` would end scontrol with SIGPIPE
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a node
cpus=${SLURM_CPUS_PER_TASK:-1}
export RAY_USAGE_STATS_ENABLED=0

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --port="$port" --num-cpus="$cpus" --block &
first_node=$!
until ray status --address="$head:$port" > /dev/null 2>&1; do
    kill -0 "$first_node" 2> /dev/null || { echo "Ray did not start on $head" >&2; exit 1; }
    sleep 2
done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" \
        ray start --address="$head:$port" --num-cpus="$cpus" --block &
fi

# This script runs on the first node. A signal ends `wait`, with the signal's code instead of the program's: wait again,
# also for a program that has ended by now, whose code bash still knows.
driver=
signals=0
trap 'signals=$((signals + 1)); [ -z "$driver" ] || kill -TERM "$driver" 2> /dev/null || true' TERM
python -m "zerokara.$program" --ray-address auto "$@" &
driver=$!
[ "$signals" -eq 0 ] || kill -TERM "$driver" 2> /dev/null || true # the signal came before the line above
before=-1
while [ "$before" -ne "$signals" ]; do
    before=$signals
    code=0
    wait "$driver" || code=$?
done
exit "$code"
