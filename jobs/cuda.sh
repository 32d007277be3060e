#!/usr/bin/env bash
# Makes .venv-cuda: the packages of .venv and, on top of them, numba-cuda with NVIDIA's compiler.
# Apart from .venv, because once numba-cuda is there Numba's own simulator is not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pins=(numba-cuda==0.30.4 nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-nvrtc-cu12==12.9.86)
key=$(printf '%s;' "${pins[@]}" "$(cat .venv/.done)" | sha256sum)
[[ $(cat .venv-cuda/.done 2>/dev/null) != "$key" ]] || exit 0
.venv/bin/python -m venv --clear --without-pip .venv-cuda
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
site=$(.venv-cuda/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\nimport site; site.addsitedir("%s")\n' "$PWD" "$base" >"$site/mpiflow-base.pth"
.venv/bin/python -m pip --quiet --disable-pip-version-check --python .venv-cuda/bin/python install "${pins[@]}"
echo "$key" >.venv-cuda/.done
