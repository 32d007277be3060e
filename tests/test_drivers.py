"""Every driver runs with --smoke on two ranks and leaves what it promises."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpiflow import Trajectory, load_model
from mpiflow.cli import invoke
from mpiflow.core.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., object]

LEAVES = {
    "alloy_barriers": ["barriers.safetensors", "results.json", "table.md"],
    "alloy_truth": ["truth_128_0.h5", "hops_800_1.h5", "results.json", "table.md"],
    "alloy_learn": ["model/model.safetensors", "pairs.npz", "results.json", "alloy_learn.png"],
    "alloy_equilibrium": ["results.json", "table.md", "alloy_equilibrium.png"],
    "alloy_sizes": ["results.json", "table.md", "alloy_sizes.png"],
    "alloy_spread": ["run.h5", "closed.h5", "results.json", "table.md", "alloy_spread.png"],
    "alloy_report": ["rollout_128_2000.h5", "results.json", "sizes.png", "temperatures.png"],
    "alloy_window": ["results.json", "table.md"],
    "kac_solvers": ["results.json", "table.md", "kac_solvers.png", "cost.png"],
    "learn_generator": ["results.json", "table.md", "learn_generator.png"],
    "curie_weiss": [
        "results.json",
        "table.md",
        "curie_weiss.png",
        "rollout.h5",
        "models/ours_16_0/model.safetensors",
    ],
    "linear_chain": ["results.json", "table.md", "linear_chain.png", "rollout.h5"],
    "onsagerflow_learn": [
        "results.json",
        "table.md",
        "onsagerflow_learn.png",
        "models/cosh-free/model.safetensors",
        "runs/kac_T0.8_0.h5",
    ],
    "onsagerflow_validate": [
        "results.json",
        "table.md",
        "onsagerflow_validate.png",
        "spins_quench_256.h5",
    ],
    "ising_critical": ["results.json", "table.md", "ising_critical.png", "rollout.h5"],
    "ising_critical_patches": ["results.json", "table.md", "ising_critical_patches.png"],
    "predator_prey": ["results.json", "table.md", "predator_prey.png", "truth.h5", "rollout.h5"],
    "ising_rescaled": [
        "results.json",
        "table.md",
        "ising_rescaled.png",
        "truth_16.h5",
        "truth_64.h5",
    ],
    "ising_ablation": ["results.json", "table.md", "ising_ablation.png", "truth.h5"],
    "closure_dimension": ["results.json", "table.md", "closure_dimension.png", "truth.h5"],
    "certificate": ["results.json", "table.md"],
    "theorem_one": ["results.json", "table.md", "theorem_one.png", "truth.h5"],
    "surroundings": ["results.json", "table.md", "surroundings.png", "truth.h5"],
    "upsampling": ["results.json", "table.md", "upsampling.png", "levels.h5"],
    "pde_comparison": ["results.json", "table.md", "case_h1_T4_gamma32.png", "limits.png"],
    "demo": [
        "truth.h5",
        "rollout.h5",
        "demo.png",
        "results.json",
        "table.md",
        "model/model.safetensors",
    ],
    "published_protocol": ["results.json", "table.md", "published_protocol.png"],
    "ising_closure": ["truth.h5", "results.json", "table.md", "closure_16.png"],
    "potts_transition": ["results.json", "table.md", "potts_transition.png"],
    "hysteresis": ["results.json", "table.md", "hysteresis.png", "loops.npz"],
    "nearest_fields": ["results.json", "table.md", "nearest_fields.png"],
    "nearest_passages": ["results.json", "table.md", "nearest_passages.png"],
    "rare_events": ["results.json", "table.md", "rare_events.png", "model/model.safetensors"],
    "window_bias": ["results.json", "table.md"],
    "dmd_mobility": ["results.json", "table.md"],
    "dmd_coarsening": ["results.json", "table.md", "dmd_coarsening.png", "profiles_160_16.png"],
    "spin_diffusion_vs_meanfield": ["results.json", "table.md", "spin_diffusion_16.png"],
    "large_ising": ["quench_0.h5", "critical_1.h5", "results.json", "table.md", "large_ising.png"],
}


def test_every_driver_is_tested() -> None:
    assert {p.stem for p in (ROOT / "drivers").glob("*.py")} == set(LEAVES)


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_what_drivers_share_is_stated_once(name: str) -> None:
    """Results, tables, figures and common options come from mpiflow.experiments."""
    tree = ast.parse((ROOT / "drivers" / f"{name}.py").read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not texts & {"results.json", "table.md", "--out", "--device", "--smoke"}
    # Which takes the device, too.
    assert "results_directory(options.out, comm)" not in ast.unparse(tree)
    assert not called & {"argparse.ArgumentParser", "Figure", "FigureCanvasAgg"}
    # It makes a run again whose file is whole: experiments.runs.recorded does not.
    assert "record" not in called
    if "equilibrium.parse" not in called:  # which has them for two drivers
        assert {"driver_parser", "results_directory"} <= called


#: Its temperatures are compared with; without it seven are.
PUBLISHED = ROOT.parent / "shared" / "reference" / "paper_alloy_sro_vs_T_8192.csv"
#: Entries of results.json. Two errors of two methods of the demo, three of two; two laws; four
#: windows at two times; 13 errors of barriers and seven averages at two temperatures; 18
#: quantities of two sizes and six pairs at two temperatures; what learning cost; the truth's,
#: and pairs at three; 12 quantities of two windows. Five errors of four laws, eight of two
#: structures, seven of nearest neighbours at three T; eight of five equations in two cases, and
#: two passages at two T. Three exponents of four kinds, three moments at two sides and five T; four
#: exponents of five kinds, one of its own, and three moments again;
#: three cases of predator-prey; qualities of upsampled states; errors of three kinds of states;
#: eight surroundings at two T; two quantities of two starts at seven T, and jumps, of two q. Areas
#: at five rates, and an exponent, of three cases, and one slope. Times of
#: five models of chains, and two mobilities; bonds and strain of ten kinds, three differences of
#: three processes and seven kinds but of one from itself, times of nucleation of twelve. Six
#: quantities of four models, and 10 events. Orders from two starts at three T and of a cooled one,
#: after a budget, and of sublattices; three pairs of one model; spreads of three cases at two
#: times.
#: Three quantities of three processes.
#: Five shares of drift at three T, four errors in four cases, and two numbers of growth; passages
#: of two laws of two boxes in four cases.
ENTRIES = {
    "demo": 2 * 2,
    "ising_closure": 6,
    "published_protocol": 3 * 2 * 2,
    "large_ising": 2,
    "potts_transition": 2 * (7 * 4 + 2) + 1,
    "hysteresis": 5 * 3 + 1 + 3,
    "nearest_fields": 2 * (3 * 5 + 4 * 4 + 2) + 3 + 1,
    "nearest_passages": 2 * 4 * 2,
    "rare_events": 3 * 3,
    "window_bias": 8,
    "dmd_mobility": 5 + 2,
    "dmd_coarsening": 4 * 6 + 10,
    "spin_diffusion_vs_meanfield": 2 * 10 + 3 * (3 * 7 - 1) + 12,
    "kac_solvers": 8,
    "pde_comparison": 10 * 4 + 3 + 9,
    "learn_generator": 33,
    "curie_weiss": 3 * 6 + 1,
    "linear_chain": 6,
    "onsagerflow_learn": 4 * 5 + 8 + 3 * (5 + 2),
    "onsagerflow_validate": 2 * 5 * 8 + 2 * 2,
    "ising_critical": 4 * 3 + 2 * 5 * 3,
    "ising_critical_patches": 5 * (3 + 1) + 1 + 2 * 5 * 3,
    "predator_prey": 3 * (7 * 6 + 2),
    "ising_rescaled": 4 * 5 + 8 * (5 + 2),
    "ising_ablation": 2 * 5 + 24 * (5 + 3),
    "closure_dimension": 8 * 5,
    "certificate": 2 * (3 * 2 + 4 + 6),
    "theorem_one": 3 * (10 * 4 * 2 + 2),
    "surroundings": 2 * 8 * 3,
    "upsampling": 2 * 6 * 3 * 2 + 2 * 3 * 2 + 2,
    "alloy_barriers": 27,
    "alloy_truth": 2 * 18 + 2 * 6,
    "alloy_learn": 4,
    "alloy_equilibrium": 7 * 6 + 2 * 3 + 3 * 3,
    "alloy_sizes": 2 * 3,
    "alloy_spread": 2 * (3 * 4 + 1 + 6),
    "alloy_report": 2 * 18 + (3 if PUBLISHED.is_file() else 7) * 6,
    "alloy_window": 2 * 12,
}
#: Options of a driver that name the results of others.
NEEDS = {
    "alloy_report": {"--truth": "alloy_truth", "--model": "alloy_learn"},
    "alloy_sizes": {"--equilibrium": "alloy_equilibrium", "--models": "alloy_learn"},
    "onsagerflow_validate": {"--model": "onsagerflow_learn/models/cosh-radial"},
}
#: Drivers that learn nothing: torch would take them 200 MB a rank.
WITHOUT_TORCH = (
    "alloy_equilibrium",
    "alloy_spread",
    "alloy_truth",
    "alloy_window",
    "certificate",
    "dmd_coarsening",
    "dmd_mobility",
    "hysteresis",
    "ising_critical",
    "ising_critical_patches",
    "kac_solvers",
    "large_ising",
    "nearest_fields",
    "nearest_passages",
    "pde_comparison",
    "potts_transition",
    "spin_diffusion_vs_meanfield",
    "surroundings",
    "theorem_one",
    "upsampling",
    "window_bias",
)
TITLES = (
    "| T [K] |",
    "| time [s] |",
    "| N |",
    "| beta |",
    "| T / T_c |",
    "| R |",
    "| process |",
    "| exponents at T_c |",
    "| lambda |",
    "| patch |",
    "| states |",
    "| T |",
    "| ours |",
    "| learned (ours) |",
    "| window [hops] |",
    "| case |",
    "| box |",
    "| data |",
    "| learned |",
    "| equation |",
    "| quantity |",
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.validate)])
def test_smoke(ranks: int, mpirun: Run, tmp_path: Path) -> None:
    """One after the other in the same processes: starting them would take longer than they do."""
    jobs: list[tuple[str, list[str]]] = []
    # Those without torch first, for it stays loaded; those that need others last.
    for name in sorted(LEAVES, key=lambda name: (name in NEEDS) - (name in WITHOUT_TORCH)):
        needed = NEEDS.get(name, {}).items()
        jobs.append((name, [str(a) for o, place in needed for a in (o, tmp_path / place)]))
    runner = ROOT / "tests" / "tools" / "smoke.py"
    done = mpirun(ranks, "python", runner, tmp_path, json.dumps(jobs), timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr  # type: ignore[attr-defined]
    assert "!! " not in done.stdout, [t for t in done.stdout.splitlines() if t[:2] == "!!"]  # type: ignore[attr-defined]
    for name in LEAVES:
        require_results(name, tmp_path / name)
    for name in WITHOUT_TORCH:
        assert f"-- torch after {name}" not in done.stdout, name  # type: ignore[attr-defined]
    require_truth_and_rollout(tmp_path / "demo")


def test_drivers_that_do_not_learn_start_without_torch() -> None:
    paths = [str(ROOT / "drivers" / f"{name}.py") for name in WITHOUT_TORCH]
    code = (
        "import runpy, sys\n"
        f"for path in {paths}:\n"
        "    runpy.run_path(path)\n"
        "    assert 'torch' not in sys.modules, path\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def require_results(name: str, out: Path) -> None:
    for file in LEAVES[name]:
        assert (out / file).stat().st_size > 0, (name, file)
    page = (out / "report.html").read_text()  # written when the driver ends, with its pictures
    assert page.count("data:image/png;base64,") == len(list(out.glob("*.png")))
    table = (out / "table.md").read_text()
    assert any(title in table for title in TITLES), name
    entries = json.loads((out / "results.json").read_text())
    assert len(entries) == ENTRIES[name], name
    for entry in entries:
        assert set(entry) == {"quantity", "ours", "stderr", "published", "exact"}, name


def require_truth_and_rollout(folder: Path) -> None:
    """Files of the demo."""
    with Trajectory(folder / "truth.h5") as truth, Trajectory(folder / "rollout.h5") as guess:
        assert truth.complete
        assert guess.complete
        for name in ("time", "magnetization", "domain_wall_density"):
            assert truth[name].shape == guess[name].shape
        # Both start from the same states, whose magnetisation is exact.
        start = np.round(truth["initial_magnetization"] * 2048) / 2048
        np.testing.assert_allclose(truth["magnetization"][0], start, atol=1e-12)
        np.testing.assert_allclose(guess["magnetization"][0], start, atol=1e-6)
    assert load_model(folder / "model").plan.patch == 16


def test_options_that_make_no_sense_are_refused(mpirun: Run, tmp_path: Path) -> None:
    done = mpirun(
        2, "python", ROOT / "drivers" / "ising_closure.py", "--patches", "12",
        "--out", tmp_path / "none", check=False,
    )  # fmt: skip
    assert done.returncode == 2  # type: ignore[attr-defined]
    assert done.stderr.count("patch=12") == 1  # type: ignore[attr-defined]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("options", ["replicas=1", "states=3"])
def test_numbers_that_are_too_small_are_refused(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = options.split("=")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # drivers have their own
    before = list(sys.argv)
    with pytest.raises(InputError, match=f"^{options}: "):
        invoke(["experiment", "demo", f"--{name}", value, "--out", str(tmp_path / "no")])
    assert sys.argv == before
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"Install mpiflow\[plot\]"):
        invoke(["demo", "--smoke", "--out", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    mpirun: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "x"
    done = mpirun(2, "mpiflow", "demo", "--out", out, check=False, timeout=60)
    assert done.returncode == 2  # type: ignore[attr-defined]
    assert done.stderr.count("out=") == 1  # type: ignore[attr-defined]
