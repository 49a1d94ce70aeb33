"""The jobs of a sweep: how each stands, by its files, and how they are done, one at a time in each place.

Slurm's jobs load this file first: it imports neither JAX nor submitit.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from clone import REPOSITORY
from common.arguments import RunArgs, flag
from common.errors import describe_os_error
from common.files import holder_of, try_lock, write_whole
from common.processes import usable_cores
from common.roles import Role, with_role

POLITE = {0, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}  # told to stop: no failure
GRACE_S = 600  # no longer between Slurm's asking a job to end and ending it
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
GPU_MEMORY = 0.9  # of a device, for all jobs on it; the rest is for what JAX does not allocate itself


# ---- Runs ------------------------------------------------------------------------------------------------------------


def is_begun(run: pathlib.Path) -> bool:
    """Whether there is a run to go on with."""
    return (run / "config.json").exists()


def config_of(run: pathlib.Path) -> dict[str, Any]:
    """Its config.json."""
    return json.loads((run / "config.json").read_text())


def last_row(run: pathlib.Path, table: str) -> dict[str, float]:
    """The newest complete row of one of its tables; empty if there is none."""
    try:
        header, *_, row = (run / f"{table}.csv").read_text().split("\n")[:-1]  # what comes last is empty, or half a row
        return dict(zip(header.split(","), map(float, row.split(",")), strict=True))
    except (OSError, ValueError):  # not there, or without a row
        return {}


def is_finished(run: pathlib.Path) -> bool:
    """Whether the last update has been evaluated."""
    if not is_begun(run):
        return False
    args = config_of(run)["args"]
    return last_row(run, "eval").get("step") == args["offline_steps"] + args["online_steps"]


# ---- Jobs ------------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """What one job at a time may use."""

    name: str  # for people: 'gpu 0', 'core 3'
    variables: tuple[tuple[str, str], ...] = ()  # of the environment
    cores: tuple[int, ...] = ()  # of the CPU; all if empty


def sharing_a_gpu(jobs_per_gpu: int) -> tuple[tuple[str, str], ...]:
    """The memory of a device is divided evenly: JAX would take three quarters of it for its first process."""
    return (("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{GPU_MEMORY / jobs_per_gpu:.3g}"),) if jobs_per_gpu > 1 else ()


def sharing_cores(places: Sequence[Place]) -> list[Place]:
    """The cores are dealt out: each job would start an evaluation process on every one of them."""
    cores = usable_cores()
    return [
        place._replace(cores=tuple(cores[i :: len(places)]) or (cores[i % len(cores)],))
        for i, place in enumerate(places)
    ]


class Failure(NamedTuple):
    """What went wrong so far."""

    attempts: int
    node: str  # of the last
    line: str  # its last word


class Job(NamedTuple):
    """One process of a sweep: seeds that train together, or a data set that is found, downloaded or collected."""

    sweep: pathlib.Path  # folder of the sweep, absolute
    method: str  # folder of its runs in there; of data, a name
    script: str  # what is run, from the repository's root
    options: tuple[str, ...]  # of the script, but for seeds and folder
    seeds: tuple[int, ...] = ()  # that train together; none if this is about data

    @property
    def name(self) -> str:
        """'drol-cube-double-task3-k16-seed0', or '-seed0-7'."""
        ends = dict.fromkeys((*self.seeds[:1], *self.seeds[-1:]))
        return f"{self.method}-seed{'-'.join(map(str, ends))}" if ends else self.method

    @property
    def runs(self) -> list[pathlib.Path]:
        """Run directories, one a seed: SWEEP/drol-cube-double-task3-k16/seed3."""
        return [self.sweep / self.method / f"seed{seed}" for seed in self.seeds]

    @property
    def log(self) -> pathlib.Path:
        """What its processes print, one after the other."""
        return self.sweep / "jobs" / f"{self.name}.log"

    @property
    def is_done(self) -> bool:
        """Whether all its runs have come to their end. Of data that is never known: it is looked for again."""
        return bool(self.seeds) and all(map(is_finished, self.runs))

    @property
    def holder(self) -> str | None:
        """Another process that trains one of these runs now: 'process 4711 on node3'."""
        for file in (run / ".lock" for run in self.runs):
            if file.exists():
                if (lock := try_lock(file)) is None:
                    return holder_of(file)
                lock.close()
        return None

    @property
    def failure(self) -> Failure | None:
        """What went wrong since the sweep was last started."""
        return Failure(**json.loads(self.note.read_text())) if self.note.exists() else None

    def remember(self, failure: Failure) -> None:
        """Another failure."""
        write_whole(self.note, lambda temporary: temporary.write_text(json.dumps(failure._asdict())))

    def forget_failure(self) -> None:
        """It begins anew, or went well."""
        self.note.unlink(missing_ok=True)

    @property
    def note(self) -> pathlib.Path:
        """Of what went wrong."""
        return self.log.with_suffix(".failed")

    def command(self) -> list[str]:
        """What begins it or, where its runs are begun already, goes on with them."""
        python = [sys.executable, str(REPOSITORY / self.script)]
        if not self.seeds:
            return [*python, *self.options]
        if all(map(is_begun, self.runs)):
            places = set(map(flag, with_role(RunArgs, Role.PLACE)))
            moved = [word for pair in itertools.pairwise(self.options) if pair[0] in places for word in pair]
            return [*python, *moved, "--resume", *map(str, self.runs)]
        folder = self.runs[0] if len(self.seeds) == 1 else self.runs[0].parent
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
                preexec_fn=functools.partial(_prepare, place.cores, os.getpid()),
            )

    def last_word(self, begin: int, status: int) -> str:
        """Of a process that failed: the last line that it printed after byte `begin` of the log, and what killed it."""
        printed = self.log.read_bytes()[begin:].decode(errors="replace").replace("\r", "\n").split("\n")
        said = next((line.strip() for line in reversed(printed) if line.strip()), "not a word")
        return f"killed by {signal.Signals(-status).name} after: {said}" if status < 0 else said


def _prepare(cores: tuple[int, ...], parent: int) -> None:
    """In a new process, before its program. Slurm sends the signal that is meant for submitit to all of a job.

    Whatever the parent ends of, the process is asked to save and end, too (on Linux).
    """
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # already
            os._exit(1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def together(sweep: pathlib.Path, method: str, seeds: Iterable[int], seeds_per_job: int) -> list[tuple[int, ...]]:
    """Which seeds train together: those that began together, to go on to the same bits; new ones as is asked for.

    New ones that train together are consecutive, as `--seed` and `--num-seeds` can name no others.
    """

    def began_with(seed: int) -> list[int] | None:
        run = sweep / method / f"seed{seed}"
        return config_of(run)["seeds_together"] if is_begun(run) else None

    groups, new = set(), []
    for seed in seeds:
        if (others := began_with(seed)) is None:
            new.append(seed)
        else:
            groups.add(tuple(each for each in others if began_with(each) == others))
    for _, stretch in itertools.groupby(enumerate(new), key=lambda item: item[1] - item[0]):
        row = tuple(seed for _, seed in stretch)
        groups |= {row[i : i + seeds_per_job] for i in range(0, len(row), seeds_per_job)}
    return sorted(groups)


# ---- Work ------------------------------------------------------------------------------------------------------------


class Supervisor:
    """Does jobs, one at a time in each place. Those under way can be stopped from a signal handler."""

    def __init__(self, attempts: int, say: Callable[[str], None] = print):
        """Args:
        attempts: how often a job is tried, all in all, before it is given up here.
        say: takes a line of news.
        """
        self._attempts, self._say = attempts, say
        self._running: dict[Job, tuple[subprocess.Popen, Place, int]] = {}  # and where its words begin in the log
        self._failures: collections.Counter[Job] = collections.Counter()
        self.stopping = False

    def work(self, jobs: Iterable[Job], places: Iterable[Place]) -> tuple[list[Job], list[Job]]:
        """Do jobs until none is left or a stop is asked for. One that fails is tried again after all the others.

        Returns:
            The jobs that failed for good, and those that ended politely before they were done.
        """
        waiting, free = collections.deque(jobs), collections.deque(places)
        failed, stopped = [], []
        try:
            while self._running or (waiting and not self.stopping):
                while waiting and free and not self.stopping:
                    job = waiting.popleft()
                    if job.holder:
                        self._say(f"left to {job.holder}: {job.name}")
                    elif not job.is_done:  # by another one, meanwhile
                        try:
                            self._start(job, free[0])
                            free.popleft()
                        except OSError as error:
                            again = self._fail(job, f"it cannot be started ({describe_os_error(error)})")
                            (waiting if again else failed).append(job)
                for job, (process, place, begin) in list(self._running.items()):
                    if process.poll() is None:
                        continue
                    del self._running[job]
                    free.append(place)
                    if job.is_done or (not job.seeds and process.returncode == 0):
                        job.forget_failure()
                        self._say(f"done: {job.name} ({len(waiting) + len(self._running)} to go)")
                    elif self.stopping or process.returncode in POLITE:
                        stopped.append(job)
                        self._say(f"stopped: {job.name}")
                    else:
                        again = self._fail(job, job.last_word(begin, process.returncode))
                        (waiting if again else failed).append(job)
                time.sleep(0.1)
        except BaseException:  # nobody else would end them
            self.stop()
            self.wait()
            raise
        return failed, stopped

    def _start(self, job: Job, place: Place) -> None:
        """Raises `OSError` where that is not possible."""
        end = job.log.stat().st_size if job.log.exists() else 0
        process = job.start(place)
        self._running[job] = process, place, end
        self._say(f"started on {place.name}: {job.name}")
        if self.stopping:  # since just now
            process.terminate()

    def _fail(self, job: Job, line: str) -> bool:
        """Count a failure, say it, leave a note; whether it will be tried again."""
        before = job.failure.attempts if job.failure else 0
        self._failures[job] = max(self._failures[job], before) + 1  # here, too: there may be no room for a note
        again = self._failures[job] < self._attempts
        self._say(f"failed ({'will be tried again' if again else 'given up'}): {job.name}: {line}")
        try:
            node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
            job.remember(Failure(self._failures[job], node, line))
        except OSError as error:
            self._say(f"no note of that can be written ({describe_os_error(error)}): {job.name}")
        return again

    def stop(self) -> None:
        """Ask the jobs that are under way to save and end, and begin no other."""
        self.stopping = True
        for process, _, _ in list(self._running.values()):
            process.terminate()

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


@dataclasses.dataclass
class SlurmTask:
    """What submitit runs as one task of a Slurm array: jobs side by side on what the task was given."""

    place: Place  # of each
    attempts: int  # each on another node

    def __call__(self, jobs: tuple[Job, ...]) -> None:
        """Do them; what fails is tried again on another node."""
        self.supervisor = Supervisor(1, say=functools.partial(print, flush=True))
        failed, stopped = self.supervisor.work(jobs, sharing_cores([self.place] * len(jobs)))
        if stopped:  # by Slurm, which tells all processes: were this one to end by itself, it would not be queued again
            time.sleep(GRACE_S)
        if any(job.failure and job.failure.attempts < self.attempts for job in failed):
            _requeue_elsewhere()

    def checkpoint(self, jobs: tuple[Job, ...]) -> Any:
        """Called by submitit on the signal that comes before preemption or the time limit: save. It requeues then."""
        from submitit.helpers import DelayedSubmission

        self.supervisor.stop()
        self.supervisor.wait()
        return DelayedSubmission(SlurmTask(self.place, self.attempts), jobs)


def _requeue_elsewhere() -> None:
    """Queue this Slurm job again, and keep it off this node if its partition has another."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    this, partition = os.environ["SLURMD_NODENAME"], os.environ["SLURM_JOB_PARTITION"]
    sinfo = ["sinfo", "--noheader", "--Node", "--partition", partition, "--format", "%N"]
    nodes = subprocess.run(sinfo, capture_output=True, text=True, check=True).stdout.split()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which Slurm sends all processes of the job now, scontrol's, too
    subprocess.run(["scontrol", "requeue", job_id], check=True)
    if set(nodes) > {this}:  # while it was running, Slurm would not have had it
        subprocess.run(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={this}"], check=False)
    sys.exit(1)  # Slurm ends this process anyway
