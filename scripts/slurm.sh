#!/bin/bash
# A run on two machines with four GPUs each, under Slurm:
#
#     sbatch scripts/slurm.sh run.name=big experiment=stdlib_docs
#
# Five minutes before the time limit, Slurm signals all processes; they save one checkpoint after the same step and end
# with exit code 75. The job is then queued again and resumes. `runs/` must be on a file system that both machines share.
#SBATCH --job-name=trainer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4     # a process for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8       # threads of each process, and room for loader.workers
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# srun sets the ranks; --kill-on-bad-exit ends the other processes if one fails.
srun --kill-on-bad-exit=1 trainer train resume=auto "$@"
status=$?
if [ "$status" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
