"""Lines and fields as characters of a terminal: braille dots, half blocks."""

from __future__ import annotations

import numpy as np

FIELD_ROWS = 16  # most rows of characters of a field
_FIELD_COLUMNS = 64


def trace(dots: np.ndarray, across: np.ndarray, down: np.ndarray, *, dotted: bool) -> None:
    """Set the dots of a line through points with coordinates from 0 to 1; gaps at NaN."""
    tall, wide = dots.shape
    good = np.isfinite(down)
    x = np.rint(np.where(good, across, 0.0) * (wide - 1)).astype(np.int64)
    y = np.rint(np.clip(np.where(good, down, 0.0), 0.0, 1.0) * (tall - 1)).astype(np.int64)
    if not dotted:
        dots[y[good], x[good]] = True
    start = np.flatnonzero(good[:-1] & good[1:])
    rise, run = y[start + 1] - y[start], x[start + 1] - x[start]
    steps = np.maximum(np.maximum(np.abs(rise), np.abs(run)), 1)
    owner = np.repeat(np.arange(len(start)), steps)
    part = (np.arange(len(owner)) - np.repeat(np.cumsum(steps) - steps, steps)) / steps[owner]
    rows = np.rint(y[start][owner] + part * rise[owner]).astype(np.int64)
    columns = np.rint(x[start][owner] + part * run[owner]).astype(np.int64)
    if dotted:
        rows, columns = rows[columns % 3 == 0], columns[columns % 3 == 0]
    dots[rows, columns] = True


def braille(dots: np.ndarray) -> list[str]:
    """Rows of braille characters for dots (4 rows, 2 columns) bool."""
    bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    tall, wide = dots.shape
    cells = dots.reshape(tall // 4, 4, wide // 2, 2)
    codes = 0x2800 + (cells * bits[:, None, :]).sum(axis=(1, 3))
    return ["".join(map(chr, row)) for row in codes]


#: From low to high: blue, white, red, of the 256 colours of terminals.
_PALETTE = (21, 27, 33, 75, 117, 159, 231, 224, 217, 210, 203, 196, 160)
_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])


def half_blocks(
    field: np.ndarray, limits: tuple[float, float], width: int, *, colour: bool
) -> list[str]:
    """A field (ny, nx) in characters of two square pixels, y upwards, x to the right.

    In 256 colours, or as a pattern that is denser where values are higher.
    """
    ny, nx = field.shape
    columns = min(width, max(nx, min(_FIELD_COLUMNS, nx * max(1, _FIELD_COLUMNS // nx))))
    rows = 2 * max(1, round(columns * ny / nx / 2))
    if rows > 2 * FIELD_ROWS:
        rows = 2 * FIELD_ROWS
        columns = max(1, min(width, round(rows * nx / ny)))
    values = resampled(resampled(field, rows).T, columns).T[::-1]
    low, high = limits
    level = np.clip(np.nan_to_num((values - low) / (high - low), nan=0.0), 0.0, 1.0)
    if not colour:
        pattern = np.tile(_BAYER, (rows // 4 + 1, columns // 4 + 1))[:rows, :columns]
        on = level > (pattern + 0.5) / 16
        return ["".join(map(" ▄▀█".__getitem__, row)) for row in 2 * on[::2] + on[1::2]]
    shade = np.take(_PALETTE, np.minimum(level * len(_PALETTE), len(_PALETTE) - 1).astype(int))
    rows_of_pairs = zip(shade[::2].tolist(), shade[1::2].tolist(), strict=True)
    return [
        "".join(
            f"\x1b[38;5;{upper};48;5;{lower}m▀" for upper, lower in zip(above, below, strict=True)
        )
        + "\x1b[0m"
        for above, below in rows_of_pairs
    ]


def resampled(field: np.ndarray, rows: int) -> np.ndarray:
    """As many rows as asked for: means of several, or repeated ones."""
    have = len(field)
    first = np.arange(rows) * have // rows
    if rows >= have:
        return field[first]
    sizes = np.diff(np.append(first, have))
    return np.add.reduceat(field, first, axis=0, dtype=np.float64) / sizes[:, None]
