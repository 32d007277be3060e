"""Binomial numbers against their exact chances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln

from mpiflow.core.device import kernel
from mpiflow.core.noise import threefry
from mpiflow.solvers.field.binomials import Space, draw_binomials, space
from mpiflow.solvers.field.steps import TOGETHER

MANY = 2**20


@kernel
def _fill(
    n: np.ndarray,
    p: np.ndarray,
    words: np.ndarray,
    which: np.uint64,
    log_factorials: np.ndarray,
    space: Space,
    out: np.ndarray,
) -> None:
    keys = np.zeros(TOGETHER, np.uint64)
    sites = np.empty(TOGETHER, np.uint64)
    for start in range(0, n.size, TOGETHER):
        for k in range(TOGETHER):
            sites[k] = start + k
        here = slice(start, min(start + TOGETHER, n.size))
        draw_binomials(
            min(TOGETHER, n.size - start), n[here], p[here], words[here], np.uint64(5), keys,
            np.uint64(9), sites, which, log_factorials, space, out[here],
        )  # fmt: skip


@kernel
def _words(seed: np.uint64, out: np.ndarray) -> None:
    for k in range(out.size):
        out[k] = threefry(seed, np.uint64(1), np.uint64(2), np.uint64(k))[0]


def drawn(n: np.ndarray, p: np.ndarray, seed: int = 3, which: int = 0) -> np.ndarray:
    words, out = np.empty(n.size, np.uint64), np.empty(n.size)
    _words(np.uint64(seed), words)
    table = gammaln(np.arange(n.max() + 1) + 1.0)
    _fill(n.astype(float), p, words, np.uint64(which), table, space(TOGETHER), out)
    return out.astype(np.int64)


def p_value(numbers: np.ndarray, n: int, p: float) -> float:
    """Of their chi^2 against the binomial law; rare numbers at either end taken together."""
    law = stats.binom(n, p)
    low, high = int(law.ppf(50 / MANY)), int(law.isf(50 / MANY))
    chances = law.pmf(np.arange(low, high + 1))
    chances[0], chances[-1] = law.cdf(low), law.sf(high - 1)
    seen = np.bincount(np.clip(numbers, low, high) - low, minlength=len(chances))
    return float(stats.chisquare(seen, chances * numbers.size).pvalue)


CASES = [
    (1, 0.3), (7, 0.02), (7, 0.97), (50, 0.12), (50, 0.5), (30, 0.36), (64, 0.2), (400, 0.024),
    (400, 0.026), (3000, 1e-5), (4096, 0.04), (4096, 0.997), (16384, 0.02), (10**6, 0.3),
]  # fmt: skip


@pytest.mark.parametrize(("n", "p"), CASES)
def test_a_million_numbers_have_the_binomial_law(n: int, p: float) -> None:
    """Inversion and rejection, on either side of where they meet, and chances above 1/2."""
    numbers = drawn(np.full(MANY, n), np.full(MANY, p), seed=n)
    assert (numbers.min() >= 0) & (numbers.max() <= n)
    assert p_value(numbers, n, p) > 1e-4
    assert abs(numbers.mean() - n * p) < 5 * np.sqrt(n * p * (1 - p) / MANY)


def test_a_law_that_is_a_little_off_would_be_seen() -> None:
    """A chance wrong by 0.3 %."""
    numbers = drawn(np.full(MANY, 4096), np.full(MANY, 0.04))
    assert p_value(numbers, 4096, 0.04 * 1.003) < 1e-12


def test_all_kinds_side_by_side() -> None:
    """The law of each is its own, whatever its neighbours are; certain ones are certain."""
    kinds = [*CASES, (9, 0.0), (9, 1.0), (0, 0.5), (2000, 0.0), (2000, 1.0)]
    n, p = np.array(kinds).T
    which = np.arange(MANY) % len(kinds)
    numbers = drawn(n[which].astype(np.int64), p[which])
    for i, (trials, chance) in enumerate(kinds):
        if chance in (0.0, 1.0) or trials == 0:
            assert (numbers[which == i] == trials * chance).all()
        else:
            assert p_value(numbers[which == i], trials, chance) > 1e-4
    again = drawn(n[which][:1000].astype(np.int64), p[which][:1000])
    assert (again == numbers[:1000]).all()


def test_numbers_drawn_anew_are_independent() -> None:
    """Of the same first words, where two draws differ at all: by what is drawn after them."""
    n, p = np.full(MANY, 16384), np.full(MANY, 0.02)
    one, other = drawn(n, p), drawn(n, p, which=1)
    differ = one != other
    assert 0.1 < differ.mean() < 0.2
    correlation = np.corrcoef(one[differ], other[differ])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(differ.sum())
    assert p_value(other, 16384, 0.02) > 1e-4


def test_even_words_give_each_small_number_as_often_as_it_should_come() -> None:
    many = 20_000
    words = (((np.arange(many) + 0.5) / many) * 2.0**64).astype(np.uint64)
    for n, p in [case for case in CASES if case[0] * min(case[1], 1 - case[1]) < 10]:
        out = np.empty(many)
        table = gammaln(np.arange(n + 1) + 1.0)
        _fill(
            np.full(many, float(n)),
            np.full(many, p),
            words,
            np.uint64(0),
            table,
            space(TOGETHER),
            out,
        )
        seen = np.bincount(out.astype(int), minlength=n + 1) / many
        assert np.abs(seen - stats.binom.pmf(np.arange(n + 1), n, p)).max() < 1.01 / many
