#!/usr/bin/env bash
# The run of jobs/ising.slurm under Flux. Submit from the project's folder, after jobs/setup.sh:
#   flux batch jobs/ising.flux
# A run that does not fit in its time goes on by itself in the next: with exit code 75 the job submits
# itself again. OUT names its file, since a job that is submitted again has another number.
#flux: --job-name=mpiflow-ising
#flux: --nslots=32
#flux: --time-limit=60m
#flux: --output=flux-{{id}}.out
source jobs/common.sh || exit

step "$bin"/mpiflow simulate ising \
    --size 8192 --temperature 2.5 --field 0.1 --dt 0.25 --time 200 --save-every 1 --coarse 64 \
    --initial-magnetization 0.5 --seed 7 --out "${OUT:-ising-flux.h5}" \
    --resume --walltime "$(walltime)" "$@"
