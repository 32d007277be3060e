"""What is refused before a kernel runs on it: a state that is none, and a rule it does not know.

Kernels compute with what they find: a spin of 0 would stay 0 for ever, and a method that a user
overrides would be no part of what was compiled. So every simulation asks here first.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.parallel import agreed

if TYPE_CHECKING:
    from mpi4py import MPI


# -- states ------------------------------------------------------------------------------------


def no_state(remedy: str) -> InputError:
    """What to say of a simulation that was given nothing to start from."""
    return InputError("initial state", None, "a state to start from", remedy)


def is_spins(values: np.ndarray) -> bool:
    """Whether all of an array are +1 or -1; of bytes, as most are, without a copy."""
    if values.dtype.kind not in "iuf":
        return False
    if values.dtype.kind != "i":  # NaN fails too
        return bool((np.abs(values) == 1).all())
    return not values.size or bool(
        values.min() >= -1 and values.max() <= 1 and np.count_nonzero(values) == values.size
    )


def spin_fault(values: np.ndarray) -> InputError:
    """What is wrong with an array that :func:`is_spins` has refused."""
    wrong = values[~((values == 1) | (values == -1))]
    return InputError("spins", wrong[0].item(), "+1 and -1 only", "Look at the initial state.")


def require_finite(name: str, values: np.ndarray, remedy: str) -> None:
    """Raise if a state of real numbers was never set, which NaN everywhere says, or has others."""
    finite = np.isfinite(values)
    if finite.all():
        return
    if np.isnan(values).all():
        raise no_state(remedy)
    raise InputError(name, values[~finite][0].item(), "finite numbers", "Look at the state.")


@contextmanager
def together(comm: MPI.Intracomm | None) -> Iterator[None]:
    """:func:`~mpiflow.core.parallel.agreed`, or nothing for one process without a communicator."""
    if comm is None:
        yield
        return
    with agreed(comm):
        yield


class Guarded:
    """A simulation that does nothing with a state that is missing or impossible.

    What sets the state clears :attr:`_sound`; all that reads or advances it calls
    :meth:`require_state` first.
    """

    comm: MPI.Intracomm
    _sound = False

    def _check_state(self) -> None:
        """Raise unless this rank's part of the state is one. Without communication."""
        raise NotImplementedError

    def require_state(self, anew: bool = False) -> None:
        """Raise, on all ranks alike, unless the simulation has a state. Collective.

        Parameters
        ----------
        anew : look at every site again, for whoever reads them all anyway

        Raises
        ------
        InputError : nothing has set a state, or some of it is impossible
        """
        if self._sound and not anew:
            return
        with agreed(self.comm):
            self._check_state()
        self._sound = True


# -- rules -------------------------------------------------------------------------------------


def require_options(options: Iterable[str], *takers: Callable[..., object]) -> None:
    """Raise for an option that none of the functions or dataclasses it is handed on to has."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = (inspect.signature(taker).parameters.values() for taker in takers)
    known = [p.name for several in found for p in several if p.kind in kinds]
    for name in options:
        if name not in known:
            remedy = did_you_mean(name, known) or "See its documentation."
            raise InputError("option", name, f"one of {', '.join(known)}", remedy)


def require_rule(system: object, base: type) -> None:
    """Raise for a subclass of a system that overrides what kernels have compiled or computed.

    New methods and attributes, other defaults of parameters and ``__init__`` are harmless.

    Raises
    ------
    InputError : it names what is overridden
    """
    kind = type(system)
    if not isinstance(system, base):
        raise InputError("system", kind.__name__, f"a {base.__name__}", "Make one.")
    parameters = {f.name for f in fields(base)} if is_dataclass(base) else set()
    inherited = {name for name in dir(base) if not name.startswith("__")}
    for name in ("__getattribute__", "__getattr__", *sorted(inherited | parameters)):
        if _overrides(system, base, name, name in parameters):
            raise InputError(
                "system",
                kind.__name__,
                f"a {base.__name__} that does not override '{name}': kernels are compiled for the "
                "rule as it is and cannot honour another",
                f"Take {base.__name__} itself, or a subclass that only adds to it.",
            )


def _overrides(system: object, base: type, name: str, parameter: bool) -> bool:
    theirs = inspect.getattr_static(type(system), name, None)
    ours = inspect.getattr_static(base, name, None)
    if parameter:  # another default is a value; a property would be a rule
        return theirs is not ours and hasattr(type(theirs), "__get__")
    cached = isinstance(ours, functools.cached_property)
    return theirs is not ours or (name in getattr(system, "__dict__", {}) and not cached)
