"""Planted errors, and the tests that must catch them: ``make mutants``.

Each mutant is a copy of the package with one line wrong (or a few, of different kernels, each
with tests that see only their own). Its named tests must fail on it and pass on an unchanged
copy. Prints what caught what; the exit code is not 0 if a mutant survives.
"""

from __future__ import annotations

import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import variants
from variants import ROOT, Change


class Named(NamedTuple):
    """A test by its place, and on how many ranks."""

    name: str
    ranks: int = 1


class Mutant(NamedTuple):
    name: str
    changes: tuple[Change, ...]
    tests: tuple[Named, ...]


LAW = "simulation/test_simulation.py::test_every_kernel_has_the_exact_law"
RELAX = "simulation/test_simulation.py::test_spins_without_coupling_relax_exactly"
FREQUENCIES = "solvers/test_multispin.py::test_flip_frequencies_of_all_ten_classes"
REFERENCE = "solvers/test_multispin.py::test_steps_equal_the_plain_reference"
IN_SPACE = "solvers/test_multispin.py::test_flips_are_independent_in_space"
SAME_BITS = "solvers/test_multispin.py::test_same_bits_on_any_number_of_ranks[(96, 1024)-0.25]"
FROM_PYTHON = "solvers/test_multispin.py::test_same_bits_where_kernels_cannot_call_mpi"
PLAIN_SAME_BITS = (
    "simulation/test_simulation.py::test_same_bits_on_any_number_of_ranks"
    "[shuffled-Ising(temperature=1.5, field=-0.2, coupling=1.0)-(18, 30)-1.0-3]"
)

VACANCY_TESTS = "solvers/test_vacancy.py::test"
PRODUCT = f"{VACANCY_TESTS}_tiled_law_is_the_product_of_exponentials[sides0-tile0]"
HOPS, OWNED, TILES = (f"solvers/vacancy/{name}.py" for name in ("events", "lists", "tiles"))

STAY = "solvers/test_absorbing.py::test_a_stay_has_the_law_of_the_master_equation[0]"
ENDS = "solvers/test_absorbing.py::test_every_end_of_a_stay_is_one_hop"
BASIN, STAYS = (f"solvers/vacancy/{name}.py" for name in ("basin", "stays"))

PACKED, PLAIN, SLICED = (f"solvers/spins/{name}.py" for name in ("multispin", "heatbath", "sliced"))
WHOLE, ORDER = "solvers/spins/multispin_whole.py", "solvers/spins/word_order.py"
SOLVER, PLANES = "solvers/spins/sublattice.py", "solvers/spins/bitplanes.py"
WORDS = "solvers/spins/half_lattice.py"

KAC, SUMS = "solvers/kac/steps.py", "solvers/kac/walks.py"
KAC_LAW = "solvers/test_kac.py::test_a_step_has_the_law_of_its_solver"

RULE_PASSES, RULE_ROWS, RULE_EVENTS, RULE_TRIALS = (
    f"solvers/spins/rule_{name}.py" for name in ("sublattice", "kernels", "nfold", "compiled")
)
RULE_STEP = "solvers/test_rule_sublattice.py::test_kernels_have_the_law_of_the_splitting[0.5-1"
RULE_TRIAL = "solvers/test_rule_compiled.py::test_compiled_kernels_have_the_law_of_the_splitting"
RULE_TIME = "solvers/test_rule_nfold.py::test_the_law_is_the_master_equation[1.5"
EPIDEMIC, VOTER = "Epidemic(contagion=0.8)]", "Voter(noise=0.1, states=3)]"

#: Mutants of one list are in one copy of the package.
MUTANTS: list[list[Mutant]] = [
    [
        Mutant(
            "rate x 1.02",
            (
                Change(
                    SOLVER,
                    "rates = (system or self.system).flip",
                    "rates = 1.02 * (system or self.system).flip",
                ),
            ),
            (
                Named(f"{FREQUENCIES}[0.25-packed]"),
                Named(f"{RELAX}[0.25-plain]"),
                Named(f"{RELAX}[0.25-sliced]"),
            ),
        ),
    ],
    [
        Mutant(
            "sign of beta",
            (
                Change(
                    SOLVER,
                    "rates = (system or self.system).flip_rates_by_opposites()",
                    "rates = 1.0 - (system or self.system).flip_rates_by_opposites()",
                ),
            ),
            tuple(
                Named(f"{LAW}[{case}]")
                for case in ("no field-0.25-packed", "no field-0.25-sliced", "no field-inf-plain")
            ),
        ),
    ],
    [
        Mutant(
            "stale halo between ranks, packed",
            (Change(PACKED, "if sends and not", "if sends and colour and not"),),
            (Named(SAME_BITS, ranks=2),),
        ),
        Mutant(
            "stale halo between ranks, packed, messages from Python",
            (
                Change(
                    SOLVER,
                    "if not run.looks:\n                        block.start",
                    "if not run.looks and number % 2:\n                        block.start",
                ),
            ),
            (Named(FROM_PYTHON, ranks=2),),
        ),
        Mutant(
            "stale halo between ranks, plain",
            (Change("core/block.py", "            self._exchange()\n", "            pass\n"),),
            (Named(PLAIN_SAME_BITS, ranks=2),),
        ),
    ],
    [
        Mutant(
            "stale halo of the last row, packed",
            (Change(PACKED, "((last, bands), end)", "((last, bands), BAND)"),),
            (Named(SAME_BITS, ranks=2),),
        ),
    ],
    [
        Mutant(
            "stale halo of one rank, packed",
            (Change(PACKED, "if rows_wrap:\n", "if rows_wrap and not colour:\n"),),
            (Named(f"{REFERENCE}[8x128-0.25]"),),
        ),
        Mutant(
            "stale halo, sliced",
            (Change(SLICED, "        if close:\n", "        if close and number % 2:\n"),),
            (Named(f"{LAW}[field-inf-sliced]"),),
        ),
        Mutant(
            "one neighbour twice, one never, plain",
            (Change(PLAIN, "row[2 * j] + row[2 * j + 2]", "row[2 * j] + row[2 * j]"),),
            (Named(f"{LAW}[field-inf-plain]"),),
        ),
    ],
    [
        Mutant(
            "missed bond between words, packed",
            (
                Change(
                    PACKED,
                    "side = (o << np.uint64(1)) | (other[w - np.uint64(1)] >> np.uint64(63))",
                    "side = o << np.uint64(1)",
                ),
            ),
            (Named(f"{REFERENCE}[16x256-inf]"),),
        ),
        Mutant(
            "one neighbour twice, one never, sliced",
            (Change(SLICED, "field[w + right] ^ s", "field[w - right] ^ s"),),
            (Named(f"{LAW}[field-inf-sliced]"),),
        ),
        Mutant(
            "row counted twice in the energy, plain",
            (
                Change(
                    "observables/sums.py",
                    "for y in range(halo, ny - halo):",
                    "for y in range(halo, ny - halo + 1):",
                ),
            ),
            (Named("test_observables.py::test_sums_of_known_states"),),
        ),
    ],
    [
        Mutant(
            "one neighbour twice, one never, packed",
            (
                Change(
                    PACKED,
                    "count_neighbours(other[w - width] ^ s, other[w + width] ^ s,",
                    "count_neighbours(other[w - width] ^ s, other[w - width] ^ s,",
                ),
            ),
            (Named(f"{REFERENCE}[8x128-inf]"),),
        ),
        Mutant(
            "two sites share a number, plain",
            (Change(WORDS, "np.uint64(first + i))", "np.uint64((first + i) // 2))"),),
            (Named(f"{IN_SPACE}[plain-4]"),),
        ),
        Mutant(
            "two rows share a stream, sliced",
            (
                Change(
                    SLICED,
                    "row = np.uint64(top + r - halo)\n",
                    "row = np.uint64((top + r - halo) // 2)\n",
                ),
            ),
            (Named(f"{IN_SPACE}[sliced-128]"),),
        ),
    ],
    [
        Mutant(
            "precedence slip in the stream's counter, packed",
            (
                Change(
                    PACKED,
                    "number_y << np.uint64(32) | first_word",
                    "number_y << (np.uint64(32) | first_word)",
                ),
            ),
            (Named(SAME_BITS, ranks=2), Named(f"{REFERENCE}[more words than a chunk-inf]")),
        ),
    ],
    [
        Mutant(
            "two words share a stream, packed",
            (
                Change(
                    PACKED,
                    "space[base + np.uint64(j)] = stream + np.uint64(j)",
                    "space[base + np.uint64(j)] = stream + np.uint64(j // 2)",
                ),
            ),
            (Named(f"{REFERENCE}[16x256-inf]"),),
        ),
    ],
    [
        Mutant(
            "what lies beyond the last site of a row is not masked, packed",
            (Change(PACKED, "if ragged and start + n == across:", "if n < 0:"),),
            (Named(f"{REFERENCE}[two chunks, all but a site of the last word-inf]"),),
        ),
    ],
    [
        Mutant(
            "the first band has itself above it, whole lattices",
            (Change(WHOLE, "north += size - 1", "north += size"),),
            (Named(f"{REFERENCE}[16x256-inf]"),),
        ),
    ],
    [
        Mutant(
            "undecided sites are flipped with those that are decided, whole lattices",
            (
                Change(
                    WHOLE,
                    "b.and_(b.and_(change, of_sites), b.xor(equal, ones))",
                    "b.and_(change, of_sites)",
                ),
            ),
            (Named(f"{REFERENCE}[more bands than a chunk-inf]"),),
        ),
    ],
    [
        Mutant(
            "the other end of a row is a row away, rows that run on",
            (Change(ORDER, "*divmod(half - 1, 64))", "*divmod(half, 64))"),),
            (Named(f"{REFERENCE}[half a word-inf]"),),
        ),
    ],
    [
        Mutant(
            "a tile draws from its own first site on, rows that run on",
            (
                Change(
                    ORDER,
                    "divmod(top * half, 64 * length)",
                    "(0, 0)",
                ),
            ),
            (Named(SAME_BITS.replace("(96, 1024)", "(70, 66)"), ranks=2),),
        ),
    ],
    [
        Mutant(
            "the site beyond the edge is that beside it, packed",
            (
                Change(
                    "core/packed_words.py",
                    "at = np.uint64(half & 63)",
                    "at = np.uint64((half - 1) & 63)",
                ),
            ),
            (Named(f"{REFERENCE}[part of the last word and band-inf]"),),
        ),
    ],
    [
        Mutant(
            "a tile that begins within a band draws as if it began with it, packed",
            (Change(PACKED, "top = origin_y % BAND", "top = 0"),),
            (Named(SAME_BITS.replace("96, 1024", "22, 1000"), ranks=4),),
        ),
    ],
    [
        Mutant(
            "two bands share a stream, packed",
            (
                Change(
                    PACKED,
                    "number_y << np.uint64(32) | first_word",
                    "(number_y >> np.uint64(1)) << np.uint64(32) | first_word",
                ),
            ),
            (Named(f"{REFERENCE}[16x256-inf]"),),
        ),
    ],
    [
        Mutant(
            "two passes share streams, packed",
            (Change(PACKED, "step = np.uint64(number)\n", "step = np.uint64(number & ~1)\n"),),
            (Named(f"{REFERENCE}[8x128-inf]"),),
        ),
    ],
    [
        Mutant(
            "counter of the stream off by one, packed",
            (
                Change(
                    PACKED,
                    "* n, np.uint64(PLANES * row + 1), m)",
                    "* n, np.uint64(PLANES * row), m)",
                ),
            ),
            (Named(f"{REFERENCE}[8x128-0.25]"),),
        ),
        Mutant(
            "row counted twice in the energy, packed",
            (
                Change(
                    "core/packed_words.py",
                    "        for y in range(1, ny + 1):\n            even",
                    "        for y in range(1, ny + 2):\n            even",
                ),
            ),
            (Named("core/test_packed.py::test_sums[shape0-cpu]"),),
        ),
    ],
    [
        Mutant(
            "neighbour counted twice where two are opposite, packed and sliced",
            (Change(PLANES, "return x ^ z, (y ^ q", "return x | z, (y ^ q"),),
            (Named(f"{REFERENCE}[8x128-inf]"), Named(f"{LAW}[field-inf-sliced]")),
        ),
    ],
    [
        Mutant(
            "spins set by what is opposite to them, packed and sliced",
            (Change(PLANES, "return spins & ~setting", "return spins"),),
            (Named(f"{REFERENCE}[8x128-inf]"), Named(f"{LAW}[field-inf-sliced]")),
        ),
    ],
    [
        Mutant(
            "hop forgets the images of a site",
            (
                Change(
                    HOPS,
                    "put(grid, sides, i, j, k, np.int8(VACANCY))",
                    "grid[i, j, k] = np.int8(VACANCY)",
                ),
            ),
            (Named(f"{VACANCY_TESTS}_calls_do_not_matter_and_halo_is_current"),),
        ),
    ],
    [
        Mutant(
            "stays end with the wrong hop",
            (
                Change(
                    BASIN,
                    "target = two(k0, k1, j)[0] * real[_AWAY, slot]",
                    "target = 0.5 * two(k0, k1, j)[0] * real[_AWAY, slot]",
                ),
            ),
            (Named(STAY),),
        ),
    ],
    [
        Mutant(
            "stays are not interrupted but go back to where the grid shows them",
            (
                Change(
                    STAYS,
                    "more, logged = _look(box, near, time, logged)",
                    "more = 0",
                ),
            ),
            (Named(ENDS),),
        ),
        Mutant(
            "loops of a half that is passed forgotten",
            (Change(BASIN, "hops += e1 + l1", "hops += e1"),),
            (Named(STAY),),
        ),
    ],
    [
        Mutant(
            "sign of the energy in pairwise barriers",
            (
                Change(
                    "solvers/vacancy/barrier_kernels.py",
                    "return base[atom] + 0.5",
                    "return base[atom] - 0.5",
                ),
            ),
            (Named(f"{VACANCY_TESTS}_serial_stationary_law_is_gibbs"),),
        ),
    ],
    [
        Mutant(
            "tiles own vacancies, not bonds",
            (Change(OWNED, "(here if corner else there)", "here"),),
            (Named(PRODUCT),),
        ),
    ],
    [
        Mutant(
            "half windows are whole",
            (Change(TILES, "half = [(c, 0.5)", "half = [(c, 1.0)"),),
            (Named(PRODUCT),),
        ),
        Mutant(
            "vacancies that saw the old place forgotten",
            (Change(HOPS, "and near + nearby[u] > 0", "and near > nearby[u]"),),
            (Named(f"{VACANCY_TESTS}_rates_after_many_hops_are_those_of_a_new_solver"),),
        ),
    ],
    [
        Mutant(
            "all hops share a number",
            (Change(HOPS, "        counter += np.uint64(1)\n", ""),),
            (Named(f"{VACANCY_TESTS}_serial_law_in_time_is_the_master_equation"),),
        ),
    ],
    [
        Mutant(
            "messages leave out sites near the boundary",
            (Change(TILES, "(2 * halo, n) if c", "(halo, n + halo) if c"),),
            (Named(f"{VACANCY_TESTS}_same_bits_on_any_number_of_ranks[40-tile0]", ranks=2),),
        ),
    ],
    [
        Mutant(
            "sums: what a step loses is not taken off",
            (Change(SUMS, "sub(builder.add(value, gained), lost)", "add(value, gained)"),),
            (Named("solvers/test_kac.py::test_sums_over_neighbours_are_exact[1.7-steps]"),),
        ),
        Mutant(
            "tau-leap: odd numbers of flips of 0.95 tau",
            (Change(KAC, "-0.5 * np.expm1(-2.0 * tau", "-0.5 * np.expm1(-1.9 * tau"),),
            (Named(f"{KAC_LAW}[tau-leap-0]"),),
        ),
        Mutant(
            "midpoint: rates not extrapolated",
            (
                Change(
                    KAC,
                    "ahead = 2 * np.int64(limits[x]) - np.int64(before[x])",
                    "ahead = np.int64(limits[x])",
                ),
            ),
            (Named(f"{KAC_LAW}[midpoint-0]"),),
        ),
        Mutant(
            "Kac noise by the row of the slab",
            (Change(KAC, " top + rows.start,", " rows.start,"),),
            (Named("solvers/test_kac.py::test_ranks_change_nothing[sublattice]", 2),),
        ),
        Mutant(
            "Gillespie: waits 10 % too long",
            (
                Change(
                    "solvers/kac/gillespie.py",
                    "wait = exponential(w0) *",
                    "wait = 1.1 * exponential(w0) *",
                ),
            ),
            (Named("solvers/test_gillespie.py::test_magnetisation_of_free_spins"),),
        ),
    ],
    [
        Mutant(
            "two half passes of a rule with the same numbers",
            (Change(RULE_PASSES, "Pass(BLACK, number + 2, 1", "Pass(BLACK, number, 1"),),
            (Named(f"{RULE_STEP}-{EPIDEMIC}"),),
        ),
        Mutant(
            "share of a class not brought up to date, n-fold way of a rule",
            (
                Change(
                    RULE_EVENTS,
                    "_set_leaf(tree, old, np.int64(counts[old]) * rates[old])",
                    "_set_leaf(tree, old, tree[(tree.size >> 1) + np.int64(old)])",
                ),
            ),
            (Named(f"{RULE_TIME}-{EPIDEMIC}"),),
        ),
        Mutant(
            "a weight twice, compiled",
            (Change(RULE_TRIALS, "            left -= share\n", "            left += share\n"),),
            (
                Named(
                    f"{RULE_TRIAL}[0.5-1-Potts(temperature=0.9, states=3, coupling=1.0, field=0.2)]"
                ),
            ),
        ),
    ],
    [
        Mutant(
            "one neighbour twice, one never, rule",
            (Change(RULE_ROWS, "row[x + np.uint64(1)]", "row[west]"),),
            (
                Named(
                    "solvers/test_rule_sublattice.py::test_the_documented_bits_on_a_torus"
                    f"[shape2-inf-{EPIDEMIC[:-1]}-cpu]"
                ),
            ),
        ),
        Mutant(
            "images beside an edge left behind, n-fold way of a rule",
            (Change(RULE_EVENTS, "field[y, nx + halo] = state", "field[y, nx + halo] += 0"),),
            (Named(f"{RULE_TIME}-{VOTER}"),),
        ),
        Mutant(
            "waiting times of the first state for all events of a pass, compiled",
            (
                Change(
                    RULE_TRIALS,
                    "                if new != now:\n",
                    "                if new != own:\n",
                ),
            ),
            (Named(f"{RULE_TRIAL}[3.0-2-{VOTER}"),),
        ),
    ],
]


def outcomes(variant: Path, tests: Sequence[Named]) -> dict[Named, str]:
    """``passed``, ``failed`` or what else became of each test, by its own assertions."""
    found = {}
    alone = [test for test in tests if test.ranks == 1]
    if alone:
        result = variant / "result.xml"
        arguments = [f"{ROOT}/tests/{test.name}" for test in alone]
        done = variants.run(variant, [*arguments, f"--junitxml={result}"])
        if not result.exists():
            return dict.fromkeys(tests, done.stdout[-2000:] + done.stderr[-2000:])
        cases = {case.get("name"): case for case in xml.parse(result).iter("testcase")}  # noqa: S314
        for test in alone:
            case = cases.get(test.name.split("::")[1])
            found[test] = "not run" if case is None else _outcome(case)
    for test in tests:
        if test.ranks > 1:
            done = variants.run(variant, [f"{ROOT}/tests/{test.name}"], ranks=test.ranks)
            found[test] = "passed" if done.returncode == 0 else done.stderr[-2000:]
            if f"{test.name.split('::')[1]} failed" in done.stderr and "assert" in done.stderr:
                found[test] = "failed"
    return found


def _outcome(case: xml.Element) -> str:
    failure = case.find("failure")
    if failure is not None:
        message = failure.get("message", "")
        return "failed" if message.startswith(("assert", "AssertionError")) else message
    return "passed" if len(case) == 0 or case.find("system-out") is not None else case[0].tag


def main(words: Sequence[str]) -> int:
    """With words, only mutants whose names have one of them."""
    start = time.monotonic()
    problems = 0
    chosen = [
        [m for m in group if not words or any(word in m.name for word in words)]
        for group in MUTANTS
    ]
    chosen = [group for group in chosen if group]
    with tempfile.TemporaryDirectory(prefix="mpiflow-mutants-") as folder:
        every = dict.fromkeys(test for group in chosen for m in group for test in m.tests)
        unchanged = variants.make(Path(folder) / "unchanged")
        for test, outcome in outcomes(unchanged, list(every)).items():
            if outcome != "passed":
                problems += 1
                print(f"on the unchanged package: {test.name}: {outcome}", flush=True)
        print(f"unchanged package: {len(every)} tests, {time.monotonic() - start:.0f} s\n")
        print("mutant | test that caught it | s")
        for number, group in enumerate(chosen):
            began = time.monotonic()
            changes = [change for mutant in group for change in mutant.changes]
            variant = variants.make(Path(folder) / str(number), changes)
            tests = list(dict.fromkeys(test for mutant in group for test in mutant.tests))
            found = outcomes(variant, tests)
            seconds = (time.monotonic() - began) / len(tests)
            for mutant in group:
                for test in mutant.tests:
                    ranks = f" on {test.ranks} ranks" if test.ranks > 1 else ""
                    caught = found[test] == "failed"
                    problems += not caught
                    verdict = "" if caught else f"SURVIVED: {found[test]}: "
                    print(
                        f"{mutant.name} | {verdict}{test.name}{ranks} | {seconds:.0f}", flush=True
                    )
    print(f"\n{time.monotonic() - start:.0f} s, {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
