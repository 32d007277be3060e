"""Compiled kernels on disk: never those of another source, and never a reason for a run to end.

Numba notices changes in a kernel's own file only, not in the rules and constants that it takes
from other files; a stale kernel would run yesterday's physics. So the folder is named by all of
that source, also below NUMBA_CACHE_DIR. A file in it that is damaged is compiled and written anew.
Where nothing can be written kernels that are there are used, the others are compiled in each
process, and a warning says so once.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import os
import re
import time
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
from numba.core import caching, event
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]

from mpiflow.core.compiling import CLOCK

_IMPORTS = re.compile(rb"from mpiflow(?:\.([\w.]+))? import (\([^)]*\)|[^\n]*)")
_COMPILES = re.compile(rb"\n@(?:kernel|rule|inlined)\b|\b(?:rule|kernel|inlined|intrinsic)\(")

#: Folder of this package, whose functions all come from a file.
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
#: Seconds for which a process waits for another one that compiles what it needs.
PATIENCE = 20.0


@lru_cache(maxsize=1)
def digest() -> str:
    """Of the source of all rules and kernels, and of every module that they import."""
    sources = dict(_modules(str(Path(__file__).parents[1])))
    sources.pop("")  # the package itself names all modules, for types
    # To look for a word first takes a tenth of the time, and every run waits for this.
    about = [name for name, source in sources.items() if b"device" in source]
    todo = ["core.device", *(name for name in about if _COMPILES.search(sources[name]))]
    needed: set[str] = set()
    while todo:
        name = todo.pop()
        if name in needed or name not in sources:
            continue
        needed.add(name)
        for module, names in _IMPORTS.findall(sources[name]):
            base = module.decode()
            parts = re.findall(r"\w+", names.decode())
            todo += [base, *(f"{base}.{part}" if base else part for part in parts)]
    total = hashlib.sha256()
    for name in sorted(needed):
        total.update(sources[name])
    return total.hexdigest()[:16]


def _modules(folder: str, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Dotted name inside the package and source of each module; of a package without __init__."""
    for there in os.scandir(folder):
        stem, dot, suffix = there.name.partition(".")
        if suffix == "py":
            name = prefix.rstrip(".") if stem == "__init__" else prefix + stem
            with open(there.path, "rb") as file:
                yield name, file.read()
        elif not dot and stem != "__pycache__" and there.is_dir():
            yield from _modules(there.path, f"{prefix}{stem}.")


@lru_cache(maxsize=1)
def folder() -> Path | None:
    """Where kernels of this source are kept; None without a home to keep them in."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"]).absolute() / f"mpiflow-{digest()}"
    root = os.environ.get("XDG_CACHE_HOME")
    if root:
        return Path(root) / "mpiflow" / "numba" / digest()
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry for this user
        return None
    return home / ".cache" / "mpiflow" / "numba" / digest() if home.is_dir() else None


class _Place(caching.UserProvidedCacheLocator):
    """Our folder, whether or not it can be written: kernels may be there already."""

    def __init__(self, function: Any, file: str) -> None:
        self._py_file, self._lineno = file, function.__code__.co_firstlineno
        root = folder()
        part = self.get_suitable_cache_subpath(file)
        self._cache_path = os.path.join(root if root is not None else os.devnull, part)

    @classmethod
    def from_function(cls, function: Any, file: str) -> _Place | None:
        return cls(function, file) if os.path.exists(file) else None

    def ensure_cache_path(self) -> None:
        if folder() is None:
            raise OSError(0, "there is no home folder")
        os.makedirs(self._cache_path, exist_ok=True)


class _Kept(caching.CompileResultCacheImpl):
    _locator_classes = [_Place]  # noqa: RUF012 - as in Numba


class _Turns:
    """One process at a time compiles a kernel into a folder; others wait, and find it there.

    A lock of one byte for each kernel in a file of that folder, which ends with its process. Nobody
    waits for longer than compiling takes: file systems may have no locks, or forget to give them.
    """

    def __init__(self) -> None:
        self._handle = -1

    def take(self, name: str) -> bool:
        """Whether there was another process to wait for. Without a folder there is none."""
        place = folder()
        if place is None:
            return False
        self.give()
        byte = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "little")
        end, waited = time.monotonic() + PATIENCE, False
        try:
            place.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(place / "turns", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            while True:
                try:
                    fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                    return waited
                except (BlockingIOError, PermissionError):  # held; which of the two is up to it
                    waited = True
                if time.monotonic() > end:
                    return waited
                time.sleep(0.02)
        except OSError:  # no locks, or no file, here
            return waited

    def give(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


_TURNS = _Turns()


class Cache(caching.FunctionCache):
    """Numba's cache of one function, which gives up without raising."""

    _impl_class = _Kept

    def __init__(self, function: Any, kind: str) -> None:
        self._function, self._kind = function, kind

    def __getattr__(self, name: str) -> Any:
        """What Numba keeps of a function, made when it is first wanted: few of all are called."""
        if name.startswith("__") or "_impl" in vars(self):
            raise AttributeError(name)
        super().__init__(self._function)
        return getattr(self, name)

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return (*super()._index_key(signature, codegen), self._kind)

    def load_overload(self, signature: Any, context: Any) -> Any:
        found = self._load(signature, context)
        # What a kernel calls is compiled in its turn; a wait may find what others have made.
        if found is None and not CLOCK.running and _TURNS.take(self._cache_file_name()):
            found = self._load(signature, context)
            if found is not None:
                _TURNS.give()
        return found

    def _cache_file_name(self) -> str:
        return f"{self._impl.filename_base}{self._kind}"

    def _load(self, signature: Any, context: Any) -> Any:
        try:
            # Numba would first learn all that it can compile: longer than to load ten kernels.
            _add_symbols()
            return self._load_overload(signature, context)
        except OSError:  # cannot be read: as if it were not there
            return None
        except Exception:  # emptied, cut off, of another world: pickles raise anything
            self._forget()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except OSError as error:
            _warn(error)
        except Exception:  # another process has left a damaged index
            self._forget()
        if not CLOCK.running:
            _TURNS.give()

    def _forget(self) -> None:
        try:
            self.flush()
        except OSError as error:
            _warn(error)


@lru_cache(maxsize=1)
def _add_symbols() -> None:
    """Tell LLVM where what kernels call of Numba is, which allocates and returns arrays."""
    for name, address in _nrt_python.c_helpers.items():
        llvmlite.binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


_warned: list[str] = []


def _warn(error: OSError) -> None:
    """Once a process, whatever the error."""
    if _warned:
        return
    reason = error.strerror or str(error)
    place = folder()
    where = "" if place is None else f" in {place}"
    _warned.append(reason)
    warnings.warn(
        f"compiled kernels cannot be kept{where}: {reason}. Every run compiles them again; "
        "set NUMBA_CACHE_DIR to a folder that can be written, with room",
        stacklevel=2,
    )


class _Compilations(event.Listener):
    """Tells the clock what Numba compiles, which it does without Python's search for cycles.

    That took an eighth of the time: there are many new objects, and few of them are garbage.
    """

    def __init__(self) -> None:
        self._collects = False

    def on_start(self, event: Any) -> None:
        if not CLOCK.running:
            self._collects = gc.isenabled()
            gc.disable()
        CLOCK.begin()

    def on_end(self, event: Any) -> None:
        CLOCK.end()
        if self._collects and not CLOCK.running:
            gc.enable()


event.register("numba:compile", _Compilations())


def attach(dispatcher: Any, kind: str = "") -> Any:
    """Keep what this function of Numba compiles, if it is one and comes from a file.

    Parameters
    ----------
    kind : tells apart two ways to compile one function
    """
    if isinstance(dispatcher, Dispatcher):  # else NUMBA_DISABLE_JIT is set
        with contextlib.suppress(RuntimeError, OSError):
            vars(dispatcher)["_cache"] = made = Cache(dispatcher.py_func, kind)
            if not dispatcher.py_func.__code__.co_filename.startswith(_PACKAGE):
                made.enable()
    return dispatcher
