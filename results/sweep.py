"""Train a grid of tasks, algorithms, seeds and settings, and go on with it until it is whole.

    python results/sweep.py --tasks paper --seeds 8 --on slurm --slurm partition=gpu gpus_per_node=1
    python results/sweep.py --tasks cube-double --algorithms drol --num-candidates 1 4 16
    python results/sweep.py --status

A run's folder says what it is, FOLDER/drol-cube-double-task3-k16/seed3, and with what arguments. So the same command
again goes on with what was stopped, tries again what failed, and starts nothing that is done or under way (SWEEPS.md).
"""

import collections
import dataclasses
import functools
import html
import io
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import clone
import runs
from common import algorithms, command_line
from common.arguments import Count, RunArgs, complete, in_their_types
from common.env_ids import D4RL_MINARI_IDS, NUM_TASKS, OGBENCH_DATASET_TYPES, EnvSpec, resolve
from common.errors import UserError, exit_in_one_line, expanded
from common.files import holder_of, try_lock, write_whole
from common.processes import usable_cores
from common.progress import duration
from common.roles import Role, with_role
from common.scores import headline_steps, scores
from common.tables import read_table
from jobs import (
    Job,
    Place,
    SlurmTask,
    Supervisor,
    config_of,
    is_begun,
    last_row,
    sharing_a_gpu,
    sharing_cores,
    together,
)
from published import group_of

from tabulate import tabulate

STAR = "drol-star"  # drol.py with the K that the paper tuned
SLURM = {"job_name": "sweep", "time": 24 * 60, "signal_delay_s": 120}  # minutes, seconds to save in
FETCH = "results/fetch.py"


@dataclasses.dataclass(frozen=True)
class SweepArgs:
    """Train a grid, here or on Slurm. Arguments of the training scripts are passed on; several values are a product."""

    folder: pathlib.Path = pathlib.Path("runs/sweep")
    """Folder of the sweep, on a file system that all nodes share."""
    tasks: tuple[str, ...] = ("cube-double",)
    """Names as of --env-id; groups of the paper's Table 1: ogbench/cube-double, d4rl/adroit; ogbench, d4rl, paper."""
    algorithms: tuple[str, ...] = ("drol", "fql", STAR)
    """Scripts; drol-star is drol with the K that the paper tuned for each task."""
    seeds: Count = 8
    """Seeds of each: 0, 1, .."""
    seeds_per_job: Count = 1
    """Seeds that train together in one job (--num-seeds of the scripts)."""
    on: Literal["local", "slurm"] = "local"
    """This machine, a job at a time on each GPU (or on each core, where there is none); or Slurm."""
    jobs_per_gpu: Count = 1
    """Small jobs can share a GPU: so many side by side, each with its share of the memory."""
    jobs_at_once: Count | None = None
    """On this machine: so many jobs at once; one for each GPU (times --jobs-per-gpu) or core if unset."""
    attempts: Count = 3
    """How often a failing job is tried: on Slurm on another node each time."""
    slurm: tuple[str, ...] = ()
    """Parameters of submitit's Slurm executor: partition=gpu account=us gpus_per_node=1 time=720 constraint=a100."""
    slurm_config: pathlib.Path | None = None
    """The same from a TOML file; the command line wins."""
    array_size: Count = 1000
    """Tasks of a Slurm array at most (Slurm's MaxArraySize less one); what is more becomes several."""
    dry_run: bool = False
    """Print the grid and stop."""
    status: bool = False
    """Print how all stands that was ever started in the folder; FOLDER/status.html has the learning curves, too."""

    def __post_init__(self) -> None:
        """Raises `UserError` for a number below one."""
        in_their_types(type(self), vars(self))


# ---- The grid --------------------------------------------------------------------------------------------------------


class Method(NamedTuple):
    """An algorithm with its settings on a task: what differs in the seed alone."""

    name: str  # folder of its runs
    task: str  # 'cube-double-task3'
    script: str  # 'drol.py'
    options: tuple[str, ...]  # of the script, but for seeds and folder
    updates: int  # of a run
    settings: str  # what the papers tabulate, and where the values came from
    data: tuple[str, ...]  # options of results/fetch.py, which makes its data set be there; none with --dataset-path
    seeds: int
    seeds_per_job: int


def grid(args: SweepArgs, passed_on: list[str]) -> list[Method]:
    """Every method of the sweep, task by task.

    Raises:
        UserError: an unknown task, an argument that no script has, or a value out of range.
    """
    values, methods = values_of(list(passed_on)), {}
    for spec, algorithm in itertools.product(tasks_named(args.tasks), args.algorithms):
        own = ("--drol-star",) if algorithm == STAR else ()
        module = algorithms.load("drol" if own else algorithm)
        has = {field.name for field in dataclasses.fields(module.Args)} - ({"num_candidates"} if own else set())
        names = [name for name in values if name in has]
        unnamed = with_role(module.Args, Role.HOW, Role.PLACE) | {"num_candidates"}  # (K is in all names anyway)
        of_data = sorted(with_role(module.Args, Role.DATA, Role.PLACE) & set(names))
        for words in itertools.product(*(values[name] for name in names)):
            options, choice = (*own, *itertools.chain(*words)), dict(zip(names, words, strict=True))
            given = dataclasses.replace(_read(module.Args, options), env_id=spec.name)
            settings, origins = complete(given, spec, module.published_settings)
            k = [f"k{settings.num_candidates}"] if "num_candidates" in origins else []
            told = [f"{choice[n][0][2:]}{'x'.join(choice[n][1:])}" for n in sorted(choice) if n not in unnamed]
            name = "-".join([algorithm, spec.short_name, *k, *told])
            data_set = spec.family if spec.suite == "ogbench" else spec.name
            fetched = ("--env-id", data_set, *itertools.chain(*map(choice.get, of_data)))
            methods[name] = Method(
                name=name,
                task=spec.short_name,
                script=f"{module.__name__}.py",
                options=("--env-id", spec.name, *options),
                updates=settings.offline_steps + settings.online_steps,
                settings=", ".join(f"{name} {getattr(settings, name)} ({origins[name]})" for name in origins),
                data=fetched if settings.dataset_path is None else (),
                seeds=args.seeds,
                seeds_per_job=args.seeds_per_job,
            )
    return list(methods.values())


def nameable(sweep: pathlib.Path, methods: list[Method]) -> list[Method]:
    """Those whose folders and files have names that the file system takes; the others are named, and left out."""
    there = next(folder for folder in (sweep, *sweep.parents) if folder.is_dir())
    limit, taken = os.pathconf(there, "PC_NAME_MAX"), []
    for method in methods:
        longest = Job(sweep, method.name, "", (), tuple(range(method.seeds))).note.name
        if len(os.fsencode(longest)) <= limit:
            taken.append(method)
        else:
            problem = f"has {len(os.fsencode(longest))} bytes, and {there} takes {limit}; name fewer settings"
            print(f"left out: {longest[:60]}..{longest[-20:]} {problem}", file=sys.stderr, flush=True)
    return taken


def tasks_named(names: Iterable[str]) -> list[EnvSpec]:
    """The tasks that --tasks means, each once: for a group of the paper's Table 1 all of its tasks."""
    ogbench = (f"{name}-task{task}" for name in OGBENCH_DATASET_TYPES for task in range(1, NUM_TASKS + 1))
    groups = [(spec, group_of(spec)) for spec in map(resolve, (*ogbench, *D4RL_MINARI_IDS))]
    specs = []
    for name in names:
        in_group = [spec for spec, group in groups if group and name in ("paper", group, group.split("/")[0])]
        specs += in_group or [resolve(name)]
    once = {}
    for spec in specs:  # OGBench's default task has two names
        once.setdefault((spec.env_name, spec.family, spec.task_number), spec)
    return list(once.values())


def values_of(words: list[str]) -> dict[str, list[tuple[str, ...]]]:
    """What is passed on: argument -> its values, each as the words that give it to a script.

    Several values are a product (--num-candidates 1 4 16). One that is itself a list is given several times
    (--hidden-sizes 256 256 --hidden-sizes 512 512), and so is one without a value (--balanced-sampling
    --no-balanced-sampling).

    Raises:
        UserError: not an argument of a script, or one that the sweep gives; several values, but no place in the name.
    """
    scripts = [algorithms.load(name).Args for name in algorithms.names()]
    fields = {field.name: (field, script) for script in scripts for field in dataclasses.fields(script)}
    own = set().union({"drol_star"}, *(with_role(script, Role.RUN) for script in scripts))  # what the sweep gives
    unnamed = set().union(*(with_role(script, Role.HOW, Role.PLACE) for script in scripts))
    values = collections.defaultdict(list)
    while words:
        given = words.pop(0).replace("_", "-")
        name = given.removeprefix("--").replace("-", "_")
        name = name if name in fields else name.removeprefix("no_")
        if not given.startswith("--") or name not in fields or name in own:
            raise UserError(f"{given}: neither an argument of the sweep, nor one of the scripts that it passes on")
        taken = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        del words[: len(taken)]
        field, script = fields[name]
        taken = [command_line.canonical(script, name, word) for word in taken]
        if isinstance(field.default, bool | tuple):
            values[name].append((given, *taken))
        else:
            values[name] += [(given, word) for word in taken] or [(given,)]
        if len(values[name]) > 1 and name in unnamed:
            raise UserError(f"{given}: can have one value only, since runs are not told apart by it")
    return dict(values)


@functools.cache  # the same for all tasks
def _read(args_class: type[RunArgs], options: tuple[str, ...]) -> RunArgs:
    return command_line.read(args_class, args=list(options), prog="results/sweep.py")


# ---- How it stands ---------------------------------------------------------------------------------------------------

Standing = dict[Method, dict[Job, str]]  # the jobs of a method: done, running, waiting, failed, stopped, or new


def stand(sweep: pathlib.Path, methods: list[Method]) -> Standing:
    """How each job stands by its files, by who holds them, and by Slurm's queue."""
    queue = slurm_queue(sweep)
    standing = {}
    for method in methods:
        groups = together(sweep, method.name, range(method.seeds), method.seeds_per_job)
        jobs = [Job(sweep, method.name, method.script, method.options, seeds) for seeds in groups]
        standing[method] = {job: _state(job, {queue.get(str(run)) for run in job.runs}) for job in jobs}
    return standing


def _state(job: Job, in_queue: set[str | None]) -> str:
    if job.is_done:
        return "done"
    if job.holder or "RUNNING" in in_queue:
        return "running"
    if in_queue != {None}:
        return "waiting"
    if job.failure:
        return "failed"
    return "stopped" if any(map(is_begun, job.runs)) else "new"


def slurm_queue(sweep: pathlib.Path) -> dict[str, str]:
    """Runs of this sweep that are in Slurm's queue, and the state of their jobs: 'PENDING'."""
    submitted = _submitted(sweep)
    if not submitted or shutil.which("squeue") is None:
        return {}
    squeue = ["squeue", "--noheader", "--array", "--me", "--format", "%i %T"]
    try:
        listed = subprocess.run(squeue, capture_output=True, text=True, check=True, timeout=60).stdout
    except subprocess.SubprocessError as error:
        raise UserError(f"Slurm does not answer, so what is under way is not known: {error}") from error
    queue = dict(line.split() for line in listed.splitlines())
    return {run: queue[job_id] for run, job_id in submitted.items() if job_id in queue}


def _submitted(sweep: pathlib.Path) -> dict[str, str]:
    """Run -> the Slurm job that was submitted for it last."""
    file = sweep / "jobs" / "slurm.json"
    return json.loads(file.read_text()) if file.exists() else {}


def seconds_left(standing: Standing) -> dict[Method, float | None]:
    """Of a device, by time.csv of the method's runs, or else of its script's; None where there is none."""
    rates = collections.defaultdict(list)  # seconds that an update of one seed takes
    for method, run in ((method, run) for method, jobs in standing.items() for job in jobs for run in job.runs):
        if row := last_row(run, "time"):
            rate = row["time/seconds"] / row["step"] / len(config_of(run)["seeds_together"])
            rates[method.name].append(rate)
            rates[method.script].append(rate)
    left = {}
    for method, jobs in standing.items():
        to_do = [run for job, state in jobs.items() if state != "done" for run in job.runs]
        updates = sum(method.updates - updates_of(run) for run in to_do)
        known = rates[method.name] or rates[method.script]
        left[method] = updates * sum(known) / len(known) if known else None if updates else 0.0
    return left


def updates_of(run: pathlib.Path) -> int:
    """How far a run is."""
    return int(last_row(run, "time").get("step", 0))


def score_so_far(run: pathlib.Path) -> float | None:
    """Headline score of the evaluations that are there."""
    if not (run / "eval.csv").exists() or not (rows := read_table(run / "eval.csv", at_damage="stop")):
        return None
    config, by_step = config_of(run), scores(rows)
    last = headline_steps(config["environment"]["family"], config["args"], by_step)
    return sum(by_step[step] for step in last) / len(last)


HEADER = ("task", "method", "seeds", "updates", "score so far", "device time left", "settings")


def describe(standing: Standing) -> tuple[list[tuple[str, ...]], str]:
    """A row a task and method, as in HEADER, and the sums in a line."""
    left, rows = seconds_left(standing), []
    for method, jobs in standing.items():
        of_method = [run for job in jobs for run in job.runs]
        seeds = collections.Counter(state for job, state in jobs.items() for _ in job.runs)
        scores = [score for run in of_method if (score := score_so_far(run)) is not None]
        seconds = left[method]
        name, updates = method.name.replace(f"-{method.task}", "", 1), sum(map(updates_of, of_method)) / len(of_method)
        score = f"{sum(scores) / len(scores):.1f} ({len(scores)} seeds)" if scores else ""
        time_left = "unknown" if seconds is None else duration(seconds) if seconds else ""
        progress = f"{updates:,.0f} of {method.updates:,}"
        rows.append((method.task, name, _counts(seeds), progress, score, time_left, method.settings))
    states = collections.Counter(state for jobs in standing.values() for state in jobs.values())
    known = [seconds for seconds in left.values() if seconds is not None]
    unknown = f", and {len(left) - len(known)} methods of scripts that never ran" if len(known) < len(left) else ""
    if set(states) <= {"done"}:
        estimate = "nothing is left to do"
    elif not any(known):
        estimate = "no estimate of device hours yet: no run has a time.csv"
    else:
        hours = f"{sum(known) / 3600:.3g} device hours"
        estimate = f"about {hours} are left{unknown} (an estimate, by time.csv of its runs)"
    return rows, f"{len(standing)} methods, {sum(states.values())} jobs: {_counts(states)}; {estimate}"


def _counts(states: collections.Counter) -> str:
    return ", ".join(f"{number} {state}" for state, number in states.items())


def print_table(rows: list[tuple[str, ...]], *lines: str) -> None:
    """Rows as of `describe`, then lines."""
    print(tabulate(rows, HEADER, disable_numparse=True), *lines, sep="\n", flush=True)


def failures(jobs: Iterable[Job]) -> list[str]:
    """A line for each job that failed."""
    return [
        f"{job.name}: failed {failure.attempts} times, last on {failure.node}: {failure.line} ({job.log})"
        for job in jobs
        if (failure := job.failure) is not None
    ]


def show_status(sweep: pathlib.Path) -> None:
    """Print how all of it stands, and write that to SWEEP/status.html with the learning curves.

    Raises:
        UserError: there is no sweep in this folder.
    """
    standing = stand(sweep, remembered(sweep))
    rows, sums = describe(standing)
    failed = failures([*data_jobs(sweep, standing), *(job for jobs in standing.values() for job in jobs)])
    page = sweep / "status.html"
    text = PAGE.format(
        title=html.escape(sweep.name),
        now=f"{time.strftime('%Y-%m-%d %H:%M')}. {html.escape(sums)}.",
        table=tabulate([map(html.escape, row) for row in rows], HEADER, tablefmt="unsafehtml", disable_numparse=True),
        failed="".join(f"<li>{html.escape(line)}</li>" for line in failed),
        curves=_curves(sweep),
    )
    write_whole(page, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    print_table(rows, sums, *failed, str(page))


def _curves(sweep: pathlib.Path) -> str:
    try:
        comparison = runs.read([sweep])
    except UserError:  # nothing has been evaluated yet
        return ""
    import plot

    comparison.notes.clear()  # the table says what is unfinished
    figure, image = plot.draw(comparison, "updates"), io.StringIO()
    figure.savefig(image, format="svg")
    plot.plt.close(figure)
    return image.getvalue()[image.getvalue().index("<svg") :]


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }}
td, th {{ padding: 3px 10px; border-bottom: 1px solid #ddd; text-align: left; }}
li {{ color: #b00; }}
svg {{ max-width: 100%; height: auto; }}
</style>
<h1>{title}</h1>
<p>{now}</p>
{table}
<ul>{failed}</ul>
{curves}
</html>
"""


# ---- Work ------------------------------------------------------------------------------------------------------------


def remember(sweep: pathlib.Path, words: list[str]) -> None:
    """Add a command to SWEEP/commands.txt, once."""
    path = sweep / "commands.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if shlex.join(words) not in lines:
        text = "".join(f"{line}\n" for line in (*lines, shlex.join(words)))
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def remembered(sweep: pathlib.Path) -> list[Method]:
    """All that its commands were for."""
    if not (sweep / "commands.txt").exists():
        raise UserError(f"{sweep}: no sweep was started here; name its --folder")
    methods = {}
    for line in (sweep / "commands.txt").read_text(encoding="utf-8").splitlines():
        for method in grid(*parse(shlex.split(line))):
            seeds = max(method.seeds, methods.get(method.name, method).seeds)
            methods[method.name] = method._replace(seeds=seeds)
    return nameable(sweep, list(methods.values()))


def parse(words: list[str]) -> tuple[SweepArgs, list[str]]:
    """Arguments of the sweep, and those that it passes on."""
    return command_line.read(SweepArgs, args=words, return_unknown_args=True)


def data_jobs(sweep: pathlib.Path, methods: Iterable[Method]) -> list[Job]:
    """One for each data set."""
    jobs = []
    for told in dict.fromkeys(method.data for method in methods if method.data):
        options = dict(zip(told[::2], told[1::2], strict=True))
        name = [options[each] for each in ("--env-id", "--data-source", "--collect-episodes") if each in options]
        jobs.append(Job(sweep, "-".join(["data", *(re.sub("[/:]", "-", part) for part in name)]), FETCH, told))
    return jobs


def places_here(args: SweepArgs) -> list[Place]:
    """Where this machine does jobs at the same time."""
    share = sharing_a_gpu(args.jobs_per_gpu)
    on_gpus = [Place(f"gpu {gpu}", (("CUDA_VISIBLE_DEVICES", gpu), *share)) for gpu in gpus()] * args.jobs_per_gpu
    places = on_gpus or [Place(f"core {core}", cores=(core,)) for core in usable_cores()]
    places = list(itertools.islice(itertools.cycle(places), args.jobs_at_once or len(places)))
    return sharing_cores(places) if on_gpus else places


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None or os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def work_here(args: SweepArgs, data: list[Job], jobs: list[Job]) -> None:
    """Data first, with the whole machine; then the jobs. At the first Ctrl-C or SIGTERM they save, at the second not.

    Raises:
        UserError: a job failed.
    """
    supervisor = Supervisor(args.attempts, lambda line: print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True))

    def stop(*_: object) -> None:
        if supervisor.stopping:
            os.write(2, b"\nkilling the jobs\n")
            supervisor.kill()
        else:
            os.write(2, b"\nstopping: jobs save; once more kills them\n")
            supervisor.stop()

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed, _ = supervisor.work(data, [Place("this machine")])
        failed += supervisor.work(jobs, places_here(args))[0]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if supervisor.stopping:
        print("stopped; the same command goes on", flush=True)
    elif failed:
        raise UserError(f"{len(failed)} of {len(data) + len(jobs)} jobs failed; --status names them")


def slurm_parameters(args: SweepArgs) -> dict[str, Any]:
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
        parameters[key] = int(value) if value.isdigit() else {"true": True, "false": False}.get(value.lower(), value)
    if not isinstance(parameters["time"], int):
        raise UserError(f"--slurm time={parameters['time']}: minutes, a whole number")
    setup = parameters.get("setup", [])
    parameters["setup"] = [setup] if isinstance(setup, str) else list(setup)  # lines of the job's script
    return parameters


def submit(args: SweepArgs, sweep: pathlib.Path, data: list[Job], jobs: list[Job]) -> None:
    """One array for the data sets, and one for the jobs, which waits for it.

    Raises:
        UserError: there is no submitit or no Slurm, or it refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--on slurm needs submitit: pip install submitit") from error
    parameters = slurm_parameters(args)
    path = shlex.quote(f"{clone.RESULTS}:{clone.REPOSITORY}")
    setup = [f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}", *parameters.pop("setup")]
    task = SlurmTask(Place("this node", sharing_a_gpu(args.jobs_per_gpu)), args.attempts)

    def submit_arrays(jobs: list[Job], size: int, **more: Any) -> list[str]:
        packs = [tuple(jobs[i : i + size]) for i in range(0, len(jobs), size)]  # each is a task of an array
        ids = []
        for first in range(0, len(packs), args.array_size):
            executor = submitit.SlurmExecutor(sweep / "jobs" / "slurm", max_num_timeout=10**6)
            executor.update_parameters(**parameters | more, setup=setup)
            ids += [job.job_id for job in executor.map_array(task, packs[first : first + args.array_size])]
            submitted = _submitted(sweep)
            for pack, job_id in zip(packs, ids, strict=False):
                submitted |= {str(run): job_id for job in pack for run in job.runs}
            text = json.dumps(submitted, indent=1)
            write_whole(sweep / "jobs" / "slurm.json", lambda temporary, text=text: temporary.write_text(text))
        arrays = list(dict.fromkeys(job_id.split("_")[0] for job_id in ids))
        print(f"submitted {len(jobs)} jobs: Slurm array {', '.join(arrays)}", flush=True)
        return arrays

    try:
        after = {}
        if data:
            without_gpu = {name: None for name in parameters if name.startswith("gpus_") or name == "gres"}
            # afterany: where one data set cannot be had, the jobs of the others go on.
            after = {"dependency": ":".join(["afterany", *submit_arrays(data, 1, **without_gpu)])}
        submit_arrays(jobs, args.jobs_per_gpu, **after)
    except (ValueError, RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"Slurm: {error}") from error


def start(args: SweepArgs, sweep: pathlib.Path, standing: Standing) -> None:
    """What nobody does yet, and should be done."""
    jobs = [job for states in standing.values() for job in states if states[job] in ("failed", "stopped", "new")]
    methods, begun = {job.method for job in jobs}, {config.parts[-3] for config in sweep.glob("*/*/config.json")}
    found = {method.data for method in standing if method.name in begun}  # a run that has begun has found its data
    data = data_jobs(sweep, (method for method in standing if method.name in methods and method.data not in found))
    for job in (*data, *jobs):
        job.forget_failure()
    if not jobs:
        print("nothing to start")
    elif args.on == "slurm":
        submit(args, sweep, data, jobs)
    else:
        work_here(args, data, jobs)


def main(words: list[str]) -> None:
    """Print the grid, then start what nobody does yet, or goes on with it."""
    args, passed_on = parse(words)
    sweep = expanded(args.folder).resolve()
    if args.status:
        return show_status(sweep)
    named = grid(args, passed_on)
    methods = nameable(sweep, named)
    if args.dry_run:
        print_table(*describe(stand(sweep, methods)))
    else:
        go_on(args, sweep, methods, words)
    if len(methods) < len(named):
        raise UserError(f"{len(named) - len(methods)} of {len(named)} methods were left out: their names are too long")


def go_on(args: SweepArgs, sweep: pathlib.Path, methods: list[Method], words: list[str]) -> None:
    """Print the grid, remember the command, and start what nobody does yet."""
    lock_file = sweep / "jobs" / ".lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    if (lock := try_lock(lock_file)) is None:  # from whatever login node
        raise UserError(f"{sweep} is worked on by {holder_of(lock_file)}")
    with lock:
        standing = stand(sweep, methods)
        print_table(*describe(standing))
        remember(sweep, words)
        start(args, sweep, standing)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(sys.argv[1:]))
