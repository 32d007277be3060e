"""Initial states: of spins here, of alloys and of spin rules in modules of their own."""

from mpiflow.initial import alloy as alloy
from mpiflow.initial import rule as rule
from mpiflow.initial.spins import from_file as from_file
from mpiflow.initial.spins import gaussian as gaussian
from mpiflow.initial.spins import independent as independent
from mpiflow.initial.spins import profile as profile
from mpiflow.initial.spins import shuffled as shuffled
from mpiflow.initial.spins import smooth_profile as smooth_profile
from mpiflow.initial.spins import unclipped as unclipped
from mpiflow.initial.spins import uniform_up as uniform_up
