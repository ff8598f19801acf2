#!/bin/bash
# One run on 4 nodes with 8 GPUs each:  sbatch slurm.sh recipe.toml /shared/runs/one
#SBATCH --job-name=plait
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM two minutes before the time is up: the run stops between two steps and writes a checkpoint
#SBATCH --signal=TERM@120
set -euo pipefail

recipe=$1
out=$2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# torch's elastic agent: a lost process is started again, three times at most; --go-on does the same for a lost node,
# whose job Slurm starts again
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node="$SLURM_GPUS_ON_NODE" \
    --max-restarts=3 \
    --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$head:29500" \
    -m plait_cli run "$recipe" --out "$out" --go-on
