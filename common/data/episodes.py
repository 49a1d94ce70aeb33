"""Collects episodes in worker processes, each with a seed of its own."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from common.errors import UserError
from common.processes import available_cores, check_locks
from common.signals import interrupt_event, starting_workers

import numpy as np
import tqdm

Episode = dict[str, np.ndarray]
STEPS_A_SECOND = 450.0  # of one core, for announcing how long a collection will take


def collect_episodes(
    make_collector: Callable[[], Callable[[], Episode]],
    indices: Sequence[int],
    episode_steps: int,
    *,
    seed: int,
    workers: int | None,
    path: pathlib.Path,
    hint: str,
    steps_a_second: float = STEPS_A_SECOND,
) -> list[Episode]:
    """Collect episodes in worker processes, in order; episode i is the same whoever collects it.

    Args:
        make_collector: called once in each process, returns what collects one episode with what NumPy's global
            generator is seeded to.
        indices: numbers of the episodes.
        episode_steps: steps of an episode at most.
        seed: seed of the collection; each episode has one of its own that follows from it.
        workers: processes; one for each core if None.
        path: where they are to be written, for people.
        hint: what they are, and how to have fewer.
        steps_a_second: of one core, for announcing how long it will take.

    Raises:
        UserError: a number below one; a process died, or none can be started.
        KeyboardInterrupt: Ctrl-C.
    """
    workers, total = available_cores() if workers is None else workers, len(indices)
    if total < 1 or workers < 1 or seed < 0:
        raise UserError(f"cannot collect {total} episodes with {workers} workers and seed {seed}: too small")
    check_locks("make room there")
    workers, steps, start = min(workers, total), total * episode_steps, time.monotonic()
    processes = "1 process" if workers == 1 else f"{workers} processes"
    duration = _duration(steps / (workers * steps_a_second))
    size = f"{total} episodes of {episode_steps} steps with {processes}, about {duration}"
    print(f"collecting {path}: {size} ({hint})", flush=True)
    with tqdm.tqdm(
        total=steps, unit="step", unit_scale=True, desc="collecting", smoothing=0.05, mininterval=1
    ) as progress:
        collected = []
        for episode in _in_processes(make_collector, indices, seed, workers):
            collected.append(episode)
            progress.update(episode_steps)
    seconds = time.monotonic() - start
    print(f"collected {steps:,} transitions in {_duration(seconds)} ({steps / seconds:.0f} a second)", flush=True)
    return collected


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _in_processes(
    make_collector: Callable[[], Callable[[], Episode]], indices: Sequence[int], seed: int, workers: int
) -> Iterator[Episode]:
    """Episodes as they come, in order."""
    # Workers are spawned: forking a process in which JAX has started threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (make_collector,)) as pool,
        interrupt_event() as interrupted,
    ):
        try:
            # Not pool.map: it cancels what is left when interrupted, which a pool that breaks afterwards stumbles over.
            with starting_workers():
                results = [pool.submit(_work, (seed, index)) for index in indices]
            for episode in results:
                while not (episode.done() or interrupted.is_set()):
                    concurrent.futures.wait([episode], timeout=0.2)
                if interrupted.is_set():
                    raise KeyboardInterrupt
                yield episode.result()
            if interrupted.is_set():
                raise KeyboardInterrupt
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError("a collecting process died; fewer workers need less memory") from error
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


# In the worker processes: an environment and its oracles for the life of the process, one call an episode.

_collect_episode: Callable[[], Episode]


def _start_worker(make_collector: Callable[[], Callable[[], Episode]]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _collect_episode
    _collect_episode = make_collector()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # the pool's own queues would keep an orphan waiting for ever
    os._exit(1)


def _work(seed_and_index: tuple[int, int]) -> Episode:
    episode_seed = int(np.random.SeedSequence(seed_and_index).generate_state(1)[0])
    np.random.seed(episode_seed)
    return _collect_episode()
