r"""The loss of the autoencoder of :mod:`mpiflow.learn.closure.closure` and its gradient by kernels.

With x the standardised statistics of the K patches of a state, z those that are observed and t the
target, S numbers,

.. math:: u = \Bigl(z, \frac1K \sum_I e(x_I)\Bigr), \qquad L = \frac1S |\psi(u) - t|^2, \qquad
          \frac{\partial L}{\partial e(x_I)} = \frac1K \frac{\partial L}{\partial u}.
"""

from __future__ import annotations

import numpy as np

from mpiflow.learn.layers import Passes

#: States that go through the networks together where no gradient is wanted.
ROWS = 4096


class ReconstructionLoss:
    """The loss on training data of N states, all arrays float32.

    Parameters
    ----------
    encoder, decoder : sizes of the networks, (L + 1,) int64
    patches : (N, K, S) standardised statistics
    observed : (N, o) standardised
    target : (N, S)
    """

    def __init__(
        self,
        encoder: np.ndarray,
        decoder: np.ndarray,
        patches: np.ndarray,
        observed: np.ndarray,
        target: np.ndarray,
    ) -> None:
        self._patches, self._observed, self._target = patches, observed, target
        self._encoder, self._decoder = Passes(encoder), Passes(decoder)

    def _missed(self, rows: np.ndarray, parameters: np.ndarray, *, keep: bool) -> np.ndarray:
        """What the decoder says less the target, (n, S)."""
        between, x = self._encoder.parameters, self._patches[rows]
        codes = self._encoder.forward(parameters[:between], x.reshape(-1, x.shape[2]), keep=keep)
        closures = codes.reshape(*x.shape[:2], -1).mean(axis=1)
        inputs = np.concatenate([self._observed[rows], closures], axis=1)
        said = self._decoder.forward(parameters[between:], inputs, keep=keep)
        return np.asarray(said - self._target[rows])

    def total(self, rows: np.ndarray, parameters: np.ndarray) -> float:
        """The sum of the losses of states."""
        loss = 0.0
        for first in range(0, len(rows), ROWS):
            missed = self._missed(rows[first : first + ROWS], parameters, keep=False)
            loss += _loss(missed)
        return loss

    def gradient(
        self, rows: np.ndarray, parameters: np.ndarray, share: float, gradient: np.ndarray
    ) -> float:
        """The sum of the losses of states; puts the gradient of ``share`` times it in its place.

        Parameters
        ----------
        rows : (n,) int64
        parameters, gradient : float32, flat, those of the encoder first
        """
        missed = self._missed(rows, parameters, keep=True)
        between, patches = self._encoder.parameters, self._patches.shape[1]
        g = missed * np.float32(2.0 * share / missed.shape[1])
        by_inputs = self._decoder.backward(g, gradient[between:], inputs=True)
        by_closures = by_inputs[:, self._observed.shape[1] :] / np.float32(patches)
        self._encoder.backward(np.repeat(by_closures, patches, axis=0), gradient[:between])
        return _loss(missed)


def _loss(missed: np.ndarray) -> float:
    return float((missed.astype(float) ** 2).mean(axis=1).sum())
