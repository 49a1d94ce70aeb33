"""What an accelerator makes of it: milliseconds an update, within minutes.

    python results/experiments/accelerator.py --out FOLDER [--seconds 240]

Measures at the paper's sizes (batch 256, four layers of 512, cube-double: 37 observations, 5 actions), in stages: one
seed against the reference formulation (speed.py) on the same card; eight seeds together; a profile; XLA's choices. The
programs of a stage are compiled side by side and timed one after the other. Each fact is a line of FOLDER/facts.jsonl,
on disk the moment it is known, so that a machine that is had for a quarter of an hour can be taken away at any time;
FOLDER/facts.md is a table of them.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import os
import pathlib
import re
import shutil
import statistics
import tarfile
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import basics
import drol
import fql
import speed
from common import command_line
from common.errors import exit_in_one_line
from speed import Program

import jax
from tabulate import tabulate

ROUNDS = 5  # timings of a program; the median counts, all are kept
UPDATES = {"loop": 1000, "reference": 200}  # of a call: as in training; as many dispatches as take a few tenths
KERNELS = 15  # that the profile lists
PROFILE = "profile"  # a stage


@dataclasses.dataclass(frozen=True)
class AcceleratorArgs:
    """Find out what this accelerator makes of DROL and FQL."""

    out: pathlib.Path
    """Folder for what is found out: facts.jsonl, programs, a profile."""
    seconds: float = 240.0
    """Time for the measurements; a stage that could not begin within it is left out, and says so."""
    width: int = 512
    """Of each hidden layer."""
    depth: int = 4
    """Hidden layers."""
    updates: int = UPDATES["loop"]
    """In one call of the compiled loop."""


class Facts:
    """A line of JSON each, on the disk when the call returns."""

    def __init__(self, folder: pathlib.Path):
        """Args: folder: exists."""
        self._path, self._start = folder / "facts.jsonl", time.monotonic()

    def __call__(self, **fact: Any) -> None:
        """Add one; `t` is seconds since the start."""
        line = json.dumps({"t": round(time.monotonic() - self._start, 1), **fact})
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def failure_of(self, stage: str, program: str) -> Iterator[None]:
        """What fails in here, for whatever reason, is a fact, too, and the others go on."""
        try:
            yield
        except Exception as error:
            self(stage=stage, program=program, error=f"{type(error).__name__}: {error}"[:500])


Make = Callable[[], Program]  # compiles


def settings(args: AcceleratorArgs, algorithm: types.ModuleType) -> Any:
    """The algorithm's, published for cube-double."""
    return basics.settings(algorithm, hidden_sizes=(args.width,) * args.depth)


def loop(
    args: AcceleratorArgs, algorithm: types.ModuleType, seeds: int = 1, updates: int = 0, **options: Any
) -> Program:
    """The loop that `main` compiles, over `args.updates` or others; `options` are XLA's, for this program alone."""
    return speed.compile_updates(algorithm, settings(args, algorithm), seeds, updates or args.updates, options)


def exact(args: AcceleratorArgs, algorithm: types.ModuleType) -> Program:
    """The same with products in float32 throughout; an accelerator rounds their operands by default (TF32)."""
    with jax.default_matmul_precision("highest"):  # part of what a program is cached by; it is this thread's alone
        return loop(args, algorithm)


def reference(args: AcceleratorArgs, algorithm: types.ModuleType) -> Program:
    """As the reference implementations are written: a batch from the host and a dispatch an update (speed.py)."""
    updates = min(UPDATES["reference"], args.updates)
    program = speed.one_update_a_dispatch(algorithm, settings(args, algorithm), updates, reference=True)
    jax.block_until_ready(program.call())  # compiles
    return program


def stages(args: AcceleratorArgs) -> Iterator[tuple[str, dict[str, Make]]]:
    """What is measured, the most important first."""
    of = functools.partial(functools.partial, loop, args)
    yield (
        "one seed",
        {
            "DROL(16)": of(drol),
            "FQL": of(fql),
            "DROL(16), reference": functools.partial(reference, args, drol),
            "FQL, reference": functools.partial(reference, args, fql),
        },
    )
    yield "eight seeds", {"DROL(16)": of(drol, 8), "FQL": of(fql, 8)}
    yield PROFILE, {"DROL(16)": of(drol, 1, args.updates // 20), "FQL": of(fql, 1, args.updates // 20)}
    if jax.default_backend() == "gpu":
        in_turn = {"xla_gpu_command_buffer_scheduling_mode": "LHS"}
        yield (
            "choices of XLA's",
            {
                "DROL(16), kernels in turn": of(drol, **in_turn),
                "FQL, kernels in turn": of(fql, **in_turn),
                "DROL(16), no graphs": of(drol, xla_gpu_graph_min_graph_size=10**6),
                "DROL(16), products by cuBLAS": of(drol, xla_gpu_enable_triton_gemm=False),
            },
        )
        yield (
            "products in float32",
            {"DROL(16)": functools.partial(exact, args, drol), "FQL": functools.partial(exact, args, fql)},
        )


def file_name(stage: str, program: str) -> str:
    """Letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{stage}-{program}").strip("-").lower()


def compile_side_by_side(facts: Facts, out: pathlib.Path, stage: str, programs: dict[str, Make]) -> dict[str, Program]:
    """XLA compiles without Python's lock. What does not compile is a fact, too."""

    def timed(make: Make) -> tuple[Program, float]:
        start = time.monotonic()
        return make(), time.monotonic() - start

    ready = {}
    with concurrent.futures.ThreadPoolExecutor(len(programs)) as pool:
        futures = {pool.submit(timed, make): name for name, make in programs.items()}
        for future in concurrent.futures.as_completed(futures):
            name = futures[future]
            with facts.failure_of(stage, name):  # of whatever kind, for an option or a card that XLA does not know
                ready[name], compile_s = future.result()
                facts(stage=stage, program=name, compile_s=round(compile_s, 1))
                if ready[name].compiled is not None:
                    keep_text(out / "programs.tar", f"{file_name(stage, name)}.txt.gz", ready[name].compiled.as_text())
    return {name: ready[name] for name in programs if name in ready}


def keep_text(archive: pathlib.Path, name: str, text: str) -> None:
    """Add a compressed text to an archive: one file, whenever all ends."""
    packed = gzip.compress(text.encode())
    entry = tarfile.TarInfo(name)
    entry.size = len(packed)
    with tarfile.open(archive, "a") as file:
        file.addfile(entry, io.BytesIO(packed))


def measure(args: AcceleratorArgs, facts: Facts, stage: str, programs: dict[str, Make]) -> dict[str, Program]:
    """Compile, then time one after the other."""
    ready = compile_side_by_side(facts, args.out, stage, programs)
    for name, program in ready.items():
        with facts.failure_of(stage, name):  # short of memory above all
            jax.block_until_ready(program.call())
            ms = [round(1e3 * speed.seconds(program.call) / program.updates, 5) for _ in range(ROUNDS)]
            sizes = program.compiled and program.compiled.memory_analysis()
            memory = {"temporary_mb": sizes.temp_size_in_bytes / 1e6} if sizes else {}
            facts(stage=stage, program=name, ms=statistics.median(ms), all=ms, **memory)
    return ready


def profile(args: AcceleratorArgs, facts: Facts, programs: dict[str, Program]) -> None:
    """The dearest kernels of an update. A profiler runs them one by one, so their durations count, and no gap does."""
    for name, program in programs.items():
        folder = args.out / file_name(PROFILE, name)
        with facts.failure_of(PROFILE, name):  # a machine may forbid it
            with jax.profiler.trace(folder, create_perfetto_trace=True):
                jax.block_until_ready(program.call())
            durations = kernel_durations(folder)
            total, count = (sum(column) / program.updates for column in zip((0.0, 0), *durations.values(), strict=True))
            facts(stage=PROFILE, program=name, kernel_us=round(total, 1), kernels=round(count, 1))
            for kernel, (us, n) in sorted(durations.items(), key=lambda item: -item[1][0])[:KERNELS]:
                each = {"us": round(us / program.updates, 2), "times": round(n / program.updates, 2)}
                facts(stage=PROFILE, program=name, kernel=kernel, **each)
            shutil.make_archive(str(folder), "gztar", folder.parent, folder.name)
            shutil.rmtree(folder)


def kernel_durations(folder: pathlib.Path) -> dict[str, tuple[float, int]]:
    """Microseconds and launches of each kernel in a trace: of events on a stream of a device."""
    files = folder.rglob("perfetto_trace.json.gz")
    events = [event for file in files for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]
    devices = {e["pid"] for e in events if e.get("name") == "process_name" and "/device:" in e["args"]["name"]}
    streams = {
        (e["pid"], e["tid"])
        for e in events
        if e.get("name") == "thread_name" and e["pid"] in devices and "Stream" in e["args"]["name"]
    }
    each = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
            each[event["name"]].append(event["dur"])
    return {name: (sum(durations), len(durations)) for name, durations in each.items()}


def render(folder: pathlib.Path) -> None:
    """FOLDER/facts.md from FOLDER/facts.jsonl: what was timed, under the card's name."""
    facts = [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]
    machine = next(fact for fact in facts if "device" in fact)
    compiled = {(fact["stage"], fact["program"]): fact["compile_s"] for fact in facts if "compile_s" in fact}
    timed = [
        (fact["stage"], fact["program"], fact["ms"], compiled[fact["stage"], fact["program"]], fact.get("temporary_mb"))
        for fact in facts
        if "ms" in fact
    ]
    headers = ("stage", "program", "ms an update (of all seeds)", "compiled in s", "temporary MB")
    table = tabulate(timed, headers, tablefmt="pipe", floatfmt=("", "", ".3f", ".0f", ".0f"))
    sizes = f"batch 256, hidden sizes {' '.join(map(str, machine['hidden_sizes']))}; medians of {ROUNDS}"
    title = f"{machine['device']}, jax {machine['jax']}; {sizes}.{machine.get('note', '')}"
    (folder / "facts.md").write_text(f"{title}\n\n{table}\n")


def main(args: AcceleratorArgs) -> None:
    """Measure in stages while there is time, then tabulate."""
    deadline = time.monotonic() + args.seconds
    args = dataclasses.replace(args, out=args.out.resolve())
    args.out.mkdir(parents=True, exist_ok=True)
    facts = Facts(args.out)
    device, sizes = jax.devices()[0], [args.width] * args.depth
    facts(device=device.device_kind, platform=device.platform, jax=jax.__version__, hidden_sizes=sizes)
    for stage, programs in stages(args):
        if time.monotonic() > deadline:
            facts(stage=stage, skipped="no time left")
            continue
        ready = measure(args, facts, stage, programs)
        if stage == PROFILE:
            profile(args, facts, ready)
    render(args.out)
    facts(measured=True)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(AcceleratorArgs)))
