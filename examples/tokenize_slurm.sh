#!/usr/bin/env bash
# Tokenizes a data set with the tasks of a SLURM job, each a share of the clips, into one folder.
#
#   sbatch examples/tokenize_slurm.sh recordings/ /shared/codes                            # 8 tasks on CPUs
#   sbatch --ntasks=4 --gpus-per-task=1 examples/tokenize_slurm.sh recordings/ /shared/codes
#   sbatch --array=0-7 --ntasks=1 examples/tokenize_slurm.sh recordings/ /shared/codes     # 8 jobs, begun as nodes come free
#   sbatch --array=0-7 --ntasks=4 examples/tokenize_slurm.sh recordings/ /shared/codes     # 8 jobs of 4 tasks: 32 shares
#
# What follows the folder goes to `encodec-fast tokenize`: --model, --bandwidth, --retry-failed, ...
# Submit it from a shell where `encodec-fast` is on the PATH: SLURM hands the environment on. All nodes must reach both folders.
# Compute nodes often reach no hub. Then load the model once where one can, into a cache that all share (HF_HOME).
# Submitted again, it goes on: also after the time limit, a lost node or scancel, and with another number of tasks.

#SBATCH --job-name=encodec-tokenize
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
#SBATCH --requeue
# two minutes before the time is over, so that tasks end with whole shards
#SBATCH --signal=TERM@120

set -uo pipefail

if (($# < 2)); then
    echo "usage: sbatch [SBATCH OPTIONS] $(basename "$0") SOURCE CODES [OPTIONS OF encodec-fast tokenize]" >&2
    exit 2
fi
source=$1 codes=$2
shift 2
command -v encodec-fast >/dev/null || { echo "encodec-fast is not on the PATH; activate its environment before sbatch." >&2; exit 2; }

# Since SLURM 22.05 srun doesn't take this from sbatch by itself, and would give each task one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$SRUN_CPUS_PER_TASK

# --shard auto, the default, reads rank and array from the environment, and --device auto the task's GPU.
# A task whose clips failed exits with 1, and must not end the others.
srun --kill-on-bad-exit=0 encodec-fast tokenize "$source" --out "$codes" --no-report "$@"
code=$?

case $code in
    0) echo "this job's share is done" ;;
    1) echo "this job's share is done; the clips that failed are in $codes/.encodec_fast/errors.jsonl" ;;
    *) echo "stopped with exit code $code; submit the same again, and it goes on" >&2; exit "$code" ;;
esac
# Of an array the other jobs may still be at work.
if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    encodec-fast stats "$codes"
fi
exit "$code"
