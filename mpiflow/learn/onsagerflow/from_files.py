"""``mpiflow learn onsagerflow``: from files of runs to a saved model, and a table about it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_options
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.files.runs import Paths
from mpiflow.files.storage import probe_folder
from mpiflow.learn.onsagerflow.fit import learn
from mpiflow.learn.onsagerflow.increments import LAGS, FieldRun, runs_from_files
from mpiflow.learn.onsagerflow.model import Form, OnsagerFlow

#: Reach of J in blocks unless given, where grids allow.
RADIUS = 8


def learn_from_files(
    where: Paths,
    out: str | Path,
    *,
    overwrite: bool = False,
    lags: Sequence[int] = LAGS,
    network: bool = False,
    device: str = "cpu",
    comm: MPI.Intracomm | None = None,
    **options: Any,
) -> OnsagerFlow:
    """Learn a law from files of block means, and save it. Collective: ranks share the runs.

    Parameters
    ----------
    where : runs, as of :func:`mpiflow.files.runs.find_runs`
    out : folder to save to, by rank 0
    overwrite : replace the model in it
    network : K and s' as networks, else as polynomials
    device : that networks are trained on; polynomials are fitted on the CPU
    options : of :func:`mpiflow.learn.onsagerflow.fit.learn`, or of
        :func:`mpiflow.learn.onsagerflow.net.learn_network`

    Raises
    ------
    InputError : on all ranks: there is a model already, or runs that cannot be learned from
    """
    comm, out = MPI.COMM_WORLD if comm is None else comm, Path(out)
    if device != "cpu" and not network:
        allowed = "'cpu' without network: polynomials are fitted there"
        raise InputError("device", device, allowed, "Leave it out.")
    if not network:
        require_options(options, learn, Form)
        return _learned(where, out, overwrite, lags, learn, comm, options)
    from mpiflow.learn.devices import learning_on
    from mpiflow.learn.onsagerflow.net import learn_network

    require_options(options, learn_network)
    with learning_on(device, comm):
        return _learned(where, out, overwrite, lags, learn_network, comm, options)


def _learned(
    where: Paths,
    out: Path,
    overwrite: bool,
    lags: Sequence[int],
    learn: Callable[..., OnsagerFlow],
    comm: MPI.Intracomm,
    options: dict[str, Any],
) -> OnsagerFlow:
    """The model that ``learn`` makes of the files, and saved. Collective."""
    with agreed(comm):
        if comm.rank == 0:
            probe_folder(out, files=("model.safetensors", "model.json"))
        if (out / "model.json").exists() and not overwrite:
            remedy = "Use --overwrite to replace it."
            raise InputError("out", str(out), "a folder without a model", remedy)
        runs = runs_from_files(where)
        runs = _long_enough(runs, max(lags, default=0))
        least = min(run.fields.shape[-1] for run in runs)
        if least < 5:
            allowed = "runs of 5 blocks a side or more"
            raise InputError("runs", f"{least} blocks", allowed, "Use smaller blocks: --coarse.")
        options.setdefault("radius", min(RADIUS, (least - 1) // 2))
    with warnings.catch_warnings():
        # Doubts are on the card, and in the table.
        warnings.filterwarnings("ignore", message="the data do not obey")
        model = learn(runs, lags=lags, comm=comm, **options)
    with agreed(comm):
        if comm.rank == 0:
            model.save(out)
    return model


def _long_enough(runs: Sequence[FieldRun], lag: int) -> list[FieldRun]:
    """The runs that have increments over a lag; a file must have some, but not each part of it."""
    long = [run for run in runs if run.fields.shape[0] > lag]
    files = {run.fields.path for run in long}
    for run in runs:
        if run.fields.shape[0] > lag:
            continue
        path, frames = run.fields.path, run.fields.shape[0]
        if path not in files:
            remedy = "Save more frames, or use shorter --lags."
            raise InputError("runs", f"{path}: {frames} frames", f"more than {lag}", remedy)
        text = f"a part of {path} at T = {run.temperature:g} has {frames} frames: it is left out"
        warnings.warn(text, stacklevel=2)
    return long


def table(model: OnsagerFlow, out: str | Path) -> str:
    """Lines about a learned model: data, errors, warnings, and where it is."""
    card, form = model.card, model.form
    sides = ", ".join(f"{math.isqrt(n)} x {math.isqrt(n)}" for n in card["spins"])
    lines = [
        f"{form.structure} from {card['runs']} runs with blocks of {sides} sites",
        f"{'T':>8} {'increments':>12} {'m':>18} {'error of K':>11} {'of s-prime':>11}",
    ]
    for t, row in card["temperatures"].items():
        span = f"{row['m'][0]:.3f} to {row['m'][1]:.3f}"
        known = (row["mobility_error"], row["entropy_error"])
        errors = " ".join("    unknown" if e is None else f"{e:>11.2%}" for e in known)
        lines.append(f"{t:>8} {row['increments']:>12} {span:>18} {errors}")
    lines += _fit_of(model)
    lines.append(
        f"J within {form.radius} blocks, error {card['kernel_error']:.2%}. Errors are standard "
        "ones, of K the largest over m, of s-prime and of J as a part of their size"
    )
    lines += [f"warning: the data do not obey such a law: {text}" for text in card["doubts"]]
    if card["doubts"]:
        lines.append("warning: errors hold for an equation of this kind only, and this is none")
    if not card["monotone"]:
        lines.append("warning: s' falls somewhere: it has phases of its own. Use more data there")
    lines.append(f"saved to {out}")
    return "\n".join(lines)


def _fit_of(model: OnsagerFlow) -> list[str]:
    """Lines on how well the law fits its data."""
    names = ("explained_drift", "variance", "time_correlation", "space_correlation", "kurtosis")
    heads = ("drift explained", "noise", "in time", "in space", "kurtosis", "expected")
    widths = (16, 14, 16, 16, 14, 9)
    lines = [f"{'T':>8} " + " ".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))]
    for t, row in model.card["temperatures"].items():
        of, texts = row["goodness"], []
        for name, digits, width in zip(names, (3, 3, 4, 4, 2), widths, strict=False):
            known = of[name]
            text = "unknown" if known is None else f"{known[0]:.{digits}f}({known[1]:.{digits}f})"
            texts.append(f"{text:>{width}}")
        lines.append(f"{t:>8} {' '.join(texts)} {of['expected_kurtosis']:>9.2f}")
    lines.append(
        "drift explained, of what a richer law finds; noise over that of the law; correlations of "
        "residuals in time and space, 0 if the law holds"
    )
    return lines
