"""Laws of fields that are kept in a folder as tables."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mpiflow._version import __version__
from mpiflow.core.errors import InputError
from mpiflow.files import storage
from mpiflow.systems.field_law import Entropy, Structure, artanh, checked

#: What model.json calls a table.
KIND = "field-law"


class TableLaw:
    r"""A law from its values at some m, at one temperature.

    Between them :math:`K / (1 - m^2)` and kappa are monotone cubics of m, and s' one of
    artanh(m), so that the exact law comes back exactly and nothing overshoots. Beyond the first
    and last m the two ratios stay what they are there, and s' rises as that of free spins,
    :math:`\operatorname{artanh}(m) / \beta` plus a constant: flipped spins are then few and far
    between. Values asked for there are counted, and the first ones give a warning.

    Parameters
    ----------
    beta : 1 / T
    m : (n,) rising, inside (-1, 1)
    mobility : (n,) K > 0; None for kappa beta (1 - m^2)
    entropy_derivative : (n,) s'
    prefactor : (n,) kappa > 0; None for K / (beta (1 - m^2)), and for 1 without K
    structure : see the module
    symmetric : m, from 0 or above on, is mirrored: K and kappa are even, s' is odd
    card : where the values come from; saved with them

    Attributes
    ----------
    range : lowest and highest m of the table
    outside : values of m asked for so far beyond it

    Raises
    ------
    InputError : arrays of other lengths, not finite, or values that no law can have
    """

    def __init__(
        self,
        beta: float,
        m: np.ndarray,
        mobility: np.ndarray | None,
        entropy_derivative: np.ndarray,
        prefactor: np.ndarray | None = None,
        *,
        structure: Structure = "langevin",
        symmetric: bool = False,
        card: dict[str, Any] | None = None,
    ) -> None:
        self.beta, self.structure = checked(beta, structure)
        self.symmetric, self.card = bool(symmetric), dict(card or {})
        given = {
            "m": m,
            "mobility": mobility,
            "entropy_derivative": entropy_derivative,
            "prefactor": prefactor,
        }
        self._arrays = {
            name: np.array(values, float) for name, values in given.items() if values is not None
        }
        _check_table(self._arrays, self.symmetric)
        m, slope = self._arrays["m"], self._arrays["entropy_derivative"]
        ratios = [
            self._arrays[name] / scale
            for name, scale in (("mobility", self.beta * (1 - m * m)), ("prefactor", 1.0))
            if name in self._arrays
        ] or [np.ones_like(m)]
        if symmetric:
            keep = slice(1 if m[0] == 0 else 0, None)  # m = 0 once, with s' = 0
            m, slope = (np.append(-a[keep][::-1], a) for a in (m, slope))
            slope[m == 0] = 0.0
            ratios = [np.append(a[keep][::-1], a) for a in ratios]
        self.range, self.outside = (float(m[0]), float(m[-1])), 0
        curve = scipy.interpolate.PchipInterpolator
        self._ratio, self._kappa = (curve(m, a) for a in (ratios[0], ratios[-1]))
        self._slope = curve(np.arctanh(m), slope)
        self._entropy = Entropy(self.beta, self._excess)

    def mobility(self, m: np.ndarray) -> np.ndarray:
        m = self._counted(m)
        return self.beta * (1 - m) * (1 + m) * self._ratio(self._inside(m))

    def mobility_slope(self, m: np.ndarray) -> np.ndarray:
        m = self._counted(m)
        near = self._inside(m)
        slope = np.where(m == near, self._ratio(near, 1), 0.0)
        return self.beta * ((1 - m) * (1 + m) * slope - 2 * m * self._ratio(near))

    def entropy_derivative(self, m: np.ndarray) -> np.ndarray:
        m = self._counted(m)
        return artanh(m) / self.beta + self._excess(m)

    def entropy(self, m: np.ndarray) -> np.ndarray:
        return self._entropy(self._counted(m))

    def prefactor(self, m: np.ndarray) -> np.ndarray:
        return np.asarray(self._kappa(self._inside(self._counted(m))))

    def _excess(self, m: np.ndarray) -> np.ndarray:
        """s' less that of free spins; constant beyond the table."""
        a = np.arctanh(self._inside(m))
        return self._slope(a) - a / self.beta

    def _inside(self, m: np.ndarray) -> np.ndarray:
        return np.clip(m, *self.range)

    def _counted(self, m: np.ndarray) -> np.ndarray:
        m = np.asarray(m, float)
        low, high = self.range
        beyond = int(np.count_nonzero((m < low) | (m > high)))
        if beyond and not self.outside:
            warnings.warn(
                f"this law was learned for m from {low:.4g} to {high:.4g}; {beyond} values are "
                "beyond, where it goes on as that of free spins",
                stacklevel=3,
            )
        self.outside += beyond
        return m

    # -- files -------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        whole = {
            "kind": KIND,
            "mpiflow_version": __version__,
            "beta": self.beta,
            "structure": self.structure,
            "symmetric": self.symmetric,
            "range": self.range,
            "card": self.card,
        }
        text = json.dumps(whole, indent=2) + "\n"
        files: dict[str, bytes | str] = {
            "model.safetensors": save(self._arrays),
            "model.json": text,
        }
        storage.write_folder(directory, files)


def load_law(directory: str | Path) -> TableLaw:
    """Load what :meth:`TableLaw.save` wrote, or say in one line why not."""
    directory = Path(directory)
    if not (directory / "model.json").is_file():
        raise InputError("law", str(directory), "a directory with model.json", "Save one first.")
    try:
        text = json.loads((directory / "model.json").read_text())
        if text.get("kind") != KIND:
            raise InputError("law", str(directory), f"kind '{KIND}'", "Use the tool that made it.")
        arrays = load_file(directory / "model.safetensors")
        return TableLaw(
            text["beta"],
            arrays["m"],
            arrays.get("mobility"),
            arrays["entropy_derivative"],
            arrays.get("prefactor"),
            structure=text["structure"],
            symmetric=text["symmetric"],
            card=text["card"],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "law", str(directory), "an undamaged mpiflow law", f"Loading said: {error!r}."
        ) from error


def _check_table(arrays: dict[str, np.ndarray], symmetric: bool) -> None:
    m = arrays["m"]
    low = 0.0 if symmetric else -1.0
    rises = m.ndim == 1 and m.size >= 2 and bool((np.diff(m) > 0).all())
    if not (rises and m[0] >= low and abs(m[[0, -1]]).max() < 1):
        bounds = "0 or more and below 1" if symmetric else "inside (-1, 1)"
        raise InputError("m", m[:4], f"2 or more rising numbers, {bounds}", "Drop the others.")
    for name, values in arrays.items():
        if values.shape != m.shape or not np.isfinite(values).all():
            allowed = f"{m.size} finite numbers, as m"
            raise InputError(name, values.shape, allowed, "Give one for each m.")
        if name in ("mobility", "prefactor") and not (values > 0).all():
            raise InputError(name, float(values.min()), "above 0", "Leave out empty bins.")
