#!/bin/bash
# A recipe on several machines, by Slurm. From the project's folder, on a disk that the nodes share:
#
#   sbatch recipes/slurm.sh recipes/fortune.lua --steps=500
#
# What follows the script is the recipe and its options. Options before it change the lines below:
# sbatch --nodes=8 --cpus-per-task=16 recipes/slurm.sh recipes/fortune.lua
#
#SBATCH --job-name=lumuon
#SBATCH --nodes=2                 # machines
#SBATCH --ntasks-per-node=1       # ranks on each. On CPUs one is enough, or one a socket
#SBATCH --cpus-per-task=2         # cores of each rank: its threads. Take all that the machines have
#SBATCH --time=08:00:00           # the job's end, whether it is done or not
#SBATCH --signal=INT@120          # two minutes before it: ranks finish their step, save, and leave in good order
#SBATCH --output=slurm-%j.log     # %j: the job's number

set -eu
[ $# -gt 0 ] || set -- recipes/fortune.lua
lumuon=${LUMUON:-./lumuon} # LUMUON=lumuon where it is installed

# The first run on a machine builds; here, before all ranks want to at once. It says what this node is.
"$lumuon" info

# How ranks find each other. With MPI (in the build: "processes" above, and in this Slurm: srun --mpi=list) they
# ask Slurm by PMIx. Without, they go to rank 0, on the first node, and talk over TCP.
mpi=none
if "$lumuon" info | grep -q '^processes .*MPI or TCP' && srun --mpi=list 2>&1 | grep -q pmix; then mpi=pmix; fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((15000 + SLURM_JOB_ID % 10000)) # two jobs on one node do not meet
export MASTER_ADDR MASTER_PORT

# srun starts the ranks, and tells each its number: SLURM_PROCID of SLURM_STEP_NUM_TASKS, SLURM_LOCALID on its node.
# --cpus-per-task    sbatch's does not reach srun by itself since Slurm 22.05
# --kill-on-bad-exit one rank's end is the job's
exec srun --mpi="${MPI:-$mpi}" --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
  "$lumuon" run "$@"
