#!/usr/bin/env bash
# Builds the wheel and the sdist into dist/ and tries both as their users would: metadata as PyPI
# checks it, the wheel in an environment of its own under mypy, some tests from the unpacked sdist.
set -euo pipefail
unset PYTHONPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf 'dist: %s\n' "$*" >&2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quiet=(-m pip --quiet --disable-pip-version-check)

say "building"
rm -rf dist
.venv/bin/python -m venv "$work/tools"
"$work/tools/bin/python" "${quiet[@]}" install build==1.3.0 twine==6.2.0
"$work/tools/bin/python" -m build --outdir dist . >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; exit 1; }
"$work/tools/bin/python" -m twine check --strict dist/*

say "the wheel, with the packages of .venv"
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -m venv --without-pip "$work/user"
.venv/bin/python "${quiet[@]}" --python "$work/user/bin/python" install --no-deps dist/*.whl
site=$("$work/user/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$base" >"$site/base.pth" # plain: the editable mpiflow of .venv must not be found
cat >"$work/program.py" <<'P'
from mpiflow import Ising, Simulation, Trajectory

simulation: Simulation = Simulation(Ising(temperature=2.5), size=64, seed=1)
reveal_type(Ising(2.5).temperature)
run: Trajectory = Trajectory("run.h5")
P
cd "$work"
"$work/user/bin/python" -m mypy --strict "$work/program.py" | tee "$work/types"
grep -q 'Revealed type is "float"' "$work/types"
"$work/user/bin/mpiflow" --version
say "its experiments"
"$work/user/bin/mpiflow" experiment | grep -E '^  (demo|window_bias) '
"$work/user/bin/mpiflow" demo --smoke --out demo-out >/dev/null 2>"$work/log" || { tail -n 30 "$work/log" >&2; exit 1; }
ls demo-out/results.json demo-out/demo.png
"$work/user/bin/mpiflow" simulate ising --size 64 --temperature 2.5 --time 1 --quiet --out run.h5
"$work/user/bin/mpiflow" info --json run.h5 | "$work/user/bin/python" -c '
import json, sys
hash = json.load(sys.stdin)["attributes"]["git_hash"]
assert hash != "unknown", hash
print("commit in the file:", hash)'

say "tests of the sdist"
tar -xf "$OLDPWD"/dist/*.tar.gz
cd mpiflow-*/
PYTHONPATH=$PWD "$work/user/bin/python" -m pytest -q -p no:cacheprovider tests/test_imports.py tests/systems tests/commands/test_cli.py
say "done"
