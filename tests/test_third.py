"""An algorithm file of one's own: behaviour cloning by the actor alone, in a copy of the repository."""

import difflib
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY, command, copy_repository
from test_both import definitions

# ruff: noqa: E501
# What differs from fql.py; None: not needed.
PIECES = {
    "ALGORITHM": 'ALGORITHM = "bc"',
    "Published": '''class Published(NamedTuple):
    """Of the critic, which only watches."""

    discount: float
    q_agg: Agg''',
    "DEFAULT": 'DEFAULT = Published(0.99, "mean")',
    "PUBLISHED": "PUBLISHED = {}",
    "ONLINE_ALPHA": None,
    "published_settings": '''def published_settings(args: Args, spec: EnvSpec) -> tuple[Literal["published", "default"], dict[str, Any]]:
    """What arguments take that are left unset, and whether the paper has it."""
    return "default", DEFAULT._asdict() | {"offline_steps": OFFLINE_STEPS[spec.suite]}''',
    "method": '''def method(args: Args) -> str:
    """What plots and tables call it."""
    return "BC"''',
    "Params": '''class Params(eqx.Module):
    """Everything that is optimised."""

    critic: MLP  # Q_i(s, a); every array has a leading axis for the ensemble i = 1, 2
    actor: MLP  # f(s, z), not clipped''',
    "init_params": '''def init_params(args: Args, observation_dim: int, action_dim: int, key: PRNGKey) -> Params:
    """Fresh networks."""
    critic_key, actor_key = jax.random.split(key)
    in_size = observation_dim + action_dim
    return Params(
        critic=init_critic(args, in_size, critic_key),
        actor=MLP(in_size, action_dim, args.hidden_sizes, key=actor_key),
    )''',
    "Noise": '''class Noise(eqx.Module):
    """What `sample_noise` draws for one update."""

    next_latents: Float[Array, "batch action"]
    latents: Float[Array, "batch action"]''',
    "sample_noise": '''def sample_noise(args: Args, action_dim: int, key: PRNGKey) -> Noise:
    """Fresh for each update."""
    return Noise(*(sample_latents(each, (args.batch_size, action_dim)) for each in jax.random.split(key)))''',
    "actor_loss": '''def actor_loss(args: Args, params: Params, batch: Batch, noise: Noise) -> tuple[Scalar, Metrics]:
    """Mean over the batch of ||f(s, z) - a||^2 / d."""
    loss = ((jax.vmap(params.actor)(batch.observations, noise.latents) - batch.actions) ** 2).mean()
    return loss, {"actor/loss": loss}''',
    "flow_actions": None,
}
OWN_ARGUMENTS = '''    noise_level: Weight = 1.0
    """Does nothing here; a setting of one's own."""
'''


def third_algorithm() -> str:
    """fql.py, with these pieces instead of its own."""
    source = (REPOSITORY / "fql.py").read_text()
    for name, text in definitions(REPOSITORY / "fql.py").items():
        if name in PIECES:
            start = re.search(r"^(?!#|$)", text, re.MULTILINE).start()  # a heading above it stays
            assert source.count(text[start:]) == 1
            source = source.replace(text[start:], PIECES[name] or "")
    source = re.sub(
        r"(    # The algorithm's own\n).*?\n\n\n", rf"\1{OWN_ARGUMENTS}\n\n", source, count=1, flags=re.DOTALL
    )
    source = re.sub(r"\n{4,}", "\n\n\n", source)
    return re.sub('""".*?"""', '"""BC: behaviour cloning by a one-step actor."""', source, count=1, flags=re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository with a third algorithm in it."""
    folder = copy_repository(tmp_path_factory.mktemp("copy") / "repository")
    (folder / "bc.py").write_text(third_algorithm())
    return folder


def run(copy, *words: object, module: str | None = None, script: str = "bc.py") -> str:
    result = subprocess.run(command(*words, script=script, module=module), cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def finished(copy, pointmaze_file):
    small = ("--env-id", "pointmaze-medium", "--dataset-path", pointmaze_file, "--hidden-sizes", 8, "--batch-size", 16)
    steps = ("--offline-steps", 40, "--eval-interval", 20, "--log-interval", 10, "--save-minutes", 0)
    few = ("--eval-episodes", 1, "--eval-workers", 1)
    run(copy, *small, *steps, *few, "--noise-level", 0.5, "--run-dir", "runs/bc")
    return copy / "runs" / "bc"


def test_a_third_algorithm_is_short():
    ours, fql = third_algorithm().splitlines(), (REPOSITORY / "fql.py").read_text().splitlines()
    matches = difflib.SequenceMatcher(None, fql, ours, autojunk=False).get_matching_blocks()
    equal = [line for match in matches for line in ours[match.b : match.b + match.size]]
    assert len(fql) + len(ours) - 2 * len(equal) <= 150
    assert sum(bool(line.strip()) for line in equal) <= 300


@pytest.mark.slow(8)
def test_the_shared_tests_take_it(copy):
    tests = ("letter and bc or initialisation and bc", "tests/test_both.py")
    assert run(copy, "-q", "-n", 0, "-k", *tests, module="pytest").startswith("..  ")


@pytest.mark.slow(14)
def test_it_goes_on_and_is_evaluated(copy, finished):
    logs = {name: (finished / name).read_bytes() for name in ("train.csv", "eval.csv")}
    (finished / "checkpoints" / "step-000000040.npz").unlink()
    assert "done: success (%)" in run(copy, "--resume", finished)
    assert {name: (finished / name).read_bytes() for name in logs} == logs
    assert "after update 40, 1 episode" in run(copy, "--evaluate", finished)


@pytest.mark.slow(14)
def test_it_is_tabulated_and_plotted_under_its_own_name(copy, finished):
    words = "import sys; sys.path.insert(0, 'results'); import pathlib, plot, table; runs = (pathlib.Path('runs/bc'),)"
    program = f"{words}; table.main(table.Args(runs)); plot.main(plot.Args(runs, pathlib.Path('figure')))"
    result = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| BC, batch_size 16, noise_level 0.5 |" in result.stdout
    assert (copy / "figure.png").stat().st_size > 5000


@pytest.mark.slow(20)
def test_its_speed_is_measured_beside_the_others(copy):
    small = ("--num-candidates", 3, "--num-seeds", 1, "--rounds", 1, "--hidden-sizes", 16, "--updates-only")
    printed = run(copy, *small, "--out", "speed", script="results/speed.py")
    assert (copy / "speed.md").read_text() == printed
    assert "hidden sizes 16" in printed
    rows: dict[str, list[str]] = {}  # of the first table
    for line in (line for line in printed.splitlines() if line.startswith("| ")):
        rows.setdefault(line.split("|")[1].strip(), line.split("|")[2:])
    for method in ("FQL", "DROL(3)"):
        update, floor, multiple, *_ = map(float, filter(str.strip, rows[method]))
        assert update / floor == pytest.approx(multiple, rel=0.02)
    assert float(rows["BC"][0]) > 0
    assert (copy / "speed.png").stat().st_size > 5000
