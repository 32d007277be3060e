"""Initial states: of spins (and means) here, of alloys and of spin rules in their own modules."""

from mpiflow.initial import alloy as alloy
from mpiflow.initial import rule as rule
from mpiflow.initial.smooth import gaussian as gaussian
from mpiflow.initial.smooth import smooth_profile as smooth_profile
from mpiflow.initial.smooth import unclipped as unclipped
from mpiflow.initial.spin_files import from_file as from_file
from mpiflow.initial.spins import independent as independent
from mpiflow.initial.spins import profile as profile
from mpiflow.initial.spins import shuffled as shuffled
from mpiflow.initial.spins import uniform_up as uniform_up
