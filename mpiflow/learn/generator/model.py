r"""A generator with a learned kernel and a learned local law, :math:`F_\theta(J_\theta * m, m)`.

For the equation :math:`\partial_t m = -m + \tanh \beta (J * m + h)` of
:mod:`mpiflow.solvers.field.mesoscopic` there are three priors (seed, section 4):

==========  ===========================================  =============================
``strong``  :math:`-A m + \tanh \beta (B I + m + h)`      beta, h known
``linear``  :math:`-A m + \tanh (B I + C m + D h)`        one temperature
``mlp``     network of (I, m, beta, h), :math:`3 \times 128`  those of beta, h that vary
==========  ===========================================  =============================

**What can be known.** With :math:`\delta * m = m`, the first two hold J only in the *effective
kernel* G, which has as many unknowns as J alone:

.. math:: G = B J_\theta + \delta \ \text{(strong)}, \qquad G = B J_\theta + C \delta
          \ \text{(linear)}.

B trades off against the mass of J, and C, or the explicit m of the strong form, against its
centre J(0). The explicit m is not in the equation above: the learned kernel must absorb it,
:math:`B J_\theta = J - \delta`, whose mass is 0, so that J_theta cannot be scaled to mass 1.
A network can undo any :math:`I \to a I + c m`, that is any scale and any centre. Everything is
therefore reported in one gauge: **J has the sum 1 without its centre, and J(0) = 0**,

.. math:: G = b J + c\,\delta, \qquad c = G(0), \quad b = \sum_{x \ne 0} G(x),

with B = b (and :math:`J_\theta(0) = (c - 1) / b`) for the strong form, B = b, C = c for the
linear one. The true kernel on a grid of blocks has a centre c, from pairs of sites inside a
block, and b = 1 - c for the strong form; b = beta (1 - c), C = beta c, D = beta for the linear
one. For a network only J is known. D is known only from runs with a field, and A apart from G(0)
only from fields that are large enough for the tanh to bend: small ones relax by A - beta G(0).

Kernels are sums J(x) = sum_p w_p phi_p(x) of those of :mod:`mpiflow.learn.kernels`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from mpiflow.core.errors import InputError
from mpiflow.learn import devices
from mpiflow.learn.kernels import KernelKind, kernel_basis
from mpiflow.learn.models import read_model, write_model
from mpiflow.learn.paths import OutsideData
from mpiflow.learn.training import mlp
from mpiflow.systems.kac import Kac

KIND = "field-generator"
Prior = Literal["strong", "linear", "mlp"]
#: Constants of each prior beside the kernel.
CONSTANTS: dict[str, tuple[str, ...]] = {"strong": ("A",), "linear": ("A", "D"), "mlp": ()}
DOUBLE = torch.float64


def true_kernel(system: Kac, points: int, block: int) -> np.ndarray:
    """J of a system on a grid of blocks, (M, M) float64, with x = 0 at [0, 0]."""
    a, b, c = system.kernel.symbol((points, points), block)
    symbol = (np.add.outer if system.kernel.nearest else np.multiply.outer)(a, b) - c
    return np.fft.irfft2(symbol, s=(points, points))


def in_gauge(kernel: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(J, b, c) of a kernel G = b J + c delta; see the module."""
    c = float(kernel[0, 0])
    b = float(kernel.sum()) - c
    out = kernel / b
    out[0, 0] = 0.0
    return out, b, c


class Generator(nn.Module):
    """The learned right-hand side.

    Parameters
    ----------
    prior, kernel : see the module
    points : M, points of the grid a side
    radius : reach of ``free`` and ``radial`` kernels in points; more than 1, at most M / 2
    width : of the three hidden layers of ``mlp``
    mirror : F(-I, -m, -h) = -F(I, m, h) by construction (``mlp``; the others are so anyway)

    Attributes
    ----------
    weights : (P,), of G, or of any kernel that is J once it is brought to the gauge (``mlp``)
    constants : (k,), see CONSTANTS
    card : where the model comes from
    """

    def __init__(
        self,
        prior: Prior = "strong",
        kernel: KernelKind = "radial",
        points: int = 64,
        radius: float = 8,
        width: int = 128,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (("prior", prior, Prior), ("kernel", kernel, KernelKind)):
            if value not in get_args(known):
                raise InputError(name, value, f"one of {get_args(known)}", "Choose one.")
        if points < 4:
            raise InputError("points", points, "4 or more", "Try 64.")
        if not 1 < radius <= points / 2:
            raise InputError("radius", radius, f"above 1, at most {points / 2:g}", "Try 8.")
        self.prior, self.kernel, self.points, self.radius = prior, kernel, points, radius
        self.width, self.mirror, self.card = width, mirror, dict[str, Any]()
        self.basis = kernel_basis(kernel, points, radius)
        flat = self.basis.reshape(len(self.basis), -1)
        #: Sum and centre of each phi_p, and the weights of delta.
        self.sums, self.centres = flat.sum(axis=1), self.basis[:, 0, 0]
        self.delta = np.linalg.lstsq(flat.T, np.eye(flat.shape[1])[0], rcond=None)[0]
        start = np.zeros(len(flat))
        if prior == "mlp":  # any kernel with some mass outside its centre
            start = np.linalg.lstsq(flat.T, np.ones(flat.shape[1]), rcond=None)[0]
        self.weights = nn.Parameter(torch.as_tensor(start, dtype=DOUBLE))
        constants = torch.ones(len(CONSTANTS[prior]), dtype=DOUBLE)
        self.constants = nn.Parameter(constants, requires_grad=len(constants) > 0)
        self.network = mlp((4, width, width, width, 1)).double() if prior == "mlp" else None
        for name, size in (("shift", 4), ("scale", 4), ("unit", 1)):
            self.register_buffer(name, torch.full((size,), float(name != "shift"), dtype=DOUBLE))
        self.shift: torch.Tensor
        self.scale: torch.Tensor
        self.unit: torch.Tensor

    # -- kernel -------------------------------------------------------------------------------

    def own_weights(self) -> torch.Tensor:
        """Weights of the kernel that acts: of G, or of J in the gauge (``mlp``)."""
        if self.network is None:
            return self.weights
        w = self.weights
        centres, sums, delta = map(self._there, (self.centres, self.sums, self.delta))
        c = w @ centres
        return (w - c * delta) / (w @ sums - c)

    def symbol(self) -> torch.Tensor:
        """Transform of the kernel that acts, (M, M // 2 + 1): real, for it is even."""
        return torch.fft.rfft2(torch.tensordot(self.own_weights(), self._there(self.basis), 1)).real

    def _there(self, values: np.ndarray) -> torch.Tensor:
        """Constants where the weights are, of their type."""
        return torch.as_tensor(values, dtype=self.weights.dtype).to(self.weights.device)

    def kernel_array(self) -> np.ndarray:
        """The kernel that acts, G or J (``mlp``), (M, M) with x = 0 at [0, 0]."""
        weights = self.own_weights().detach().numpy()
        return np.tensordot(weights, self.basis, 1)

    def report(self) -> dict[str, float]:
        """The identified constants in the gauge of the module, and ``mass`` = b + c of G."""
        out = dict(zip(CONSTANTS[self.prior], self.constants.tolist(), strict=True))
        if self.network is None:
            _, b, c = in_gauge(self.kernel_array())
            out |= {"B": b, "mass": b + c}
            out |= {"C": c} if self.prior == "linear" else {"J(0)": (c - 1) / b}
        return out

    # -- law ----------------------------------------------------------------------------------

    def law(
        self, drive: torch.Tensor, m: torch.Tensor, beta: torch.Tensor, h: torch.Tensor
    ) -> torch.Tensor:
        """F of ``drive`` = (kernel that acts) * m, all of the same shape or broadcast to it."""
        if self.prior == "strong":
            return -self.constants[0] * m + torch.tanh(beta * (drive + h))
        if self.network is None:
            return -self.constants[0] * m + torch.tanh(drive + self.constants[1] * h)
        inputs = torch.stack(torch.broadcast_tensors(drive, m, beta, h), dim=-1)
        value = self.network((inputs - self.shift) / self.scale)
        if self.mirror:
            signs = torch.tensor([-1, -1, 1, -1], dtype=inputs.dtype).to(inputs.device)
            inputs = inputs * signs
            value = 0.5 * (value - self.network((inputs - self.shift) / self.scale))
        return self.unit * value[..., 0]

    def at_points(self, *given: torch.Tensor) -> torch.Tensor:
        """F of I, m, beta and h of points, each (n,)."""
        return self.law(*given)

    def law_in_gauge(
        self, drive: np.ndarray, m: np.ndarray, beta: np.ndarray, h: np.ndarray
    ) -> np.ndarray:
        """F(I, m) with I = J * m in the gauge of the module, whatever the prior."""
        b, c = 1.0, 0.0
        if self.network is None:
            _, b, c = in_gauge(self.kernel_array())
        with torch.no_grad():
            given = (torch.tensor(a, dtype=DOUBLE) for a in (b * drive + c * m, m, beta, h))
            return self.law(*given).numpy()

    def slopes(
        self, drive: torch.Tensor, m: torch.Tensor, beta: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """F, its derivative by ``drive``, and those by the constants; without a graph."""
        with torch.enable_grad():
            at = drive.detach().requires_grad_()
            value = self.law(at, m, beta, h)
            (by_drive,) = torch.autograd.grad(value.sum(), at)
        by_constants = [-m] if self.prior != "mlp" else []
        if self.prior == "linear":
            by_constants.append(by_drive * h)
        return value.detach(), by_drive, by_constants

    def slots(self, beta: torch.Tensor, h: torch.Tensor) -> np.ndarray:
        """Which of the constants :meth:`slopes` are by, (n, k) for fields with these beta, h."""
        return np.broadcast_to(np.arange(len(self.constants)), (len(beta), len(self.constants)))

    def drive(self, m: torch.Tensor, symbol: torch.Tensor | None = None) -> torch.Tensor:
        """The convolution, of fields (..., M, M)."""
        if m.shape[-2:] != (self.points,) * 2:
            raise InputError(
                "m", tuple(m.shape), f"(..., {self.points}, {self.points})", "Use that grid."
            )
        symbol = self.symbol() if symbol is None else symbol
        return torch.fft.irfft2(torch.fft.rfft2(m) * symbol, s=m.shape[-2:])

    def rate(
        self,
        m: torch.Tensor,
        beta: torch.Tensor,
        h: torch.Tensor,
        symbol: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(L m) of fields (n, M, M) float64 with beta and h (n, 1, 1)."""
        return self.law(self.drive(m, symbol), m, beta, h)

    def flow(
        self, m: torch.Tensor, beta: torch.Tensor, h: torch.Tensor, time: float, steps: int
    ) -> torch.Tensor:
        """The fields after ``time``, by so many steps of RK4."""
        symbol, dt = self.symbol(), time / steps
        for _ in range(steps):
            k1 = self.rate(m, beta, h, symbol)
            k2 = self.rate(m + 0.5 * dt * k1, beta, h, symbol)
            k3 = self.rate(m + 0.5 * dt * k2, beta, h, symbol)
            k4 = self.rate(m + dt * k3, beta, h, symbol)
            m = m + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return m

    @torch.no_grad()
    def rollout(
        self,
        start: np.ndarray,
        times: np.ndarray,
        temperature: np.ndarray | float,
        field: np.ndarray | float,
        step: float = 0.1,
    ) -> np.ndarray:
        """Fields (runs, times, M, M) from ``start`` (runs, M, M) at time 0."""
        times = np.asarray(times, np.float64)
        if times.size == 0 or not (np.all(times >= 0) and np.all(np.diff(times) >= 0)):
            raise InputError("times", times.tolist()[:3], "rising from 0 or more", "Sort them.")
        if not np.all(np.asarray(temperature) > 0):
            raise InputError("temperature", temperature, "above 0", "Try 1.")
        device = devices.here()
        m = torch.as_tensor(start, dtype=DOUBLE).to(device)
        beta, h = (
            torch.as_tensor(np.broadcast_to(v, len(m)).copy(), dtype=DOUBLE).to(device)[
                :, None, None
            ]
            for v in (1.0 / np.asarray(temperature, float), field)
        )
        frames, now = [], 0.0
        with devices.placed(self, device):
            for time in times:
                if time > now:
                    m = self.flow(m, beta, h, time - now, int(np.ceil((time - now) / step - 1e-9)))
                now = float(time)
                frames.append(m.cpu().numpy())
        self._warn_outside(np.stack(frames), times, temperature, field)
        return np.stack(frames, axis=1)

    def _warn_outside(
        self,
        m: np.ndarray,
        times: np.ndarray,
        temperature: np.ndarray | float,
        field: np.ndarray | float,
    ) -> None:
        """Say where fields (times, runs, M, M) or conditions leave those that were learned from."""
        known = self.validity
        conditions, fields = known.get("parameters", {}), known.get("latents", {})
        for name, given in (("temperature", temperature), ("field", field)):
            low, high = conditions.get(name, (-np.inf, np.inf))
            if len(far := np.ravel(given)[(np.ravel(given) < low) | (np.ravel(given) > high)]):
                text = f"{name} {far[0]:g} is outside of the data of the model, {low:g} to {high:g}"
                warnings.warn(text, OutsideData, stacklevel=3)
        low, high = fields.get("m", (-np.inf, np.inf))
        away = ((m < low) | (m > high)).any(axis=(1, 2, 3))
        if away.any():
            frame = int(np.argmax(away))
            value = m[frame].ravel()[np.argmax(np.maximum(low - m[frame], m[frame] - high))]
            warnings.warn(
                f"the field leaves the range of the data of the model at time {times[frame]:g} "
                f"with m = {value:.6g}; that is {low:.6g} to {high:.6g}, a tenth wider than they",
                OutsideData, stacklevel=3,
            )  # fmt: skip

    @property
    def validity(self) -> dict[str, Any]:
        """Ranges of m, widened by a tenth, temperature and field in the data, as the card says."""
        return dict(self.card.get("validity", {}))

    def forward(
        self,
        drive: torch.Tensor,
        m: torch.Tensor,
        beta: torch.Tensor,
        h: torch.Tensor,
        rate: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss (19) of samples (n,) in units of the rates' variance, times ``weight``.

        ``drive`` is the kernel that acts on m, at the places of the samples.
        """
        loss = ((self.law(drive, m, beta, h) - rate) / self.unit) ** 2
        return loss if weight is None else weight * loss

    # -- files --------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        description = {
            "prior": self.prior,
            "kernel": self.kernel,
            "points": self.points,
            "radius": self.radius,
            "width": self.width,
            "mirror": self.mirror,
            "card": self.card,
        }
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_model(directory, KIND, description, tensors)


def load_generator(directory: str | Path) -> Generator:
    """Load what :meth:`Generator.save` wrote."""
    return read_model(directory, KIND, _built)


def _built(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Generator:
    names = ("prior", "kernel", "points", "radius", "width", "mirror")
    model = Generator(**{name: description[name] for name in names})
    model.load_state_dict(dict(tensors))
    model.card = description["card"]
    return model.eval()
