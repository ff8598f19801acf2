#!/bin/bash
# A search by 16 tasks that share one Optuna storage:
#   sbatch slurm-sweep.sh recipe.toml postgresql://optuna@db/plait
#SBATCH --job-name=plait-sweep
#SBATCH --array=0-15
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
set -euo pipefail

recipe=$1
storage=$2

plait sweep "$recipe" \
    --over chase.density=0.02..0.5:log \
    --over seed=0:3 \
    --optimize task/accuracy@validation \
    --direction maximize \
    --trials 200 \
    --storage "$storage" \
    --workers "$SLURM_CPUS_PER_TASK" \
    --cache /shared/plait-cells \
    --out "sweep-$SLURM_ARRAY_TASK_ID"
