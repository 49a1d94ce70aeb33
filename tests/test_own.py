"""One's own environment, data and program: the recipes of the pages run as they stand."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator

import drol
import fql
from common import evaluation, minari_envs, policy
from common.arguments import RunArgs, from_command_line
from common.data import ogbench_npz, own_npz, sources
from common.env_ids import resolve
from common.envs import make_own_env
from common.errors import UserError
from common.numpy_actor import act
from common.policy import load_policy
from common.run_directory import Checkpoint, RunDirectory, read_config
from common.seeds import keys_of_runs
from common.tables import read_table

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, RUNS_LONG, run_script
from toys import completed, new_run

PAGE = (REPOSITORY / "common" / "README.md").read_text()
PROGRAMS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
REACH = "reach:Reach-v0"


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """What is started meanwhile has one core, where there is a way to say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def recipes(once) -> pathlib.Path:
    """A folder with the programs of the recipes."""

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        for name, program in PROGRAMS.items():
            (folder / name).write_text(program)

    return once("recipes", make)


@pytest.fixture(scope="module")
def reach(recipes, once) -> pathlib.Path:
    """The same folder, once the recipes have been carried out: reach.npz, minari/, and runs/ of both."""

    def make(_: pathlib.Path) -> None:
        variables = {"PYTHONPATH": str(recipes), "MINARI_DATASETS_PATH": str(recipes / "minari")}
        variables["XLA_FLAGS"] = os.environ["XLA_FLAGS"] + RUNS_LONG
        for line in (line for line in COMMANDS if "reach" in line or "record" in line):
            words = shlex.split(line)
            assert words[0] == "python"
            script = words[1] if words[1] in PROGRAMS else str(REPOSITORY / words[1])
            with on_one_core():  # which needs no process to evaluate in
                result = subprocess.run(
                    [sys.executable, script, *words[2:]],
                    cwd=recipes,
                    capture_output=True,
                    text=True,
                    env=os.environ | variables,
                )
            assert result.returncode == 0, result.stdout + result.stderr

    once("reach", make)
    return recipes


@pytest.fixture(autouse=True)
def importable(recipes, monkeypatch):
    monkeypatch.syspath_prepend(str(recipes))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(recipes / "minari"))


def run_of(reach: pathlib.Path, name: str) -> pathlib.Path:
    (path,) = (reach / "runs").glob(f"drol-{name}-seed0-*")
    return path


@pytest.mark.slow(20)
def test_the_recipes_train_a_policy_that_reaches(reach):
    for name in ("reach-Reach-v0", "reach-scripted-v0"):
        rows = read_table(run_of(reach, name) / "eval.csv")
        assert [row["step"] for row in rows] == [500, 1000]
        assert rows[-1]["evaluation/success"] > 80


@pytest.mark.slow(20)
def test_the_same_transitions_come_from_both_kinds_of_files(reach):
    """Those of the environment itself, too: the recipes record the same episodes."""
    npz, _ = own_npz.read(resolve(REACH), reach / "reach.npz")
    minari, _ = sources.load(resolve("reach/scripted-v0"), RunArgs())
    for name in ("observations", "rewards", "masks", "transitions"):
        np.testing.assert_array_equal(getattr(npz, name), getattr(minari, name), err_msg=name)
    np.testing.assert_allclose(npz.actions, minari.actions, atol=1e-6)
    with np.load(reach / "reach.npz") as file:
        starts = npz.transitions
        np.testing.assert_array_equal(npz.observations[starts], file["observations"].astype(np.float32))
        np.testing.assert_array_equal(npz.observations[starts + 1], file["next_observations"].astype(np.float32))
        np.testing.assert_array_equal(npz.masks[starts], 1 - file["terminations"])


def write(path: pathlib.Path, **changes) -> pathlib.Path:
    """Two trajectories: one of three rows that ends because the task is complete, one of two that is cut."""
    arrays = {
        "observations": np.arange(10.0).reshape(5, 2) / 10,
        "actions": np.linspace(-1, 1, 10).reshape(5, 2),
        "rewards": np.array([-1.0, -1, 0, -1, -1]),
        "terminals": np.array([0, 0, 1, 0, 1]),
        "masks": np.array([1, 1, 0, 1, 1]),
    }
    arrays = {key: array for key, array in (arrays | changes).items() if array is not None}
    np.savez(path, **arrays)
    return path


def test_without_successors_the_next_row_is_one_unless_nothing_follows(tmp_path):
    data, _ = own_npz.read(resolve(REACH), write(tmp_path / "a.npz"))
    starts = data.transitions
    np.testing.assert_allclose(data.observations[starts, 0], [0, 0.2, 0.4, 0.6])  # of the cut one, all but the last
    np.testing.assert_allclose(data.observations[starts + 1, 0][[0, 1, 3]], [0.2, 0.4, 0.8])
    np.testing.assert_array_equal(data.masks[starts], [1, 1, 0, 1])
    np.testing.assert_array_equal(data.rewards[starts], [-1, -1, 0, -1])
    assert np.abs(data.actions).max() < 1


def test_transitions_in_any_order_keep_their_successors(tmp_path):
    successors = np.arange(10.0).reshape(5, 2)[::-1] / 7
    data, _ = own_npz.read(resolve(REACH), write(tmp_path / "a.npz", next_observations=successors))
    assert len(data.transitions) == 5
    np.testing.assert_allclose(data.observations[data.transitions + 1], successors, rtol=1e-6)


@pytest.mark.parametrize("cut", ["timeouts", "truncations"])
@pytest.mark.parametrize("masks", [np.array([1, 1, 0, 1, 1]), None])
def test_flags_of_other_conventions_cut_trajectories(tmp_path, cut, masks):
    """As D4RL's and Gymnasium's: `terminals` are 1 where the task is complete, another flag where it was cut."""
    flags = {"terminals": np.array([0, 0, 1, 0, 0]), cut: np.array([0, 0, 0, 0, 1]), "masks": masks}
    ours, _ = own_npz.read(resolve(REACH), write(tmp_path / "ours.npz"))
    theirs, _ = own_npz.read(resolve(REACH), write(tmp_path / "theirs.npz", **flags))
    for name, array in vars(ours).items():
        np.testing.assert_array_equal(array, getattr(theirs, name), err_msg=name)
    early = flags | {"terminals": np.zeros(5), cut: np.array([0, 1, 0, 0, 1]), "masks": None}
    data, _ = own_npz.read(resolve(REACH), write(tmp_path / "cut.npz", **early))
    np.testing.assert_allclose(data.observations[data.transitions, 0], [0, 0.4, 0.6])  # neither row that was cut
    np.testing.assert_array_equal(data.masks[data.transitions], 1)


def test_what_is_not_read_of_a_file_is_named(tmp_path, capsys):
    path = write(tmp_path / "a.npz", terminations=np.zeros(5), **{"infos/goal": np.zeros((5, 2))})
    own_npz.read(resolve(REACH), path)
    assert capsys.readouterr().out == f"note: {path}: not read: infos/goal, terminations\n"  # masks say it already
    own_npz.read(resolve(REACH), write(path, timeouts=np.zeros(5)))
    assert capsys.readouterr().out == ""


BAD = [
    ({"rewards": None}, "rewards is missing"),
    ({"terminals": None}, "terminals is missing"),
    ({"masks": None}, "masks is missing"),
    ({"actions": np.zeros((5, 3))}, "actions has shape"),
    ({"observations": np.zeros((5, 3))}, "observations has shape"),
    ({"rewards": np.zeros(4)}, "4 rows of rewards but 5"),
    ({"rewards": np.array([0, np.nan, 0, 0, 0])}, "NaN or infinity in rewards, first in row 1"),
    ({"next_observations": np.full((5, 2), np.inf)}, "NaN or infinity in next_observations"),
    ({"actions": np.full((5, 2), 1.5)}, r"actions must lie in \[-1, 1\], the largest is 1.5"),
    ({"actions": np.full((5, 2), -128, np.int8)}, r"actions must lie in \[-1, 1\], the largest is 128"),
    ({"observations": np.where(np.arange(10).reshape(5, 2) == 5, -1e39, 0)}, "in observations, first in row 2"),
    ({"timeouts": np.zeros(4)}, "4 rows of timeouts but 5"),
    ({"masks": np.full(5, 2)}, r"masks must lie in \[0, 1\]"),
    ({"terminals": np.array([0, 0, 2, 0, 1])}, r"terminals must lie in \[0, 1\]"),
    ({"terminals": np.zeros(5)}, "the last trajectory does not end"),
    ({"terminals": np.ones(5), "masks": np.ones(5)}, "holds no transition"),
    ({"observations": np.array(["a"] * 10).reshape(5, 2)}, "not numbers"),
    ({"rewards": np.array([None] * 5)}, "damaged or not an npz file"),
    ({key: np.zeros((0, *shape)) for key, shape in (("observations", (2,)), ("actions", (2,)), ("rewards", ()))}
     | {"terminals": np.zeros(0), "masks": np.zeros(0)}, "holds no transition"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_files_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        own_npz.read(resolve(REACH), write(tmp_path / "a.npz", **changes))


def test_environments_that_cannot_be_judged_in_are_refused_before_any_data(tmp_path, refusal):
    for env_id, message in (
        ("no_such_module:X-v0", "no_such_module cannot be imported"),
        ("reach:Reach-v7", "it cannot be made"),
        ("gymnasium:CartPole-v1", "actions are not vectors of real numbers"),
    ):
        path = tmp_path / "data.npz"
        path.touch()
        assert message in refusal("--env-id", env_id, "--dataset-path", path, "--run-dir", tmp_path / "run")
    assert "its data has to be given" in refusal("--env-id", REACH, "--run-dir", tmp_path / "run")
    own = ("--dataset-path", path, "--own-rewards", "--run-dir", tmp_path / "run")
    assert "--own-rewards is for OGBench's" in refusal("--env-id", REACH, *own)


def test_an_environment_without_a_time_limit_is_refused():
    import gymnasium

    gymnasium.register("Endless-v0", "reach:Reach")
    with pytest.raises(UserError, match="register it with max_episode_steps"):
        make_own_env("reach:Endless-v0")


@pytest.mark.slow(10)
def test_an_ogbench_file_may_bring_its_own_rewards(tmp_path, cube_file):
    with np.load(cube_file) as file:
        arrays = dict(file)
    n = len(arrays["observations"])
    own = {"rewards": np.arange(n, dtype=np.float32), "masks": np.zeros(n, np.float32)}
    np.savez(tmp_path / "own.npz", **arrays, **own)
    spec = resolve("cube-single")
    data, _ = ogbench_npz.read(spec, tmp_path / "own.npz", own_rewards=True)
    np.testing.assert_array_equal(data.rewards, own["rewards"])
    np.testing.assert_array_equal(data.masks, 0)
    assert (ogbench_npz.read(spec, tmp_path / "own.npz")[0].rewards <= 0).all()
    np.savez(tmp_path / "bad.npz", **arrays, **(own | {"masks": np.full(n, 2.0)}))
    with pytest.raises(UserError, match="masks must lie in"):
        ogbench_npz.read(spec, tmp_path / "bad.npz", own_rewards=True)
    with pytest.raises(UserError, match="rewards is missing; --own-rewards needs it"):
        ogbench_npz.read(spec, cube_file, own_rewards=True)


@pytest.mark.slow(10)
def test_flags_of_other_conventions_cut_trajectories_of_an_ogbench_file_too(tmp_path, cube_file, capsys):
    with np.load(cube_file) as file:
        arrays = dict(file)
    timeouts = np.zeros(len(arrays["terminals"]))
    timeouts[[10, 500]] = 1
    np.savez(tmp_path / "a.npz", **arrays, timeouts=timeouts, goals=timeouts)
    plain, data = (ogbench_npz.read(resolve("cube-single"), path)[0] for path in (cube_file, tmp_path / "a.npz"))
    np.testing.assert_array_equal(data.transitions, np.setdiff1d(plain.transitions, [10, 500]))
    assert f"{tmp_path / 'a.npz'}: not read: goals\n" in capsys.readouterr().out


# A trained policy in a program of one's own


@pytest.mark.slow(20)
def test_the_lines_of_the_main_page_act(reach, tmp_path, monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?load_policy.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(lines.replace("runs/door", str(run_of(reach, "reach-Reach-v0"))), names)
    assert names["action"].shape == (2,)


def saved_run(
    path: pathlib.Path, algorithm, env_id: str, dataset: pathlib.Path, sizes: tuple[int, int]
) -> pathlib.Path:
    """A run that has not learned anything, but has a checkpoint."""
    args = completed(algorithm, algorithm.Args(env_id=env_id, hidden_sizes=(8, 8)), env_id)[0]
    origin = {"source": "file", "path": str(dataset), "sha256": "0"}
    named = dict(zip(("observation", "action"), sizes, strict=True))
    run = new_run(path, algorithm, args, {}, origin, named)
    run.save(
        10,
        Checkpoint(
            jax.jit(lambda key: algorithm.init_state(args, sizes[:1], sizes[1], key))(jax.random.key(3)), None, {}
        ),
    )
    return path


@pytest.mark.parametrize("which", ["own", "cube-single", "pen"])
@pytest.mark.slow(20)
def test_a_loaded_policy_acts_as_the_one_that_was_evaluated(which, reach, tmp_path, monkeypatch):
    """Same keys, same actions: an episode gone through by hand has the return that the evaluation counts."""
    if which == "own":
        algorithm, path = drol, run_of(reach, "reach-Reach-v0")
    elif which == "cube-single":
        algorithm, path = fql, saved_run(tmp_path / "run", fql, "cube-single", tmp_path / "x.npz", (28, 5))
    else:
        import gymnasium
        import minari

        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari_envs.register_environments()
            collector = minari.DataCollector(gymnasium.make("AdroitHandPen-v1"))
            collector.reset(seed=0)
            while not any(collector.step(np.zeros(24, np.float32))[2:4]):
                pass
            collector.create_dataset("D4RL/pen/human-v2")
        data = tmp_path / "D4RL/pen/human-v2"
        algorithm, path = drol, saved_run(tmp_path / "run", drol, "pen-human", data, (45, 24))
    loaded = load_policy(path)
    run = RunDirectory.open(path, algorithm.ALGORITHM, lock=False)
    args = dataclasses.replace(run.read_args(algorithm.Args), evaluate=path)
    keys = keys_of_runs([0]).evaluation
    evaluator = evaluation.Evaluator(loaded.spec, 1, seeds=[0], workers=1, dataset_path=loaded.dataset_path)
    act = lambda params, observation, key: algorithm.sample_action(args, params, observation, key)  # noqa: E731
    params = run.newest_params(lambda key: algorithm.init_state(args, *run.sizes, key))[1]
    (result,) = evaluator(evaluation.policies_of(act, keys)(jax.tree.map(lambda leaf: leaf[None], params)))

    env, act_here = loaded.make_env(), jax.jit(loaded)
    observation, total, step, over = env.reset(seed=evaluator.episode_seeds[0][0])[0], 0.0, 0, False
    while not over:
        key = jax.random.fold_in(jax.random.fold_in(keys[0], 0), step)
        observation, reward, terminated, truncated, _ = env.step(np.asarray(act_here(observation, key)))
        total, step, over = total + reward, step + 1, terminated or truncated
    assert step == result["evaluation/length"]
    assert total == pytest.approx(result["evaluation/return"], rel=1e-3, abs=1e-3)
    evaluator.close()


@pytest.mark.slow(20)
def test_a_policy_takes_a_batch_and_no_environment_is_made_to_load_it(reach, monkeypatch):
    monkeypatch.setattr(policy, "make_evaluation_env", None)
    loaded = load_policy(str(run_of(reach, "reach-Reach-v0")))
    observations, key = jnp.array([[0.5, 0.5], [-0.5, 0.1], [0.0, -1.0]]), jax.random.key(5)
    batch = jax.jit(loaded)(observations, key)
    assert batch.shape == (3, 2)
    for i, each in enumerate(jax.random.split(key, 3)):
        np.testing.assert_allclose(batch[i], loaded(observations[i], each), atol=1e-6)
    np.testing.assert_allclose(loaded(observations, jax.random.split(key, 3)), batch, atol=1e-6)


@pytest.mark.slow(20)
def test_an_exported_actor_acts_in_numpy_alone(reach, tmp_path):
    """Nor does writing it take an accelerator: here one that is asked for and missing would be an error."""
    path, only_cuda = run_of(reach, "reach-Reach-v0"), {"PYTHONPATH": str(reach), "JAX_PLATFORMS": "cuda"}
    result = run_script(path, "--out", tmp_path / "actor.npz", module="common.policy", variables=only_cuda)
    assert result.returncode == 0, result.stderr
    actor, loaded = dict(np.load(tmp_path / "actor.npz")), load_policy(path)
    observations = np.random.default_rng(0).normal(size=(1024, 2)).astype(np.float32)
    expected = jax.vmap(loaded.params.actor)(observations, actor["latents"])
    np.testing.assert_allclose(act(actor, observations, actor["latents"]), np.clip(expected, -1, 1), atol=1e-5)
    assert np.linalg.norm(actor["latents"], axis=1).max() <= np.sqrt(2)  # DROL's prior
    source = (REPOSITORY / "common" / "numpy_actor.py").read_text()
    assert set(re.findall(r"^(?:import|from) (\S+)", source, re.MULTILINE)) == {"collections.abc", "numpy"}


@pytest.mark.slow(20)
def test_what_only_acts_takes_no_accelerator(reach):
    """Here one that is asked for and missing would be an error. In a program of one's own it is asked for little."""
    path, only_cuda = run_of(reach, "reach-Reach-v0"), {"PYTHONPATH": str(reach), "JAX_PLATFORMS": "cuda"}
    evaluated = run_script("--evaluate", path, "--eval-episodes", 1, "--eval-workers", 1, variables=only_cuda)
    assert evaluated.returncode == 0, evaluated.stderr
    loading = f"import os; from common.policy import load_policy; p = load_policy({str(path)!r}); import numpy, jax; "
    asking = "print(p.params.actor.layers[0].weight.__class__.__name__, os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'])"
    command = [sys.executable, "-c", loading + asking]
    program = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(reach)}
    )
    assert program.stdout.split() == ["ndarray", "false"], program.stderr


def test_a_policy_of_a_script_that_is_not_here_is_one_line(tmp_path):
    path = saved_run(tmp_path / "run", drol, "cube-single", tmp_path, (28, 5))
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"algorithm": "drol"', '"algorithm": "rebrac"'))
    with pytest.raises(UserError, match=r"there is no rebrac\.py here; there are drol\.py, fql\.py"):
        load_policy(path)


def test_the_words_of_a_weights_and_biases_sweep_are_understood(monkeypatch):
    """As wandb 0.31's agent writes them for ${args}."""
    words = [
        "--normalize_q_loss=False",
        "--drol_star=True",
        "--hidden_sizes=[32, 32]",
        "--bc_coef=0.3",
        "--online-steps",
        "5",
        "--wandb_project=true",  # a text that only looks like a switch
    ]
    monkeypatch.setattr(sys, "argv", ["drol.py", *words])
    args = from_command_line(drol.Args)
    assert (args.normalize_q_loss, args.drol_star, args.hidden_sizes) == (False, True, (32, 32))
    assert (args.bc_coef, args.online_steps, args.wandb_project) == (0.3, 5, "true")


NOTEBOOK = """
import drol
outcomes = drol.main(drol.Args(
    env_id="reach:Reach-v0", dataset_path="reach.npz", run_dir="{}",
    hidden_sizes=[8, 8], offline_steps=20, eval_episodes=2,
))
print([(str(run.path), run.step, run.score is not None) for run in outcomes])
"""


@pytest.mark.slow(7)
def test_a_cell_of_a_notebook_trains(reach, tmp_path, monkeypatch):
    """In a real kernel, whose main thread runs an event loop."""
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{reach}")
    cell = nbformat.v4.new_code_cell(NOTEBOOK.format(tmp_path / "run"))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(reach)}}).execute()
    text = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    assert f"[('{tmp_path / 'run'}', 20, True)]" in text
    assert read_config(tmp_path / "run")["args"]["hidden_sizes"] == [8, 8]
