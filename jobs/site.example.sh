# What is special about a cluster. Copy it to site.sh in this folder, which the batch scripts read,
# and which git ignores; each variable is told in jobs/common.sh.
# shellcheck shell=bash
#module load gcc openmpi hdf5-parallel
#export MPIFLOW_BIN=/path/to/bin     # where mpiflow and python are, if not in .venv/bin
#export MPIFLOW_MPI=pmi2             # of srun --mpi
