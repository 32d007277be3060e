# Common to the batch scripts of this folder, which source it in the project's folder.
# shellcheck shell=bash
set -euo pipefail

# module load ...   # the same modules as for jobs/setup.sh

# Ranks are the parallelism: one thread for each core that Slurm gives a task.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} NUMBA_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# A number of one's own for a task of an array: SLURM_JOB_ID of one of the tasks is that of the
# whole array, and requeueing it would start all tasks again, finished ones too.
job=$SLURM_JOB_ID
[[ -z ${SLURM_ARRAY_JOB_ID-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# walltime: seconds until two minutes before the job's time limit; WALLTIME replaces it. It strikes
# where the signal of --signal=USR1@180 does not come.
walltime() {
    local left s
    [[ -z ${WALLTIME-} ]] || { echo "$WALLTIME"; return; }
    left=$(squeue --noheader --job "$job" --format=%L) || left=
    # [[days-]hours:]minutes:seconds; or a word, where there is no limit
    if [[ $left =~ ^(([0-9]+)-)?(([0-9]+):)?([0-9]+):([0-9]+)$ ]]; then
        s=$((((10#${BASH_REMATCH[2]:-0} * 24 + 10#${BASH_REMATCH[4]:-0}) * 60 + 10#${BASH_REMATCH[5]}) * 60 + 10#${BASH_REMATCH[6]}))
        echo $((s > 240 ? s - 120 : s / 2))
    else
        echo 31536000 # a year
    fi
}

# step PROGRAM ARGUMENTS...: run it on all tasks and end the job with its exit code. Code 75 says
# that the state is saved and there is more to do: then Slurm puts the job into its queue again.
step() {
    local code=0
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST: $*"
    # --mpi=pmix suits Open MPI; srun --mpi=list shows what this cluster has. It ends all tasks at
    # once when one dies or aborts. Not --kill-on-bad-exit=1: tasks that all end with 75 do so within
    # milliseconds of one another, and the first of them would have the others killed.
    srun --mpi=pmix --kill-on-bad-exit=0 --wait=10 "$@" || code=$?
    if ((code == 75)); then
        again
    fi
    exit "$code"
}

# on_gpus COMMAND OPTIONS... or DRIVER.py OPTIONS...: a command of mpiflow, or a driver, with each task
# on its GPU. All tasks of a node see all of its GPUs and take the one of their local rank, so that
# NCCL finds the neighbours; cores are bound.
on_gpus() {
    local program=(.venv-cuda/bin/python) more=()
    (($# > 0)) || { echo "what? sbatch jobs/gpu4.slurm simulate SYSTEM [OPTIONS], or drivers/NAME.py [OPTIONS]"; exit 2; }
    [[ $1 == *.py ]] || program+=(-m mpiflow)
    [[ $1 != simulate ]] || more=(--resume --walltime "$(walltime)")
    export SLURM_CPU_BIND=cores SLURM_GPU_BIND=none
    step "${program[@]}" "$@" --device cuda "${more[@]}"
}

# again: requeue this job, unless it was cancelled, or never comes to an end.
again() {
    local state
    state=$(squeue --noheader --job "$job" --format=%T)
    if [[ $state != RUNNING ]]; then
        echo "job $job: ${state:-gone}, not requeued"
    elif ((${SLURM_RESTART_COUNT:-0} >= ${MAX_RESTARTS:-100})); then
        echo "job $job: restarted $SLURM_RESTART_COUNT times, not requeued (MAX_RESTARTS)"
    else
        echo "job $job: not done, requeued"
        scontrol requeue "$job"
        sleep 60 # until Slurm ends this script
    fi
}
