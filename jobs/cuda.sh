#!/usr/bin/env bash
# Makes .venv-cuda: the packages of .venv and, on top of them, numba-cuda with NVIDIA's compiler.
# Apart from .venv, because once numba-cuda is there Numba's own simulator is not.
#   jobs/cuda.sh         kernels: 500 MB
#   jobs/cuda.sh torch   and PyTorch's CUDA build of the version that .venv has, for networks: 5 GB
# It needs neither a GPU nor the CUDA toolkit; to run, a machine needs NVIDIA's driver.
#   MPIFLOW_TORCH_CUDA_INDEX=URL   where PyTorch's CUDA build comes from; by default PyPI
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pins=(numba-cuda==0.30.4 nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79
    nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-nvdisasm==13.5.37)
[[ ${1-} == "" || ${1-} == torch ]] || { echo "cuda: error: jobs/cuda.sh [torch], not '$1'" >&2; exit 2; }
install() { .venv/bin/python -m pip --quiet --disable-pip-version-check --python .venv-cuda/bin/python install "$@"; }

key=$(printf '%s;' "${pins[@]}" "$(cat .venv/.done)" | sha256sum)
if [[ $(cat .venv-cuda/.done 2>/dev/null) != "$key" ]]; then
    .venv/bin/python -m venv --clear --without-pip .venv-cuda
    base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    site=$(.venv-cuda/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\nimport site; site.addsitedir("%s")\n' "$PWD" "$base" >"$site/mpiflow-base.pth"
    install "${pins[@]}"
    echo "$key" >.venv-cuda/.done
fi

[[ ${1-} == torch ]] || exit 0
torch=$(sed -n 's/^torch==/torch==/p' jobs/constraints.txt)
[[ $(cat .venv-cuda/.torch 2>/dev/null) != "$key $torch" ]] || exit 0
echo "cuda: installing the CUDA build of $torch (some gigabytes)" >&2
# Installed anew, for pip takes the CPU build of .venv for the same version; and not from a CPU wheel
# that pip finds elsewhere. The packages that it needs come as in .venv.
install --ignore-installed -c jobs/constraints.txt \
    --index-url "${MPIFLOW_TORCH_CUDA_INDEX:-https://pypi.org/simple}" "$torch,!=${torch#torch==}+cpu"
.venv-cuda/bin/python - <<'P'
import torch
assert torch.version.cuda, f"{torch.__version__} of {torch.__file__} is no CUDA build"
print(f"cuda: PyTorch {torch.__version__}, built for CUDA {torch.version.cuda}")
P
echo "$key $torch" >.venv-cuda/.torch
