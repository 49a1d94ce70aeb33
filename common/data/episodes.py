"""Collects episodes in worker processes, each with a seed of its own."""

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable

import numpy as np
import tqdm

from common.errors import UserError
from common.processes import check_locks
from common.signals import interrupt_event, starting_workers

Episode = dict[str, np.ndarray]


def collect_episodes(
    make_collector: Callable[[], Callable[[], Episode]], total: int, *, seed: int, workers: int, episode_steps: int
) -> list[Episode]:
    """Collect episodes in worker processes, in order; episode i is the same whoever collects it.

    Args:
        make_collector: called once in each process, returns what collects one episode with what NumPy's global
            generator is seeded to.
        total: episodes.
        seed: seed of the collection; each episode has one of its own that follows from it.
        workers: processes.
        episode_steps: steps of an episode at most, for the progress bar.

    Raises:
        UserError: a process died, or none can be started.
        KeyboardInterrupt: Ctrl-C.
    """
    check_locks("make room there")
    collected: list[Episode] = []
    progress = tqdm.tqdm(
        total=total * episode_steps, unit="step", unit_scale=True, desc="collecting", smoothing=0.05, mininterval=1
    )
    # Workers are spawned: forking a process in which JAX has started threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (make_collector,)) as pool,
        interrupt_event() as interrupted,
        progress,
    ):
        try:
            # Not pool.map: it cancels what is left when interrupted, which a pool that breaks afterwards stumbles over.
            with starting_workers():
                results = [pool.submit(_work, (seed, index)) for index in range(total)]
            for episode in results:
                while not (episode.done() or interrupted.is_set()):
                    concurrent.futures.wait([episode], timeout=0.2)
                if interrupted.is_set():
                    raise KeyboardInterrupt
                collected.append(episode.result())
                progress.update(episode_steps)
            if interrupted.is_set():
                raise KeyboardInterrupt
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError("a collecting process died; fewer workers need less memory") from error
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return collected


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
