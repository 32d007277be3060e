"""What pyproject.toml has no words for: drivers/ lies in the wheel as mpiflow/drivers.

``mpiflow experiment`` finds it there. It is no package, and nothing imports from it.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["mpiflow*"]), "mpiflow.drivers"],
    package_dir={"mpiflow.drivers": "drivers"},
)
