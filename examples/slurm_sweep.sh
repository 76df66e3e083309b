#!/bin/bash
# Search hyperparameters with several drivers, one for each task of a SLURM array, that share one study:
#
#   sbatch --array=1-8 examples/slurm_sweep.sh learning_rate=log:1e-5..1e-3 n_step=1..5 --trials 100 --name pong \
#       --storage journal -- --env ALE/Pong-v5 --total-steps 1000000 --eval-every-steps 100000
#
# Submit it in the folder with runs/, which all nodes must share. A driver may start or end at any time. Five minutes
# before the time limit each driver gets SIGTERM and lets its runs save; submit the same command again to resume.
#SBATCH --job-name=zerokara-sweep
#SBATCH --array=1-4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
set -euo pipefail

exec python -m zerokara.agents.sweep "$@"
