"""Checks of what is installed: Python, the packages, the compiler, PyTorch."""

from __future__ import annotations

import os
import platform
import re
import time as clock
from importlib import metadata, util

from mpiflow.commands.doctor.check import FAIL, OK, WARNING, Check, Site


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def check_python(site: Site) -> list[Check]:
    """Python and the packages against what the installed mpiflow asks for."""
    try:
        wanted = metadata.requires("mpiflow") or []
        needed = metadata.metadata("mpiflow")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return [
            Check("packages", WARNING, "mpiflow is not installed", "pip install it: see README.md.")
        ]
    version = platform.python_version()
    fine = _version(version) >= _version(needed)
    remedy = "" if fine else "Make a virtual environment with a newer Python."
    out = [Check("python", OK if fine else FAIL, f"{version}, wanted {needed}", remedy)]
    have: list[str] = []
    bad: list[str] = []
    absent: list[str] = []
    for line in wanted:
        parsed = re.match(r"([A-Za-z0-9_.-]+)\s*([^;]*)(?:;(.*))?", line)
        if parsed is None:
            continue
        name, bounds, marker = parsed[1], parsed[2], parsed[3] or ""
        if "dev" in marker:
            continue
        lower = re.search(r">=\s*([\d.]+)", bounds)
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            (absent if "extra" in marker else bad).append(name)
            continue
        have.append(f"{name} {found}")
        if lower and _version(found) < _version(lower[1]):
            bad.append(f"{name} {found} < {lower[1]}")
    text = ", ".join(have) + (f"; without {', '.join(absent)}" if absent else "")
    if bad:
        out.append(
            Check("packages", FAIL, f"missing or too old: {', '.join(bad)}", "Run make setup.")
        )
    else:
        out.append(Check("packages", OK, text))
    return out


def check_compiles(site: Site) -> list[Check]:
    """Numba compiles, to the vectors of this CPU."""
    from mpiflow.core import device

    facts = device.compiler()
    wide = [name for name in ("avx512f", "avx2") if device.cpu_has(name)]
    text = f"numba {facts['version']}, {wide[0] if wide else 'no AVX'}"
    text += f", SVML {'used' if facts['svml'] else 'not used'}, cache {facts['cache']}"
    remedy = "Point NUMBA_CACHE_DIR to a folder that can be written."
    try:
        start = clock.perf_counter()
        right = device.kernel(_triangle)(1000) == 500500
        text += f", {clock.perf_counter() - start:.1f} s for a small kernel"
    except Exception as error:
        return [Check("compiler", FAIL, f"{text}: {error}", remedy)]
    if not right:
        return [Check("compiler", FAIL, f"{text}, wrong result", "Reinstall numba and llvmlite.")]
    if not wide:
        return [Check("compiler", WARNING, text, "Kernels are slow here: use a newer CPU.")]
    return [Check("compiler", OK, text)]


def _triangle(n: int) -> int:
    total = 0
    for i in range(n + 1):
        total += i
    return total


def check_torch(site: Site) -> list[Check]:
    """Whether networks can be trained. One rank imports it: that takes seconds and memory."""
    if util.find_spec("torch") is None:
        return [Check("torch", OK, "absent: simulations do not need it")]
    if not site.first:
        return []
    import torch

    text, each = f"{torch.__version__}, {torch.get_num_threads()} threads a rank", ""
    built = torch.version.cuda
    text += f", built for CUDA {built}" if built else ", without CUDA"
    simulator = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
    if site.device == "cuda" and not simulator and not torch.cuda.is_available():
        from mpiflow.learn.devices import remedy

        each = f"Networks see no GPU. {remedy()}"
    if site.comm.size > 1 and torch.get_num_threads() > 1:
        each = "Set OMP_NUM_THREADS=1 to train on several ranks."
    return [Check("torch", WARNING if each else OK, text, each)]
