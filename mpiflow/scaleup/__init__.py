"""From small lattices to large ones: upsampling, relaxation, partial evolution; of spins here."""

from mpiflow.scaleup.spins import Patches as Patches
from mpiflow.scaleup.spins import choose_patch as choose_patch
from mpiflow.scaleup.spins import local_relax as local_relax
from mpiflow.scaleup.spins import partial_evolution as partial_evolution
from mpiflow.scaleup.spins import upsample as upsample
from mpiflow.scaleup.spins import window_origins as window_origins
