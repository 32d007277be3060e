"""The command line: options from the schema, one clear message for bad input, all ranks end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from mpiflow import __version__, cli
from mpiflow.cli import invoke
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.ising.options import IsingConfig

MpiRun = Callable[..., subprocess.CompletedProcess[str]]

SMALL = "simulate ising --size 16 --temperature 2.5 --time 1 --quiet".split()


def test_help_lists_every_field(capsys: pytest.CaptureFixture[str]):
    invoke(["simulate", "ising", "--help"])
    text = capsys.readouterr().out
    for name in (*IsingConfig.options(), "config"):
        assert f"--{name.replace('_', '-')} " in text, name
    words = " ".join(text.split())
    for name, field in IsingConfig.options().items():
        assert " ".join(field.description.split()) in words, name
    assert "[default: 0.25, tiled-nfold 1]" in words
    assert words.count("[required]") == 4


def test_help_of_predict_has_one_argument(capsys: pytest.CaptureFixture[str]):
    invoke(["predict", "--help"])
    text = capsys.readouterr().out
    assert "[OPTIONS] [MODEL]" in text
    for name in FieldConfig.options():
        assert (f"--{name.replace('_', '-')} " in text) == (name != "model"), name


def test_version_and_top_help(capsys: pytest.CaptureFixture[str]):
    invoke(["--version"])
    assert capsys.readouterr().out == f"mpiflow {__version__}\n"
    invoke([])
    text = capsys.readouterr().out
    assert all(name in text for name in ("simulate", "info", "bench"))


@pytest.mark.parametrize("words", [[], ["simulate"], ["learn"], ["experiment"]])
def test_no_command_is_described_by_half(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """In a terminal of 80 columns; -h is --help."""
    monkeypatch.setenv("COLUMNS", "80")
    invoke([*words, "-h"])
    lines = capsys.readouterr().out.splitlines()
    assert {"Commands:", "Experiments:"} & set(lines)
    assert not [line for line in lines[1:] if line.endswith("...")]


def test_a_default_is_told_once(capsys: pytest.CaptureFixture[str]):
    """Where the text of an option has its default, nothing adds it again."""
    from mpiflow import cli

    made = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    for name in made - {"demo"}:  # whose help is that of its driver
        invoke([name, "-h"])
        words = " ".join(capsys.readouterr().out.split())
        twice = re.findall(r"\[default: [^]]*\] \[default: [^]]*\]", words)
        assert not twice, (name, twice)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mpiflow simulate i", "ising"),
        ("mpiflow sw", "sweep"),
        ("mpiflow experiment po", "potts_transition"),
        ("mpiflow simulate kac --gam", ""),
    ],
)
def test_shells_complete(
    typed: str, offered: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Commands and options, as bash asks for them."""
    monkeypatch.setenv("_MPIFLOW_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    with pytest.raises(SystemExit):
        invoke([])
    found = capsys.readouterr().out.split()
    assert found == [offered] if offered else "--gamma" in found


def test_folders_of_outputs_are_made_when_asked_for(tmp_path: Path):
    """Of runs, and of what is made of them; else the message says how."""
    out = tmp_path / "a" / "b" / "run.h5"
    with pytest.raises(InputError, match=r"Create .*b first, on the command line with --parents"):
        invoke([*SMALL, "--out", str(out)])
    assert not out.parent.exists()
    invoke([*SMALL, "--out", str(out), "--parents"])
    picture = tmp_path / "c" / "run.png"
    invoke(["plot", str(out), "--out", str(picture), "--parents"])
    assert picture.exists()
    with pytest.raises(InputError, match="--parents"):  # asked for once, not for ever
        invoke(["plot", str(out), "--out", str(tmp_path / "d" / "run.png")])


def test_json_for_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "run.h5")
    invoke([*SMALL, "--dt", "inf", "--coarse", "4", "--out", out])
    capsys.readouterr()

    def told(line: list[str]) -> list[dict[str, Any]]:
        invoke(line)
        return [json.loads(text) for text in capsys.readouterr().out.splitlines()]

    (facts,) = told(["info", "--json", out])
    assert (facts["path"], facts["complete"], facts["frames"]) == (out, True, 2)
    assert facts["variables"]["coarse_magnetization"]["dims"] == ["time", "y", "x"]
    assert (facts["config"]["dt"], facts["sizes"]["x"]) == ("inf", 4)
    found = told(["verify", "--json", str(tmp_path)])
    assert [Path(f["path"]).name for f in found] == ["run.h5", "run.h5.000001"]
    assert all(f["good"] and "good" in f["text"] for f in found)
    (certified,) = told(["certify", "--json", out, "time=2", "--patch", "8", "--error", "0.05"])
    assert (certified["states"], certified["chosen"]["patch"]) == (96, 8)
    assert max(certified["chosen"]["error"]) == pytest.approx(0.05)
    (planned,) = told(["plan", "--json", out, "time=5"])
    assert (planned["frames"], planned["config"]["time"]) == (6, 5.0)
    assert planned["disk_bytes"] > 0
    assert {s["name"] for s in planned["stored"]} > {"magnetization", "coarse_magnetization"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("simulate ising --sizee 8", "an option of mpiflow simulate ising. Did you mean --size?"),
        ("simulate ising --tempratur 8", "Did you mean --temperature?"),
        ("simulate isng", ", predator-prey, spin-diffusion. Did you mean ising?"),
        ("simulat ising", "Did you mean simulate?"),
        ("simulate", "one of ising"),
        ("simulate ising --size", "requires an argument"),
        ("simulate ising more", "unexpected extra argument"),
        ("info", "FILE"),
        ("info no/such/file.h5", "no/such/file.h5"),
        ("bench isin", "one of ising, sides, ising-exact"),
        ("simulate ising --size 8", "must be given"),
        ("simulate ising --size 8 --temperature -1 --time 1 --out x.h5", "temperature='-1'"),
        ("simulate ising --config no.toml", "a readable TOML file"),
        ("predict", "model=None: allowed is a folder that mpiflow learn wrote"),
        ("predict nowhere --size 8 --time 1 --out x.h5", "It has no model.json"),
        ("predict nowhere --sise 8", "Did you mean --size?"),
        ("learn", "one of onsagerflow"),
        ("learn onsagerflo", "Did you mean onsagerflow?"),
        ("learn onsagerflow --runs x.h5", "--out"),
        pytest.param(
            "learn onsagerflow --runs x.h5 --out m",
            "existing runs",
            marks=pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch"),
        ),
    ],
)
def test_bad_command_lines(line: str, says: str):
    with pytest.raises(InputError) as caught:
        invoke(line.split())
    assert says in str(caught.value)


def test_command_line_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr("mpiflow.run.simulate.simulate", lambda config, comm: seen.append(config))
    file = tmp_path / "run.toml"
    file.write_text('size = 8\ntemperature = 2.5\ntime = 2\nout = "a.h5"\nspins = true\n')
    line = ["simulate", "ising", "--config", str(file)]
    invoke(line)
    invoke([*line, *"--size 16x8 --field -0.1 --dt inf --no-spins --overwrite".split()])
    assert seen[0].spins
    assert (seen[0].size, seen[0].overwrite) == ((8, 8), False)
    assert (seen[1].size, seen[1].field, seen[1].time) == ((16, 8), -0.1, 2.0)
    assert (seen[1].spins, seen[1].overwrite) == (False, True)


@pytest.mark.parametrize(
    ("word", "heard"),
    [("simulate", 1), ("resume", 1), ("predict", 1), ("learn", 1), ("bench", 1), ("info", 0)],
)
def test_what_runs_for_long_listens_to_signals(
    word: str, heard: int, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    monkeypatch.setattr(sys, "argv", ["mpiflow", word])
    monkeypatch.setattr(cli.signals, "listen", lambda: calls.append(word))
    for name in ("install_abort_hook", "mute_other_ranks"):
        monkeypatch.setattr(parallel, name, lambda: None)
    monkeypatch.setattr(cli, "invoke", lambda arguments: None)
    cli.main()
    assert len(calls) == heard


# -- whole programs ------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys, mpiflow.cli as c; c.invoke(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "numba", "h5py", "mpi4py.MPI", "scipy", "matplotlib"):
        assert f"'{heavy}'" not in done.stdout, heavy


def assert_one_message(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("mpiflow: ") == 1, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("ranks", "options", "says"),
    [
        (4, "--size 16x8 --coarse 8", "at most 2 tiles"),
        (2, "--size 16 --initial foreign.npy", "a readable .npy"),
    ],
)
def test_bad_input_on_many_ranks(
    mpirun: MpiRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    options: str,
    says: str,
):
    """As a whole program: tests/commands/test_mistakes.py has all others, within one.

    Of an option given twice, the last wins.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.npy").write_text("not numpy")
    line = f"--out x.h5 --temperature 2.5 --time 1 {options}".split()
    assert_one_message(mpirun(ranks, "mpiflow", "simulate", "ising", *line, check=False), says)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign.npy"]


def test_existing_output_is_left_alone(mpirun: MpiRun, tmp_path: Path):
    out = tmp_path / "precious.h5"
    out.write_bytes(b"years of work")
    done = mpirun(2, "mpiflow", *SMALL, "--out", out, check=False)
    assert_one_message(done, "--overwrite")
    assert out.read_bytes() == b"years of work"
    assert len(list(tmp_path.iterdir())) == 1


def test_only_rank_zero_talks(mpirun: MpiRun):
    assert mpirun(2, "mpiflow", "--help").stdout.count("Usage:") == 1
    code = "from mpiflow import parallel; parallel.start(); print('hello')"
    assert mpirun(2, "python", "-c", code).stdout == "hello\n"


def test_an_exception_on_one_rank_ends_all_and_names_it(mpirun: MpiRun):
    code = (
        "from mpiflow import parallel\n"
        "comm = parallel.start()\n"
        "if comm.rank == 2: raise ZeroDivisionError('on purpose')\n"
        "comm.Barrier()\n"
    )
    done = mpirun(3, "python", "-c", code, check=False, timeout=240)  # others would wait for ever
    assert done.returncode != 0
    assert "mpiflow: rank 2 of 3 failed" in done.stderr
    assert "ZeroDivisionError: on purpose" in done.stderr


def test_a_bad_input_of_one_rank_alone_ends_all(mpirun: MpiRun):
    code = (
        "from mpiflow import parallel\n"
        "from mpiflow.core.errors import InputError\n"
        "parallel.PATIENCE = 0.5\n"
        "comm = parallel.start()\n"
        "if comm.rank == 1: raise InputError('x', 1, 'two', 'Try 2.')\n"
        "comm.Barrier()\n"
    )
    done = mpirun(2, "python", "-c", code, check=False, timeout=60)
    assert done.returncode != 0
    assert "x=1: allowed is two. Try 2." in done.stderr
    assert "only rank 1 of 2" in done.stderr
    assert "Traceback" not in done.stderr


# -- parallel ------------------------------------------------------------------------------


@pytest.mark.mpi
def test_an_error_of_one_rank_is_raised_on_all(comm: MPI.Intracomm):
    guilty = comm.size - 1

    def read() -> None:
        with parallel.agreed(comm):
            if comm.rank == guilty:
                raise InputError("rank", comm.rank, "any", "Try again.")

    with pytest.raises(InputError, match=f"rank={guilty}"):
        read()
    with pytest.raises(InputError, match="rank=0"):
        parallel.raise_together(comm, InputError("rank", comm.rank, "any", "Try again."))
    parallel.raise_together(comm, None)


def test_two_different_mpis_are_refused(monkeypatch: pytest.MonkeyPatch):
    parallel.check_launcher()
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "4")
        with pytest.raises(InputError, match=r"ranks=4.*mpirun"):
            parallel.check_launcher()
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script has it, without srun
    parallel.check_launcher()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "100", "--solver", "tiled-nfold"], r"^tile=64: .*divisor of 50"),
        (["--size", "128", "--kernel", "sliced"], r"^kernel='sliced'.*several members"),
        (["--size", "30", "--kernel", "packed"], r"^size=\(30, 30\): .*64 columns"),
        (["--size", "128", "--tile", "8"], r"^tile=8: .*sublattice"),
    ],
)
def test_kernels_and_tiles_that_do_not_fit(options: list[str], says: str, tmp_path: Path):
    common = ["--temperature", "2.5", "--time", "1", "--out", str(tmp_path / "x.h5")]
    with pytest.raises(InputError, match=says):
        invoke(["simulate", "ising", *options, *common])
    assert not (tmp_path / "x.h5").exists()
