"""``mpiflow doctor``: what of this installation and this machine works, and what to do if not.

Each check runs on all ranks and says ok, warning or FAIL; the worst rank counts. A check of one
rank must not communicate, one of all ranks agrees on its errors before it goes on, and a watchdog
ends what still hangs. Nothing is imported before the check that is about it.
"""

from mpiflow.commands.doctor.check import FAIL as FAIL
from mpiflow.commands.doctor.check import OK as OK
from mpiflow.commands.doctor.check import WARNING as WARNING
from mpiflow.commands.doctor.check import Check as Check
from mpiflow.commands.doctor.check import Site as Site
from mpiflow.commands.doctor.run import examine as examine
from mpiflow.commands.doctor.run import main as main
