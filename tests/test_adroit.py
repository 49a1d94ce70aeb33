"""Expert data of the Adroit hands, collected here, as Minari reads it, and what is trained on it."""

import json
import pathlib
import shutil

import drol
from common import minari_envs
from common.arguments import RunArgs
from common.data import collect, experts, sources
from common.env_ids import resolve
from common.errors import UserError

import minari
import numpy as np
import pytest
from toys import double_precision

HORIZON = {"door": 200, "pen": 100, "hammer": 200, "relocate": 200}


def load(env_id: str, source: str = "collect", dataset_path: pathlib.Path | None = None):
    args = RunArgs(dataset_path=dataset_path, data_source=source, collect_episodes=2, collect_workers=2)
    return sources.load(resolve(env_id), args)


@pytest.fixture(scope="session")
def collected(once) -> pathlib.Path:
    """Two episodes of each hand, in a folder for MINARI_DATASETS_PATH."""

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        with minari_envs.datasets_in(folder):
            for hand in HORIZON:
                collect.collect_data(resolve(f"{hand}-expert"), None, episodes=2, workers=2 if hand == "door" else 1)

    return once("hands", make)


@pytest.fixture
def hands(collected, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(collected))
    monkeypatch.setenv("MINARI_REMOTE", "hf://farama-minari")  # nothing is asked before
    return collected


@pytest.mark.slow(6)
@pytest.mark.parametrize("hand", HORIZON)
def test_an_experts_episodes_read_back_with_minari_and_score_like_an_expert(hand, hands):
    dataset = minari.load_dataset(f"collected/{hand}/expert-2-seed0-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (2, 2 * HORIZON[hand])
    low, high = minari_envs.REFERENCE_SCORES[hand]
    scores = [100 * (episode.rewards.sum() - low) / (high - low) for episode in dataset.iterate_episodes()]
    assert max(scores) > 60
    assert not np.array_equal(*(episode.observations[0] for episode in dataset.iterate_episodes()))
    data, origin = load(f"{hand}-expert")
    assert data.num_transitions == 2 * HORIZON[hand]
    assert data.masks[data.transitions].min() == 1  # the hand's episodes are cut, never complete
    described = sources.describe_source(origin)
    assert described == "collected: 2 episodes of a policy trained with DROL, seed 0"


@pytest.mark.slow(1)
def test_episodes_do_not_depend_on_the_number_of_workers(hands, tmp_path):
    with minari_envs.datasets_in(tmp_path):
        collect.collect_data(resolve("door-expert"), None, episodes=2, workers=1)
        alone = minari.load_dataset("collected/door/expert-2-seed0-v0")
    together = minari.load_dataset("collected/door/expert-2-seed0-v0")
    for a, b in zip(alone.iterate_episodes(), together.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.actions, b.actions)


def test_the_hand_acts_as_a_one_step_actor_of_drol():
    """The same layers in an MLP of drol.py, on the latent that the hand drew."""
    import jax
    import jax.numpy as jnp

    with np.load(experts.EXPERTS / "door.npz") as arrays:
        layers = [(arrays[f"layer{i}_kernel"], arrays[f"layer{i}_bias"]) for i in range(3)]
    actor = drol.MLP(67, 28, (64, 64), key=jax.random.key(0))
    observation, policy = np.linspace(-1, 1, 39), experts.load_hand("door")
    np.random.seed(3)
    direction = np.random.normal(size=28)
    radius = np.sqrt(28) * np.random.uniform() ** (1 / 28)
    latent = radius * direction / np.linalg.norm(direction)
    np.random.seed(3)
    action = policy(observation)
    with double_precision():
        for layer, (kernel, bias) in zip(actor.layers, layers, strict=True):
            object.__setattr__(layer, "weight", jnp.asarray(kernel.T))
            object.__setattr__(layer, "bias", jnp.asarray(bias))
        expected = jnp.clip(actor(jnp.asarray(observation), jnp.asarray(latent)), -1, 1)
    np.testing.assert_allclose(action, expected, atol=1e-5)


def test_what_is_there_is_taken_and_what_cannot_be_made_is_said(hands, capsys):
    load("door-expert", source="auto")
    assert "found" in capsys.readouterr().out
    for env_id in ("door-human", "pen-cloned"):
        with pytest.raises(UserError, match="cannot be collected here"):
            load(env_id)


def test_damaged_and_foreign_data_in_its_place_is_named(hands, tmp_path, monkeypatch):
    shutil.copytree(hands, tmp_path / "hands")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "hands"))
    door = tmp_path / "hands/collected/door/expert-2-seed0-v0"
    main = door / "data/main_data.hdf5"
    main.write_bytes(main.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"door/expert-2-seed0-v0: .*damaged"):
        load("door-expert")
    shutil.rmtree(door)
    shutil.copytree(tmp_path / "hands/collected/pen/expert-2-seed0-v0", door)
    with pytest.raises(UserError, match=r"holds collected/pen/expert-2-seed0-v0, not D4RL/door/expert-v2"):
        load("door-expert")


@pytest.mark.slow(6)
def test_a_policy_is_trained_on_it(hands, here, tmp_path):
    arguments = ("--env-id", "door-expert", "--data-source", "collect", "--collect-episodes", 2, "--hidden-sizes", 8)
    small = ("--batch-size", 8, "--offline-steps", 100, "--eval-episodes", 1, "--eval-workers", 1)
    result = here(*arguments, *small, "--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "collected: 2 episodes of a policy trained with DROL, seed 0" in result.stdout
    assert "done: normalised score" in result.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["dataset"]["source"] == "collected"
    assert config["dataset"]["policy"].startswith("common/experts/door.npz")
