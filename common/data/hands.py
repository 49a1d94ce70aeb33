"""Collects Adroit's expert data on this machine, with hands that were trained with DROL, as a Minari data set.

D4RL's own expert sets are larger and another policy's: these have names of their own (collected/door/..), and whatever
is made with them says so. The *human* and *cloned* sets begin with people, and cannot be made.
"""

import functools
import pathlib
import warnings
from collections.abc import Callable
from importlib import metadata

from common import minari_envs, mujoco_versions
from common.data import experts
from common.data.episodes import Episode, collect_episodes
from common.env_ids import EnvSpec
from common.files import write_whole_folder

import gymnasium
import numpy as np

EPISODES = {"door": 100, "pen": 300, "hammer": 100, "relocate": 100}  # of 200 steps; pen's have 100, D4RL's horizon


def hand_of(spec: EnvSpec) -> str:
    """'door' of door-expert."""
    return spec.family.removesuffix("-expert")


def is_collectable(spec: EnvSpec) -> bool:
    """Whether there is a trained hand for this data set."""
    return spec.suite == "d4rl" and spec.family.endswith("-expert") and hand_of(spec) in EPISODES


def dataset_id(spec: EnvSpec, episodes: int | None, seed: int) -> str:
    """Minari's name of a set that is collected here, never D4RL's: 'collected/door/expert-100-seed0-v0'."""
    hand = hand_of(spec)
    return f"collected/{hand}/expert-{episodes or EPISODES[hand]}-seed{seed}{mujoco_versions.suffix(spec)}-v0"


def make_set(
    spec: EnvSpec, path: pathlib.Path, *, episodes: int | None, seed: int, workers: int | None
) -> pathlib.Path:
    """Collect the episodes of a data set, and write its folder; arguments as of `collect.collect_data`."""
    minari_envs.import_minari()
    hand = hand_of(spec)
    total, horizon = EPISODES[hand] if episodes is None else episodes, 100 if hand == "pen" else 200
    make_collector = functools.partial(recipe, hand, horizon)
    hint = "of a policy trained with DROL; fewer: --collect-episodes N"
    collected = collect_episodes(
        make_collector, range(total), horizon, seed=seed, workers=workers, path=path, hint=hint
    )
    name = dataset_id(spec, episodes, seed)
    return write_whole_folder(path, functools.partial(_write, name, hand, horizon, collected, seed))


def _write(
    name: str, hand: str, horizon: int, episodes: list[Episode], seed: int, folder: pathlib.Path
) -> pathlib.Path:
    """With Minari's own tools, into a folder that is not its own yet."""
    import minari
    from minari.data_collector import EpisodeBuffer

    low, high = minari_envs.REFERENCE_SCORES[hand]
    packages = ("minari", "gymnasium-robotics", "mujoco", "gymnasium", "numpy")
    provenance = {
        "seed": seed,
        "policy": experts.describe(hand),
        "mean_score": 100 * (float(np.mean([e["rewards"].sum() for e in episodes])) - low) / (high - low),
        "versions": {package: metadata.version(package) for package in packages},
    }
    env = make_env(hand, horizon)
    with minari_envs.datasets_in(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is set to None", module="minari")  # author's address
        dataset = minari.create_dataset_from_buffers(
            name,
            [EpisodeBuffer(id=i, **episode) for i, episode in enumerate(episodes)],
            env=env,
            algorithm_name="DROL",
            description=f"Collected with {hand}.npz, a policy trained with DROL; not D4RL's data.",
            ref_min_score=low,
            ref_max_score=high,
        )
        dataset.storage.update_metadata({"collected": provenance})
    env.close()
    return folder / name


def make_env(hand: str, horizon: int) -> gymnasium.Env:
    """The environment that D4RL's data was made in, too."""
    minari_envs.register_environments()
    return gymnasium.make(f"AdroitHand{hand.title()}-v1", max_episode_steps=horizon, disable_env_checker=True)


def recipe(hand: str, horizon: int) -> Callable[[], Episode]:
    """What collects an episode, with what NumPy's global generator is seeded to."""
    env, policy = make_env(hand, horizon), experts.load_hand(hand)

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
