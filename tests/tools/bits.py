"""Short runs of every system, solver and option that decides bits, and what they leave, as hashes.

A change that must not change results, as moving modules is, is held against the state before it:

    python tests/tools/bits.py --out /tmp/before.json       # before; six minutes
    python tests/tools/bits.py --compare /tmp/before.json   # after: what differs; exit code 1
    python tests/tools/bits.py --only 'kac.*fft' --ranks 1  # some of them
    python tests/tools/bits.py --drivers --compare ...      # the drivers too, seven minutes

Nothing is imported from mpiflow but its command line and its public names, and ``--tree`` runs the
package of another checkout, so that the same tool works before and after. A line has the name of a
case, its ranks and the sha256 of all that it left: values, types, dimensions, chunks and attributes
of its file and of its checkpoints, an export, a model. Left out is what differs from run to run or
names the program: the commit, versions, paths. ``--out`` keeps the parts themselves.

With ``--keep FOLDER`` all files stay there, and ``--halves FOLDER`` lets runs that are resumed
begin with those files: that an older mpiflow began them must change nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bits_cases import (
    ALL,
    CASES,
    EXPORTS,
    INPUTS,
    MODELS,
    ONE,
    Case,
    command,
    save_law,
    save_weights,
)

ROOT = Path(__file__).resolve().parents[2]
#: Parts of what a case left, by name, as texts.
Parts = dict[str, str]

# -- what is left, as texts ------------------------------------------------------------------------

#: Attributes and keys of JSON that name the program, or are drawn anew for each run.
_OURS = {"git_hash", "mpiflow_version", "run", "history", "inputs", "_NCProperties"}
#: References within an HDF5 file: places in it. Names of dimensions are looked up instead.
_PLACES = {"DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Coordinates", "_Netcdf4Dimid"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def of_array(values: np.ndarray) -> str:
    """Type, shape and bits."""
    values = np.asarray(values)
    if values.dtype.kind == "O":  # texts
        data = json.dumps([str(v) for v in values.ravel()]).encode()
    else:
        data = np.ascontiguousarray(values).tobytes()
    return f"{values.dtype} {values.shape} {digest(data)}"


def of_json(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A text for each number and word of a JSON value."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        yield name, json.dumps(value)
        return
    for key, item in value.items():
        if key not in _OURS:
            yield from of_json(f"{name}/{key}", item)


def of_attributes(name: str, attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in attributes:
        if key in _OURS or key in _PLACES:
            continue
        value = attributes[key]
        value = value.decode() if isinstance(value, bytes) else value
        if key.endswith("_json"):
            yield from of_json(f"{name}@{key}", json.loads(value))
        else:
            yield f"{name}@{key}", value if isinstance(value, str) else repr(value)


def of_hdf5(path: Path) -> Parts:
    """All of an HDF5 file: of a run, a checkpoint or a netCDF file."""
    import h5py

    parts: Parts = {}
    with h5py.File(path, "r", locking=False) as file:
        parts.update(of_attributes("", file.attrs))

        def add(name: str, item: Any) -> None:
            parts.update(of_attributes(name, item.attrs))
            if isinstance(item, h5py.Dataset):
                parts[name] = of_array(item[()])
                parts[f"{name} layout"] = layout_of(item)

        file.visititems(add)
    return parts


def layout_of(dataset: Any) -> str:
    """Names of dimensions, and how it is stored."""
    scales = [next((scale.name.strip("/") for scale in d.values()), "") for d in dataset.dims]
    stored = ("maxshape", "chunks", "compression", "compression_opts", "shuffle", "fletcher32",
              "fillvalue")  # fmt: skip
    return ", ".join(["x".join(scales), *(f"{n} {getattr(dataset, n)!r}" for n in stored)])


def of_file(path: Path) -> Parts:
    """What a file holds, by its kind; of any other, its bytes."""
    if path.suffix in (".h5", ".nc") or re.search(r"\.h5\.\d{6}$", path.name):
        return of_hdf5(path)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {name: of_array(array) for name, array in load_file(path).items()}
    if path.suffix == ".json":
        return dict(of_json("", json.loads(path.read_text())))
    return {"bytes": digest(path.read_bytes().replace(os.fsencode(path.parent), b"FOLDER"))}


def without(parts: Parts, folder: Path) -> Parts:
    """The same without the place where the files were."""
    return {key: text.replace(str(folder), "FOLDER") for key, text in parts.items()}


# -- one launch: all cases on so many ranks --------------------------------------------------------


def mpiflow(line: str) -> None:
    """A command line, in this process; what it prints is not kept."""
    from mpiflow.cli import invoke

    with contextlib.redirect_stdout(io.StringIO()):
        invoke(shlex.split(line))


def left_by(out: Path) -> Parts:
    """What a run left: its file and its checkpoints."""
    parts = of_hdf5(out)
    for point in sorted(out.parent.glob(f"checkpoints/{out.name}.*")):
        parts |= {f"checkpoint {point.suffix[1:]} {k}": v for k, v in of_hdf5(point).items()}
    return parts


def whole(case: Case) -> Callable[[], Parts]:
    out = f"{slug(case.name)}.h5"

    def run() -> Parts:
        mpiflow(command(case, out))
        return on_first(lambda: left_by(Path(out)))

    return run


def in_halves(case: Case, change: str, halves: Path | None) -> Callable[[], Parts]:
    """Half of a run, or the file of one that is there, and the rest by ``mpiflow resume``."""
    out = f"{slug(case.name)}-resumed.h5"

    def run() -> Parts:
        line = command(case, out)
        option, end = re.findall(r"--(time|hops) (\S+)", line)[-1]
        half = int(end) // 2 if option == "hops" else float(end) / 2
        if halves is None:
            mpiflow(f"{line} --{option} {half} --checkpoint-every {half / 2}")
            on_first(lambda: stow(Path(out), Path("halves")))
        else:
            on_first(lambda: stow(halves / Path.cwd().name / "halves" / out, Path()))
        mpiflow(f"resume {out} --{option} {end} {change} --quiet")
        return on_first(lambda: left_by(Path(out)))

    return run


def stow(out: Path, folder: Path) -> Parts:
    """Copy a run with its checkpoints into another folder, in place of one of its name there."""
    for old in (folder / "checkpoints").glob(f"{out.name}.*"):
        old.unlink()
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for path in (out, *sorted(out.parent.glob(f"checkpoints/{out.name}.*"))):
        shutil.copy(path, folder / path.relative_to(out.parent))
    return {}


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def on_first(look: Callable[[], Parts]) -> Parts:
    """What rank 0 finds, once all are here. Collective, errors too; other ranks get nothing."""
    from mpi4py import MPI

    comm, error = MPI.COMM_WORLD, None
    parts: Parts = {}
    comm.Barrier()
    if comm.rank == 0:
        try:
            parts = look()
        except Exception as caught:
            error = caught
    error = comm.bcast(error)
    if error is not None:
        raise error
    return parts


# -- inputs, learning, exports, Python -------------------------------------------------------------


def make_inputs(folder: Path) -> None:
    """Files that cases start from. On one rank."""
    folder.mkdir()
    rng = np.random.default_rng(11)
    signs = np.array([-1, 1], np.int8)
    np.save(folder / "spins.npy", rng.choice(signs, (24, 24)))
    np.save(folder / "wide.npy", rng.choice(signs, (32, 128)))
    np.save(folder / "means.npy", rng.integers(-64, 65, (24, 24)) / 64)
    np.save(folder / "field.npy", rng.integers(-64, 65, (24, 24)) / 128)
    np.save(folder / "blocks.npy", (rng.integers(-8, 9, (8, 8)) * 2 / 16).astype(np.float32))
    save_weights(folder / "weights.npy", rng)
    np.save(folder / "chain.npy", rng.integers(0, 65, 12) / 8)
    np.save(folder / "prey.npy", rng.integers(0, 65, (2, 24)) / 128)
    for name, more in {"cosh": {}, "radial": {"kernel": "radial"}, "two": {}}.items():
        save_law(folder / name, (0.8, 1.4) if name == "two" else (0.8,), **more)
    for name, system, options in INPUTS:
        mpiflow(command(Case(system, options), f"{folder}/{name}.h5"))
    mpiflow(f"import-nnk {folder}/weights.npy {folder}/weights.safetensors")
    import ase.io

    for name in ("members", "tiled"):
        for form in ("lammpsdump", "extxyz"):
            suffix = {"lammpsdump": "lammpstrj"}.get(form, form)
            mpiflow(f"export {folder}/{name}.h5 --to {form} --out {folder}/{name}.{suffix}")
        atoms = ase.io.read(folder / f"{name}.extxyz")
        ase.io.write(folder / f"{name}.vasp", atoms, sort=True)
        ase.io.write(folder / f"{name}.data", atoms, format="lammps-data", masses=True)
    ase.io.write(folder / "members.cif", ase.io.read(folder / "members.vasp"))  # slow to read


def learn(name: str, runs: str, options: str) -> Parts:
    out, files = Path(f"learned-{name}"), " ".join(f"inputs/{run}.h5" for run in runs.split())
    mpiflow(f"learn onsagerflow --runs {files} {options} --out {out} --overwrite")
    return on_first(lambda: of_file(out / "model.json") | of_file(out / "model.safetensors"))


def export(run: str, options: str) -> Parts:
    out = Path(f"export{'.nc' if 'netcdf' in options else '.txt'}")
    mpiflow(f"export inputs/{run}.h5 {options} --out {out} --overwrite")
    return of_file(out)


def python_frames() -> Parts:
    """Frames and spins of a simulation made in Python, and its record."""
    from mpiflow import Ising, Simulation, initial, record

    sim = Simulation(Ising(2.3, field=0.1), (24, 40), dt=0.5, seed=3)
    sim.set_spins(initial.shuffled, magnetization=0.25)
    rows = [frame.scalars() for frame in sim.frames(time=2, every=0.5)]
    parts = {name: of_array(np.array([row[name] for row in rows])) for name in rows[0]}
    spins = sim.gather()
    record(sim, "python.h5", time=4, save_every=1, spins=True, overwrite=True, progress=False)
    file = on_first(lambda: of_hdf5(Path("python.h5")))
    return parts | ({} if spins is None else {"spins": of_array(spins)}) | file


def python_patches(**options: Any) -> Parts:
    from mpiflow import Ising, partial_evolution

    patches = partial_evolution(_states(), np.arange(3), Ising(2.3), 8, seed=5, **options)
    names = ("before", "after", "elapsed", "index")
    return {name: of_array(getattr(patches, name)) for name in names} | {
        "changes": of_array(patches.changes())
    }


def python_relax(**options: Any) -> Parts:
    from mpiflow import Ising, local_relax, upsample

    states = upsample(_states(), 2)
    before = of_array(states)
    local_relax(states, np.arange(3), Ising(2.3), seed=5, window=16, **options)
    return {"before": before, "after": of_array(states)}


def _states() -> np.ndarray:
    return np.random.default_rng(5).choice(np.array([-1, 1], np.int8), (3, 16, 16))


EVENTS = {"duration": None, "flips": 20}
#: What has no command: name, function, ranks.
PYTHON: tuple[tuple[str, Callable[[], Parts], tuple[int, ...]], ...] = (
    ("python frames", python_frames, ALL),
    ("python patches", python_patches, ONE),
    ("python patches closed", lambda: python_patches(halo="wrap"), ONE),
    ("python patches buffer", lambda: python_patches(buffer=2, duration=1.0), ONE),
    ("python patches flips", lambda: python_patches(**EVENTS), ONE),
    ("python relax", python_relax, ONE),
    ("python relax closed", lambda: python_relax(halo="wrap", level=1), ONE),
    ("python relax flips", lambda: python_relax(**EVENTS), ONE),
)


def jobs(ranks: int, halves: Path | None) -> Iterator[tuple[str, Callable[[], Parts]]]:
    """All cases on so many ranks, in order: some use what others left."""
    if ranks == 1:
        for path in sorted(Path("inputs").rglob("[!.]*.*")):
            if path.name == "manifest.json":  # has the sha256 of whole files
                continue
            yield f"inputs {path.relative_to('inputs')}", partial(of_file, path)
    for case in CASES:
        if ranks in case.ranks:
            yield case.name, whole(case)
            for change in case.resumed:
                yield f"{case.name} resumed {change}".rstrip(), in_halves(case, change, halves)
    for name, runs, options, allowed in MODELS:
        if ranks in allowed:
            yield f"learn {name}", partial(learn, name, runs, options)
            case = Case(f"field learned {name}", f"learned-{name} --temperature 0.8 --time 1")
            yield case.name, whole(case)
    if ranks == 1:
        for name, run, options in EXPORTS:
            yield f"export {name}", partial(export, run, options)
    for name, function, allowed in PYTHON:
        if ranks in allowed:
            yield name, function


def worker(only: str, halves: Path | None) -> None:
    """All cases on the ranks of this launch, in this folder, which ends with ``parts.json``."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    found: dict[str, Parts] = {}
    if comm.size == 1 and not Path("inputs").exists():
        make_inputs(Path("inputs"))
    for name, job in jobs(comm.size, halves):
        if not re.search(only, name):
            continue
        try:
            parts = job()
        except (Exception, SystemExit) as error:
            if comm.rank == 0 and type(error).__name__ != "InputError":
                traceback.print_exc()
            parts = {"failed": f"{type(error).__name__}: {error}"}
        if comm.rank == 0:
            found[name] = without(parts, Path.cwd().parent)
            if halves is not None:
                found[name] = without(found[name], halves)
            print(f"{name} {comm.size} {total(found[name])}", flush=True)
    if comm.rank == 0:
        Path("parts.json").write_text(json.dumps(found))


def total(parts: Parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# -- all launches, and comparison ------------------------------------------------------------------


def launch(tree: Path, folder: Path, ranks: int, *command: str | Path, says: Any = None) -> None:
    """Start a program on so many ranks in a folder, with the package of a checkout.

    What it prints goes to ``says``, a file.
    """
    settings = {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    path = f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}"
    # In the foreground: what ends this program ends mpirun too.
    guard = ["timeout", "--foreground", "-k", "10", "1800"]
    subprocess.run(
        [*guard, "mpirun", "-n", str(ranks), sys.executable, *command],
        cwd=folder,
        env={**os.environ, **settings, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=says,
        stderr=says,
        check=True,
    )


#: Options of a driver that name the results of others.
NEEDS = {
    "alloy_report": {"--truth": "alloy_truth", "--model": "alloy_learn"},
    "alloy_sizes": {"--equilibrium": "alloy_equilibrium", "--models": "alloy_learn"},
    "onsagerflow_validate": {"--model": "onsagerflow_learn/models/cosh-radial"},
}
#: Quantities of results.json that are times, or made of times.
_TIMES = re.compile(r"second|speed|cost|wall| s\b|faster|minutes|per core", re.IGNORECASE)


def run_drivers(tree: Path, folder: Path) -> dict[str, Parts]:
    """What the drivers leave with --smoke: results, runs, models."""
    names = sorted(path.stem for path in (tree / "drivers").glob("*.py"))
    names.sort(key=NEEDS.__contains__)  # those that need others last
    jobs = [
        (name, [str(a) for o, place in NEEDS.get(name, {}).items() for a in (o, folder / place)])
        for name in names
    ]
    runner = next((tree / "tests").rglob("smoke.py"))
    with (folder / "log.txt").open("w") as log:
        try:
            launch(tree, folder, 2, runner, folder, json.dumps(jobs), says=log)
        except subprocess.CalledProcessError:
            print((folder / "log.txt").read_text()[-5000:], file=sys.stderr)
            raise
    return {f"driver {name}": left_by_driver(folder / name) for name in names}


def left_by_driver(out: Path) -> Parts:
    parts: Parts = {}
    for path in sorted(out.rglob("*")):
        if path.name == "results.json":
            rows = json.loads(path.read_text())
            found = dict(of_json("", [row for row in rows if not _TIMES.search(row["quantity"])]))
        elif path.suffix in (".h5", ".safetensors"):
            found = of_file(path)
        else:
            continue
        parts |= {f"{path.relative_to(out)} {key}": text for key, text in found.items()}
    return without(parts, out.parent)


def run_all(tree: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Parts]]:
    """Parts of all cases, by ranks and name."""
    found: dict[str, dict[str, Parts]] = {}
    wanted = [int(n) for n in arguments.ranks.split(",")]
    for ranks in sorted({1, *wanted}):
        here = folder / str(ranks)
        here.mkdir(parents=True)
        if ranks > 1:
            (here / "inputs").symlink_to(Path("..", "1", "inputs"))
        only = arguments.only if ranks in wanted else "(?!)"
        launch(tree, here, ranks, __file__, "--worker", "--only", only,
               *(("--halves", arguments.halves.resolve()) if arguments.halves else ()))  # fmt: skip
        found[str(ranks)] = json.loads((here / "parts.json").read_text())
    if arguments.drivers:
        (folder / "drivers").mkdir()
        found["drivers"] = run_drivers(tree, folder / "drivers")
        for name, parts in found["drivers"].items():
            print(f"{name} 2 {total(parts)}")
    return found


#: The text of an array: of_array.
_ARRAY = re.compile(r".* \(.*\) [0-9a-f]{16}")


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], only: str, values: bool, most: int = 8
) -> int:
    """Print what differs; the number of cases that do. A case that is new differs from nothing."""
    count = 0
    for ranks, cases in before.items():
        for name, old in cases.items():
            if ranks not in after or not re.search(only, name):
                continue
            new = after[ranks].get(name, {})
            texts = {key: (old.get(key, "nothing"), new.get(key, "nothing")) for key in old | new}
            changed = {key: pair for key, pair in texts.items() if pair[0] != pair[1]}
            arrays = {k: p for k, p in changed.items() if any(map(_ARRAY.fullmatch, p))}
            changed = arrays if values else arrays | changed
            if changed:
                count += 1
                print(f"DIFFERS: {name}, {ranks}: {len(arrays)} arrays of {len(changed)} parts")
                for key in list(changed)[:most]:
                    print(f"    {key}: {' -> '.join(changed[key])}")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all parts as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="with one of --out")
    parser.add_argument("--values", action="store_true", help="compare arrays alone")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose name has it")
    parser.add_argument("--ranks", default="1,2,4", help="default 1,2,4")
    parser.add_argument("--drivers", action="store_true", help="the drivers, too: --smoke")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave all files there")
    parser.add_argument("--halves", type=Path, metavar="FOLDER", help="of --keep, to go on with")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.only, arguments.halves)
        return 0
    if arguments.keep is not None and arguments.keep.exists():
        parser.error(f"{arguments.keep} exists: name another folder to keep files in")
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="mpiflow-bits-"))
    try:
        found = run_all(arguments.tree.resolve(), folder.resolve(), arguments)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=0, sort_keys=True))
    failed = [f"{name}, {ranks}: {parts['failed']}" for ranks, cases in found.items()
              for name, parts in cases.items() if "failed" in parts]  # fmt: skip
    print("".join(f"FAILED: {line}\n" for line in failed), end="")
    differ = 0
    if arguments.compare is not None:
        before = json.loads(arguments.compare.read_text())
        differ = compare(before, found, arguments.only, arguments.values)
        print(f"{differ} cases differ from {arguments.compare}")
    return int(bool(failed or differ))


if __name__ == "__main__":
    sys.exit(main())
