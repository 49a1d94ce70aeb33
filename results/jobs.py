"""The jobs of a sweep: how each stands, and how they are done, one at a time in each place.

Job schedulers load this file before each job: it imports neither JAX nor submitit.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from common.files import holder_of, try_lock, write_whole

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
POLITE = {0, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}  # told to stop: no failure
GRACE_S = 600  # no longer between Slurm's asking a job to end and ending it
GPU_MEMORY = 0.9  # of a device, for all jobs on it; the rest is for what JAX does not allocate itself


@dataclasses.dataclass(frozen=True)
class Place:
    """What one job at a time may use.

    Attributes:
        name: for people: 'gpu 0', 'core 3'.
        variables: environment variables of its job.
        cores: CPU cores of its job; all if empty.
    """

    name: str
    variables: tuple[tuple[str, str], ...] = ()
    cores: tuple[int, ...] = ()


def sharing_a_gpu(jobs_per_gpu: int) -> tuple[tuple[str, str], ...]:
    """The memory of a device is divided evenly: JAX would take three quarters of it for its first process."""
    return (("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{GPU_MEMORY / jobs_per_gpu:.3g}"),) if jobs_per_gpu > 1 else ()


@dataclasses.dataclass(frozen=True)
class Failure:
    """What went wrong so far: `attempts` times, at last on `node`, with `line` as the last word."""

    attempts: int
    node: str
    line: str


@dataclasses.dataclass(frozen=True)
class Job:
    """One process of a sweep: seeds that train together, or a data set that is fetched or collected.

    Attributes:
        sweep: folder of the sweep, absolute.
        method: folder of its runs in there; the name of the job if it has none.
        script: what is run, from the repository's root.
        options: its arguments, without seeds and folder.
        seeds: seeds that train together; none if this is about data.
    """

    sweep: pathlib.Path
    method: str
    script: str
    options: tuple[str, ...]
    seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """'drol-cube-double-task3-k16-seed0', or '-seeds0-7'."""
        if len(self.seeds) > 1:
            return f"{self.method}-seeds{self.seeds[0]}-{self.seeds[-1]}"
        return f"{self.method}-seed{self.seeds[0]}" if self.seeds else self.method

    @property
    def runs(self) -> list[pathlib.Path]:
        """Run directories, one a seed."""
        return [run_folder(self.sweep, self.method, seed) for seed in self.seeds]

    @property
    def log(self) -> pathlib.Path:
        """What its processes print, one after the other."""
        return self.sweep / "jobs" / f"{self.name}.log"

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return all(map(is_finished, self.runs)) if self.seeds else self._file("done").exists()

    @property
    def holder(self) -> str | None:
        """Another process that trains one of these runs now: 'process 4711 on node3'."""
        return next((holder for run in self.runs if (holder := holder_of_run(run))), None)

    @property
    def failure(self) -> Failure | None:
        """What went wrong since the sweep was last started."""
        file = self._file("failed")
        return Failure(**json.loads(file.read_text())) if file.exists() else None

    def fail(self, line: str) -> Failure:
        """Remember another failure."""
        attempts = self.failure.attempts + 1 if self.failure else 1
        failure = Failure(attempts, os.environ.get("SLURMD_NODENAME", socket.gethostname()), line)
        text = json.dumps(dataclasses.asdict(failure))
        write_whole(self._file("failed"), lambda temporary: temporary.write_text(text))
        return failure

    def forget_failure(self) -> None:
        """It begins anew, or went well."""
        self._file("failed").unlink(missing_ok=True)

    def mark_done(self) -> None:
        """Of a data set: it is there."""
        self._file("done").touch()

    def command(self) -> list[str]:
        """What begins it or, where its runs are begun already, goes on with them."""
        python = [sys.executable, str(REPOSITORY / self.script)]
        if not self.seeds:
            return [*python, *self.options]
        if all(is_begun(run) for run in self.runs):
            return [*python, *where_data_is(self.options), "--resume", *map(str, self.runs)]
        for run in self.runs:
            shutil.rmtree(run, ignore_errors=True)  # killed while they were begun (`together` keeps others out)
        folder = self.runs[0] if len(self.seeds) == 1 else self.sweep / self.method
        seeds = ["--seed", str(self.seeds[0]), "--num-seeds", str(len(self.seeds))]
        return [*python, *self.options, *seeds, "--run-dir", str(folder)]

    def start(self, place: Place) -> subprocess.Popen:
        """Start its process; what it prints is appended to its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            return subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(place.variables),
                start_new_session=True,  # a Ctrl-C is for the sweep, which passes it on
                preexec_fn=functools.partial(_prepare, place.cores),
            )

    def _file(self, ending: str) -> pathlib.Path:
        return self.sweep / "jobs" / f"{self.name}.{ending}"


def _prepare(cores: tuple[int, ...]) -> None:
    """In a new process, before its program. Slurm sends the signal that is meant for submitit to all of a job."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def where_data_is(options: tuple[str, ...]) -> list[str]:
    """The options that go with --resume, too."""
    pairs = itertools.pairwise(options)
    return [word for pair in pairs if pair[0] in ("--dataset-path", "--dataset-dir") for word in pair]


# How a run stands, by its files


def run_folder(sweep: pathlib.Path, method: str, seed: int) -> pathlib.Path:
    """SWEEP/drol-cube-double-task3-k16/seed3."""
    return sweep / method / f"seed{seed}"


def is_begun(run: pathlib.Path) -> bool:
    """Whether there is a run to go on with."""
    return (run / "config.json").exists()


def config_of(run: pathlib.Path) -> dict[str, Any]:
    """Its config.json."""
    return json.loads((run / "config.json").read_text())


def total_updates(run: pathlib.Path) -> int:
    """Updates of the whole run."""
    args = config_of(run)["args"]
    return args["offline_steps"] + args["online_steps"]


def last_row(run: pathlib.Path, table: str) -> dict[str, float]:
    """The newest complete row of one of its tables; empty if there is none."""
    try:
        text = (run / f"{table}.csv").read_text()
        *_, row = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return {name: float(value) for name, value in row.items()}
    except (OSError, ValueError):  # not there, or without a row
        return {}


def is_finished(run: pathlib.Path) -> bool:
    """Whether the last update has been evaluated."""
    return is_begun(run) and last_row(run, "eval").get("step") == total_updates(run)


def holder_of_run(run: pathlib.Path) -> str | None:
    """Who trains it now; None if nobody does."""
    path = run / ".lock"
    if not path.exists():
        return None
    lock = try_lock(path)
    if lock is None:
        return holder_of(path)
    lock.close()
    return None


def together(sweep: pathlib.Path, method: str, seeds: Iterable[int], seeds_per_job: int) -> list[tuple[int, ...]]:
    """Which seeds train together: those that have done so before, to the same bits; new ones as many as are asked for.

    Seeds of which only some were begun, and none was ever saved (a kill in the first moment), begin again together.
    """
    groups, new = [], []
    for seed in seeds:
        run = run_folder(sweep, method, seed)
        if any(seed in group for group in groups):
            continue
        if not is_begun(run):
            new.append(seed)
            continue
        planned = config_of(run)["seeds_together"]
        begun = [each for each in planned if is_begun(run_folder(sweep, method, each))]
        if begun == planned or any(_is_saved(run_folder(sweep, method, each)) for each in begun):
            groups.append(tuple(begun))
        else:
            new.append(seed)
    return sorted(groups + [tuple(new[i : i + seeds_per_job]) for i in range(0, len(new), seeds_per_job)])


def _is_saved(run: pathlib.Path) -> bool:
    return any((run / "checkpoints").glob("*.npz"))


# Work


class Workers:
    """Does jobs, one at a time in each place. The jobs that are under way can be stopped from a signal handler."""

    def __init__(self, places: list[Place], attempts: int, say: Callable[[str], None] = print):
        """Args:
        places: where.
        attempts: how often a job is tried here before it is given up.
        say: takes a line of news.
        """
        self._places, self._attempts, self._say = list(places), attempts, say
        self._running: dict[Job, tuple[subprocess.Popen, Place, int]] = {}
        self._told: set[int] = set()  # processes that were asked to end
        self.stopping = False

    def work(self, jobs: Iterable[Job]) -> list[Job]:
        """Do jobs until none is left or a stop is asked for. One that fails is tried again after all the others.

        Returns:
            The jobs that failed for good.
        """
        waiting, free = collections.deque(jobs), collections.deque(self._places)
        tried, failed, total, done = collections.Counter(), [], len(waiting), 0
        while self._running or (waiting and not self.stopping):
            while waiting and free and not self.stopping:
                job = waiting.popleft()
                if job.is_done:  # by another one, meanwhile
                    done += 1
                elif job.holder:
                    self._say(f"left to {job.holder}: {job.name}")
                else:
                    place, end = free.popleft(), job.log.stat().st_size if job.log.exists() else 0
                    self._running[job] = job.start(place), place, end
                    self._say(f"started on {place.name}: {job.name}")
            for job, (process, place, begin) in list(self._running.items()):
                if process.poll() is None:
                    continue
                del self._running[job]
                free.append(place)
                if not job.seeds and process.returncode == 0:
                    job.mark_done()
                if job.is_done:
                    done += 1
                    job.forget_failure()
                    self._say(f"done ({done} of {total}): {job.name}")
                elif process.returncode in POLITE:
                    self._say(f"stopped: {job.name}")
                else:
                    failure = job.fail(_last_word(job.log, begin, process.returncode))
                    tried[job] += 1
                    again = tried[job] < self._attempts
                    (waiting if again else failed).append(job)
                    self._say(f"failed ({'will be tried again' if again else 'given up'}): {job.name}: {failure.line}")
            if self.stopping:
                self._tell()  # one that was just being started
            time.sleep(0.1)
        return failed

    def stop(self) -> None:
        """Ask the jobs that are under way to save and end, and begin no other."""
        self.stopping = True
        self._tell()

    def kill(self) -> None:
        """End them at once, their evaluation processes, too; their last checkpoints can be resumed."""
        self.stopping = True
        for process, _, _ in list(self._running.values()):
            os.killpg(process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Until those that were asked to end have ended. Not `Popen.wait`: it may hold a lock that this interrupts."""
        for process, _, _ in list(self._running.values()):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    def _tell(self) -> None:
        for process, _, _ in list(self._running.values()):
            if process.pid not in self._told:
                self._told.add(process.pid)
                process.send_signal(signal.SIGTERM)


def _last_word(log: pathlib.Path, begin: int, status: int) -> str:
    """Of a process that failed: the last line that it printed after byte `begin` of the log, and what killed it."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").replace("\r", "\n").strip().splitlines()
    said = lines[-1].strip() if lines else "not a word"
    return f"killed by {signal.Signals(-status).name} after: {said}" if status < 0 else said


@dataclasses.dataclass
class SlurmTask:
    """What submitit runs as one task of a Slurm array: jobs side by side on what the task was given."""

    jobs: tuple[Job, ...]
    places: tuple[Place, ...]
    attempts: int  # each on another node

    def __call__(self) -> None:
        """Do them; what fails is tried again on another node."""
        told = []  # by Slurm, which tells the training processes, too
        signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))
        self._workers = Workers(list(self.places), attempts=1, say=functools.partial(print, flush=True))
        failed = self._workers.work(self.jobs)
        if told and not all(job.is_done for job in self.jobs):
            time.sleep(GRACE_S)  # a preempted job that ended by itself would not be queued again
        if any(job.failure.attempts < self.attempts for job in failed):
            _requeue_elsewhere()

    def checkpoint(self) -> Any:
        """Called by submitit on the signal that comes before preemption or the time limit: save. It requeues then."""
        from submitit.helpers import DelayedSubmission

        self._workers.stop()
        self._workers.wait()
        return DelayedSubmission(SlurmTask(self.jobs, self.places, self.attempts))


def _requeue_elsewhere() -> None:
    """Queue this Slurm job again, and keep it off this node if its partition has another."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    this, partition = os.environ["SLURMD_NODENAME"], os.environ["SLURM_JOB_PARTITION"]
    sinfo = ["sinfo", "--noheader", "--Node", "--partition", partition, "--format", "%N"]
    nodes = subprocess.run(sinfo, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["scontrol", "requeue", job_id], check=True)
    if set(nodes) > {this}:  # while it was running, Slurm would not have had it
        subprocess.run(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={this}"], check=False)
    sys.exit(1)  # Slurm ends this process anyway
