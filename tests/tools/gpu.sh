#!/usr/bin/env bash
# For a machine with a GPU that is there for minutes, without set-up or network: the tests of kernels
# and networks, and all benchmarks, in 10 minutes at most. Run it in the project's folder:
#   tests/tools/gpu.sh PYTHON OUT
# PYTHON has what mpiflow[learn,cuda] and its tests need (pytest, pytest-mpi, pytest-timeout,
# pytest-xdist) and finds an MPI library; logs, results.xml and bench-gpu.json go to the folder OUT.
set -uo pipefail
python=${1:?"which Python?"} out=${2:?"which folder for results?"}
mkdir -p "$out"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MPIFLOW_SHARE_GPU=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# part SECONDS NAME COMMAND...: with a log of its own; the next part comes whatever this one does.
part() {
    local began=$SECONDS code=0
    timeout -k 5 "$1" "${@:3}" >"$out/$2.log" 2>&1 || code=$?
    echo "$2: exit code $code after $((SECONDS - began)) s; $(tail -n 1 "$out/$2.log")"
}
nvidia-smi -L 2>/dev/null || { echo "no NVIDIA GPU on this machine (nvidia-smi -L fails)" >&2; exit 2; }
part 20 doctor "$python" -m mpiflow doctor --device cuda --folder "$out"
part 80 networks env MPIFLOW_TEST_DEVICE=cuda "$python" -m pytest -q -p no:cacheprovider -n 4 \
    tests/learn/test_{devices,training,sde,model,learn_rollout,onsagerflow_net}.py
# Processes share the GPU: most of the time of a test goes into compiling its kernels, on the CPU.
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.kernel' tests)
part 190 kernels "$python" -m pytest -q -p no:cacheprovider -m kernel -n 8 --dist worksteal \
    --junitxml "$out/results.xml" "${files[@]}"
part 300 bench "$python" tests/tools/bench_gpu.py --seconds 280 --out "$out/bench-gpu.json"
