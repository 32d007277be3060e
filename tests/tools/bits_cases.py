"""The cases of ``bits.py``: options of runs, and the files that they start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: Ranks.
ALL: tuple[int, ...] = (1, 2, 4)
ONE: tuple[int, ...] = (1,)
SOME: tuple[int, ...] = (2, 4)
#: A resume without changes.
AGAIN = ("",)
#: What all cases of a system have in common. The last of two equal options counts.
COMMON = {
    "ising": "simulate ising --temperature 2.3 --time 4 --save-every 1 --seed 7",
    "kac": "simulate kac --temperature 0.8 --gamma 2 --time 2 --save-every 0.5 --seed 7",
    "potts": "simulate potts --temperature 1.1 --time 2 --save-every 0.5 --seed 7 --spins",
    "blume-capel": "simulate blume-capel --temperature 0.7 --crystal-field 1.2 --time 2 "
    "--save-every 0.5 --seed 7 --spins",
    "alloy": "simulate alloy --cells 6 --temperature 2000 --time 8e-10 --save-every 2e-10 --seed 7",
    "alloy hops": "simulate alloy --cells 6 --temperature 2000 --hops 80 --save-every 20 --seed 7",
    "field": "predict --time 4 --save-every 1 --dt 0.25 --size 32 --seed 7",
    "chain": "simulate linear-chain --size 12 --time 2 --save-every 0.5 --seed 7",
    "curie-weiss": "simulate curie-weiss --size 16 --temperature 1.1 --time 4 --save-every 1 "
    "--seed 7",
    "predator-prey": "simulate predator-prey --size 24 --time 0.2 --save-every 0.05 --seed 7",
    "spin-diffusion": "simulate spin-diffusion --size 12 --time 4 --save-every 0.5 --seed 7 "
    "--profile",
}


class Case(NamedTuple):
    """Options of a run beside those that its system's cases have in common.

    Attributes
    ----------
    name : the system and what is special
    resumed : for each, make it again, only half of it, and the rest by ``mpiflow resume`` with
        these options
    """

    name: str
    options: str
    ranks: tuple[int, ...] = ALL
    resumed: tuple[str, ...] = ()


_SLABS = "--solver tiled --cells 32x4x4 --vacancies 6"
_TILES = "--solver tiled --cells 16x8x8 --vacancies 6 --tile 8x8x8"
CASES = [
    # Kernels of Ising.
    Case("ising plain", "--kernel plain --size 26x44 --spins", resumed=AGAIN),
    Case("ising plain blocks", "--kernel plain --size 24x40 --coarse 4 --spins"),
    Case("ising plain members", "--kernel plain --size 12x10 --members 3 --spins", resumed=AGAIN),
    Case("ising plain sweeps", "--kernel plain --size 26x44 --dt inf", resumed=AGAIN),
    Case("ising plain step", "--kernel plain --size 26x44 --dt 0.1 --field 0.2"),
    Case(
        "ising packed",
        "--size 64x256 --spins",
        resumed=("", "--override temperature=3 --override dt=0.5", "--reseed 9 --save-every 0.5"),
    ),
    Case("ising packed bits", "--size 64x256 --spin-bits --coarse 8"),
    Case(
        "ising packed members", "--kernel packed --size 16x128 --members 3 --spins", resumed=AGAIN
    ),
    Case("ising packed sweeps", "--size 64x256 --dt inf"),
    Case("ising packed field", "--size 64x256 --dt 0.5 --field -0.3 --spins"),
    Case("ising packed antiferromagnet", "--size 64x128 --coupling -1 --field 0.5 --spins"),
    Case("ising packed hot", "--size 64x128 --temperature 50 --spins"),
    Case("ising packed cold", "--size 64x128 --temperature 0.4 --spins"),
    Case("ising packed columns", "--size 16x512 --ranks-grid 1,2 --spins", (2,), AGAIN),
    Case("ising packed grid", "--size 32x512 --ranks-grid 2,2 --spins", (4,)),
    Case("ising sliced", "--size 16 --members 70 --spins", resumed=AGAIN),
    Case("ising sliced oblong", "--size 12x18 --members 130 --field 0.1 --coarse 3 --dt 0.5"),
    Case("ising sliced sweeps", "--kernel sliced --size 16 --members 65 --dt inf --spin-bits"),
    Case("ising nfold", "--solver nfold --size 15x21 --spins", ONE, AGAIN),
    Case("ising nfold members", "--solver nfold --size 12 --members 5 --spins", resumed=AGAIN),
    Case("ising nfold cold", "--solver nfold --size 16 --temperature 0.5 --field 0.3 --spins", ONE),
    Case("ising tiled", "--solver tiled-nfold --tile 8 --size 32x64 --spins", resumed=AGAIN),
    Case("ising tiled members", "--solver tiled-nfold --tile 8 --size 16 --members 3 --spins"),
    Case("ising tiled window", "--solver tiled-nfold --tile 16 --size 64 --dt 0.5 --coarse 8"),
    Case("ising gather", "--size 64x256 --spins --coarse 8 --writer gather", SOME, AGAIN),
    # Initial states of spins.
    *(
        Case(f"{system} from {name}", f"{options} --spins {initial}")
        for system, options in (("ising", "--size 24"), ("kac", "--size 24"))
        for name, initial in (
            ("shuffled", "--initial shuffled --initial-magnetization 0.4"),
            ("random", "--initial random --initial-magnetization -0.3"),
            ("up", "--initial up"),
            ("gaussian", "--initial gaussian --size 64 --initial-magnetization 0.2"),
            ("gaussian short", "--initial gaussian --correlation-length 2.5"),
            ("spins", "--initial inputs/spins.npy"),
            ("means", "--initial inputs/means.npy"),
            ("run", "--initial inputs/spins.h5"),
            ("frame", "--initial inputs/spins.h5 --initial-frame 1 --initial-member 2"),
            ("time", "--initial inputs/spins.h5 --initial-time 0.5 --members 2"),
            ("bits", "--initial inputs/bits.h5"),
        )
    ),
    *(
        Case(f"ising {kernel} from {initial.split()[0]}", f"{options} --initial {initial} --spins")
        for kernel, options in (
            ("packed", "--size 32x128"),
            ("packed members", "--kernel packed --size 16x128 --members 2"),
            ("sliced", "--size 16 --members 65"),
        )
        for initial in ("shuffled", "random", "up", "gaussian --correlation-length 2")
    ),
    Case("ising packed from spins", "--size 32x128 --initial inputs/wide.npy --spins"),
    # Kac: each way to add up fields, each solver.
    Case(
        "kac steps",
        "--size 24x20 --spins",
        resumed=("", "--override tau=0.25 --override field=0.1"),
    ),
    Case("kac fft", "--size 24x20 --spins --method fft", resumed=AGAIN),
    Case("kac wide", "--size 64 --gamma 8 --coarse 8"),
    Case("kac wide fft", "--size 64 --gamma 8 --method fft --spin-bits"),
    Case("kac neighbours", "--size 24 --gamma 0 --tau 0.25 --field 0.1 --spins"),
    Case("kac narrow", "--size 24 --gamma 0.5 --spins"),
    Case("kac field file", "--size 24 --field-file inputs/field.npy --field 0.1 --spins"),
    Case("kac members", "--size 16 --members 3 --spins", resumed=AGAIN),
    Case("kac midpoint", "--size 24 --solver midpoint --spins", resumed=AGAIN),
    Case("kac midpoint fft", "--size 24 --solver midpoint --method fft --tau 0.25 --spins"),
    Case("kac midpoint members", "--size 16 --solver midpoint --members 3 --field 0.2 --spins"),
    Case("kac leap", "--size 24 --solver tau-leap --tau 0.05 --spins", resumed=AGAIN),
    Case("kac leap adaptive", "--size 24 --solver tau-leap --eps 0.1 --spins", resumed=AGAIN),
    Case("kac leap members", "--size 16 --solver tau-leap --members 3 --spins"),
    Case("kac leap fft", "--size 24 --solver tau-leap --method fft --eps 0.1 --spins"),
    Case("kac gillespie", "--size 24 --solver gillespie --spins", ONE, AGAIN),
    Case(
        "kac gillespie members",
        "--size 12 --gamma 1 --solver gillespie --members 5 --field 0.1 --spins",
        resumed=AGAIN,
    ),
    Case(
        "kac gillespie field file",
        "--size 24 --solver gillespie --field-file inputs/field.npy --spins",
        ONE,
    ),
    # Rules of several states, by table and compiled.
    Case("potts", "--size 26x44", resumed=("", "--override temperature=0.9 --override dt=0.5")),
    Case("potts blocks", "--states 10 --size 24x40 --coarse 4 --field 0.2 --initial random"),
    Case("potts compiled", "--states 20 --temperature 0.5 --size 24x40", resumed=AGAIN),
    Case("potts sweeps", "--size 26x44 --dt inf --coupling -1 --save-every 1", resumed=AGAIN),
    Case("potts members", "--size 12x10 --members 3", resumed=AGAIN),
    Case("potts columns", "--size 16x64 --ranks-grid 1,2", (2,), AGAIN),
    Case("potts ordered", "--size 24 --initial ordered --initial-state 2"),
    Case("potts nfold", "--solver nfold --size 15x21", ONE, AGAIN),
    Case("potts nfold members", "--states 5 --solver nfold --size 12 --members 5", resumed=AGAIN),
    Case("blume-capel", "--size 26x44 --field 0.1 --initial-fractions 0.2,0.5,0.3", resumed=AGAIN),
    Case("blume-capel members", "--size 16 --members 3 --coarse 4 --dt 0.5", resumed=AGAIN),
    Case("blume-capel nfold", "--solver nfold --size 15x21", ONE, AGAIN),
    # Alloys.
    Case("alloy serial", "--vacancies 3 --species", ONE, ("", "--override temperature=2500")),
    Case("alloy hops serial", "--vacancies 3 --species", ONE, AGAIN),
    Case("alloy hops tiled", f"{_SLABS} --species", resumed=AGAIN),
    Case("alloy serial members", "--members 3 --species", resumed=AGAIN),
    Case("alloy serial composition", "--composition 20,50,30 --species", ONE),
    Case("alloy serial counts", "--composition 100,131,198 --vacancies 3 --species", ONE),
    Case("alloy serial cold", "--temperature 900 --time 8e-9 --save-every 2e-9 --species", ONE),
    Case(
        "alloy tiled window",
        f"{_SLABS} --window 1e-10 --species",
        resumed=("", "--override window=5e-11"),
    ),
    Case("alloy tiled chosen", f"{_SLABS} --species", resumed=AGAIN),
    Case("alloy tiled tiles", f"{_TILES} --window 1e-10 --species"),
    Case("alloy tiled tiles chosen", f"{_TILES} --species", resumed=AGAIN),
    Case("alloy tiled members", f"{_SLABS} --members 3 --window 1e-10 --species", resumed=AGAIN),
    Case("alloy tiled members chosen", f"{_SLABS} --members 3 --species"),
    Case("alloy tiled grid", f"{_TILES} --ranks-grid 2,2,1", (4,)),
    *(
        Case(f"alloy serial {name}", f"--barriers inputs/{file} --species {more}", ONE)
        for name, file, more in (
            ("published", "weights.npy", ""),
            ("published paper", "weights.npy", "--axis-order paper"),
            ("imported", "weights.safetensors", ""),
        )
    ),
    Case(
        "alloy tiled published",
        f"{_SLABS} --vacancies 2 --barriers inputs/weights.npy --window 1e-10 --species",
    ),
    *(
        Case(
            f"alloy {solver} from {file} {more}".rstrip(),
            f"{options} --initial inputs/{file} {more} --species",
        )
        for solver, options in (
            ("members", "--members 2"),
            ("tiled", "--solver tiled --cells 32x4x4 --window 1e-10"),
        )
        for file, more in (
            (f"{solver}.lammpstrj", ""),
            (f"{solver}.extxyz", ""),
            (f"{solver}.vasp", ""),
            (f"{solver}.data", "--elements Nb,Mo,Ta"),
            (f"{solver}.h5", "--initial-frame 2"),
            (f"{solver}.h5", "--initial-time 2e-10"),
        )
    ),
    Case("alloy members from cif", "--members 2 --initial inputs/members.cif --species", ONE),
    # Learned fields.
    Case("field cosh", "inputs/cosh", resumed=("", "--override field=0.2 --reseed 9")),
    Case("field langevin", "inputs/cosh --structure langevin", resumed=AGAIN),
    Case("field radial", "inputs/radial --initial-magnetization 0.3"),
    Case("field members", "inputs/cosh --members 3", resumed=AGAIN),
    Case("field members langevin", "inputs/cosh --members 3 --structure langevin --field 0.1"),
    Case("field stretch", "inputs/cosh --stretch 2 --size 64"),
    Case("field block", "inputs/cosh --block 8 --size 64x128 --dt 0.1"),
    Case("field from run", "inputs/cosh --initial inputs/field.h5 --initial-frame 1"),
    Case("field from array", "inputs/cosh --initial inputs/blocks.npy --structure langevin"),
    Case("field two temperatures", "inputs/two --temperature 1.2 --block 4"),
    # Systems that are never cut.
    Case("chain", "--profile", resumed=("", "--override dt=0.02 --override force=3")),
    Case("chain members", "--members 3 --profile --initial-displacement 1", resumed=AGAIN),
    Case("chain loose", "--coupling 0 --noise 2 --force 1 --friction 0.3 --dt 0.02"),
    Case("chain from run", "--initial inputs/chain.h5 --initial-frame 2 --members 2 --profile"),
    Case("chain from array", "--initial inputs/chain.npy --profile"),
    Case("curie-weiss", "", resumed=("", "--override temperature=0.8")),
    Case("curie-weiss members", "--members 3 --initial-magnetization 0.5", resumed=AGAIN),
    Case("curie-weiss field", "--size 5x7 --field 0.2 --coupling -1 --temperature 0.6"),
    Case("curie-weiss from run", "--initial inputs/curie.h5 --initial-member 1"),
    Case("predator-prey published", "--profile", resumed=AGAIN),
    Case("predator-prey pde", "--form pde --prey-diffusion 0.01 --profile", resumed=AGAIN),
    Case("predator-prey members", "--members 3 --noise 0.1 --prey-diffusion 0.02", resumed=AGAIN),
    Case("predator-prey from run", "--initial inputs/prey.h5 --initial-frame 1 --profile"),
    Case("predator-prey from array", "--initial inputs/prey.npy --profile"),
    Case("predator-prey wave", "--initial-prey 0.4 --initial-wave 0.3 --growth 2 --dt 0.005"),
    Case("spin-diffusion", "--model langevin", resumed=("", "--override beta=40")),
    Case("spin-diffusion members", "--model langevin --members 3 --no-precondition", resumed=AGAIN),
    Case(
        "spin-diffusion averaged", "--model averaged --rates arrhenius --members 3", resumed=AGAIN
    ),
    Case("spin-diffusion mean-field", "--model mean-field", resumed=("", "--override beta=160")),
    Case("spin-diffusion free-energy", "--model free-energy --frames-per-decade 5", resumed=AGAIN),
    Case("spin-diffusion from run", "--model point --initial inputs/atoms.h5 --initial-member 1"),
]


def command(case: Case, out: str) -> str:
    known = max((name for name in COMMON if case.name.startswith(name)), key=len)
    return f"{COMMON[known]} {case.options} --quiet --overwrite --out {out}"


#: Runs to start from: name, system, options.
INPUTS = (
    ("spins", "ising", "--size 24 --members 3 --spins --time 1 --save-every 0.5"),
    ("bits", "ising", "--size 24 --spin-bits --coarse 4"),
    ("members", "alloy", "--vacancies 3 --members 2 --species"),
    ("tiled", "alloy", "--cells 32x4x4 --vacancies 6 --species"),
    ("field", "field", "inputs/cosh"),
    ("chain", "chain", "--profile --members 3"),
    ("curie", "curie-weiss", "--members 3"),
    ("prey", "predator-prey", "--profile --members 3"),
    ("atoms", "spin-diffusion", "--model averaged --members 3"),
    *((f"few{n}", "kac", f"--size 20 --coarse 4 --seed {n}") for n in (0, 1)),
    *(
        (f"kac{n}", "kac", f"--size 48 --coarse 4 --seed {n} --temperature {t}")
        for n, t in enumerate((0.8, 0.8, 1.2))
    ),
)
#: Models to learn: name, runs, options, ranks.
MODELS = (
    ("cosh", "kac0 kac1 kac2", "--structure cosh --kernel free --radius 3", ALL),
    ("langevin", "kac0 kac1 kac2", "--structure langevin --kernel radial --lags 1,2", ALL),
    ("asymmetric", "kac0 kac2", "--asymmetric --mobility-terms 2 --entropy-terms 2", ALL),
    ("network", "few0 few1", "--network --radius 2", (2,)),
)
#: Exports: name, run, options.
EXPORTS = (
    ("netcdf", "spins", "--to netcdf"),
    ("netcdf part", "bits", "--to netcdf --variables spin_bits,energy --frames 1::2"),
    ("netcdf alloy", "tiled", "--to netcdf"),
    ("xdmf", "bits", "--to xdmf --variables coarse_magnetization"),
    ("xdmf member", "spins", "--to xdmf --member 1 --frames 0:2"),
    ("lammpsdump", "tiled", "--to lammpsdump --frame all"),
    ("lammpsdump vacancies", "members", "--to lammpsdump --member 1 --vacancies"),
    ("extxyz", "tiled", "--to extxyz --frame all"),
    ("extxyz vacancies", "members", "--to extxyz --frame 1 --vacancies"),
)


def save_weights(path: Path, rng: np.random.Generator) -> None:
    """Random numbers in the shapes of the published barrier network, as its authors saved them."""
    sides = (729, 128, 128, 128, 128, 1)
    arrays = []
    for i in range(5):
        arrays.append(rng.normal(0, 1 / np.sqrt(min(sides[i], 112)), sides[i : i + 2]))
        centres = (0, 1, 0, 0, 1) if i < 4 else (0,)
        arrays += [centre + rng.uniform(-0.3, 0.3, sides[i + 1]) for centre in centres]
    objects = np.empty(len(arrays), object)
    objects[:] = [array.astype(np.float32) for array in arrays]
    np.save(path, objects, allow_pickle=True)


def save_law(folder: Path, temperatures: tuple[float, ...], **form: Any) -> None:
    """A learned field of free spins that feel a short J, as ``mpiflow learn`` writes it."""
    from safetensors.numpy import save_file

    folder.mkdir()
    kernel = np.array([0.06726457, 0.05829596, 0.04932735, 0.04035874, 0.03139013, 0.02242152])
    coefficients = np.concatenate([[0.0, 1.0], kernel[: 2 if "kernel" in form else 6]])
    tensors = {"coefficients": coefficients, "covariance": np.zeros((coefficients.size,) * 2)}
    save_file(tensors, folder / "model.safetensors")
    form = {"structure": "cosh", "temperatures": temperatures, "mobility_terms": 1,
            "entropy_terms": 0, "temperature_degree": 0, "symmetric": True, "kernel": "free",
            "radius": 2, "width": 0, "monotone": False} | form  # fmt: skip
    about = {"kind": "onsagerflow", "form": form, "largest": 1.0, "card": {"spins": [16]}}
    (folder / "model.json").write_text(json.dumps(about))
