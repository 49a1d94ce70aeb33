"""An algorithm file of one's own, unlike the others: TD3+BC (Fujimoto, Gu, 2021), in a copy of the repository.

A deterministic actor with a target of its own, two optimisers, a delayed policy, and nothing of what the page
("Your own algorithm") does not ask for.
"""

import difflib
import functools
import pathlib
import re
import runpy
import shutil
from types import ModuleType

import fql
import plot
import speed
import table
from common import algorithms, policy
from common.errors import UserError

import pytest
import test_both
from conftest import REPOSITORY, copy_repository, run_script
from test_both import definitions

FQL = REPOSITORY / "fql.py"
# What differs from fql.py; None: not needed.
PIECES = {
    "ALGORITHM": 'ALGORITHM = "td3bc"',
    "DEFAULT": 'DEFAULT = Published(2.5, 0.99, "min")',
    "PUBLISHED": "PUBLISHED = {}",
    "ONLINE_ALPHA": None,
    "published_settings": """
def published_settings(args: Args, spec: EnvSpec) -> tuple[Literal["published", "default"], dict[str, Any]]:
    return "default", DEFAULT._asdict() | {"offline_steps": OFFLINE_STEPS[spec.suite]}""",
    "method": """
def method(args: Args) -> str:
    return "TD3+BC\"""",
    "Params": """
class Params(eqx.Module):
    critic: MLP
    actor: MLP  # pi(s) = tanh of it""",
    "TrainState": """
class TrainState(eqx.Module):
    params: Params
    target: Params
    critic_opt_state: optax.OptState
    actor_opt_state: optax.OptState
    step: Int[Array, ""]""",
    "init_params": """
def init_params(args: Args, observation_shape: tuple[int, ...], action_dim: int, key: PRNGKey) -> Params:
    critic_key, actor_key = jax.random.split(key)
    return Params(
        critic=init_critic(args, observation_shape[0] + action_dim, critic_key),
        actor=MLP(observation_shape[0], action_dim, args.hidden_sizes, key=actor_key),
    )""",
    "init_state": """
def init_state(args: Args, observation_shape: tuple[int, ...], action_dim: int, key: PRNGKey) -> TrainState:
    params = init_params(args, observation_shape, action_dim, key)
    opt_states = (optax.adam(args.learning_rate).init(net) for net in (params.critic, params.actor))
    return TrainState(params, jax.tree.map(jnp.copy, params), *opt_states, jnp.zeros((), jnp.int32))""",
    "optimizer": None,
    "sample_latents": None,
    "Noise": None,
    "sample_noise": None,
    "sample_action": """
def act(actor: MLP, observation: Float[Array, " observation"]) -> Float[Array, " action"]:
    return jnp.tanh(actor(observation))


def sample_action(
    args: Args, params: Params, observation: Float[Array, " observation"], key: PRNGKey
) -> Float[Array, " action"]:
    return act(params.actor, observation)""",
    "sample_next_actions": None,
    "actor_loss": """
def actor_loss(args: Args, actor: MLP, critic: MLP, batch: Batch) -> tuple[Scalar, Metrics]:
    actions = jax.vmap(functools.partial(act, actor))(batch.observations)
    q = q_values(critic, batch.observations, actions)[0]
    bc_loss = ((actions - batch.actions) ** 2).mean()
    loss = bc_loss - args.alpha * (q / jax.lax.stop_gradient(jnp.abs(q).mean())).mean()
    return loss, {"actor/bc_loss": bc_loss, "actor/q_mean": q.mean()}""",
    "flow_actions": None,
    "critic_loss": """
def critic_loss(args: Args, critic: MLP, target: Params, batch: Batch, key: PRNGKey) -> tuple[Scalar, Metrics]:
    noise = args.policy_noise * jax.random.normal(key, batch.actions.shape)
    next_actions = jax.vmap(functools.partial(act, target.actor))(batch.next_observations)
    next_actions = jnp.clip(next_actions + jnp.clip(noise, -args.noise_clip, args.noise_clip), -1, 1)
    next_q = aggregate(q_values(target.critic, batch.next_observations, next_actions), args.q_agg)
    target_q = batch.rewards + args.discount * batch.masks * next_q
    q = q_values(critic, batch.observations, batch.actions)
    loss = ((q - target_q) ** 2).mean()
    return loss, {"critic/loss": loss, "critic/q_mean": q.mean()}""",
    "update": """
def update(args: Args, state: TrainState, batch: Batch, key: PRNGKey) -> tuple[TrainState, Metrics]:
    params, adam = state.params, optax.adam(args.learning_rate)
    grads, metrics = jax.grad(critic_loss, argnums=1, has_aux=True)(args, params.critic, state.target, batch, key)
    updates, critic_opt_state = adam.update(grads, state.critic_opt_state)
    critic = optax.apply_updates(params.critic, updates)
    grads, actor_metrics = jax.grad(actor_loss, argnums=1, has_aux=True)(args, params.actor, critic, batch)
    updates, actor_opt_state = adam.update(grads, state.actor_opt_state)
    after = Params(critic, optax.apply_updates(params.actor, updates))
    target = jax.tree.map(lambda new, old: args.tau * new + (1 - args.tau) * old, after, state.target)
    before = Params(critic, params.actor), state.target, state.actor_opt_state
    is_due = state.step % args.policy_delay == 0
    choose = lambda new, old: jnp.where(is_due, new, old)  # noqa: E731
    after, target, actor_opt_state = jax.tree.map(choose, (after, target, actor_opt_state), before)
    return TrainState(after, target, critic_opt_state, actor_opt_state, state.step + 1), metrics | actor_metrics""",
    "train_chunk": """
def train_chunk(
    args: Args, state: TrainState, batches: Batch, key: PRNGKey
) -> tuple[TrainState, dict[str, Float[Array, " updates"]]]:
    def one_update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return update(args, state, batch, keys_of_update(key, state.step)[1])

    return scan(one_update, state, batches)""",
    "online_update": """
def online_update(
    args: Args, state: TrainState, replay: Replay, dataset: Dataset, key: PRNGKey, transition: Batch
) -> tuple[TrainState, Replay, Metrics]:
    replay = add_transition(replay, transition)
    batch_key, noise_key = keys_of_update(key, state.step)
    batch = sample_replay(dataset, replay, args.batch_size, args.balanced_sampling, batch_key)
    state, metrics = update(args, state, batch, noise_key)
    return state, replay, metrics""",
}
OWN_ARGUMENTS = """    alpha: Weight | None = None
    policy_noise: Weight = 0.2
    noise_clip: Weight = 0.5
    policy_delay: Count = 2
"""


def third_algorithm() -> str:
    """fql.py, with these pieces instead of its own."""
    source = FQL.read_text()
    for name, text in definitions(FQL).items():
        if name in PIECES:
            start = re.search(r"^(?!#|$)", text, re.MULTILINE).start()  # a heading above it stays
            assert source.count(text[start:]) == 1
            source = source.replace(text[start:], (PIECES[name] or "").strip("\n"))
    own = re.compile(r"(    # FQL\n).*?\n\n\n", re.DOTALL)
    source = own.sub(rf"\1{OWN_ARGUMENTS}\n\n", source, count=1)
    source = re.sub(r"\n{4,}", "\n\n\n", source)
    return re.sub('""".*?"""', '"""TD3+BC."""', source, count=1, flags=re.DOTALL)


@pytest.fixture(scope="module")
def copy(once) -> pathlib.Path:
    """A copy of the repository with a third algorithm in it."""

    def make(folder: pathlib.Path) -> None:
        copy_repository(folder)
        (folder / "td3bc.py").write_text(third_algorithm())

    return once("third", make)


@pytest.fixture
def td3bc(copy, monkeypatch) -> ModuleType:
    """It in this process, where the copy is the repository now."""
    monkeypatch.setattr(algorithms, "REPOSITORY", copy)
    monkeypatch.syspath_prepend(str(copy))
    return algorithms.load("td3bc")


@pytest.fixture(scope="module")
def trained(copy, point_file, once) -> pathlib.Path:
    """A run of it, by the command line."""

    def make(folder: pathlib.Path) -> None:
        small = ("--env-id", "odd_envs:Film-v0", "--dataset-path", point_file, "--hidden-sizes", 8, "--batch-size", 16)
        steps = ("--offline-steps", 40, "--eval-interval", 20, "--log-interval", 10, "--save-minutes", 0)
        few = ("--eval-episodes", 1, "--eval-workers", 1, "--noise-clip", 0.3, "--run-dir", folder / "td3bc")
        result = run_script(*small, *steps, *few, script="td3bc.py", cwd=copy, variables={"PYTHONPATH": "tests"})
        assert result.returncode == 0, result.stdout + result.stderr

    return once("third-trained", make) / "td3bc"


def test_a_third_algorithm_is_short():
    """In lines that hold something; new are those that are not fql.py's."""
    ours, fql = ([line for line in text.splitlines() if line.strip()] for text in (third_algorithm(), FQL.read_text()))
    matches = difflib.SequenceMatcher(None, fql, ours, autojunk=False).get_matching_blocks()
    assert len(ours) <= 330
    assert len(ours) - sum(match.size for match in matches) <= 130


@pytest.mark.slow(15)
def test_the_tests_of_what_algorithms_do_take_it(td3bc):
    """Those of test_both.py that are of every algorithm file there is when they are collected."""
    tests = [test for name, test in runpy.run_path(test_both.__file__).items() if name.startswith("test_")]
    marks = [(test, mark) for test in tests for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    of_all = [test for test, mark in marks if td3bc in mark.args[1]]
    assert len(of_all) == 3
    for test in of_all:
        test(td3bc)


@pytest.mark.slow(11)
def test_it_goes_on_and_is_evaluated(td3bc, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "checkpoints" / "step-000000040.npz").unlink()
    td3bc.main(td3bc.Args(resume=(run,)))
    assert "done: success (%)" in capsys.readouterr().out
    for name in ("train.csv", "eval.csv"):
        assert (run / name).read_bytes() == (trained / name).read_bytes()
    td3bc.main(td3bc.Args(evaluate=run))
    assert "after update 40, 1 episode" in capsys.readouterr().out


@pytest.mark.slow(7)
@pytest.mark.usefixtures("td3bc")
def test_an_actor_that_is_not_a_function_of_state_and_latent_is_not_exported(trained, tmp_path):
    with pytest.raises(UserError, match=r"only an actor f\(s, z\) can be .* td3bc.py has none with sample_latents"):
        policy.export(policy.Args(trained, tmp_path / "actor.npz"))


@pytest.mark.slow(7)
@pytest.mark.usefixtures("td3bc")
def test_it_is_tabulated_and_plotted_under_its_own_name(trained, tmp_path, capsys):
    table.main(table.TableArgs((trained,)))
    assert "| TD3+BC, batch_size 16, noise_clip 0.3 |" in capsys.readouterr().out
    plot.main(plot.PlotArgs((trained,), tmp_path / "figure"))
    assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.slow(22)
@pytest.mark.usefixtures("td3bc")
def test_its_speed_is_measured_beside_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "updates_a_call", lambda hidden_sizes: 2)  # instead of 50
    monkeypatch.setattr(fql, "Args", functools.partial(fql.Args, flow_steps=2))  # instead of 10: quick to compile
    small = {"num_candidates": (3,), "num_seeds": (1,), "rounds": 1, "hidden_sizes": (16,)}
    speed.main(speed.SpeedArgs(**small, updates_only=True, out=tmp_path / "speed"))
    printed = capsys.readouterr().out
    assert (tmp_path / "speed.md").read_text() == printed
    assert "hidden sizes 16" in printed
    rows: dict[str, list[str]] = {}  # of the first table
    for line in (line for line in printed.splitlines() if line.startswith("| ")):
        rows.setdefault(line.split("|")[1].strip(), line.split("|")[2:])
    for method in ("FQL", "DROL(3)"):
        update, floor, multiple, *_ = map(float, filter(str.strip, rows[method]))
        assert update / floor == pytest.approx(multiple, rel=0.02)
    assert float(rows["TD3+BC"][0]) > 0
    assert (tmp_path / "speed.png").stat().st_size > 5000
