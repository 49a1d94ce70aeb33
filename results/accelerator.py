"""What this accelerator makes of it: milliseconds an update within minutes, and then the paper's run, for as long as it may.

    python results/accelerator.py --out FOLDER [--seconds 240] [--train-seconds 400]

Measures at the paper's sizes (batch 256, four layers of 512, cube-double: 37 observations, 5 actions), in stages: one
seed against the reference formulation (speed.py) on the same card; eight seeds together; XLA's choices; a profile. The
programs of a stage are compiled side by side and timed one after the other. Each fact is a line of FOLDER/facts.jsonl, on
disk the moment it is known, so that a machine that is had for a quarter of an hour can be taken away at any time.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import gzip
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the training is another process on the same card

import jax
import numpy as np
import tyro

import drol
import fql
import speed
from common.arguments import complete
from common.env_ids import resolve
from common.errors import exit_in_one_line

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
ROUNDS = 5  # timings of a program; the median counts, all are kept
UPDATES = {"loop": 1000, "reference": 200}  # of a call: as in training; as many dispatches as take a few tenths
SAVING_S = 25  # what a training needs to stop, save and export
COPY_S = 15  # between copies of a training's logs
KERNELS = 15  # that the profile lists
LOOP_AS_GRAPH = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"  # XLA's and WHILE


@dataclasses.dataclass(frozen=True)
class Args:
    """Find out what this accelerator makes of DROL and FQL."""

    out: pathlib.Path
    """Folder for what is found out: facts.jsonl, programs, a profile, logs and policy of the training."""
    seconds: float = 240.0
    """Time for the measurements; a stage that could not begin within it is left out, and says so."""
    train_seconds: float = 0.0
    """Then train DROL on cube-double as the paper does, for so long; save, and export the policy."""
    train: str = ""
    """Further arguments of that training: --train="--dataset-dir /data --online-steps 1000"."""
    pause: int = 0
    """A process group that is stopped while something is timed (of what collects data meanwhile)."""
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


class Program(NamedTuple):
    """What is timed: one call of it is so many updates."""

    call: Callable[[], Any]
    updates: int
    compiled: Any = None  # of what is compiled as a whole


Make = Callable[[], Program]  # compiles


def settings(args: Args, algorithm: types.ModuleType) -> Any:
    """The algorithm's, published for cube-double."""
    given = algorithm.Args(hidden_sizes=(args.width,) * args.depth)
    return complete(given, resolve("cube-double"), algorithm.published_settings)[0]


def loop(args: Args, algorithm: types.ModuleType, seeds: int = 1, updates: int | None = None, **options: Any) -> Program:
    """The loop over updates that `main` compiles; `options` are XLA's, for this program alone."""
    updates = updates or args.updates
    compiled, *inputs = speed.compile_updates(algorithm, settings(args, algorithm), seeds, updates, options)
    return Program(speed.repeat_updates(compiled, *inputs), updates, compiled)


def exact(args: Args, algorithm: types.ModuleType) -> Program:
    """The same with products in float32 throughout; an accelerator rounds their operands by default (TF32)."""
    with jax.default_matmul_precision("highest"):  # part of what a program is cached by; it is this thread's alone
        return loop(args, algorithm)


def reference(args: Args, algorithm: types.ModuleType) -> Program:
    """The reference implementations' formulation: a batch from the host and a dispatch an update, all K with gradient."""
    of_algorithm, updates = settings(args, algorithm), min(UPDATES["reference"], args.updates)
    init = functools.partial(algorithm.init_state, of_algorithm, speed.OBSERVATION_DIM, speed.ACTION_DIM)
    state = speed.ReferenceState.of(of_algorithm, jax.jit(init)(jax.random.key(1)))
    update = functools.partial(speed.reference_update, algorithm)
    call = speed.one_update_a_dispatch(algorithm, of_algorithm, update, state, updates)
    jax.block_until_ready(call())  # compiles
    return Program(call, updates)


def stages(args: Args) -> Iterator[tuple[str, dict[str, Make]]]:
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
    concurrent_graphs = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
    if jax.default_backend() == "gpu":
        yield (
            "choices of XLA's",
            {
                "DROL(16), graphs concurrent": of(drol, **concurrent_graphs),
                "FQL, graphs concurrent": of(fql, **concurrent_graphs),
                "DROL(16), no graphs": of(drol, xla_gpu_graph_min_graph_size=10**6),
                "DROL(16), products by cuBLAS": of(drol, xla_gpu_enable_triton_gemm=False),
                "DROL(16), the loop a graph": of(drol, xla_gpu_enable_command_buffer=LOOP_AS_GRAPH),
            },
        )
        yield (
            "more of them",
            {
                "DROL(16), 8 seeds, graphs concurrent": of(drol, 8, **concurrent_graphs),
                "DROL(16), products in float32": functools.partial(exact, args, drol),
                "FQL, products in float32": functools.partial(exact, args, fql),
            },
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
            try:
                ready[name], compile_s = future.result()
            except Exception as error:  # of whatever kind XLA raises for an option or a card it does not know
                facts(stage=stage, program=name, error=f"{type(error).__name__}: {error}"[:500])
                continue
            facts(stage=stage, program=name, compile_s=round(compile_s, 1))
            if ready[name].compiled is not None:
                with gzip.open(out / "hlo" / f"{file_name(stage, name)}.txt.gz", "wt") as file:
                    file.write(ready[name].compiled.as_text())
    return {name: ready[name] for name in programs if name in ready}


@contextlib.contextmanager
def alone(group: int) -> Iterator[None]:
    """With the processes of a group stopped, if there is one."""
    if not group:
        yield
        return
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)


def measure(args: Args, facts: Facts, stage: str, programs: dict[str, Make]) -> dict[str, Program]:
    """Compile, then time one after the other."""
    ready = compile_side_by_side(facts, args.out, stage, programs)
    for name, program in ready.items():
        try:
            with alone(args.pause):
                jax.block_until_ready(program.call())
                ms = [1e3 * speed.seconds(program.call) / program.updates for _ in range(ROUNDS)]
        except Exception as error:  # of whatever kind, short of memory above all
            facts(stage=stage, program=name, error=f"{type(error).__name__}: {error}"[:500])
            continue
        sizes = program.compiled and program.compiled.memory_analysis()
        memory = {"temporary_mb": sizes.temp_size_in_bytes / 1e6} if sizes else {}
        facts(stage=stage, program=name, ms=round(statistics.median(ms), 5), all=[round(m, 5) for m in ms], **memory)
    return ready


def profile(args: Args, facts: Facts) -> None:
    """The dearest kernels of an update. A profiler runs them one by one, so their durations count, and no gap does."""
    few = max(args.updates // 20, 1)
    programs = {"DROL(16)": drol, "FQL": fql}
    make = {name: functools.partial(loop, args, algorithm, 1, few) for name, algorithm in programs.items()}
    ready = compile_side_by_side(facts, args.out, "profile", make)
    for name, program in ready.items():
        folder = args.out / "profile" / file_name("profile", name)
        jax.block_until_ready(program.call())
        with alone(args.pause), jax.profiler.trace(folder, create_perfetto_trace=True):
            jax.block_until_ready(program.call())
        durations = kernel_durations(folder)
        total = sum(us for us, _ in durations.values()) / few
        count = sum(n for _, n in durations.values()) / few
        facts(stage="profile", program=name, kernel_us=round(total, 1), kernels=round(count, 1))
        for kernel, (us, n) in sorted(durations.items(), key=lambda item: -item[1][0])[:KERNELS]:
            facts(stage="profile", program=name, kernel=kernel, us=round(us / few, 2), times=round(n / few, 2))


def kernel_durations(folder: pathlib.Path) -> dict[str, tuple[float, int]]:
    """Microseconds and launches of each kernel in a trace: of events on a stream of a device."""
    events = [
        event
        for path in folder.rglob("perfetto_trace.json.gz")
        for event in json.loads(gzip.open(path, "rt").read())["traceEvents"]
    ]
    devices = {e["pid"] for e in events if e.get("name") == "process_name" and "/device:" in e["args"]["name"]}
    streams = {
        (e["pid"], e["tid"])
        for e in events
        if e.get("name") == "thread_name" and e["pid"] in devices and "Stream" in e["args"]["name"]
    }
    result: dict[str, tuple[float, int]] = {}
    for event in events:
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
            us, n = result.get(event["name"], (0.0, 0))
            result[event["name"]] = us + event["dur"], n + 1
    return result


def train(args: Args, facts: Facts) -> None:
    """DROL on cube-double as in the paper, ended politely when the time is up; its logs are copied as they grow."""
    start, run, kept = time.monotonic(), args.out / "run", ("config.json", "train.csv", "eval.csv", "time.csv")
    sizes = ["--hidden-sizes", *[str(args.width)] * args.depth]
    command = [sys.executable, "drol.py", "--env-id", "cube-double", "--run-dir", str(run), *sizes, *shlex.split(args.train)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    while process.poll() is None:
        time.sleep(min(COPY_S, max(0.0, start + args.train_seconds - SAVING_S - time.monotonic())))
        if time.monotonic() - start >= args.train_seconds - SAVING_S and process.poll() is None:
            process.terminate()  # it finishes its chunk, saves, and says how to go on
            process.wait()
        for name in kept:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(run / name, args.out / name)
    facts(stage="train", exit_status=process.returncode, seconds=round(time.monotonic() - start, 1))
    export = [sys.executable, "-m", "common.policy", str(run), "--out", str(args.out / "actor.npz")]
    facts(stage="train", exported=subprocess.run(export, cwd=REPOSITORY).returncode == 0)


def main(args: Args) -> None:
    """Measure in stages while there is time, pack, then train."""
    deadline = time.monotonic() + args.seconds
    args = dataclasses.replace(args, out=args.out.resolve())
    (args.out / "hlo").mkdir(parents=True, exist_ok=True)
    facts = Facts(args.out)
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    versions = {"jax": jax.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
    facts(device=device.device_kind, platform=device.platform, bytes_limit=limit, sizes=[args.width] * args.depth, **versions)
    for stage, programs in stages(args):
        if time.monotonic() > deadline:
            facts(stage=stage, skipped="no time left")
        else:
            measure(args, facts, stage, programs)
    if time.monotonic() > deadline:
        facts(stage="profile", skipped="no time left")
    else:
        try:
            profile(args, facts)
        except Exception as error:  # a machine may forbid profiling
            facts(stage="profile", error=f"{type(error).__name__}: {error}"[:500])
    for folder in ("hlo", "profile"):
        if (args.out / folder).is_dir():
            with tarfile.open(args.out / f"{folder}.tgz", "w:gz") as archive:
                archive.add(args.out / folder, folder)
            shutil.rmtree(args.out / folder)
    facts(measured=True)
    if args.train_seconds:
        train(args, facts)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(tyro.cli(Args)))
