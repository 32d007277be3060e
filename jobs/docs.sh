#!/usr/bin/env bash
# Makes .venv-docs: the packages of .venv and, on top of them, Sphinx and what the pages need.
# Apart from .venv, so that setting up to run and to test installs nothing of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
key=$(cat jobs/docs.sh jobs/constraints-docs.txt <(readlink -f .venv/bin/python) | sha256sum)
[[ $(cat .venv-docs/.done 2>/dev/null) != "$key" ]] || exit 0
echo "docs: installing Sphinx into .venv-docs" >&2
.venv/bin/python -m venv --clear --without-pip .venv-docs
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
site=$(.venv-docs/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$base')" >"$site/mpiflow-base.pth"
.venv/bin/python -m pip --quiet --quiet --disable-pip-version-check --python .venv-docs/bin/python \
    install --no-deps -r jobs/constraints-docs.txt
echo "$key" >.venv-docs/.done
