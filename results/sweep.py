"""Train a grid of tasks, algorithms, seeds and settings, and go on with it until it is whole.

    python results/sweep.py --tasks paper --seeds 8 --on slurm --slurm partition=gpu gpus_per_node=1
    python results/sweep.py --tasks cube-double --algorithms drol --num-candidates 1 4 16
    python results/sweep.py --status

Any argument of the training scripts is passed on. Several values are a product (--num-candidates 1 4 16); one that is
itself a list is given several times (--hidden-sizes 256 256 --hidden-sizes 512 512).

A run's folder says what it is, FOLDER/drol-cube-double-task3-k16/seed3; what has several values in the grid, or is
given instead of a published setting, is in its name, too. So the same command again goes on with what was stopped,
tries again what failed, and starts nothing that is done or under way. `results/table.py FOLDER` and `results/plot.py
FOLDER` show what is there.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from common.errors import UserError, exit_in_one_line  # isort: skip (before all that takes long to import: Ctrl-C)

import collections
import contextlib
import dataclasses
import html
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import tyro
from tabulate import tabulate

import runs
from common.arguments import complete, flag
from common.env_ids import D4RL_MINARI_IDS, NUM_TASKS, OGBENCH_DATASET_TYPES, EnvSpec, resolve
from common.files import holder_of, try_lock, write_whole
from common.progress import duration
from common.run_directory import headline_evaluations, read_table, score_metric
from jobs import (
    REPOSITORY,
    Job,
    Place,
    SlurmTask,
    Workers,
    config_of,
    is_begun,
    last_row,
    run_folder,
    sharing_a_gpu,
    together,
)
from published import group_of, num_tasks

ALGORITHMS = {"drol": ("drol", ()), "fql": ("fql", ()), "drol-star": ("drol", ("--drol-star",))}  # script, options
FIXED_BY = {"drol-star": ("num_candidates",)}  # DROL* is a choice of K
OWN = {"env_id", "seed", "num_seeds", "run_dir", "resume", "evaluate", "video", "print_config"}  # the sweep gives these
DATA = ("data_source", "dataset_dir", "collect_episodes", "collect_workers")  # what results/fetch.py takes
SLURM = {"job_name": "sweep", "time": 24 * 60, "signal_delay_s": 120}  # minutes, seconds to save in
ARRAY_SIZE = 1000  # Slurm's own limit, unless it is configured otherwise


@dataclasses.dataclass(frozen=True)
class Args:
    """Train a grid, here or on Slurm. Arguments of the training scripts are passed on; several values are a product."""

    folder: pathlib.Path = pathlib.Path("runs/sweep")
    """Folder of the sweep, on a file system that all nodes share."""
    tasks: tuple[str, ...] = ("cube-double",)
    """Names as of --env-id; groups of the paper's Table 1: ogbench/cube-double, d4rl/adroit; ogbench, d4rl, paper."""
    algorithms: tuple[Literal["drol", "fql", "drol-star"], ...] = ("drol", "fql", "drol-star")
    """DROL(16), FQL, and DROL with the K that the paper tuned for each task."""
    seeds: int = 8
    """Seeds of each: 0, 1, .."""
    seeds_per_job: int = 1
    """Seeds that train together in one job (--num-seeds of the scripts)."""
    on: Literal["local", "slurm"] = "local"
    """This machine, a job at a time on each GPU (or on each core, where there is none); or Slurm."""
    jobs_per_gpu: int = 1
    """Small jobs can share a GPU: so many side by side, each with its share of the memory."""
    jobs_at_once: int | None = None
    """On this machine: so many jobs at once; one for each GPU (times --jobs-per-gpu) or core if unset."""
    attempts: int = 3
    """How often a failing job is tried: on Slurm on another node each time."""
    slurm: tuple[str, ...] = ()
    """Parameters of submitit's Slurm executor: partition=gpu account=us gpus_per_node=1 time=720 constraint=a100."""
    slurm_config: pathlib.Path | None = None
    """The same from a TOML file; the command line wins."""
    dry_run: bool = False
    """Print the grid and stop."""
    status: bool = False
    """Print how the sweep in the folder stands, and write it to FOLDER/status.html with learning curves."""

    def __post_init__(self) -> None:
        """Raises `UserError` for a number below one."""
        for name in ("seeds", "seeds_per_job", "jobs_per_gpu", "jobs_at_once", "attempts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{flag(name)} {getattr(self, name)}: out of range")


# ---- The grid --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """An algorithm with its settings on a task: what differs in the seed alone.

    Attributes:
        name: folder of its runs.
        task: 'cube-double-task3'.
        label: 'DROL(16)', with what differs from the published or default settings.
        script: 'drol.py'.
        options: arguments of the script, but for seeds and folder.
        updates: of a run.
        settings: what the papers tabulate, and where the values came from.
        learned: everything that has a part in what is learned, as JSON.
        data: name of the job that fetches its data set, and the options of results/fetch.py; None with --dataset-path.
        seeds: how many.
        seeds_per_job: how many train together, where they are new.
    """

    name: str
    task: str
    label: str
    script: str
    options: tuple[str, ...]
    updates: int
    settings: str
    learned: str
    data: tuple[str, tuple[str, ...]] | None
    seeds: int
    seeds_per_job: int


def paper_tasks() -> dict[str, list[str]]:
    """The 68 tasks of the paper's Table 1, by its groups."""
    groups = {group: [] for group in num_tasks()}
    ogbench = (f"{name}-task{task}" for name in OGBENCH_DATASET_TYPES for task in range(1, NUM_TASKS + 1))
    for name in (*ogbench, *D4RL_MINARI_IDS):
        if (group := group_of(resolve(name))) is not None:
            groups[group].append(name)
    return groups


def tasks_named(names: Iterable[str]) -> list[EnvSpec]:
    """The tasks that --tasks means, each once."""
    groups = paper_tasks()
    specs = {}
    for name in names:
        in_groups = [
            task for group, tasks in groups.items() if name in ("paper", group, group.split("/")[0]) for task in tasks
        ]
        for spec in map(resolve, in_groups or [name]):
            specs[spec.short_name] = spec
    return list(specs.values())


def values_of(words: list[str]) -> dict[str, list[tuple[str, ...]]]:
    """What is passed on: argument -> its values, each as the words that give it to a script.

    Raises:
        UserError: no script has such an argument, or the sweep gives it.
    """
    fields = {field.name: field for module in runs.SCRIPTS.values() for field in dataclasses.fields(module.Args)}
    values = collections.defaultdict(list)
    while words:
        given = words.pop(0)
        name = given.removeprefix("--").replace("-", "_")
        if name.startswith("no_") and name not in fields:
            name = name.removeprefix("no_")
        if not given.startswith("--") or name not in fields or name in OWN:
            raise UserError(f"{given}: neither an argument of the sweep, nor one of the scripts that it passes on")
        taken = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        del words[: len(taken)]
        if isinstance(fields[name].default, bool | tuple):
            values[name].append((given, *taken))
        else:
            values[name] += [(given, word) for word in taken] or [(given,)]
    return dict(values)


def grid(args: Args, passed_on: list[str]) -> list[Method]:
    """Every method of the sweep, task by task.

    Raises:
        UserError: an unknown task, an argument that no script has, or a value out of range.
    """
    values, methods = values_of(list(passed_on)), {}
    specs, varying = tasks_named(args.tasks), {name for name, several in values.items() if len(several) > 1}
    for algorithm in args.algorithms:
        script, own = ALGORITHMS[algorithm]
        module = runs.SCRIPTS[script]
        names = {field.name for field in dataclasses.fields(module.Args)} - set(FIXED_BY.get(algorithm, ()))
        for choice in itertools.product(*(values[name] for name in values if name in names)):
            options = (*own, *itertools.chain.from_iterable(choice))
            given = tyro.cli(module.Args, args=list(options), prog="results/sweep.py")
            plain = module.Args(drol_star=True) if own else module.Args()
            for spec in specs:
                method = _method(args, algorithm, spec, options, given, plain, varying)
                methods[spec.short_name, method.name] = method
    order = {spec.short_name: place for place, spec in enumerate(specs)}
    return sorted(methods.values(), key=lambda method: order[method.task])


def _method(
    args: Args, algorithm: str, spec: EnvSpec, options: tuple[str, ...], given: Any, plain: Any, varying: set[str]
) -> Method:
    script, _ = ALGORITHMS[algorithm]
    published = runs.SCRIPTS[script].published_settings
    settings, origins = complete(dataclasses.replace(given, env_id=env_id_of(spec)), spec, published)
    usual, _ = complete(dataclasses.replace(plain, env_id=env_id_of(spec)), spec, published)
    learned = {name: value for name, value in dataclasses.asdict(settings).items() if name not in runs.INCIDENTAL}
    in_name = {
        name: runs.describe_value(list(value) if isinstance(value, tuple) else value)
        for name, value in learned.items()
        if name in varying or (name in origins and name != "offline_steps" and value != getattr(usual, name))
    }
    k = [f"k{settings.num_candidates}"] if script == "drol" else []
    extras = [f"{name.replace('_', '-')}{value.replace(' ', 'x')}" for name, value in in_name.items()]
    paper_name = runs.algorithm_name(script, dataclasses.asdict(settings))
    return Method(
        name="-".join([algorithm, spec.short_name, *k, *extras]),
        task=spec.short_name,
        label=", ".join([paper_name, *(f"{name} {value}" for name, value in in_name.items())]),
        script=f"{script}.py",
        options=("--env-id", env_id_of(spec), *options),
        updates=settings.offline_steps + settings.online_steps,
        settings=", ".join(f"{name} {getattr(settings, name)} ({origin})" for name, origin in origins.items()),
        learned=json.dumps(learned, sort_keys=True, default=str),
        data=None if settings.dataset_path else _data(spec, settings),
        seeds=args.seeds,
        seeds_per_job=args.seeds_per_job,
    )


def env_id_of(spec: EnvSpec) -> str:
    """A spelling of --env-id that means this task."""
    return spec.short_name if spec.suite == "ogbench" or spec.family in D4RL_MINARI_IDS else spec.name


def _data(spec: EnvSpec, settings: Any) -> tuple[str, tuple[str, ...]]:
    name = spec.dataset_name if spec.suite == "ogbench" else spec.short_name
    size = [f"{settings.collect_episodes}-episodes"] if settings.collect_episodes else []
    given = {name: getattr(settings, name) for name in DATA if getattr(settings, name) is not None}
    options = itertools.chain.from_iterable((flag(name), str(value)) for name, value in given.items())
    return "-".join(["data", name, *size]), ("--env-id", env_id_of(spec), *options)


# ---- How it stands ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Standing:
    """A job of a method and its state: done, running, waiting, failed, stopped, or new."""

    method: Method
    job: Job
    state: str

    @property
    def is_to_start(self) -> bool:
        """Whether nobody does it, and somebody should."""
        return self.state in ("failed", "stopped", "new")


def stand(sweep: pathlib.Path, methods: list[Method]) -> list[Standing]:
    """The jobs of the grid, and the state of each by its files, by who holds them, and by Slurm."""
    queue, submitted = slurm_queue(), _read(sweep / "jobs" / "slurm.json", {})
    standings = []
    for method in methods:
        for seeds in together(sweep, method.name, range(method.seeds), method.seeds_per_job):
            job = Job(sweep, method.name, method.script, method.options, seeds)
            in_queue = {queue[job_id] for job_id in map(submitted.get, slurm_keys(job)) if job_id in queue}
            if job.is_done:
                state = "done"
            elif job.holder or "RUNNING" in in_queue:
                state = "running"
            elif in_queue:
                state = "waiting"
            elif job.failure:
                state = "failed"
            else:
                state = "stopped" if any(map(is_begun, job.runs)) else "new"
            standings.append(Standing(method, job, state))
    return standings


def slurm_keys(job: Job) -> list[str]:
    """What jobs/slurm.json says of a job: the Slurm job of each of its runs, however they were grouped."""
    return [f"{job.method}/seed{seed}" for seed in job.seeds] or [job.name]


def slurm_queue() -> dict[str, str]:
    """Slurm's jobs of this user that have not ended, '12_0' -> 'PENDING'; none where there is no Slurm."""
    if shutil.which("squeue") is None:
        return {}
    squeue = ["squeue", "--noheader", "--array", "--me", "--format", "%i %T"]
    try:
        lines = subprocess.run(squeue, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return {}  # the command alone is there
    return dict(line.split() for line in lines)


def _read(path: pathlib.Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def device_seconds(sweep: pathlib.Path, methods: list[Method]) -> dict[str, float]:
    """Method -> seconds that an update of one seed takes, by time.csv of its runs; else of runs of its script."""
    measured = collections.defaultdict(list)
    for method in methods:
        for seed in range(method.seeds):
            run = run_folder(sweep, method.name, seed)
            if row := last_row(run, "time"):
                seconds = row["time/seconds"] / row["step"] / len(config_of(run)["seeds_together"])
                measured[method.name].append(seconds)
                measured[method.script].append(seconds)
    mean = {name: sum(seconds) / len(seconds) for name, seconds in measured.items()}
    known = {method.name: mean.get(method.name, mean.get(method.script)) for method in methods}
    return {name: seconds for name, seconds in known.items() if seconds is not None}


def updates_of(run: pathlib.Path) -> int:
    """How far a run is."""
    return int(last_row(run, "time").get("step", 0))


def seconds_left(standing: Standing, seconds: dict[str, float]) -> float | None:
    """Of a device, for what is left of a job; None where nothing is known."""
    method, job = standing.method, standing.job
    left = sum(method.updates - updates_of(run) for run in job.runs) if standing.state != "done" else 0
    return left * seconds[method.name] if method.name in seconds else None if left else 0.0


def describe_estimate(standings: list[Standing], seconds: dict[str, float]) -> str:
    """'about 120 device hours are left (by time.csv of the runs that are there)'."""
    left = [seconds_left(standing, seconds) for standing in standings]
    known = [each for each in left if each is not None]
    unknown = f", and {len(left) - len(known)} jobs of a script that has not run yet" if len(known) < len(left) else ""
    if not any(left) and len(known) == len(left):
        return "nothing is left to do"
    if not known:
        return "no estimate of device hours yet: no run has a time.csv"
    return f"about {sum(known) / 3600:.3g} device hours are left{unknown} (an estimate, by time.csv of the runs here)"


def describe_grid(standings: list[Standing], seconds: dict[str, float]) -> str:
    """A line a method, then the sums."""
    by_method = collections.defaultdict(list)
    for standing in standings:
        by_method[standing.method].append(standing)
    lines = []
    for method, members in by_method.items():
        counts = collections.Counter(standing.state for standing in members)
        states = ", ".join(f"{number} {state}" for state, number in counts.items())
        lines.append(f"{method.name}: {method.seeds} seeds in {len(members)} jobs ({states}); {method.settings}")
    counts = collections.Counter(standing.state for standing in standings)
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    lines.append(f"{len(by_method)} methods, {len(standings)} jobs: {states}; {describe_estimate(standings, seconds)}")
    return "\n".join(lines)


def score_so_far(job: Job) -> list[float]:
    """Of each of its seeds that has been evaluated: the headline score, of the evaluations that are there."""
    scores = []
    for run in job.runs:
        if (run / "eval.csv").exists() and (rows := read_table(run / "eval.csv", at_damage="stop")):
            rows = headline_evaluations(config_of(run)["environment"]["suite"], rows)
            scores.append(sum(row[score_metric(rows)] for row in rows) / len(rows))
    return scores


STATES = ("done", "running", "waiting", "failed", "stopped", "new")
HEADER = ("task", "method", "seeds", *STATES, "updates", "score so far", "device time left")


def status_rows(standings: list[Standing], seconds: dict[str, float]) -> list[list[str]]:
    """A row a task and method; what is counted are seeds."""
    by_method = collections.defaultdict(list)
    for standing in standings:
        by_method[standing.method].append(standing)
    rows = []
    for method, members in by_method.items():
        counts = collections.Counter()
        for standing in members:
            counts[standing.state] += len(standing.job.seeds)
        updates = [updates_of(run) for standing in members for run in standing.job.runs]
        scores = [score for standing in members for score in score_so_far(standing.job)]
        left = [seconds_left(standing, seconds) for standing in members]
        rows.append(
            [
                method.task,
                method.label,
                str(method.seeds),
                *(str(counts[state] or "") for state in STATES),
                f"{sum(updates) / len(updates):,.0f} of {method.updates:,}",
                f"{sum(scores) / len(scores):.1f} ({len(scores)} seeds)" if scores else "",
                "unknown" if None in left else duration(sum(left)) if sum(left) else "",
            ]
        )
    return rows


def failures(jobs: Iterable[Job]) -> list[str]:
    """A line for each job that failed."""
    return [
        f"{job.name}: failed {failure.attempts} times, last on {failure.node}: {failure.line} ({job.log})"
        for job in jobs
        if (failure := job.failure) is not None
    ]


def show_status(sweep: pathlib.Path) -> None:
    """Print the table, and write it to SWEEP/status.html with the learning curves.

    Raises:
        UserError: there is no sweep in this folder.
    """
    record = _read(sweep / "sweep.json", None)
    if record is None:
        raise UserError(f"{sweep}: no sweep was started here; name its --folder")
    methods = [_method_of(entry) for entry in record]
    standings, seconds = stand(sweep, methods), device_seconds(sweep, methods)
    rows, estimate = status_rows(standings, seconds), describe_estimate(standings, seconds)
    failed = failures([*data_jobs(sweep, methods), *(standing.job for standing in standings)])
    print(tabulate(rows, HEADER, tablefmt="github", disable_numparse=True))
    print("\n".join([estimate, *failed]))
    page = sweep / "status.html"
    text = _page(sweep, rows, estimate, failed)
    write_whole(page, lambda temporary: temporary.write_text(text))
    print(page)


def _page(sweep: pathlib.Path, rows: list[list[str]], estimate: str, failed: list[str]) -> str:
    curves = ""
    with contextlib.suppress(UserError):  # nothing has been evaluated yet
        comparison = runs.read([sweep])
        import plot

        comparison.notes.clear()  # the table says what is unfinished
        figure, image = plot.draw(comparison, "updates"), io.StringIO()
        figure.savefig(image, format="svg")
        plot.plt.close(figure)
        curves = image.getvalue()[image.getvalue().index("<svg") :]
    escaped = [[html.escape(cell) for cell in row] for row in rows]
    table = tabulate(escaped, HEADER, tablefmt="unsafehtml", disable_numparse=True)
    items = "".join(f"<li>{html.escape(line)}</li>" for line in failed)
    now = f"{time.strftime('%Y-%m-%d %H:%M')}. {html.escape(estimate)}."
    return PAGE.format(title=html.escape(sweep.name), now=now, table=table, failed=items, curves=curves)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
td, th {{ padding: 3px 10px; border-bottom: 1px solid #ddd; text-align: left; }}
td:nth-child(n+3) {{ font-variant-numeric: tabular-nums; }}
td:nth-child(7), li {{ color: #b00; }}
svg {{ max-width: 100%; height: auto; }}
</style>
<h1>{title}</h1>
<p>{now}</p>
{table}
<ul>{failed}</ul>
{curves}
</html>
"""


def _method_of(entry: dict[str, Any]) -> Method:
    """A method as sweep.json has it."""
    data = entry["data"] and (entry["data"][0], tuple(entry["data"][1]))
    return Method(**entry | {"options": tuple(entry["options"]), "data": data})


# ---- Work ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(sweep: pathlib.Path) -> Iterator[None]:
    """One process at a time starts jobs in a sweep, from whatever login node. Raises `UserError` for the second."""
    (sweep / "jobs").mkdir(parents=True, exist_ok=True)
    path = sweep / "jobs" / ".lock"
    lock = try_lock(path)
    if lock is None:
        raise UserError(f"{sweep} is worked on by {holder_of(path)}")
    with lock:
        yield


def check_settings(sweep: pathlib.Path, methods: list[Method]) -> None:
    """Raises `UserError` if the folder has a method of the same name with other settings."""
    known = {entry["name"]: json.loads(entry["learned"]) for entry in _read(sweep / "sweep.json", [])}
    for method in methods:
        settings = json.loads(method.learned)
        for name, value in known.get(method.name, settings).items():
            if value != settings.get(name):
                was, now = runs.describe_value(value), runs.describe_value(settings.get(name))
                raise UserError(f"{sweep / method.name} was begun with {name} {was}, not {now}; name another --folder")


def record(sweep: pathlib.Path, methods: list[Method]) -> None:
    """Add the grid to what the sweep consists of."""
    known = {entry["name"]: entry for entry in _read(sweep / "sweep.json", [])}
    for method in methods:
        entry = dataclasses.asdict(method)
        known[method.name] = entry | {"seeds": max(method.seeds, known.get(method.name, entry)["seeds"])}
    text = json.dumps(list(known.values()), indent=1)
    write_whole(sweep / "sweep.json", lambda temporary: temporary.write_text(text))


def data_jobs(sweep: pathlib.Path, methods: Iterable[Method]) -> list[Job]:
    """One for each data set."""
    data = dict(method.data for method in methods if method.data is not None)
    return [Job(sweep, name, "results/fetch.py", options) for name, options in data.items()]


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None or os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def places_here(args: Args) -> list[Place]:
    """Where this machine does jobs at the same time."""
    share = sharing_a_gpu(args.jobs_per_gpu)
    places = [
        Place(f"gpu {gpu}", (("CUDA_VISIBLE_DEVICES", gpu), *share)) for _ in range(args.jobs_per_gpu) for gpu in gpus()
    ]
    if not places:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        places = [Place(f"core {core}", cores=(core,)) for core in cores]
    return list(itertools.islice(itertools.cycle(places), args.jobs_at_once or len(places)))


def work_here(args: Args, data: list[Job], jobs: list[Job]) -> None:
    """Data first, with the whole machine; then the jobs. At the first Ctrl-C or SIGTERM they save, at the second not.

    Raises:
        UserError: a job failed.
    """
    say = lambda line: print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)  # noqa: E731
    stages = [(data, Workers([Place("this machine")], args.attempts, say))]
    stages += [(jobs, Workers(places_here(args), args.attempts, say))]

    def stop(*_: object) -> None:
        again = stages[-1][1].stopping
        os.write(2, b"\nkilling the jobs\n" if again else b"\nstopping: jobs save and end; once more kills them\n")
        for _, workers in stages:
            workers.kill() if again else workers.stop()

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for members, workers in stages:
            workers.work(members)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stages[-1][1].stopping:
        print("stopped; the same command goes on", flush=True)
    elif failed := failures([*data, *jobs]):
        raise UserError(f"{len(failed)} of {len(data) + len(jobs)} jobs failed; --status names them")


def slurm_parameters(args: Args) -> dict[str, Any]:
    """What submitit is told. Raises `UserError` for what is not KEY=VALUE, or a file that is not TOML."""
    parameters = dict(SLURM)
    if args.slurm_config is not None:
        try:
            parameters |= tomllib.loads(args.slurm_config.read_text())
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"--slurm-config {args.slurm_config}: {error}") from error
    for word in args.slurm:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--slurm {word}: not KEY=VALUE")
        parameters[key] = int(value) if value.isdigit() else value
    return parameters


def submit(args: Args, sweep: pathlib.Path, data: list[Job], jobs: list[Job]) -> None:
    """One array for the data sets, and one for the jobs, which waits for it.

    Raises:
        UserError: there is no submitit or no Slurm, or it refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--on slurm needs submitit: pip install submitit") from error
    parameters = slurm_parameters(args)
    path = ":".join([str(REPOSITORY / "results"), str(REPOSITORY)])
    setup = [f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}", *parameters.pop("setup", [])]
    submitted = _read(sweep / "jobs" / "slurm.json", {})

    def submit_array(packs: list[tuple[Job, ...]], **more: Any) -> list[str]:
        place = Place("this node", sharing_a_gpu(args.jobs_per_gpu))
        tasks = [SlurmTask(pack, (place,) * len(pack), args.attempts) for pack in packs]
        ids = []
        for first in range(0, len(tasks), ARRAY_SIZE):
            executor = submitit.SlurmExecutor(sweep / "jobs" / "slurm", max_num_timeout=10**6)
            executor.update_parameters(**parameters | more, setup=setup)
            with executor.batch():
                array = [executor.submit(task) for task in tasks[first : first + ARRAY_SIZE]]
            ids += [job.job_id for job in array]
        for pack, job_id in zip(packs, ids, strict=True):
            submitted.update({key: job_id for job in pack for key in slurm_keys(job)})
        text = json.dumps(submitted, indent=1)
        write_whole(sweep / "jobs" / "slurm.json", lambda temporary: temporary.write_text(text))
        return ids

    def split(members: list[Job], size: int) -> list[tuple[Job, ...]]:
        return [tuple(members[i : i + size]) for i in range(0, len(members), size)]

    try:
        after = {}
        if data:
            without_gpu = {name: None for name in parameters if name.startswith("gpus_") or name == "gres"}
            ids = sorted({job_id.split("_")[0] for job_id in submit_array(split(data, 1), **without_gpu)})
            # afterany: where one data set cannot be had, the jobs of the others go on.
            after = {"dependency": ":".join(["afterany", *ids])}
            print(f"submitted {len(data)} data jobs: Slurm array {', '.join(ids)}")
        ids = submit_array(split(jobs, args.jobs_per_gpu), **after)
        print(f"submitted {len(jobs)} jobs: Slurm array {', '.join(sorted({each.split('_')[0] for each in ids}))}")
    except (ValueError, RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"Slurm: {error}") from error


def main(args: Args, passed_on: list[str]) -> None:
    """Print the grid, then start what nobody does yet."""
    sweep = args.folder.expanduser().resolve()
    if args.status:
        return show_status(sweep)
    methods = grid(args, passed_on)
    check_settings(sweep, methods)
    with contextlib.nullcontext() if args.dry_run else alone(sweep):
        standings = stand(sweep, methods)
        print(describe_grid(standings, device_seconds(sweep, methods)), flush=True)
        if args.dry_run:
            return None
        record(sweep, methods)
        to_start = [standing for standing in standings if standing.is_to_start]
        jobs = [standing.job for standing in to_start]
        data = [job for job in data_jobs(sweep, [standing.method for standing in to_start]) if not job.is_done]
        for job in (*data, *jobs):
            job.forget_failure()
        if not jobs:
            print("nothing to start")
        elif args.on == "slurm":
            submit(args, sweep, data, jobs)
        else:
            work_here(args, data, jobs)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(*tyro.cli(Args, return_unknown_args=True)))
