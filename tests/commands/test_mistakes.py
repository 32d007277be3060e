"""What users do wrong: one message with name, value, what is allowed and what to do, on all ranks.

Nothing is written, and no mistake is found only after the work was done.
"""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.cli import invoke
from mpiflow.core.errors import InputError

ISING = "simulate ising --size 16 --temperature 2.5 --time 1"
KAC = "simulate kac --size 16 --gamma 2 --temperature 0.8 --time 1"
ALLOY = "simulate alloy --cells 16 --vacancies 2 --temperature 2000 --time 1e-10 --solver tiled"
POTTS = "simulate potts --size 16 --states 3 --temperature 1 --time 1"

#: Command lines, and what their message says.
MISTAKES = [
    # The command line itself.
    ("simulat ising", "Did you mean simulate?"),
    ("simulate isng", "Did you mean ising?"),
    ("simulate", "allowed is one of ising"),
    (f"{ISING} --sizee 8", "Did you mean --size?"),
    (f"{ISING} --zzz 8", "See mpiflow simulate ising --help"),
    (f"{ISING} more", "unexpected extra argument"),
    ("simulate ising --size", "requires an argument"),
    ("simulate ising --temperature 2 --time 1", "size"),
    (f"{ISING} --config none.toml", "config='none.toml'"),
    (f"{ISING} --config broken.toml", "broken.toml"),
    ("simulate ising --config typo.toml", "Did you mean temperature?"),
    # Sizes.
    (f"{ISING} --size 0", "size=(0, 0)"),
    (f"{ISING} --size -8", "size=(-8, -8)"),
    (f"{ISING} --size large", "size='large'"),
    (f"{ISING} --size 8x8x8", "size='8x8x8'"),
    (f"{ISING} --size 15", "even"),
    (f"{ISING} --coarse 3", "coarse"),
    (f"{ISING} --coarse 0", "coarse"),
    (f"{ISING} --members 0", "members"),
    (f"{ISING} --members many", "members='many'"),
    (f"{ISING} --ranks-grid 3,5", "ranks"),
    (f"{ISING} --ranks-grid a", "ranks_grid='a'"),
    (f"{ISING} --kernel packed", "64 columns for the packed kernel"),
    (f"{ISING} --kernel fast", "kernel='fast'"),
    (f"{ISING} --solver tiled-nfold --tile 3", "tile"),
    (f"{ISING} --tile 4", "tile=4"),
    # Numbers of physics.
    (f"{ISING} --temperature 0", "temperature"),
    (f"{ISING} --temperature nan", "temperature"),
    (f"{ISING} --temperature hot", "temperature='hot'"),
    (f"{ISING} --field inf", "field"),
    (f"{ISING} --coupling nan", "coupling"),
    (f"{ISING} --solver exact", "solver='exact'"),
    (f"{KAC} --gamma -1", "gamma"),
    (f"{KAC} --gamma 1e9", "gamma"),
    (f"{KAC} --tau 0", "tau"),
    (f"{KAC} --method fast", "method='fast'"),
    (f"{KAC} --solver nfold", "solver='nfold'"),
    (f"{POTTS} --states 1", "states"),
    (f"{POTTS} --states 3.5", "states='3.5'"),
    (f"{ALLOY} --cells 1", "cells"),
    (f"{ALLOY} --vacancies 0", "vacancies"),
    (f"{ALLOY} --vacancies 100000", "vacancies"),
    (f"{ALLOY} --temperature -5", "temperature"),
    (f"{ALLOY} --barriers none.npy", "none.npy"),
    (f"{ALLOY} --barriers text.txt", "text.txt"),
    ("simulate linear-chain --size 0 --time 1", "size"),
    ("simulate curie-weiss --size 8 --temperature -1 --time 1", "temperature"),
    ("simulate predator-prey --size 1 --time 1", "size"),
    ("simulate spin-diffusion --model mean --size 8 --beta 80 --time 1", "model='mean'"),
    # Times.
    (f"{ISING} --time -1", "time"),
    (f"{ISING} --time inf", "time"),
    (f"{ISING} --dt 0", "dt"),
    (f"{ISING} --dt nan", "dt"),
    (f"{ISING} --save-every 0", "save_every"),
    (f"{ISING} --checkpoint-every -1", "checkpoint_every"),
    (f"{ISING} --walltime soon", "walltime='soon'"),
    (f"{ISING} --schedule 'temperature ramp 1'", "schedule"),
    (f"{ISING} --schedule none.csv", "none.csv"),
    (f"{ISING} --schedule 'pressure quench 1 2 at 3'", "pressure"),
    # Initial states, fields, noise.
    (f"{ISING} --initial none.npy", "none.npy"),
    (f"{ISING} --initial shufled", "shuffled"),
    (f"{ISING} --initial text.txt", "text.txt"),
    (f"{ISING} --initial wrong.npy", "wrong.npy"),
    (f"{ISING} --initial run.h5 --initial-frame 99", "initial_frame"),
    (f"{ISING} --initial-magnetization 2", "initial_magnetization"),
    (f"{ISING} --correlation-length 3", "correlation_length"),
    (f"{ISING} --initial gaussian --correlation-length -1", "correlation_length"),
    (f"{ISING} --field-file none.npy", "none.npy"),
    (f"{ISING} --random-field-std -1", "random_field_std"),
    (f"{ISING} --random-field-std 1 --random-field-kind box", "random_field_kind='box'"),
    (f"{ISING} --seed -1", "seed"),
    (f"{ISING} --seed 1.5", "seed='1.5'"),
    # Machines and outputs.
    (f"{ISING} --device gpu", "device='gpu'"),
    (f"{ISING} --writer fast", "writer='fast'"),
    (f"{ISING} --observables nothing", "nothing"),
    (f"{ISING} --observables none.py", "none.py"),
    (f"{ISING} --out folder", "a directory"),
    (f"{ISING} --out none/run.h5", "Create none first"),
    (f"{ISING} --out run.h5", "--overwrite"),
    (f"{ISING} --out text.txt/run.h5", "A part of the path is a file"),
    # Files of runs.
    ("info none.h5", "an existing trajectory"),
    ("info text.txt", "text.txt"),
    ("info folder", "folder"),
    ("info foreign.h5", "written by mpiflow"),
    ("info cut.h5", "cut.h5"),
    ("resume none.h5", "none.h5"),
    ("resume run.h5 --override temperature", "NAME=VALUE"),
    ("resume run.h5 --override colour=red", "colour"),
    ("resume text.txt", "text.txt"),
    ("plot run.h5 --variable magnetisation", "Did you mean magnetization?"),
    ("plot run.h5 --frame 99", "frame=99"),
    ("plot run.h5 --member 5", "member=5"),
    ("plot run.h5 --out none/a.png", "Create none first"),
    ("plot run.h5 --animate a.avi", ".gif, .html, .mp4"),
    ("export run.h5 --to pdf", "to='pdf'"),
    ("export run.h5 --to netcdf --frames 1:2:3:4", "frames"),
    ("export run.h5 --to netcdf --variables nothing", "nothing"),
    ("export run.h5 --to lammpsdump", "an alloy run. It is of ising"),
    ("plan none.toml", "none.toml"),
    ("plan run.h5 time=-1", "time"),
    ("plan run.h5 --ranks 0", "ranks"),
    ("plan run.h5 temprature=1", "temprature"),
    ("plan isng size=8", "Did you mean ising?"),
    ("certify ising size=16 temperature=2 time=1 --error 2", "error=2.0"),
    ("certify ising size=16 temperature=2 time=1 --drift mean", "drift='mean'"),
    ("certify ising size=16 temperature=2 time=1 --patch 5", "patch=5"),
    ("certify ising size=2048 temperature=2 time=1", "try 64"),
    ("certify ising size=16 time=1 'schedule=temperature ramp 3 2 over 1'", "fixed parameters"),
    ("certify kac size=16 gamma=2 temperature=1 time=1", "no partial evolution"),
    ("certify alloy cells=4 temperature=2000 vacancies=1 hops=5", "hops"),
    ("watch none.h5", "none.h5"),
    ("report folder", "a run, or a folder with runs"),
    ("sweep none.toml --out sweep", "none.toml"),
    ("sweep plain.toml --out sweep", "at least one parameter"),
    ("sweep swept.toml --out sweep --mode zip", "mode='zip'"),
    # What learns.
    ("predict none --size 8 --time 1 --out p.h5", "none"),
    ("predict folder --size 8 --time 1 --out p.h5", "model.json"),
    ("learn onsagerflow --runs none.h5 --out law", "none.h5"),
    ("learn onsagerflow --runs run.h5 --out law", "Save it with --coarse"),
    ("learn onsagerflow --runs coarse.h5 --out law --lags 0", "lags=(0,)"),
    ("learn closure none.csv --out law", "none.csv"),
    ("learn closure text.txt --out law", "text.txt"),
    ("learn generator none.h5 --out law", "none.h5"),
    ("learn alloy none.h5 --out law", "none.h5"),
    # Other commands.
    ("import none.npy --out i.h5", "none.npy"),
    ("import text.txt --out i.h5", "text.txt"),
    ("import-nnk none.npy a.safetensors", "none.npy"),
    ("import-nnk text.txt a.safetensors", "text.txt"),
    ("bench isin", "allowed is one of ising"),
    ("doctor --device gpu", "device='gpu'"),
    ("warmup isin", "allowed is one"),
    ("experiment dmo", "what mpiflow experiment lists. Did you mean demo?"),
    ("experiment xyzzyx", "upsampling, window_bias. See mpiflow experiment --help."),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some files that are what their names say; the same place for all ranks."""
    world = MPI.COMM_WORLD
    path = Path(world.bcast(str(tmp_path_factory.mktemp("mistakes"))))
    if world.rank == 0:
        (path / "folder").mkdir()
        (path / "text.txt").write_text("words\n")
        (path / "broken.toml").write_text("size = = 8\n")
        (path / "typo.toml").write_text("size = 8\ntemprature = 2.5\ntime = 1\n")
        plain = 'system = "ising"\nsize = 8\ntemperature = 2.5\ntime = 1\n'
        (path / "plain.toml").write_text(plain)
        swept = plain + "[sweep]\ntemperature = [2.0, 2.5]\n"
        (path / "swept.toml").write_text(swept)
        np.save(path / "wrong.npy", np.zeros((3, 5)))
        with h5py.File(path / "foreign.h5", "w", driver="sec2") as file:
            file["data"] = np.zeros(3)
    world.barrier()
    run = [*ISING.split(), "--dt", "0.25", "--quiet", "--out"]
    invoke([*run, str(path / "run.h5")])
    invoke([*run, str(path / "coarse.h5"), "--coarse", "2", "--time", "20"])
    if world.rank == 0:
        (path / "cut.h5").write_bytes((path / "run.h5").read_bytes()[:3000])
    world.barrier()
    return path


def test_there_are_many() -> None:
    assert len(MISTAKES) >= 80
    assert len({line for line, _ in MISTAKES}) == len(MISTAKES)


@pytest.mark.mpi
@pytest.mark.skipif(MPI.COMM_WORLD.size > 2, reason="two ranks are as good as four")
@pytest.mark.parametrize(("line", "says"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake(line: str, says: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(line)
    if words[0] == "simulate" and "--out" not in words and len(words) > 4:
        words += ["--out", "new.h5"]
    before = sorted(str(p) for p in place.rglob("*"))
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("error", RuntimeWarning)
        invoke(words)
    message = str(caught.value)
    assert says in message
    assert re.match(r"[\w ]+=.+: allowed is .+\. .+", message, re.DOTALL), message
    assert "\n" not in message
    MPI.COMM_WORLD.barrier()
    after = sorted(str(p) for p in place.rglob("*"))
    assert [p for p in after if "manifest" not in p] == [p for p in before if "manifest" not in p]
