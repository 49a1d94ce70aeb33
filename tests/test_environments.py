"""Environments that do not do as Gymnasium says, or not as it is usual; all in one process."""

import dataclasses
import functools
import multiprocessing
import pathlib
import random
import shutil
import time
import warnings
from collections.abc import Callable

import drol
from common import numpy_actor, policy
from common.arguments import RunArgs
from common.data import own_npz, sources
from common.env_ids import resolve
from common.envs import EvaluationEnv, make_evaluation_env, try_out
from common.errors import UserError
from common.evaluation import Evaluator, seed_of_episode
from common.film import film
from common.policy import load_policy

import gymnasium
import imageio.v3 as iio
import jax
import numpy as np
import odd_envs
import pytest

NAME = "odd_envs:Odd-v0"


@pytest.fixture
def odd() -> Callable[..., EvaluationEnv]:
    """Registers Odd-v0 anew, with another oddity, and makes it as it is evaluated."""

    def odd(*, max_episode_steps: int = 20, **kwargs) -> EvaluationEnv:
        gymnasium.registry.pop("Odd-v0", None)
        gymnasium.register("Odd-v0", odd_envs.Odd, max_episode_steps=max_episode_steps, kwargs=kwargs)
        return make_evaluation_env(resolve(NAME))

    yield odd
    gymnasium.registry.pop("Odd-v0", None)


def says(place: int, answer: object) -> dict:
    """Step answers this in place of its observation (0), reward, terminated, truncated or info."""
    return {"on_step": lambda steps, *answers: tuple(answer if i == place else a for i, a in enumerate(answers))}


@pytest.mark.parametrize(
    ("oddity", "message"),
    [
        (says(0, np.zeros(3)), r"the observation of step\(\) is array.*, of shape \(3,\); .* 2 numbers"),
        (says(0, np.array([0, np.nan])), r"the observation of step\(\) is array\(\[ 0., nan\]\).* finite, in float32"),
        (says(0, np.array([1e39, 0])), r"1\.e\+39.* finite, in float32"),
        (says(0, None), r"the observation of step\(\) is None; it should be a vector of 2 numbers"),
        (says(0, np.zeros((2, 2))), r"of shape \(2, 2\)"),
        (says(1, np.array([1.0, 2.0])), r"the reward of step\(\) is array\(\[1., 2.\]\), of shape \(2,\).* a number"),
        (says(1, None), r"the reward of step\(\) is None; it should be a number"),
        (says(1, "1"), r"the reward of step\(\) is '1'; it should be a number"),
        (says(1, np.inf), r"the reward of step\(\) is inf; it should be finite"),
        (says(2, None), r"terminated of step\(\) is None; it should be a number"),
        (says(3, 2), r"truncated of step\(\) is 2; it should be true or false"),
        (says(4, None), r"the info of step\(\) is None; it should be a dict"),
        (says(4, {"success": np.array([0, 1])}), r"info\['success'\] of step\(\) is array\(\[0, 1\]\)"),
        (says(4, {"is_success": "yes"}), r"info\['is_success'\] of step\(\) is 'yes'; it should be a number"),
        (says(4, {"success": 100}), r"info\['success'\] of step\(\) is 100; it should be 0 to 1"),
        ({"on_reset": lambda observation, info: observation}, r"what reset\(\) returns is array.*\(observation, info"),
        ({"on_reset": lambda observation, info: (np.full(2, np.nan), info)}, r"the observation of reset\(\) is"),
        ({"on_step": lambda steps, *answers: answers[:4]}, r"step\(\) raised ValueError: not enough values to unpack"),
        ({"bounds": (-1, np.inf)}, r"actions need a finite low and a larger high"),
        ({"bounds": (1, 1)}, r"actions need a finite low and a larger high"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_with_name_and_value(odd, oddity, message):
    with pytest.raises(UserError, match=rf"^Odd-v0: .*{message}"):
        try_out(odd(**oddity))


@pytest.mark.parametrize(
    "oddity",
    [
        says(0, np.array([[0.5, 0.5]])),
        says(0, np.array([[0.5], [0.5]], np.float64)),
        says(0, [0.5, 0.5]),
        says(1, np.array([-1])),
        says(1, np.array([[-1.0]])),
        says(1, np.array(-1.0)),
        says(2, np.array([False])),
        says(3, 0),
        says(4, {"success": np.array([[False]])}),
        says(4, {"success": None, "is_success": np.float32(0)}),
    ],
)
def test_what_has_one_meaning_is_taken(odd, oddity, capsys):
    env = odd(**oddity)
    try_out(env)
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert (reward, terminated, truncated, info) == (-1.0, False, False, {"success": 0})
    assert observation.shape == (2,) and observation.dtype == np.float32
    assert capsys.readouterr().out == ""


def test_observations_outside_of_their_space_are_taken_and_named(odd, capsys):
    try_out(odd(**says(0, np.array([3.0, 0.0]))))
    assert "note: Odd-v0: observations leave their space ([3. 0.], Box(-2.0, 2.0, (2,), float32))" in (
        capsys.readouterr().out
    )


def test_randomness_that_seeds_reach_repeats_itself_and_other_is_named(odd, capsys):
    """Python's generator and NumPy's global one belong to each environment alone, whoever draws in between."""
    draws = {"on_step": lambda steps, _, *rest: (np.array([random.random(), np.random.rand()]), *rest)}
    first, second = odd(**draws), odd(**draws)

    def walk(*envs: EvaluationEnv) -> np.ndarray:
        for env in envs:
            env.reset(seed=7)
        return np.array([[env.step(np.zeros(2, np.float32))[0] for env in envs] for _ in range(5)])

    together = walk(first, second)
    np.testing.assert_array_equal(together[:, 0], together[:, 1])
    before = random.getstate()
    np.testing.assert_array_equal(together[:, :1], walk(first))
    assert random.getstate() == before
    assert len(np.unique(together)) == 10
    try_out(first)
    assert capsys.readouterr().out == ""
    unseeded = np.random.default_rng()
    try_out(odd(on_step=lambda steps, _, *rest: (unseeded.uniform(size=2), *rest)))
    assert "note: Odd-v0: two episodes of one seed differ" in capsys.readouterr().out


def small(folder: pathlib.Path, **settings) -> drol.Args:
    path = folder / "odd.npz"
    np.savez(path, **odd_envs.data(settings.pop("bounds", (-1, 1))))
    run = {"env_id": NAME, "dataset_path": path, "run_dir": folder / "run", "hidden_sizes": (8, 8), "batch_size": 8}
    return drol.Args(**run | {"offline_steps": 20, "eval_episodes": 2, "eval_workers": 1} | settings)


def test_it_is_found_out_before_there_is_a_run(odd, tmp_path):
    odd(**says(1, np.zeros(2)))
    with pytest.raises(UserError, match=r"Odd-v0: the reward of step\(\)"):
        drol.main(small(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow(4)
def test_an_environment_that_raises_is_mended_and_the_run_goes_on(odd, tmp_path, capfd):
    """Too late to be found out before: its own lines are shown, and nothing that was learned is lost."""

    def fall(steps, *answers):
        if steps > 15:
            raise RuntimeError("fell off the table, 100 %")
        return answers

    odd(on_step=fall)
    with pytest.raises(UserError, match=r"Odd-v0: step\(\) raised RuntimeError: fell off the table, 100 %; .*--resume"):
        drol.main(small(tmp_path))
    shown = capfd.readouterr().err
    assert 'raise RuntimeError("fell off the table, 100 %")' in shown
    assert "gymnasium" not in shown.split("Odd-v0, step():")[1]
    odd()
    (outcome,) = drol.main(drol.Args(resume=(tmp_path / "run",)))
    assert outcome.step == 20 and outcome.score == 0


BOUNDS = (-0.4, 2.0)


@pytest.mark.slow(2)
def test_other_action_bounds_are_learned_in_minus_one_to_one_and_acted_in_as_they_are(odd, tmp_path, capsys):
    """Data, evaluation, a loaded policy and an exported one."""
    odd(bounds=BOUNDS)
    args = small(tmp_path, bounds=BOUNDS)
    drol.main(args)
    assert f"note: actions of {NAME} lie in [-0.4, 2]: learned in [-1, 1], and rescaled to act" in (
        capsys.readouterr().out
    )
    data, _ = own_npz.read(resolve(NAME), args.dataset_path)
    with np.load(args.dataset_path) as file:
        moved = file["next_observations"] - file["observations"]  # 0.2 times the action
        expected = np.clip((file["actions"] + 0.4) / 1.2 - 1, -1, 1)
        np.testing.assert_allclose(data.actions[data.transitions], expected, atol=2e-5)
    assert np.abs(data.actions).max() > 0.9 and moved.max() > 0.35

    loaded = load_policy(args.run_dir)
    env, observations = loaded.make_env(), np.random.default_rng(1).normal(size=(1024, 2)).astype(np.float32)
    np.testing.assert_allclose([env.action_space.low, env.action_space.high], np.array([BOUNDS, BOUNDS]).T)
    unit = make_evaluation_env(resolve(NAME))
    for action, expected in (([-1, 1], [-0.4, 2]), ([0, 0.5], [0.8, 1.4])):
        for each, given in ((unit, action), (env, expected)):
            start, _ = each.reset(seed=3)
            after, *_ = each.step(np.array(given, np.float32))
            np.testing.assert_allclose(after - start, 0.2 * np.array(expected), atol=1e-6)
    actions = np.asarray(loaded(observations, jax.random.key(0)))
    assert BOUNDS[0] <= actions.min() < -0.1 and 1.5 < actions.max() <= BOUNDS[1]
    policy.export(policy.Args(args.run_dir, tmp_path / "actor.npz"))
    actor = dict(np.load(tmp_path / "actor.npz"))
    exported = numpy_actor.act(actor, observations, actor["latents"])
    learned = np.clip(jax.jit(jax.vmap(loaded.params.actor.__call__))(observations, actor["latents"]), -1, 1)
    np.testing.assert_allclose(exported, -0.4 + 2.4 * (np.asarray(learned) + 1) / 2, atol=1e-5)

    odd(bounds=(-1, 2))
    with pytest.raises(UserError, match=r"lay in \[-0.4, 2\], and lie in \[-1, 2\] now"):
        drol.main(drol.Args(resume=(args.run_dir,)))
    with pytest.raises(UserError, match=r"must lie in \[-1, 1\], the largest is 1\.9"):
        odd()
        own_npz.read(resolve(NAME), args.dataset_path)
    with pytest.raises(UserError, match=r"must lie in \[0, 1\], the largest, rescaled to \[-1, 1\], is 2\."):
        odd(bounds=(0, 1))
        own_npz.read(resolve(NAME), args.dataset_path)


@pytest.mark.slow(4)
def test_data_behind_links_that_are_renewed_is_found_where_it_was_given(odd, tmp_path, monkeypatch):
    """A file's and a folder's; its SHA-256 decides."""
    odd()
    for name in ("old", "new", "other"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "version.npz", **odd_envs.data(seed=1 if name == "other" else 0))
        (tmp_path / name / "link.npz").symlink_to("version.npz")
    link = tmp_path / "data"
    link.symlink_to("old")
    monkeypatch.chdir(tmp_path)
    drol.main(small(tmp_path, dataset_path=pathlib.Path("data/link.npz")))
    monkeypatch.chdir(tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    link.unlink(), link.symlink_to("new")
    (outcome,) = drol.main(drol.Args(resume=(tmp_path / "run",)))
    assert outcome.score is not None
    link.unlink(), link.symlink_to("other")
    with pytest.raises(UserError, match=rf"{link}/link\.npz is not the data that .*: its SHA-256 differs"):
        drol.main(drol.Args(resume=(tmp_path / "run",)))


def test_environments_of_gymnasium_itself_go_with_a_file(tmp_path, capsys):
    """Actions of the pusher lie in [-2, 2]."""
    rng, path = np.random.default_rng(0), tmp_path / "pusher.npz"
    sizes = {"observations": (9, 23), "next_observations": (9, 23), "rewards": 9, "terminals": 9, "terminations": 9}
    given = rng.uniform(-2, 2, (9, 7))
    np.savez(path, actions=given, **{name: np.zeros(size) for name, size in sizes.items()})
    data, provenance = sources.load(resolve("Pusher-v5", path), RunArgs(dataset_path=path))
    np.testing.assert_allclose(data.actions[data.transitions], given / 2, atol=1e-4)
    assert provenance["action_bounds"] == [[-2] * 7, [2] * 7]
    assert "note: actions of Pusher-v5 lie in [-2, 2]" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"Pusher-v5: its data has to be given, with --dataset-path FILE\.npz"):
        sources.load(resolve("Pusher-v5"), RunArgs())


@pytest.mark.slow(3)
def test_fine_tuning_stores_rescaled_actions(odd, tmp_path):
    odd(bounds=(0, 10))
    args = small(tmp_path, bounds=(0, 10), online_steps=5)
    (outcome,) = drol.main(dataclasses.replace(args, hidden_sizes=(8,)))
    (newest,) = (args.run_dir / "checkpoints").glob("*25.npz")
    with np.load(newest) as file:
        (actions,) = (file[name] for name in file.files if "ring.actions" in name)
        (observations,) = (file[name] for name in file.files if "ring.observations" in name)
        (successors,) = (file[name] for name in file.files if "ring.next_observations" in name)
    assert outcome.step == 25 and np.abs(actions).max() <= 1
    expected = np.clip(observations + 0.2 * (actions + 1) * 5, -2, 2)
    np.testing.assert_allclose(successors, expected, atol=1e-4)


def test_results_do_not_depend_on_who_else_draws(odd):
    """Of an environment that draws from Python's generator, whichever lane it is in."""
    odd(on_step=lambda steps, o, r, *rest: (o, random.random(), *rest))
    results = []
    for episodes in (1, 6):
        evaluator = Evaluator(resolve(NAME), episodes, seeds=[3], workers=1)
        returns: list[float] = []
        evaluator._summarise = lambda r, *_, returns=returns: returns.extend(r) or {}
        evaluator(lambda observations, *_: np.zeros_like(observations))
        evaluator.close()
        results.append(returns)
    assert results[0][0] == results[1][0]
    assert len(set(results[1])) == 6


@pytest.mark.parametrize(
    ("on_render", "message"),
    [
        (lambda: None, r"what render\(\) returns is None; it should be an array \[height, width, 3\] of uint8"),
        (lambda: np.zeros((32, 32), np.uint8), r"of shape \(32, 32\); it should be an array"),
        (lambda: np.zeros((32, 32, 3)), r"of shape \(32, 32, 3\); it should be an array .* of uint8"),
        (lambda: [np.zeros((32, 32, 3), np.uint8)], "it should be an array"),
        (lambda: {}["camera"], r"render\(\) raised KeyError: 'camera'$"),
    ],
)
def test_what_cannot_be_filmed_is_named(odd, on_render, message):
    env = odd(on_render=on_render, render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(UserError, match=rf"^Odd-v0: .*{message}"):
        env.render()


def test_transparency_is_left_out(odd):
    env = odd(on_render=lambda: np.full((32, 48, 4), 7, np.uint8), render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (32, 48, 3) and (frame == 7).all()


def still(observations, *_):
    return np.zeros((*observations.shape[:2], 2), np.float32)


@pytest.fixture
def film_it(monkeypatch) -> Callable[..., None]:
    """In an environment that other processes can make, too."""
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent))
    return functools.partial(film, spec=resolve("odd_envs:Film-v0"), seed=0, episodes=1)


@pytest.mark.slow(2)
def test_a_film_is_written_without_a_warning_from_jax(film_it, tmp_path, capsys):
    jax.devices()  # from now on it warns of forks
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        film_it(still, tmp_path / "film.mp4")
    assert [str(warning.message) for warning in caught] == []
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert capsys.readouterr().out == f"video: {tmp_path / 'film.mp4'}, 21 frames\n"


@pytest.mark.slow(3)
def test_episodes_are_filmed_at_once_and_shown_one_after_the_other(film_it, tmp_path, monkeypatch):
    """Every second step, and what each ends with; whatever the number of processes, which go on to the third."""
    spec, expected = resolve("odd_envs:Counting-v0"), []
    for episode in range(3):
        env = make_evaluation_env(spec)
        env.reset(seed=seed_of_episode(0, episode))
        length = env.unwrapped.length
        expected += [10 * length + step for step in range(length) if step % 2 == 0] + [11 * length]
    for cores in (1, 2):
        monkeypatch.setattr("common.film.available_cores", lambda cores=cores: cores)
        film_it(still, tmp_path / "film.gif", spec=spec, episodes=3)
        assert iio.imread(tmp_path / "film.gif")[:, 0, 0, 0].tolist() == expected


@pytest.mark.slow(2)
def test_a_film_that_is_stopped_by_a_signal_to_all_processes_blames_nobody(film_it, tmp_path, capsys):
    """Its environment is gone first."""
    dying = []

    def deadly(observations, *_):
        if not dying:
            (worker,) = multiprocessing.active_children()
            worker.terminate()
            worker.join()
            dying.append(time.monotonic())
        return still(observations)

    should_stop = lambda: bool(dying) and time.monotonic() > dying[0] + 0.2  # noqa: E731
    film_it(deadly, tmp_path / "film.gif", should_stop=should_stop)
    assert [path.name for path in tmp_path.iterdir()] == ["film.gif"]  # what there was by then
    assert capsys.readouterr().out == f"stopped: video: {tmp_path / 'film.gif'}, 1 frames\n"
    dying.clear()
    with pytest.raises(UserError, match="filming fails here"):
        film_it(deadly, tmp_path / "film.gif")
