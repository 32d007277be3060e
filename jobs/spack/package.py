"""Spack package of mpiflow: copy the folder to packages/py-mpiflow of a repository of your own.

spack repo create mine && cp -r jobs/spack mine/packages/py-mpiflow && spack repo add mine
spack install py-mpiflow +learn ^openmpi
"""

from spack.package import PythonPackage, depends_on, variant, version


class PyMpiflow(PythonPackage):
    """Distributed lattice simulation and learned macroscopic dynamics on MPI ranks."""

    license("MIT")

    version("main", branch="main", git="file:///path/to/mpiflow")  # your clone
    variant("learn", default=True, description="Learn from runs (torch)")
    variant("plot", default=True, description="Figures and xarray")

    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")
    depends_on("py-setuptools-scm@8:", type="build")
    depends_on("py-numpy@2:", type=("build", "run"))
    depends_on("py-scipy@1.13:", type=("build", "run"))
    depends_on("py-numba@0.62:", type=("build", "run"))
    depends_on("py-mpi4py@4.1:", type=("build", "run"))
    depends_on("py-h5py@3.11: +mpi", type=("build", "run"))
    depends_on("py-pydantic@2.7:", type=("build", "run"))
    depends_on("py-typer@0.26:", type=("build", "run"))
    depends_on("py-rich@13:", type=("build", "run"))
    depends_on("py-safetensors@0.4:", type=("build", "run"))
    depends_on("py-torch@2.6:", when="+learn", type=("build", "run"))
    depends_on("py-matplotlib@3.9:", when="+plot", type=("build", "run"))
    depends_on("py-xarray@2025.3:", when="+plot", type=("build", "run"))
    depends_on("py-netcdf4@1.7.3:", when="+plot", type=("build", "run"))
    depends_on("py-h5netcdf@1.3:", when="+plot", type=("build", "run"))
