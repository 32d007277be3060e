#!/usr/bin/env bash
# Makes .venv with pinned dependencies and h5py built for parallel HDF5. Run again: under a second
# when nothing changed. Variables, all optional (docs/install.md explains each):
#   PYTHON=python3.12            interpreter for .venv (3.11 or newer)
#   MPIFLOW_NO_APT=1             install no Debian packages; use the MPI and HDF5 that are there
#   HDF5_DIR=DIR CC=mpicc        parallel HDF5 and the MPI compiler to build h5py with
#   MPIFLOW_SERIAL_H5PY=1        take the serial h5py wheel; files are written through rank 0
#   MPIFLOW_BUILD_MPI4PY=1       compile mpi4py, for an MPI that its wheel cannot load
#   MPIFLOW_TORCH_INDEX=URL      where the CPU build of torch comes from
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$1" >&2; shift; (($# == 0)) || printf '  %s\n' "$@" >&2; exit 1; }
pin() { sed -n "s/^$1==//p" jobs/constraints.txt; }

stamp=.venv/.mpiflow-setup
pins=$PWD/jobs/constraints.txt
key=$({
    # Not the settings of ruff, mypy and pytest: they install nothing.
    sed '/^\[tool\.ruff\]/,$d' pyproject.toml
    cat jobs/constraints.txt jobs/setup.sh
    # A virtual environment holds absolute paths: it is worthless after the folder moved.
    printf '%s\n' "$PWD" "${PYTHON-}" "${HDF5_DIR-}" "${CC-}" "${MPIFLOW_SERIAL_H5PY-}" "${MPIFLOW_BUILD_MPI4PY-}"
} | sha256sum | cut -d' ' -f1)
mpi_there() { [[ ${MPIFLOW_SERIAL_H5PY-} == 1 ]] || command -v mpirun >/dev/null || command -v srun >/dev/null; }
done_already() { [[ -x .venv/bin/mpiflow && $(cat "$stamp" 2>/dev/null) == "$key" ]] && mpi_there; }
done_already && exit 0

# One set-up at a time; whoever waited finds the work done.
exec 9>.setup.lock
flock -n 9 || { say "waiting for another set-up in this folder"; flock 9; }
done_already && exit 0
started=$SECONDS

# --- Debian packages ------------------------------------------------------------------------------
python=${PYTHON:-python3}
debian=(gcc libc6-dev openmpi-bin libopenmpi-dev libhdf5-openmpi-dev)
[[ ${MPIFLOW_SERIAL_H5PY-} == 1 ]] && debian=(openmpi-bin)
# Debian's own Python comes without venv and headers; other builds bring both.
[[ $(command -v "$python" || true) =~ ^(/usr/bin/.*)?$ ]] && debian+=(python3 python3-venv python3-dev)

if [[ ${MPIFLOW_NO_APT-} != 1 ]]; then
    missing=()
    for package in "${debian[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || missing+=("$package")
    done
    if ((${#missing[@]})); then
        as_root=()
        ((EUID == 0)) || as_root=(sudo)
        # Ask for a password only where someone can type it.
        if ! command -v apt-get >/dev/null || { ((EUID)) && ! sudo -n true 2>/dev/null && ! { [[ -t 0 ]] && command -v sudo >/dev/null; }; }; then
            die "these Debian packages are missing and cannot be installed from here: ${missing[*]}" \
                "With root:  apt-get install ${missing[*]}" \
                "On a cluster: load its MPI and parallel HDF5, then" \
                "            MPIFLOW_NO_APT=1 HDF5_DIR=... CC=mpicc jobs/setup.sh" \
                "Neither:    MPIFLOW_NO_APT=1 MPIFLOW_SERIAL_H5PY=1 jobs/setup.sh   (see docs/install.md)"
        fi
        say "installing ${missing[*]}"
        apt_get() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >/dev/null; }
        apt_get update
        apt_get install -y --no-install-recommends "${missing[@]}"
    fi
fi

# --- virtual environment --------------------------------------------------------------------------
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is $("$python" -V 2>&1), needs 3.11 or newer" "Set PYTHON to a newer one."
if [[ $(cat .venv/.root 2>/dev/null) != "$PWD" ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    "$python" -m venv --clear .venv
    echo "$PWD" >.venv/.root
fi
rm -f "$stamp"
py=$PWD/.venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# Warnings about unreachable extra indexes or a root user help nobody here; errors still show.
pip() { "$py" -m pip --quiet --quiet "$@"; }
say "installing Python packages"
pip install "pip==$(pin pip)"
no_binary=()
[[ ${MPIFLOW_BUILD_MPI4PY-} == 1 ]] && no_binary=(--no-binary=mpi4py)
pip install -c "$pins" setuptools Cython pkgconfig numpy
pip install --no-deps -c "$pins" "${no_binary[@]}" mpi4py

# --- h5py: the built wheel is kept, so that only the first set-up of a machine compiles -----------
build_h5py() {
    local hdf5=${HDF5_DIR:-/usr/lib/$(uname -m)-linux-gnu/hdf5/openmpi} cc=${CC:-}
    [[ -n $cc ]] || cc=$(command -v mpicc.openmpi || command -v mpicc) ||
        die "no MPI compiler found" "Set CC, or take the serial wheel: MPIFLOW_SERIAL_H5PY=1"
    [[ -e $hdf5/include/hdf5.h ]] ||
        die "no HDF5 in HDF5_DIR=$hdf5" "Set HDF5_DIR to a parallel HDF5, or MPIFLOW_SERIAL_H5PY=1"
    local version mark
    version=$(sed -n 's/.*H5_VERS_INFO.*version: *\([0-9.]*\).*/\1/p; s/.*H5_VERS_INFO.*"HDF5 library version: \([0-9.]*\)".*/\1/p' "$hdf5"/include/H5public.h | head -1)
    # Same h5py, Python, HDF5 and compiler: same wheel.
    mark=$("$py" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')-hdf5_$version-$({
        echo "$hdf5 $cc"; "$cc" --showme:version 2>/dev/null || "$cc" --version; pin numpy; pin mpi4py; } | sha256sum | cut -c1-12)
    local kept=${XDG_CACHE_HOME:-$HOME/.cache}/mpiflow/wheels/h5py-$(pin h5py)-$mark
    if ! compgen -G "$kept/*.whl" >/dev/null; then
        say "building h5py $(pin h5py) with HDF5 $version (a minute or two, once)"
        mkdir -p "$(dirname "$kept")"
        local work
        work=$(mktemp -d "$kept.XXXXXX")
        # With build isolation pip would compile an old mpi4py as well: ten minutes and 8 GB.
        HDF5_MPI=ON CC=$cc HDF5_DIR=$hdf5 CFLAGS="-O1 -g0" pip wheel --no-cache-dir --no-deps --no-build-isolation \
            --no-binary=h5py -c "$pins" -w "$work" h5py >"$work/log" 2>&1 ||
            { tail -20 "$work/log" >&2; rm -rf "$work"; die "h5py did not build" "Serial wheel instead: MPIFLOW_SERIAL_H5PY=1"; }
        rm -rf "$kept" && mv -T "$work" "$kept"
    fi
    echo "$kept"/*.whl
}
wheel_file=$(mktemp)
trap 'rm -f "$wheel_file"' EXIT
if [[ ${MPIFLOW_SERIAL_H5PY-} == 1 ]]; then
    echo "h5py==$(pin h5py)" >"$wheel_file" & builder=$!
else
    build_h5py >"$wheel_file" & builder=$!
fi

# --- the rest, while h5py compiles ----------------------------------------------------------------
# torch first, from a local wheel or the CPU index: the default one has builds of several gigabytes.
torch=torch==$(pin torch)
"$py" -c "from importlib.metadata import version; assert version('torch').split('+')[0] == '$(pin torch)'" 2>/dev/null ||
    pip install --no-deps --no-index "$torch" 2>/dev/null ||
    pip install --no-deps --index-url "${MPIFLOW_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "$torch"
# The constraints name every package exactly, so there is nothing to resolve.
grep -vE '^(#|$|(torch|h5py|mpi4py|pip)==)' "$pins" | pip install --no-deps -r /dev/stdin
wait "$builder" || die "set-up stopped"
# Serial and parallel h5py have the same version, so pip cannot tell which one is there.
cmp -s "$wheel_file" .venv/.h5py || pip install --no-deps --force-reinstall "$(cat "$wheel_file")"
cp "$wheel_file" .venv/.h5py
pip install --no-deps --no-build-isolation -e .
"$py" -m pip check --quiet || die "the pins in jobs/constraints.txt do not fit together (above)"

# --- does it work? --------------------------------------------------------------------------------
summary=$("$py" - "${MPIFLOW_SERIAL_H5PY-}" <<'P'
import sys
import h5py, mpi4py, numba, torch
from mpi4py import MPI
parallel = h5py.get_config().mpi
assert parallel or sys.argv[1] == "1", "h5py has no MPI"
mpi = " ".join(MPI.Get_library_version().replace(",", " ").split()[:3])
print(f"Python {sys.version.split()[0]}, {mpi}, mpi4py {mpi4py.__version__}, "
      f"{'parallel' if parallel else 'serial'} h5py {h5py.__version__} (HDF5 {h5py.version.hdf5_version}), "
      f"numba {numba.__version__}, torch {torch.__version__}")
P
) || die "the environment was made but does not import (above)"
echo "$key" >"$stamp"
say "done in $((SECONDS - started)) s: $summary"
