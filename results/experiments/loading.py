"""What data costs: CPU seconds and memory until it lies where batches are drawn from, by format and size.

    python results/experiments/loading.py [--millions 1 4 10] [--before CHECKOUT] [--out results/speed/loading]

Files are made of a few episodes that are collected here, repeated: cube-single's as npz (plain, compressed), in one
file and in shards of a million rows; the ant's as HDF5 in D4RL's form, compressed; HalfCheetah's as a Minari data set.
Each is loaded in a process of its own, after a small one of its kind, whose CPU seconds and memory (an environment is
made) are taken off. Then a batch is drawn as in training, so that what a CPU holds twice counts twice. Linux only.
"""

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import basics
from common import command_line
from common.data import recipes
from common.env_ids import resolve
from common.errors import exit_in_one_line

import gymnasium
import h5py
import minari
import numpy as np
from tabulate import tabulate

EPISODES, STEPS = 10, 1000
MILLION = 10**6
Episode = dict[str, np.ndarray]

MEASURE = """
import json, pathlib, resource, sys
sys.path.insert(0, sys.argv[1])
import drol, jax, numpy as np
from common.arguments import complete
from common.data import sources
from common.env_ids import resolve
from common.replay import Batches
from common.seeds import Seeds

def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

def status(name):
    (line,) = (line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e3

def load(env_id, path):
    path = pathlib.Path(path)
    args = drol.Args(env_id=env_id, dataset_path=path, data_memory="device")
    start = cpu()
    dataset, _ = sources.load(resolve(env_id, path), args)
    seconds, kept = cpu() - start, dataset.num_bytes / 1e6
    batches = Batches(args, dataset, Seeds([0]), drol.keys_of_update, lambda step: step + 1)
    dataset = batches.dataset
    jax.block_until_ready(batches(0, 1))
    return seconds, kept

_, env_id, small, path = sys.argv[1:]
for file in (small, small, path):
    base = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    seconds, kept = load(env_id, file)
    peak = status("VmHWM") - base
    if file == small:
        small_seconds, small_peak = seconds, peak
print(json.dumps({"cpu_s": seconds - small_seconds, "peak_mb": peak - small_peak, "kept_mb": kept}))
"""


@dataclasses.dataclass(frozen=True)
class LoadingArgs:
    """Measure what data costs to load, by format and size."""

    millions: tuple[int, ...] = (1, 4)
    """Sizes, in millions of rows; a row of cube-single takes 297 bytes, plain."""
    formats: tuple[str, ...] = ("npz", "shards", "D4RL", "Minari")
    """Those whose names begin so."""
    before: pathlib.Path | None = None
    """Measure another checkout as well, in the same way: git worktree add PATH COMMIT."""
    folder: pathlib.Path | None = None
    """Where files are written, of which one is there at a time; the system's folder for such files if unset."""
    out: pathlib.Path | None = None
    """Write FILE.csv as well."""


def tiled(episode: Episode, rows: int) -> Episode:
    """Repeated, up to so many rows."""
    repeats = -(-rows // len(next(iter(episode.values()))))
    return {name: np.concatenate([array] * repeats)[:rows] for name, array in episode.items()}


def write_npz(path: pathlib.Path, arrays: Episode, compressed: bool) -> None:
    """As `np.savez_compressed`, but for a lower level, which takes as long to read and less to write."""
    method = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1} if compressed else {}
    with zipfile.ZipFile(path, "w", **method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)


def npz(episode: Episode, compressed: bool, path: pathlib.Path, rows: int) -> pathlib.Path:
    """A file in OGBench's form."""
    write_npz(path.with_suffix(".npz"), tiled(episode, rows), compressed)
    return path.with_suffix(".npz")


def shards(episode: Episode, compressed: bool, path: pathlib.Path, rows: int) -> pathlib.Path:
    """A folder of files of a million rows."""
    path.mkdir()
    for number, first in enumerate(range(0, rows, MILLION)):
        write_npz(path / f"x-v0-{number:03}.npz", tiled(episode, min(rows - first, MILLION)), compressed)
    return path


def hdf5(episode: Episode, path: pathlib.Path, rows: int) -> pathlib.Path:
    """A file in D4RL's form."""
    ends = np.arange(rows) % STEPS == STEPS - 1
    arrays = tiled({name: episode[name] for name in ("observations", "actions")}, rows)
    arrays |= {"rewards": np.zeros(rows, np.float32), "terminals": np.zeros(rows, bool), "timeouts": ends}
    arrays |= {f"infos/{name}": array for name, array in tiled({n: episode[n] for n in ("qpos", "qvel")}, rows).items()}
    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
    return path.with_suffix(".hdf5")


def minari_set(path: pathlib.Path, rows: int) -> pathlib.Path:
    """A Minari data set of HalfCheetah: a few episodes, copied within its file."""
    os.environ["MINARI_DATASETS_PATH"] = str(path)
    path.mkdir()
    env = minari.DataCollector(gymnasium.make("HalfCheetah-v5"))
    for seed in range(EPISODES):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(STEPS):
            env.step(env.action_space.sample())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env.create_dataset("loading/cheetah-v0")
    folder = path / "loading" / "cheetah-v0"
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for number in range(EPISODES, rows // STEPS):
            file.copy(f"episode_{number % EPISODES}", f"episode_{number}")
            file[f"episode_{number}"].attrs["id"] = number
    about = folder / "data" / "metadata.json"
    text = json.loads(about.read_text()) | {"total_episodes": rows // STEPS, "total_steps": rows}
    about.write_text(json.dumps(text))
    return folder


def forms() -> dict[str, tuple[str, Callable[[pathlib.Path, int], pathlib.Path]]]:
    """Name of each -> the environment that reads it, and what writes so many rows of it."""
    np.random.seed(0)
    cube, ant = (
        {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
        for episodes in (
            [collect() for _ in range(EPISODES)]
            for collect in (
                recipes.manipulation(resolve("cube-single"), STEPS),
                recipes.maze(resolve("antmaze-medium"), STEPS),
            )
        )
    )
    return {
        "npz, plain": ("cube-single", lambda path, rows: npz(cube, False, path, rows)),
        "npz, compressed": ("cube-single", lambda path, rows: npz(cube, True, path, rows)),
        "shards, plain": ("cube-single", lambda path, rows: shards(cube, False, path, rows)),
        "shards, compressed": ("cube-single", lambda path, rows: shards(cube, True, path, rows)),
        "D4RL's HDF5": ("d4rl-antmaze-medium-play", lambda path, rows: hdf5(ant, path, rows)),
        "Minari": ("loading/cheetah-v0", minari_set),
    }


def measure(checkout: pathlib.Path, env_id: str, small: pathlib.Path, path: pathlib.Path) -> dict[str, float] | None:
    """CPU seconds, and memory in MB; None where that checkout cannot read it."""
    command = [sys.executable, "-c", MEASURE, checkout, env_id, small, path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=checkout)
    if done.returncode != 0:
        print(f"{checkout}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[list[Any]]) -> str:
    """In Markdown: a line a file, what the checkouts need of it side by side."""
    names = list(dict.fromkeys(name for _, _, name, *_ in rows))
    lines: dict[tuple[str, int], dict[str, list[float]]] = {}
    for form, millions, name, *numbers in rows:
        lines.setdefault((form, millions), {})[name] = numbers
    header = ["format", "million rows", "file, MB", "kept, MB", *(f"CPU s, {n}" for n in names)]
    header += [*(f"peak, MB, {n}" for n in names), *(f"peak / kept, {n}" for n in names)]
    cells = []
    for (form, millions), found in lines.items():
        size, kept = found["now"][0], found["now"][3]
        of_each = [found.get(name, ["-"] * 5) for name in names]
        cells.append([form, millions, size, kept, *(numbers[column] for column in (1, 2, 4) for numbers in of_each)])
    return tabulate(cells, header, tablefmt="pipe")


def main(args: LoadingArgs) -> None:
    """Measure, one file after the other."""
    checkouts = {"before": args.before.resolve()} if args.before else {}
    checkouts |= {"now": basics.REPOSITORY}
    rows: list[list[Any]] = []
    chosen = {form: each for form, each in forms().items() if form.startswith(args.formats)}
    for form, (env_id, write) in chosen.items():
        for millions in args.millions:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                small = write(pathlib.Path(folder) / "small", EPISODES * STEPS)
                path = write(pathlib.Path(folder) / "large", millions * MILLION)
                files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
                size = sum(file.stat().st_size for file in files) / 1e6
                for name, checkout in checkouts.items():
                    if (found := measure(checkout, env_id, small, path)) is not None:
                        ratio = found["peak_mb"] / found["kept_mb"]
                        numbers = (size, found["cpu_s"], found["peak_mb"], found["kept_mb"], ratio)
                        rows.append([form, millions, name, *(float(f"{number:.3g}") for number in numbers)])
                        print(*rows[-1], sep="; ", flush=True)
    print(table(rows))
    if args.out is not None:
        header = ["format", "million rows", "code", "file, MB", "CPU s", "peak, MB", "kept, MB", "peak / kept"]
        with args.out.with_suffix(".csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(LoadingArgs)))
