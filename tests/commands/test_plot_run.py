"""mpiflow plot: pictures and text that show the right values at the right places."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import layout
import numpy as np
import pytest
from PIL import Image

from mpiflow.cli import invoke
from mpiflow.commands import plot as plot_run
from mpiflow.commands import plot_atoms, terminal
from mpiflow.core.errors import InputError
from mpiflow.files.schema import STANDARD, block_centres
from mpiflow.files.structure import grid_of
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter

PAIRS = ["NbNb", "NbMo", "NbTa", "MoMo", "MoTa", "TaTa"]


def about(system: str = "ising", **config: Any) -> dict[str, Any]:
    config_json = json.dumps(config)
    fixed = {"rng": "threefry2x64-13", "decomposition_invariant": True}
    return {"system": system, "config_json": config_json, "seed": 1, **fixed}


def spins_writer(path: Path) -> TrajectoryWriter:
    """A run with blocks of 8 x 8 sites, two rows of four."""
    return TrajectoryWriter(
        path,
        dims={"y": 2, "x": 4},
        variables=[STANDARD["magnetization"], STANDARD["flips"], STANDARD["coarse_magnetization"]],
        coordinates={"y": block_centres(16, 8), "x": block_centres(32, 8)},
        attributes=about(size=[16, 32], temperature=2.5),
        flush_interval=0,
    )


def spins_frame(k: int) -> dict[str, Any]:
    """The magnetization rises; of the field only the first block of the first row is up."""
    field = np.full((2, 4), -1.0, "f4")
    field[0, 0] = 1.0
    return {"magnetization": 0.1 * k, "flips": 7 * k, "coarse_magnetization": field}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    with spins_writer(path) as writer:
        for k in range(11):
            writer.append(2.0 * k, spins_frame(k))
    return path


def lines_of(run: Path, *arguments: Any, **options: Any) -> list[str]:
    with Trajectory(run) as trajectory:
        return plot_run.page(trajectory, *arguments, **options)


# -- characters --------------------------------------------------------------------------------


def test_braille() -> None:
    dots = np.zeros((8, 4), bool)
    assert terminal.braille(dots) == ["⠀⠀", "⠀⠀"]
    dots[0, 0] = dots[3, 3] = dots[4, 1] = dots[7, 2] = True
    assert terminal.braille(dots) == ["⠁⢀", "⠈⡀"]
    assert terminal.braille(np.ones((4, 4), bool)) == ["⣿⣿"]


def traced(across: list[float], down: list[float], *, dotted: bool = False) -> np.ndarray:
    dots = np.zeros((8, 12), bool)
    terminal.trace(dots, np.array(across), np.array(down), dotted=dotted)
    return dots


def test_a_line_connects_its_points() -> None:
    diagonal = traced([0, 1], [0, 1])
    assert diagonal.sum() == 12
    assert diagonal.any(axis=0).all()
    assert diagonal.any(axis=1).all()
    assert diagonal[0, 0]
    assert diagonal[-1, -1]
    jump = traced([0.5, 0.5], [0, 1])  # no time between
    assert jump.sum() == 8
    assert jump[:, 6].all()
    gap = traced([0, 0.3, 0.5, 0.8, 1], [0, 0, np.nan, 1, 1])
    assert not gap[:, 4:8].any()
    assert gap[0, :4].all()
    assert gap[-1, 10:].all()
    assert traced([0], [0.5]).sum() == 1
    assert not traced([0, 1], [np.nan, np.nan]).any()
    assert 0 < traced([0, 1], [0, 0], dotted=True).sum() < 6


def test_many_points_keep_their_peaks() -> None:
    down = np.full(10_000, 1.0)
    down[5_000] = 0.0
    dots = traced(list(np.linspace(0, 1, 10_000)), list(down))
    assert dots[:, 6].all() or dots[:, 5].all()


def test_half_blocks_show_y_upwards() -> None:
    field = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    plain = terminal.half_blocks(field, (0.0, 1.0), 3, colour=False)
    assert plain == ["▄ ▀"]
    coloured = terminal.half_blocks(field, (0.0, 1.0), 3, colour=True)
    low, high = terminal._PALETTE[0], terminal._PALETTE[-1]
    pairs = [(low, high), (low, low), (high, low)]
    assert coloured == ["".join(f"\x1b[38;5;{a};48;5;{b}m▀" for a, b in pairs) + "\x1b[0m"]


def test_half_blocks_of_other_sizes() -> None:
    rng = np.random.default_rng(1)
    for shape in [(1, 1), (3, 5), (64, 64), (1000, 700), (7, 900), (900, 7), (40, 200)]:
        lines = terminal.half_blocks(rng.normal(size=shape), (-3.0, 3.0), 80, colour=False)
        assert 1 <= len(lines) <= 16, shape
        assert len({len(line) for line in lines}) == 1
        assert 1 <= len(lines[0]) <= 80
        # Pixels are square, but for what is thinner than one of them.
        if min(shape) > 7:
            assert len(lines[0]) / (2 * len(lines)) == pytest.approx(shape[1] / shape[0], rel=0.15)
    grey = terminal.half_blocks(np.full((64, 64), 0.25), (0.0, 1.0), 80, colour=False)
    inked = {" ": 0, "▄": 1, "▀": 1, "█": 2}
    share = np.mean([inked[c] for c in "".join(grey)]) / 2
    assert share == pytest.approx(0.25)


def test_a_large_field_is_averaged() -> None:
    field = np.arange(12.0).reshape(4, 3)
    assert terminal.resampled(field, 2).tolist() == [[1.5, 2.5, 3.5], [7.5, 8.5, 9.5]]
    assert terminal.resampled(field, 3).shape == (3, 3)
    assert terminal.resampled(field, 8)[::2].tolist() == field.tolist()
    whole = np.random.default_rng(1).normal(size=(101, 7))
    assert terminal.resampled(whole, 1)[0] == pytest.approx(whole.mean(axis=0))


# -- a page ------------------------------------------------------------------------------------


def test_a_page_of_a_run(run: Path) -> None:
    lines = lines_of(run)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("run.h5: ising, 11 frames, complete, size 16x32, temperature 2.5")
    assert "magnetization  1" in text
    assert "flips  70" in text
    assert "against time in attempts per spin" in text
    # Both charts rise from the lower left to the upper right; the limits are at their left.
    top, bottom = lines[2], lines[7]
    for half, high in ((slice(0, 39), "70"), (slice(41, 80), "1")):
        assert top[half].split()[0] == high
        assert bottom[half].split()[0] == "0"
        assert top[half].strip()[-1] != "⠀"
        assert bottom[half].strip()[-1] == "⠀"
        assert bottom[half][10] != "⠀"
    assert "x -0.5 to 31.5, y -0.5 to 15.5" in text
    # The block at the origin is at the lower left: 16 x 16 of 64 x 32 pixels.
    field = lines[-16:]
    assert field[-1] == "█" * 16 + " " * 48
    assert field[-8] == "█" * 16 + " " * 48
    assert field[-9] == field[0] == " " * 64


@pytest.mark.parametrize("width", [20, 40, 60, 80, 133, 200])
def test_pages_fit_their_width(run: Path, tmp_path: Path, width: int) -> None:
    members(tmp_path / "members.h5")
    alloy(tmp_path / "alloy.h5")
    for path in (run, tmp_path / "members.h5", tmp_path / "alloy.h5"):
        assert max(map(len, lines_of(path, width=width))) <= width


def test_a_page_of_chosen_variables_and_frames(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with spins_writer(path) as writer:
        for k in range(3):
            values = spins_frame(k)
            values["coarse_magnetization"][1, 3] = k - 1
            writer.append(k, values)
    lines = lines_of(path, ["flips"])
    assert "magnetization" not in "\n".join(lines)
    assert len(lines) == 10
    only = lines_of(path, ["coarse_magnetization"], 0)
    assert only[1].startswith("coarse_magnetization, t = 0, -1 to 1;")
    assert len(only) == 18
    assert only != lines_of(path, ["coarse_magnetization"], 2)
    assert lines_of(path, ["coarse_magnetization"], -1) == lines_of(path, ["coarse_magnetization"])


def members(path: Path) -> np.ndarray:
    """Six members whose magnetization spreads like 0.1 k; returns it, (frames, members)."""
    values = np.array([0.1 * k * np.array([-1, 1, -1, 1, -1, 1]) + 0.5 for k in range(5)])
    with TrajectoryWriter(
        path,
        dims={"member": 6, "y": 2, "x": 2},
        variables=[
            STANDARD["magnetization"].over("member"),
            STANDARD["coarse_magnetization"].over("member", "y", "x"),
        ],
        attributes=about(size=[2, 2], members=6),
    ) as writer:
        for k, m in enumerate(values):
            field = np.broadcast_to(np.arange(6.0)[:, None, None], (6, 2, 2)).astype("f4")
            writer.append(k, {"magnetization": m, "coarse_magnetization": field})
    return values


def test_members_are_reduced_to_mean_and_spread(tmp_path: Path) -> None:
    values = members(tmp_path / "run.h5")
    with Trajectory(tmp_path / "run.h5") as run:
        series = plot_run.series_of(run, run.variables["magnetization"])
        assert series.labels == ("",)
        assert series.mean[:, 0] == pytest.approx(values.mean(axis=1))
        assert series.spread is not None
        assert series.spread[:, 0] == pytest.approx(0.1 * np.arange(5))
        field = next(plot_run.fields_of(run, [run.variables["coarse_magnetization"]], [1], 3))
        assert field.values[0].tolist() == [[3, 3], [3, 3]]
        assert field.extent == (-0.5, 1.5, -0.5, 1.5)
    text = "\n".join(lines_of(tmp_path / "run.h5"))
    assert "members 6" in text
    assert "magnetization  0.5 +- 0.4" in text
    assert "      0.9 " in text, "the limits have room for the spread"


@pytest.mark.parametrize("states", [3, 12])
def test_every_component_of_a_field_is_drawn(tmp_path: Path, states: int) -> None:
    """Fractions of blocks in each state of a spin rule; of many states the first."""
    path, values = tmp_path / "run.h5", np.random.default_rng(1).random((2, 2, states, 4, 6))
    numbers = np.arange(states, dtype=np.int8) - 1
    with TrajectoryWriter(
        path,
        dims={"member": 2, "state": states, "y": 4, "x": 6},
        variables=[STANDARD["coarse_fraction"].over("member", "state", "y", "x")],
        coordinates={"state": numbers},
        attributes=about("potts", members=2),
    ) as writer:
        for k, field in enumerate(values):
            writer.append(k, {"coarse_fraction": field.astype("f4")})
    few = min(states, 9)
    with Trajectory(path) as run:
        v = run.variables["coarse_fraction"]
        fields = list(plot_run.fields_of(run, [v], [0, 1], 1))
        for i, field in enumerate(fields):
            assert field.name.startswith(f"coarse_fraction state {numbers[i]}")
            for k in (0, 1):
                assert np.array_equal(field.values[k], values[k, 1, i].astype("f4"))
        assert len(fields) == few
        assert ("of 12 components" in fields[-1].name) == (states == 12)
        pages = plot_run.page(run, None, None, 1)
        assert sum("coarse_fraction state" in line for line in pages) == few
        plot_run.picture(run, tmp_path / "all.png", member=1)


def test_atoms_are_drawn_where_they_are_asked_for(tmp_path: Path) -> None:
    """Those of the outer layers of the three faces that are seen, and every vacancy."""
    path, cells = tmp_path / "run.h5", (6, 6, 6)
    species = np.arange(2 * 6**3, dtype=np.int8) % 3 + 1
    species[[5, 77]] = 0
    with TrajectoryWriter(
        path,
        dims={"site": species.size},
        variables=[STANDARD["species"]],
        attributes=about("alloy", cells=list(cells)),
    ) as writer:
        writer.append(0.0, {"species": species})
        writer.append(1.0, {"species": species})
    out = tmp_path / "atoms.png"
    with Trajectory(path) as run:
        plot_run.picture(run, out, ["species"], -1)
        with pytest.raises(InputError, match="species"):
            plot_run.page(run, ["species"])
    assert out.stat().st_size > 10_000
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes, grid = figure.subplots(), grid_of(species, cells)
    plot_atoms._draw(axes, grid, ("Nb", "Mo", "Ta"))
    x, y, z = np.indices(grid.shape)
    near = np.minimum(np.minimum(11 - x, y), 11 - z) < 4
    atoms, *holes = (len(part.get_offsets()) for part in axes.collections[:3])
    assert atoms == np.count_nonzero(near & (grid > 0))
    assert sum(holes) == 2


def alloy(path: Path) -> np.ndarray:
    sro = np.random.default_rng(3).normal(size=(4, 6))
    with TrajectoryWriter(
        path,
        dims={"pair": 6, "site": 48, "corner_species": 4, "centre_species": 4},
        variables=[STANDARD[name] for name in ("sro", "hops", "bonds", "species")],
        coordinates={"pair": np.array(PAIRS)},
        attributes=about("alloy", cells=[2, 3, 4]),
    ) as writer:
        for k in range(4):
            values = {"sro": sro[k], "hops": 10 * k, "species": np.zeros(48, "i1")}
            writer.append(1e-9 * k, {**values, "bonds": np.full((4, 4), k)})
    return sro


def test_an_alloy_shows_its_order_over_time(tmp_path: Path) -> None:
    path = tmp_path / "alloy.h5"
    sro = alloy(path)
    text = "\n".join(lines_of(path))
    assert "cells 2x3x4" in text
    for pair, value in zip(PAIRS, sro[-1], strict=True):
        assert f"{pair} {value:.4g}" in text
    assert "bonds" not in text, "too many lines, unless asked for"
    assert "2 3 3" in "\n".join(lines_of(path, ["bonds"]))
    invoke(["plot", str(path), "--out", str(tmp_path / "alloy.png")])


# -- pictures ----------------------------------------------------------------------------------


def test_a_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("matplotlib.image")
    out = run.with_suffix(".png")
    invoke(["plot", str(run), "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: 11 frames\n"
    pixels = image.imread(out)
    # The field is at the bottom: blue with one red block, at its lower left.
    red = (pixels[..., 0] > 0.3) & (pixels[..., 1] < 0.1) & (pixels[..., 2] < 0.2)
    blue = (pixels[..., 2] > 0.3) & (pixels[..., 0] < 0.1) & (pixels[..., 1] < 0.25)
    low = int(0.6 * len(pixels))
    left = pixels.shape[1] // 5
    assert red[low:, :left].sum() * 6 < blue[low:, :left].sum()
    rows, columns = np.nonzero(red[low:, :left])
    others = np.nonzero(blue[low:, :left])
    assert rows.mean() > others[0].mean()
    assert columns.mean() < others[1].mean()
    once = len(out.read_bytes())
    with pytest.raises(InputError, match="use --overwrite"):
        invoke(["plot", str(run), "--out", str(out)])
    line = ["plot", str(run), "--out", str(out), "--overwrite", "--variable", "flips"]
    invoke([*line, "--frame", "3"])
    assert len(out.read_bytes()) < once


def test_a_picture_has_up_to_five_snapshots() -> None:
    assert plot_run.spaced(10, 5) == [0, 2, 5, 8, 10]
    assert plot_run.spaced(0, 5) == [0]
    assert plot_run.spaced(1, 5) == [0, 1]
    assert plot_run.spaced(3, 5) == [0, 1, 2, 3]


def test_a_missing_library_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"mpiflow\[plot\]"):
        invoke(["plot", str(run), "--out", "x.png"])
    invoke(["plot", str(run)])  # text needs none


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run.h5 --variable magnetisation", "Did you mean magnetization?"),
        ("run.h5 --frame 11", "frame=11: allowed is -11 to 10"),
        ("run.h5 --frame 11 --out x.png", "frame=11: allowed is -11 to 10"),
        ("run.h5 --member 1", "member=1"),
        ("run.h5 --live --out x.png", "live=True: allowed is no value with --out"),
        ("run.h5 --out no/such/x.png", "Create no/such first"),
        ("run.h5 --out run.h5 --overwrite", "another file than the input"),
        ("alloy.h5 --variable species", "species is over (site)"),
        ("none.h5", "an existing trajectory"),
        ("none.h5 --live", "an existing trajectory"),
        ("empty.h5", "a file with frames"),
        ("empty.h5 --out x.png", "a file with frames"),
    ],
)
def test_plots_that_cannot_be(
    run: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.chdir(run.parent)
    if line.startswith("alloy"):
        alloy(Path("alloy.h5"))
    if line.startswith("empty"):
        spins_writer(Path("empty.h5")).close()
    before = {path: path.read_bytes() for path in run.parent.iterdir()}
    with pytest.raises(InputError) as caught:
        invoke(["plot", *line.split()])
    assert says in str(caught.value)
    assert {path: path.read_bytes() for path in run.parent.iterdir()} == before


# -- the terminal ------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text_without_a_terminal_is_plain(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["plot", str(run), "--variable", "flips", "--variable", "coarse_magnetization"])
    text = capsys.readouterr().out
    assert "flips  70" in text
    assert "\x1b" not in text
    assert text.splitlines() == lines_of(run, ["flips", "coarse_magnetization"])


def test_on_a_terminal_text_has_its_width_and_colours(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plot_run.plot(run)
    assert screen.getvalue().splitlines() == lines_of(run, width=120, colour=True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    plot_run.plot(run)
    assert screen.getvalue().splitlines() == lines_of(run, width=120)


def test_an_output_without_these_characters_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(InputError, match="PYTHONUTF8=1"):
        plot_run.plot(run)


def test_live_follows_a_run_to_its_end(tmp_path: Path) -> None:
    path, stream = tmp_path / "run.h5", io.StringIO()
    writer, step = spins_writer(path), 0

    def work(seconds: float) -> None:
        nonlocal step
        assert seconds == 2.0
        step += 1
        if step == 4:
            writer.close()
        elif step != 2:  # nothing new to see
            writer.append(step, spins_frame(step))

    plot_run.watch(path, stream=stream, pause=work)
    titles = [line for line in stream.getvalue().splitlines() if line.startswith("run.h5")]
    assert [title.split(", ")[1:3] for title in titles] == [
        ["0 frames", "NOT complete"],
        ["1 frames", "NOT complete"],
        ["2 frames", "NOT complete"],
        ["2 frames", "complete"],
    ]
    assert "\x1b" not in stream.getvalue()


def test_live_ends_with_ctrl_c(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the page is drawn over the last one, and cut where the screen ends."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "7")
    path, screen = tmp_path / "live.h5", Terminal()

    def press(_: float) -> None:
        raise KeyboardInterrupt

    with spins_writer(path) as writer:
        writer.append(0.0, spins_frame(0))
        plot_run.watch(path, stream=screen, pause=press)
    assert screen.getvalue().startswith("\x1b[2J\x1b[Hlive.h5: ising, 1 frames")
    assert len(screen.getvalue().splitlines()) == 7
    assert screen.getvalue().endswith("\n\n")


@pytest.mark.parametrize("failures", [4, 5])
def test_live_tolerates_a_reader_that_meets_a_flush(
    run: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    looks = 0

    def opened(path: Path) -> Trajectory:
        nonlocal looks
        looks += 1
        if looks <= failures:
            raise InputError("file", str(path), "an intact HDF5 file", "It is corrupt.")
        return Trajectory(path)

    monkeypatch.setattr(plot_run, "Trajectory", opened)
    stream = io.StringIO()
    if failures < plot_run.PATIENCE:
        plot_run.watch(run, stream=stream, pause=lambda _: None)
        assert "complete" in stream.getvalue()
    else:
        with pytest.raises(InputError, match="intact"):
            plot_run.watch(run, stream=stream, pause=lambda _: None)


def test_live_counts_failures_in_a_row(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([*["fail"] * 4, "growing", *["fail"] * 4, "complete"])

    def opened(path: Path) -> Trajectory:
        look = next(looks)
        if look == "fail":
            raise InputError("file", str(path), "an intact HDF5 file", "It is corrupt.")
        return Trajectory(path if look == "complete" else tmp_path / "live.h5")

    stream = io.StringIO()
    with spins_writer(tmp_path / "live.h5") as writer:
        writer.append(0.0, spins_frame(0))
        monkeypatch.setattr(plot_run, "Trajectory", opened)
        plot_run.watch(run, stream=stream, pause=lambda _: None)
    assert "11 frames, complete" in stream.getvalue()


def test_live_refuses_a_wrong_name_at_once(run: Path) -> None:
    with pytest.raises(InputError, match="Did you mean flips"):
        plot_run.watch(run, variables=["flip"], stream=io.StringIO(), pause=pytest.fail)


# -- layout, films -----------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["ising", "alloy", "linear-chain"])
def test_layout_of_pictures(system: str, tmp_path: Path) -> None:
    """Every axis has a label with its unit, nothing lies over anything else."""
    options = {
        "ising": "--size 32 --temperature 2 --time 4 --save-every 1 --coarse 8 --members 3",
        "alloy": "--cells 4 --vacancies 2 --temperature 2000 --time 1e-9 --species",
        "linear-chain": "--size 10 --time 1 --profile",
    }[system]
    out = tmp_path / "run.h5"
    invoke(["simulate", system, *options.split(), "--quiet", "--out", str(out)])
    with Trajectory(out) as run:
        for names in [None, ["species"]] if system == "alloy" else [None]:
            assert layout.faults(plot_run.picture(run, None, names)) == []


@pytest.mark.parametrize("kind", ["gif", "html"])
def test_films(kind: str, run: Path, tmp_path: Path) -> None:
    """All frames of the field; the page needs nothing from elsewhere."""
    film = tmp_path / f"film.{kind}"
    invoke(["plot", str(run), "--animate", str(film)])
    if kind == "gif":
        with Image.open(film) as opened:
            assert getattr(opened, "n_frames", 1) == 11
    else:
        assert film.read_text().count("data:image/png;base64") == 11
    with pytest.raises(InputError, match="does not exist yet"):
        invoke(["plot", str(run), "--animate", str(film)])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--animate film.avi", "ends with .gif, .html, .mp4"),
        ("--animate film.gif --variable flips", "variable='flips'"),
        ("--animate film.gif --frame 2", "frame=2"),
        ("--animate film.gif --live", "live"),
        ("--animate film.gif --member 3", "member=3"),
        ("--animate none/film.gif", "Create none first"),
    ],
)
def test_films_that_are_refused(
    words: str, says: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        invoke(["plot", str(run), *words.split()])
    assert not list(tmp_path.glob("film*"))


def test_watch_is_the_live_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["watch", str(run), "--variable", "flips"])
    text = capsys.readouterr().out
    assert "complete" in text
    assert "flips  70" in text
