"""Collects Adroit's expert data on this machine, with hands that were trained with DROL, as a Minari data set.

D4RL's own expert sets are larger and another policy's: these have names of their own (collected/door/..), and whatever
is made with them says so. The *human* and *cloned* sets begin with people, and cannot be made.
"""

import functools
import math
import pathlib
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from common import minari_envs, mujoco_versions
from common.data.episodes import Episode, collect_episodes
from common.env_ids import EnvSpec
from common.errors import UserError, describe_os_error
from common.files import making, sha256, write_whole_folder

EXPERTS = pathlib.Path(__file__).parents[1] / "experts"
ENVIRONMENTS = {
    "door": "AdroitHandDoor-v1",
    "pen": "AdroitHandPen-v1",
    "hammer": "AdroitHandHammer-v1",
    "relocate": "AdroitHandRelocate-v1",
}
EPISODES = {"door": 100, "pen": 300, "hammer": 100, "relocate": 100}  # of 200 steps; pen's have 100, D4RL's horizon
TRANSITIONS_A_SECOND = 250  # of one core, for announcing how long a collection will take


def hand_of(spec: EnvSpec) -> str:
    """'door' of door-expert."""
    return spec.family.removesuffix("-expert")


def is_collectable(spec: EnvSpec) -> bool:
    """Whether there is a trained hand for this data set."""
    return spec.family.endswith("-expert") and hand_of(spec) in ENVIRONMENTS


def dataset_id(spec: EnvSpec, episodes: int | None, seed: int) -> str:
    """Minari's name of a set that is collected here, never D4RL's: 'collected/door/expert-100-seed0-v0'."""
    hand = hand_of(spec)
    return f"collected/{hand}/expert-{episodes or EPISODES[hand]}-seed{seed}{mujoco_versions.suffix(spec)}-v0"


def collect(spec: EnvSpec, *, episodes: int | None, seed: int = 0, workers: int) -> pathlib.Path:
    """Collect a data set, unless it is there; of several processes one collects, and the others wait for it.

    Args:
        spec: door-expert, pen-expert, hammer-expert or relocate-expert.
        episodes: 100 (pen: 300) if None.
        seed: seed of the collection.
        workers: processes.

    Returns:
        The folder of the Minari data set, in MINARI_DATASETS_PATH (~/.minari/datasets).

    Raises:
        UserError: a package is missing, the folder cannot be written, a size is below one.
    """
    minari = minari_envs.import_minari()
    hand, name = hand_of(spec), dataset_id(spec, episodes, seed)
    episodes = EPISODES[hand] if episodes is None else episodes
    if episodes < 1 or workers < 1 or seed < 0:
        raise UserError(f"cannot collect {episodes} episodes with {workers} workers and seed {seed}: too small")
    try:
        path = minari_envs.local_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with making(path):
            if (path / "data").is_dir():
                print(f"data: found {path}", flush=True)
                return path
            horizon = 100 if hand == "pen" else 200
            seconds = episodes * horizon / (min(workers, episodes) * TRANSITIONS_A_SECOND)
            print(
                f"collecting {name}: {episodes} episodes of {horizon} steps of a policy trained with DROL, with "
                f"{min(workers, episodes)} processes, about {seconds:.0f} seconds (fewer: --collect-episodes N)",
                flush=True,
            )
            start = time.monotonic()
            collected = collect_episodes(
                functools.partial(recipe, hand, horizon),
                episodes,
                seed=seed,
                workers=min(workers, episodes),
                episode_steps=horizon,
            )
            write_whole_folder(path, functools.partial(_write, minari, name, hand, horizon, collected, seed))
    except OSError as error:
        raise UserError(f"cannot write the collected data: {describe_os_error(error)}") from error
    print(f"collected {episodes * horizon:,} transitions in {time.monotonic() - start:.0f} seconds: {path}", flush=True)
    return path


def _write(
    minari: Any,
    name: str,
    hand: str,
    horizon: int,
    episodes: list[Episode],
    seed: int,
    folder: pathlib.Path,
) -> pathlib.Path:
    """With Minari's own tools, into a folder that is not its own yet."""
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            id=i,
            observations=episode["observations"],
            actions=episode["actions"],
            rewards=episode["rewards"],
            terminations=episode["terminations"],
            truncations=episode["truncations"],
        )
        for i, episode in enumerate(episodes)
    ]
    low, high = minari_envs.REFERENCE_SCORES[hand]
    env = make_env(hand, horizon)
    with minari_envs.datasets_in(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is set to None", module="minari")  # author's address
        dataset = minari.create_dataset_from_buffers(
            name,
            buffers,
            env=env,
            algorithm_name="DROL",
            description=f"Collected with {name.split('/')[1]}.npz, a policy trained with DROL; not D4RL's data.",
            ref_min_score=low,
            ref_max_score=high,
        )
        dataset.storage.update_metadata(
            {
                "collected": {
                    "seed": seed,
                    "policy": f"common/experts/{hand}.npz, SHA-256 {sha256(EXPERTS / f'{hand}.npz')}",
                    "mean_score": 100 * (float(np.mean([e["rewards"].sum() for e in episodes])) - low) / (high - low),
                    "versions": {
                        package: metadata.version(package)
                        for package in ("minari", "gymnasium-robotics", "mujoco", "gymnasium", "numpy")
                    },
                }
            }
        )
    env.close()
    return folder / name


def make_env(hand: str, horizon: int) -> Any:
    """The environment that D4RL's data was made in, too."""
    minari_envs.register_environments()
    import gymnasium

    return gymnasium.make(ENVIRONMENTS[hand], max_episode_steps=horizon, disable_env_checker=True)


def recipe(hand: str, horizon: int) -> Callable[[], Episode]:
    """What collects an episode, with what NumPy's global generator is seeded to."""
    env, policy = make_env(hand, horizon), load_hand(hand)

    def collect_episode() -> Episode:
        observation, _ = env.reset(seed=np.random.randint(2**31))
        observations, actions, rewards = [observation], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            action = policy(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
        last = np.arange(len(rewards)) == len(rewards) - 1
        return {
            "observations": np.asarray(observations, np.float64),
            "actions": np.asarray(actions, np.float32),
            "rewards": np.asarray(rewards, np.float64),
            "terminations": last & terminated,
            "truncations": last & truncated,
        }

    return collect_episode


def gelu(x: np.ndarray) -> np.ndarray:
    """Tanh approximation."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi, dtype=np.float32) * (x + np.float32(0.044715) * x**3)))


def load_hand(hand: str) -> Callable[[np.ndarray], np.ndarray]:
    """A trained one-step actor: from an observation [o] to an action [a] in [-1, 1], with a fresh latent each time."""
    with np.load(EXPERTS / f"{hand}.npz") as arrays:
        layers = [(arrays[f"layer{i}_kernel"], arrays[f"layer{i}_bias"]) for i in range(3)]
    d = layers[-1][1].size

    def policy(observation: np.ndarray) -> np.ndarray:
        direction = np.random.normal(size=d)
        # Uniform in the ball of radius sqrt(d), as drol.sample_latents draws.
        latent = math.sqrt(d) * np.random.uniform() ** (1 / d) * direction / np.linalg.norm(direction)
        x = np.concatenate([observation, latent]).astype(np.float32)
        for kernel, bias in layers[:-1]:
            x = gelu(x @ kernel + bias)
        kernel, bias = layers[-1]
        return np.clip(x @ kernel + bias, -1, 1)

    return policy
