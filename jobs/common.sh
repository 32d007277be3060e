# Common to the batch scripts of this folder, which source it in the project's folder.
# shellcheck shell=bash
set -euo pipefail

# What differs between clusters, in the environment or in jobs/site.sh, which is read if it is there:
#   MPIFLOW_ENV=FILE     read first: "module load ...", the same modules as for jobs/setup.sh
#   MPIFLOW_BIN=DIR      where mpiflow and python are, .venv/bin unless given
#   MPIFLOW_MPI=TYPE     of srun --mpi=TYPE: pmix suits Open MPI, pmi2 MPICH; empty: what the site has
#   MPIFLOW_LAUNCH=...   a launcher with its options, in place of that of the scheduler
#   CORES=N              cores of a rank, where the scheduler does not say
# shellcheck source=/dev/null
[[ ! -f jobs/site.sh ]] || source jobs/site.sh
# shellcheck source=/dev/null
[[ -z ${MPIFLOW_ENV-} ]] || source "$MPIFLOW_ENV"
# shellcheck disable=SC2034  # used by the scripts
bin=${MPIFLOW_BIN:-.venv/bin}

# Which scheduler runs this job, and what it calls it.
if [[ -n ${SLURM_JOB_ID-} ]]; then
    scheduler=slurm job=$SLURM_JOB_ID
    # A number of one's own for a task of an array: SLURM_JOB_ID of one of the tasks is that of the
    # whole array, and requeueing it would start all tasks again, finished ones too.
    [[ -z ${SLURM_ARRAY_JOB_ID-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
elif [[ -n ${PBS_JOBID-} ]]; then
    scheduler=pbs job=$PBS_JOBID
elif [[ -n ${LSB_JOBID-} ]]; then
    scheduler=lsf job=$LSB_JOBID
elif [[ -n ${FLUX_JOB_ID-} ]]; then
    scheduler=flux job=$FLUX_JOB_ID
else
    echo "no job of Slurm, PBS, LSF or Flux: submit this script, see docs/slurm.md" >&2
    exit 2
fi

# Ranks are the parallelism: one thread for each core that the scheduler gives a task. Since Slurm
# 22.05 srun does not take the cores of a task from sbatch.
cores=${SLURM_CPUS_PER_TASK:-${CORES:-1}}
export OMP_NUM_THREADS=$cores NUMBA_NUM_THREADS=$cores SRUN_CPUS_PER_TASK=$cores

# seconds TEXT: of [[days-]hours:]minutes:seconds; nothing for a word, where there is no limit.
seconds() {
    [[ $1 =~ ^(([0-9]+)-)?(([0-9]+):)?([0-9]+):([0-9]+)$ ]] || return 0
    echo $((((10#${BASH_REMATCH[2]:-0} * 24 + 10#${BASH_REMATCH[4]:-0}) * 60 + 10#${BASH_REMATCH[5]}) * 60 + 10#${BASH_REMATCH[6]}))
}

# seconds_left: until the job's time limit; nothing where that is not known.
seconds_left() {
    local about limit used
    case $scheduler in
    slurm) seconds "$(squeue --noheader --job "$job" --format=%L || true)" ;;
    pbs)
        about=$(qstat -f "$job" || true)
        limit=$(seconds "$(sed -n 's/^ *Resource_List.walltime = *//p' <<<"$about")")
        used=$(seconds "$(sed -n 's/^ *resources_used.walltime = *//p' <<<"$about")")
        [[ -z $limit ]] || echo $((limit - ${used:-0}))
        ;;
    lsf) seconds "$(bjobs -noheader -o time_left "$job" | sed -n 's/^\([0-9]*:[0-9]*\) .*/\1:00/p' || true)" ;;
    flux) flux job timeleft 2>/dev/null | sed -n 's/^\([0-9]*\).*/\1/p' ;;
    esac
}

# walltime: seconds until two minutes before the job's time limit; WALLTIME replaces it. It strikes
# where the signal of --signal=USR1@180 does not come.
walltime() {
    local s
    [[ -z ${WALLTIME-} ]] || { echo "$WALLTIME"; return; }
    s=$(seconds_left)
    [[ -n $s ]] || { echo 31536000; return; } # a year
    echo $((s > 240 ? s - 120 : s / 2))
}

# launch PROGRAM ARGUMENTS...: on all ranks of the job.
launch() {
    local ranks kind=${MPIFLOW_MPI-pmix}
    if [[ -n ${MPIFLOW_LAUNCH-} ]]; then
        # shellcheck disable=SC2086  # a program and its options
        $MPIFLOW_LAUNCH "$@"
        return
    fi
    case $scheduler in
    # It ends all tasks at once when one dies or aborts. Not --kill-on-bad-exit=1: tasks that all end
    # with 75 do so within milliseconds of one another, and the first would have the others killed.
    slurm) srun ${kind:+"--mpi=$kind"} --kill-on-bad-exit=0 --wait=10 "$@" ;;
    pbs)
        ranks=$(($(wc -l <"$PBS_NODEFILE")))
        mpiexec -n "$ranks" "$@"
        ;;
    lsf) mpiexec -n "$LSB_DJOB_NUMPROC" "$@" ;;
    flux)
        ranks=$(($(flux resource list -s up -no '{ncores}') / cores))
        flux run -n "$ranks" -c "$cores" "$@"
        ;;
    esac
}

# step PROGRAM ARGUMENTS...: run it on all tasks and end the job with its exit code. Code 75 says
# that the state is saved and there is more to do: then the job goes into the queue again.
step() {
    local code=0
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)) on ${SLURM_JOB_NODELIST:-$(hostname)}: $*"
    launch "$@" || code=$?
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

script=$0 arguments=("$@")

# again: requeue this job, unless it was cancelled, or never comes to an end.
again() {
    local state
    case $scheduler in
    pbs)
        echo "job $job: not done, put into the queue again"
        qrerun "$job"
        sleep 60 # until PBS ends this script
        return
        ;;
    lsf) # "#BSUB -Q 75" has LSF do it
        echo "job $job: not done, LSF puts it into the queue again"
        return
        ;;
    flux)
        echo "job $job: not done, submitted again"
        flux --parent batch "$script" "${arguments[@]}"
        exit 0
        ;;
    esac
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
