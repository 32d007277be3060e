#!/usr/bin/env bash
# A Slurm with two nodes on this one machine, to try batch jobs before a cluster sees them.
#   jobs/local-slurm.sh start|stop|status
# Needs neither systemd nor cgroups, and touches no other Slurm: everything lies in one folder, with
# its own ports and its own munge key. docs/slurm.md says more. Variables, all optional:
#   LOCAL_SLURM_DIR=/tmp/mpiflow-slurm   configuration, state and logs
#   LOCAL_SLURM_PORT=26817               of the controller; the nodes take the next two
#   LOCAL_SLURM_CPUS=2                   tasks a node takes, whatever the machine has
#   LOCAL_SLURM_GPUS=0                   GPUs that each node claims to have, to try jobs without one
set -euo pipefail

dir=${LOCAL_SLURM_DIR:-/tmp/mpiflow-slurm}
port=${LOCAL_SLURM_PORT:-26817}
cpus=${LOCAL_SLURM_CPUS:-2}
gpus=${LOCAL_SLURM_GPUS:-0}
nodes=(n1 n2)
export SLURM_CONF=$dir/slurm.conf
PATH=$PATH:/usr/sbin:/sbin # the daemons

say() { printf 'local-slurm: %s\n' "$*" >&2; }
die() { printf 'local-slurm: error: %s\n' "$1" >&2; shift; (($# == 0)) || printf '  %s\n' "$@" >&2; exit 1; }
have() { command -v "$1" >/dev/null; }

# --- Debian packages ------------------------------------------------------------------------------
install_slurm() {
    local package missing=() as_root=()
    # Not asked by package: a Slurm from elsewhere does as well.
    for package in munged:munge slurmctld:slurmctld slurmd:slurmd srun:slurm-client; do
        have "${package%:*}" || missing+=("${package#*:}")
    done
    ((${#missing[@]})) || return 0
    if ((EUID)); then as_root=(sudo -n); else as_root=(env); fi
    if ! { have apt-get && "${as_root[@]}" true 2>/dev/null; }; then
        die "Slurm is missing, and this user cannot install it: ${missing[*]}" \
            "With root: apt-get install --no-install-recommends ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    # RUNLEVEL=1: Debian would start a munged for the machine, which this one does not use.
    apt_get() { "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >/dev/null; }
    apt_get update
    apt_get install -y --no-install-recommends "${missing[@]}"
}

# --- what runs ------------------------------------------------------------------------------------
# pid_of NAME: of the daemon NAME of this folder, if it runs. The folder is on its command line,
# so a process number that came round again is not mistaken for it.
pid_of() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && [[ -n $pid ]] || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$dir/" && echo "$pid"
}

# running: both nodes answer the controller. (Without one sinfo tries for a minute.)
running() { pid_of slurmctld >/dev/null && [[ $(sinfo --noheader --Node --responding --format=%N 2>/dev/null | wc -l) == "${#nodes[@]}" ]]; }

# ready: both take jobs.
ready() { [[ $(sinfo --noheader --Node --states=idle,alloc,mix --responding --format=%N 2>/dev/null | wc -l) == "${#nodes[@]}" ]]; }

# wait_for SECONDS COMMAND...: whether the command succeeds within that time.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

configure() {
    local host user i n
    host=$(hostname -s) user=$(id -un)
    mkdir -p "$dir/state"
    chmod 755 "$dir" # munged refuses a socket in a folder that others may write to
    cat >"$SLURM_CONF" <<C
ClusterName=mpiflow
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdPidFile=$dir/%n.pid
SlurmdLogFile=$dir/%n.log
SlurmdSpoolDir=$dir/spool_%n
# A folder for each node: with a common one the PMIx servers of a step meet in it, and fail.
TmpFS=$dir/tmp_%n
# A requeued job waits for its old credential to expire: two minutes unless told.
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
# No systemd, no cgroups, no accounting.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog=$dir/task-prolog.sh
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# Tasks are counted, not bound: the nodes share the cores of this machine.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
# Promptly: a test waits for it.
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,batch_sched_delay=1,sched_min_interval=200000
OverTimeLimit=0
KillWait=5
JobRequeue=1
ReturnToService=2
SlurmdTimeout=300
MessageTimeout=30
MinJobAge=3600
C
    ((gpus == 0)) || echo "GresTypes=gpu" >>"$SLURM_CONF"
    for ((i = 0; i < gpus; i++)); do : >"$dir/gpu$i"; done # stand for devices
    : >"$dir/gres.conf"
    for i in "${!nodes[@]}"; do
        n=${nodes[i]}
        mkdir -p "$dir/spool_$n" "$dir/tmp_$n"
        echo "NodeName=$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1 + i)) CPUs=$cpus$( ((gpus == 0)) || echo " Gres=gpu:$gpus")" >>"$SLURM_CONF"
        ((gpus == 0)) || echo "NodeName=$n Name=gpu File=$dir/gpu[0-$((gpus - 1))]" >>"$dir/gres.conf"
    done
    echo "PartitionName=local Nodes=$(IFS=,; echo "${nodes[*]}") Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
    # What it prints is set for the tasks. Shared memory of Open MPI is named by host and local rank,
    # which the tasks of both nodes have in common; waiting tasks must leave the core to others; and
    # Open MPI shuns the loopback interface, which may be the only one here.
    local interfaces=(/sys/class/net/*)
    {
        echo "#!/bin/sh"
        echo "echo export OMPI_MCA_btl_vader_backing_directory=$dir/tmp_\$SLURMD_NODENAME"
        echo "echo export OMPI_MCA_mpi_yield_when_idle=1"
        [[ ${interfaces[*]##*/} != lo ]] || echo "echo export OMPI_MCA_btl_tcp_if_include=lo"
    } >"$dir/task-prolog.sh"
    chmod 755 "$dir/task-prolog.sh"
    if [[ ! -s $dir/munge.key ]]; then
        (umask 077 && head -c 256 /dev/urandom >"$dir/munge.key")
    fi
}

start() {
    if running; then
        say "runs already"
        usage
        return
    fi
    install_slurm
    mkdir -p "$dir"
    exec 9>"$dir/lock"
    flock -w 60 9 || die "another start in $dir does not end"
    stop_daemons # half of them may be left
    configure
    for ((i = 0; i < 3; i++)); do
        ! (: <"/dev/tcp/127.0.0.1/$((port + i))") 2>/dev/null || die "port $((port + i)) is taken" "Set LOCAL_SLURM_PORT to another."
    done
    # 9>&-: a daemon must not hold the lock.
    munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" 9>&- || failed munged
    # -c: no jobs from an earlier life.
    slurmctld -c -f "$SLURM_CONF" 9>&- 2>>"$dir/slurmctld.log" || failed slurmctld
    for n in "${nodes[@]}"; do
        slurmd -N "$n" -f "$SLURM_CONF" 9>&- 2>>"$dir/$n.log" || failed "$n"
    done
    wait_for 30 ready || failed slurmctld
    srun --mpi=list 2>&1 | grep -q pmix || say "warning: this Slurm has no pmix; Open MPI needs it"
    usage
}

failed() {
    tail -n 20 "$dir/$1.log" >&2 || true
    stop_daemons
    die "$1 did not come up (above: the end of $dir/$1.log)"
}

usage() {
    say "two nodes of $cpus tasks; logs in $dir. In your shell:"
    echo "export SLURM_CONF=$SLURM_CONF"
}

# processes: of jobs of this Slurm, slurmstepd included.
processes() {
    local p
    for p in /proc/[0-9]*; do
        tr '\0' '\n' 2>/dev/null <"$p/environ" | awk -v c="SLURM_CONF=$SLURM_CONF" \
            '$0 == c {a = 1} /^SLURM_JOB_ID=/ {b = 1} END {exit !(a && b)}' && echo "${p#/proc/}"
    done
}

stop_daemons() {
    local name pid
    for name in slurmctld "${nodes[@]}" munged; do
        pid=$(pid_of "$name") || continue
        kill "$pid" 2>/dev/null || true
        wait_for 10 ended "$name" || kill -9 "$pid" 2>/dev/null || true
    done
}
ended() { ! pid_of "$1" >/dev/null; }
no_jobs() { [[ -z $(squeue --noheader --states=running,completing,suspended 2>/dev/null) ]]; }

stop() {
    [[ -e $SLURM_CONF ]] || { say "nothing in $dir"; return; }
    if pid_of slurmctld >/dev/null; then
        squeue --noheader --format=%A 2>/dev/null | sort -u | xargs -r scancel 2>/dev/null || true
        wait_for 15 no_jobs || true
    fi
    stop_daemons
    mapfile -t left < <(processes)
    ((${#left[@]} == 0)) || kill -9 "${left[@]}" 2>/dev/null || true
    say "stopped; logs are left in $dir"
}

case ${1-} in
start) start ;;
stop) stop ;;
status)
    running || { say "does not run in $dir"; exit 1; }
    sinfo --Node --long
    squeue
    usage
    ;;
*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
