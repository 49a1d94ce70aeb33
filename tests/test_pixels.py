"""Images: the encoder, updates, frames that are stacked and cropped, environments that are seen."""

import contextlib
import ctypes.util
import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys

import drol
import fql
import pixels
from common import encoder as encoders
from common import replay
from common.arguments import complete
from common.data import own_npz
from common.data.check import lay_out
from common.encoder import Encoder
from common.env_ids import resolve
from common.envs import EvaluationEnv, make_own_env
from common.errors import UserError
from common.policy import Args as ExportArgs
from common.policy import export, load_policy
from common.replay import Batches, Dataset
from common.run_directory import read_config
from common.seeds import Seeds
from common.tables import read_table

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import optax
import pytest
from conftest import REPOSITORY, run_script
from hypothesis import given
from hypothesis import strategies as st
from toys import ACTION_DIM, OBSERVATION_DIM, assert_close, batches_of, double_precision, init, make_args

BOTH = pytest.mark.parametrize("algorithm", [drol, fql], ids=["drol", "fql"])
IMAGE, SIZES = (8, 8, 6), (3, 4, 24)
SMALL = (3, 24)  # an encoder that compiles faster; 24 features as no other network has them
FLAT = 4 * 4 * SMALL[0]  # what goes into the last layer of it
PIXELS = "pixels:Pixels-v0"


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# The encoder


def random_encoder(shape=IMAGE, sizes=SIZES, dtype=np.float64) -> Encoder:
    """With biases."""
    rng, encoder = np.random.default_rng(1), jax.jit(lambda key: Encoder(shape, sizes, key=key))(jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), dtype), encoder)


def to_numpy(encoder: Encoder) -> dict:
    weights = lambda layer: (np.asarray(layer.kernel, np.float64), np.asarray(layer.bias, np.float64))  # noqa: E731
    stages = [[weights(layer) for layer in (stage.first, *stage.block)] for stage in encoder.stages]
    kernel, bias = weights(encoder)
    return {"stages": stages, "kernel": kernel, "bias": bias}


@pytest.mark.slow(2)
@pytest.mark.parametrize("shape", [(8, 8, 6), (5, 8, 1), (4, 7, 3)])
def test_the_encoder_and_its_gradient_equal_numpy(shape):
    with double_precision():
        encoder = random_encoder(shape)
        x, weights = jnp.asarray(images(3, *shape)), np.random.default_rng(2).normal(size=(3, SIZES[-1]))
        loss = lambda encoder: (encoder(x) * weights).sum()  # noqa: E731
        features, grads = jax.jit(lambda encoder: (encoder(x), jax.grad(loss)(encoder)))(encoder)
        expected, tape = reference.encode(to_numpy(encoder), np.asarray(x, np.float64))
        assert_close([features], [expected], 1e-9)
        of_numpy = reference.encode_backward(to_numpy(encoder), tape, weights)
        assert_close(jax.tree.leaves(to_numpy(grads)), jax.tree.leaves(of_numpy), 1e-9)
        np.testing.assert_allclose(jax.jit(lambda x: encoder(x))(x[1]), features[1], rtol=1e-9)  # one alone
        assert jax.tree.structure(encoder).num_leaves == 2 * (3 * 2 + 1)


def test_both_forms_of_a_convolution_are_the_same():
    encoder = random_encoder(dtype=np.float32)
    kernel, x = encoder.stages[0].first.kernel, jnp.asarray(images(2, *IMAGE) / 255, jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, 8, 8, 3)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(convolve):
        return convolve(x, kernel), *jax.grad(lambda x, k: (convolve(x, k) * weights).sum(), (0, 1))(x, kernel)

    assert_close(gradients(encoders.product_of_patches), gradients(encoders.convolution), 1e-5)


def test_the_published_encoder_has_the_published_size():
    encoder = jax.eval_shape(lambda: Encoder((64, 64, 9), drol.Args().encoder_sizes, key=jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(encoder)) == 1_105_920  # of the reference's, counted there
    assert encoder.kernel.shape == (8 * 8 * 32, 512)


def test_initialisation_is_glorot_uniform():
    encoder = jax.jit(lambda key: Encoder((16, 16, 3), (32, 64, 128), key=key))(jax.random.key(0))
    first, second = (stage.first for stage in encoder.stages)
    for layer, fans in ((first, 9 * (3 + 32)), (second, 9 * (32 + 64)), (encoder, 4 * 4 * 64 + 128)):
        assert 0.95 * np.sqrt(6 / fans) < np.abs(layer.kernel).max() <= np.sqrt(6 / fans)
        assert np.abs(layer.bias).max() == 0


# Updates


def image_inputs(algorithm, args, dtype=np.float64):
    """As `toys.make_inputs`, of images."""
    rng, b = np.random.default_rng(0), args.batch_size
    state = init(algorithm, args, 0, IMAGE)

    def moved(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), dtype)

    state = jax.tree.map(moved, dataclasses.replace(state, opt_state=()))
    state = dataclasses.replace(state, opt_state=jax.jit(algorithm.optimizer(args).init)(state.params))
    batch = algorithm.Batch(
        observations=jnp.asarray(images(b, *IMAGE)),
        actions=jnp.asarray(rng.uniform(-1, 1, size=(b, ACTION_DIM)), dtype),
        rewards=jnp.asarray(-rng.integers(0, 3, size=b), dtype),
        masks=jnp.asarray(np.arange(b) % 3 > 0, dtype),
        next_observations=jnp.asarray(images(b, *IMAGE, seed=1)),
    )
    noise = jax.jit(functools.partial(algorithm.sample_noise, args, ACTION_DIM))(jax.random.key(1))
    return state, batch, jax.tree.map(lambda x: x.astype(dtype), noise)


def every_time(network, seen, *others):
    """Of a network, as the reference implementations call it: it encodes what it is given, as often as that is."""
    return jax.vmap(network.mlp)(network.encoder(seen), *others)


def reference_q(critic, seen, actions):
    """Every member of the ensemble behind the one encoder."""
    members = [jax.tree.map(lambda leaf, i=i: leaf[i], critic.mlp) for i in range(drol.NUM_CRITICS)]
    return jnp.stack([every_time(eqx.tree_at(lambda c: c.mlp, critic, m), seen, actions)[:, 0] for m in members])


def reference_critic_loss(args, params, target, batch, noise):
    next_actions = jnp.clip(every_time(params.actor, batch.next_observations, noise.next_latents), -1, 1)
    next_q = reference_q(target, batch.next_observations, next_actions).mean(0)
    target_q = jax.lax.stop_gradient(batch.rewards + args.discount * batch.masks * next_q)
    return ((reference_q(params.critic, batch.observations, batch.actions) - target_q) ** 2).mean()


def reference_drol_loss(args, stored, params, batch, noise):
    """Images K times, and every candidate with its gradient; the critic is the one that is stored."""
    k = args.num_candidates
    often = jnp.repeat(batch.observations, k, axis=0)
    candidates = jnp.clip(every_time(params.actor, often, noise.latents.reshape(-1, ACTION_DIM)), -1, 1)
    q = reference_q(stored.critic, often, candidates).min(0).reshape(-1, k)
    candidates = candidates.reshape(-1, k, ACTION_DIM)
    distances = ((candidates - batch.actions[:, None]) ** 2).sum(-1)
    chosen = jax.nn.one_hot(distances.argmin(1), k)
    q = (q * chosen).sum(1)
    improvement = -q.mean() / jax.lax.stop_gradient(jnp.maximum(jnp.abs(q).mean(), 1e-6))
    return args.bc_coef * (distances * chosen).sum(1).mean() / ACTION_DIM + args.q_coef * improvement


def reference_fql_loss(args, stored, params, batch, noise):
    """Images again at every Euler step; flow and critic are those that are stored where they teach."""
    x_t = (1 - noise.flow_times) * noise.flow_noise + noise.flow_times * batch.actions
    velocities = every_time(params.flow, batch.observations, x_t, noise.flow_times)
    x = noise.latents
    for i in range(args.flow_steps):
        t = jnp.full((len(x), 1), i / args.flow_steps, x.dtype)
        x = x + every_time(stored.flow, batch.observations, x, t) / args.flow_steps
    actions = every_time(params.actor, batch.observations, noise.latents)
    q = reference_q(stored.critic, batch.observations, jnp.clip(actions, -1, 1)).mean(0)
    flow_loss = ((velocities - (batch.actions - noise.flow_noise)) ** 2).mean()
    return flow_loss + args.alpha * ((actions - jnp.clip(x, -1, 1)) ** 2).mean() - q.mean()


REFERENCE_LOSS = {drol: reference_drol_loss, fql: reference_fql_loss}


@BOTH
@pytest.mark.slow(8)
def test_an_update_from_images_equals_the_reference(algorithm):
    """What sees each state once, against what encodes it for every candidate, step and member: the same update.

    Critic and actor see the state and the next one, the flow the state; all three learn from the state alone.
    """
    own = {drol: {"num_candidates": 3, "bc_coef": 0.7}, fql: {"alpha": 0.7, "flow_steps": 2}}[algorithm]
    args = make_args(algorithm, **own, batch_size=4, encoder_sizes=SMALL, discount=0.9, tau=0.1, learning_rate=1e-2)
    with double_precision():
        state, batch, noise = image_inputs(algorithm, args)
        assert jax.tree.leaves(state.params.critic.encoder)[0].shape == (3, 3, 6, 3)  # one, for both critics

        def loss(params):
            of_critic = reference_critic_loss(args, params, state.target_critic, batch, noise)
            return of_critic + REFERENCE_LOSS[algorithm](args, state.params, params, batch, noise)

        value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
        adam = optax.adam(args.learning_rate)
        changes, _ = adam.update(grads, adam.init(state.params))
        expected = optax.apply_updates(state.params, changes)
        target = jax.tree.map(lambda q, old: 0.1 * q + 0.9 * old, state.params.critic, state.target_critic)
        program = jax.jit(functools.partial(algorithm.update, args)).lower(state, batch, noise).compile()
        forward, backward = (program.as_text().count(f" = f64[{n},{SMALL[-1]}]{{1,0}} dot(") for n in (4, FLAT))
        assert (forward, backward) == {drol: (4, 2), fql: (5, 3)}[algorithm]  # of encoders, in batches
        after, metrics = program(state, batch, noise)
        assert float(metrics["critic/loss"] + metrics["actor/loss"]) == pytest.approx(float(value), rel=1e-9)
        moments = jax.flatten_util.ravel_pytree(state.params)[1](after.opt_state[0].mu / 0.1)
        assert_close(jax.tree.leaves(moments), jax.tree.leaves(grads), 1e-9)
        assert_close(jax.tree.leaves(after.params), jax.tree.leaves(expected), 1e-6)  # Adam divides by small gradients
        assert_close(jax.tree.leaves(after.target_critic), jax.tree.leaves(target), 1e-9)


@pytest.mark.slow(3)
def test_the_best_of_several_actions_from_images():
    @jax.jit
    def candidates_and_q(actor, critic, often, latents):
        candidates = jnp.clip(every_time(actor, often, latents), -1, 1)
        return candidates, reference_q(critic, often, candidates)

    args = make_args(drol, critic_num_candidates=3, inference_num_samples=3, batch_size=4, encoder_sizes=SMALL)
    with double_precision():
        state, batch, noise = image_inputs(drol, args)
        best = jax.jit(functools.partial(drol.sample_next_actions, args))(
            state.params, state.target_critic, batch, noise
        )
        often = jnp.repeat(batch.next_observations, 3, axis=0)
        candidates, q = candidates_and_q(
            state.params.actor, state.target_critic, often, noise.next_latents.reshape(-1, ACTION_DIM)
        )
        judged = q.min(0).reshape(-1, 3).argmax(1)
        assert_close([best], [candidates.reshape(-1, 3, ACTION_DIM)[np.arange(4), judged]], 1e-9)
        action = jax.jit(functools.partial(drol.sample_action, args))(
            state.params, batch.observations[0], jax.random.key(0)
        )
        latents = jax.jit(drol.sample_latents, static_argnums=1)(jax.random.key(0), (3, ACTION_DIM))
        often = jnp.repeat(batch.observations[:1], 3, axis=0)
        candidates, q = candidates_and_q(state.params.actor, state.params.critic, often, latents)
        assert_close([action], [candidates[q.mean(0).argmax()]], 1e-9)


@pytest.mark.slow(2)
@BOTH
def test_states_pay_nothing(algorithm, monkeypatch):
    """The networks of vectors are the MLPs alone, and what is compiled is what it was when nobody saw."""
    args, key = make_args(algorithm), jax.random.key(3)
    params = jax.jit(lambda key: algorithm.init_params(args, (OBSERVATION_DIM,), ACTION_DIM, key))(key)
    names = [field.name for field in dataclasses.fields(params)]
    keys, in_size = jax.random.split(key, len(names)), OBSERVATION_DIM + ACTION_DIM
    for name, own_key in zip(("critic", "actor", "flow"), keys, strict=False):
        network = getattr(params, name)
        assert type(network) is algorithm.MLP
        if name == "critic":
            expected = jax.jit(lambda key: algorithm.init_critic(args, in_size, key))(own_key)
        else:
            size = in_size + (name == "flow")
            expected = jax.jit(lambda key, n=size: algorithm.MLP(n, ACTION_DIM, args.hidden_sizes, key=key))(own_key)
        for a, b in zip(jax.tree.leaves(network), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params.actor)]
    assert paths[:2] == [".layers[0].weight", ".layers[0].bias"]

    state = jax.eval_shape(functools.partial(algorithm.init_state, args, (OBSERVATION_DIM,), ACTION_DIM), key)
    numbers = jax.ShapeDtypeStruct((args.batch_size,), np.float32)
    observations = jax.ShapeDtypeStruct((args.batch_size, OBSERVATION_DIM), np.float32)
    actions = jax.ShapeDtypeStruct((args.batch_size, ACTION_DIM), np.float32)
    batch = jax.eval_shape(lambda *parts: replay.Batch(*parts), observations, actions, numbers, numbers, observations)
    noise = jax.eval_shape(functools.partial(algorithm.sample_noise, args, ACTION_DIM), key)
    lower = lambda: jax.jit(lambda *inputs: algorithm.update.__wrapped__(args, *inputs)).lower(state, batch, noise)  # noqa: E731
    seeing = lower().as_text()
    monkeypatch.setattr(algorithm, "see", lambda network, observations: (observations, network))
    assert lower().as_text() == seeing


# Frames in memory


def frames_dataset(lengths=(5, 1, 3, 7), frame_stack: int = 3) -> tuple[Dataset, list[np.ndarray]]:
    """Trajectories of so many frames, the last of each a successor alone; and the frames of each."""
    n, rng = sum(lengths), np.random.default_rng(0)
    frames = images(n, 8, 9, 2)
    ends = np.isin(np.arange(n), np.cumsum(lengths) - 1)
    numbers = np.ones(n, np.float32)
    columns = {"observations": frames, "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32)}
    dataset = lay_out("here", columns | {"rewards": numbers, "masks": numbers}, starts=~ends, ends=ends)
    dataset = dataclasses.replace(dataset, frame_stack=frame_stack)
    return dataset, np.split(frames, np.cumsum(lengths)[:-1])


@pytest.mark.parametrize("frame_stack", [1, 3, 4])
def test_frames_are_stacked_as_a_loop_stacks_them(frame_stack):
    dataset, trajectories = frames_dataset(frame_stack=frame_stack)
    assert dataset.observation_shape == (8, 9, 2 * frame_stack)
    observations, successors = [], []
    for frames in trajectories:
        for t in range(len(frames) - 1):
            past = [frames[max(t - age, 0)] for age in range(frame_stack)][::-1]
            observations.append(np.concatenate(past, axis=-1))
            # The reference: the frames before it from the first on, then what follows.
            before = [frames[max(t + 1 - age, 0)] for age in range(1, frame_stack)][::-1]
            successors.append(np.concatenate([*before, frames[t + 1]], axis=-1))
    for place in (lambda tree: tree, jax.device_put):  # NumPy's or JAX's
        everything = place(np.arange(dataset.num_transitions))
        batch = replay.take_batch(place(dataset), everything)
        np.testing.assert_array_equal(batch.observations, observations)
        np.testing.assert_array_equal(batch.next_observations, successors)
        assert batch.observations.dtype == np.uint8


@given(down=st.integers(-3, 3), right=st.integers(-3, 3))
def test_a_shift_is_a_crop_of_the_padded_image(down, right):
    image = images(8, 9, 2)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="edge")
    crop = padded[3 + down : 11 + down, 3 + right : 12 + right]
    np.testing.assert_array_equal(SHIFT(image, np.array([down, right])), crop)


SHIFT = jax.jit(replay.shift)


def test_a_batch_is_cropped_with_one_coin_and_each_image_elsewhere():
    draw = jax.jit(jax.vmap(lambda key: replay.draw_shifts(key, 5, 0.5)))
    shifts = np.asarray(draw(jax.random.split(jax.random.key(0), 400)))  # [batches, 5, 2]
    is_still = (shifts == 0).all(axis=(1, 2))
    assert 0.4 < is_still.mean() < 0.6
    moved = shifts[~is_still]
    counts = np.array([(moved == n).mean(axis=(0, 1)) for n in range(-3, 4)])
    assert np.abs(counts - 1 / 7).max() < 0.05  # uniform, in both directions
    assert (np.ptp(moved, axis=1) > 0).all(axis=1).mean() > 0.95  # and not alike in a batch
    assert abs(np.corrcoef(moved[..., 0].ravel(), moved[..., 1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("memory", ["device", "host"])
@pytest.mark.slow(3)
def test_batches_of_images_are_the_same_wherever_the_data_lies(memory):
    dataset, _ = frames_dataset()
    seeds, args = Seeds([3, 4]), make_args(drol, data_memory=memory, p_aug=0.5)
    with contextlib.closing(Batches(args, dataset, seeds, drol.keys_of_update, lambda step: step + 4)) as batches:
        together = batches(4, 8)
        for place, key in enumerate(seeds.keys.train):
            plain = batches_of(args, jax.device_put(dataset), key, 4, 4)  # the same transitions as without crops
            np.testing.assert_array_equal(together.actions[place], plain.actions)
            for update in range(4):
                batch_key, _ = drol.keys_of_update(key, jnp.asarray(4 + update))
                shifts = replay.draw_shifts(batch_key, args.batch_size, 0.5)
                for name in ("observations", "next_observations"):
                    expected = jax.vmap(replay.shift)(getattr(plain, name)[update], shifts)
                    np.testing.assert_array_equal(getattr(together, name)[place, update], expected)


# Environments


class Odd(gymnasium.Env):
    """Shows what it is told to."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, shape=(4, 5, 1), dtype=np.uint8, frames=()):
        self.observation_space, self.frames = gymnasium.spaces.Box(0, 255, shape, dtype), list(frames)

    def reset(self, *, seed=None, options=None):
        self.place = 0
        return self.frames[0], {}

    def step(self, action):
        self.place += 1
        return self.frames[self.place], 0.0, False, False, {}


def test_an_environment_shows_its_last_frames():
    frames = images(4, 4, 5, 3)
    env = EvaluationEnv(Odd((4, 5, 3), frames=frames), frame_stack=3)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (4, 5, 9), np.uint8)
    for _ in range(2):  # nothing is left of the episode before
        seen = [env.reset(seed=0)[0]] + [env.step(np.zeros(2, np.float32))[0] for _ in range(3)]
        for observation, which in zip(seen, [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3)], strict=True):
            np.testing.assert_array_equal(observation, np.concatenate(frames[list(which)], axis=-1))


@pytest.mark.parametrize("frame", [np.zeros((4, 5, 1)), np.zeros((5, 4, 1), np.uint8), [[[0]]], None])
def test_what_is_no_such_image_is_refused(frame):
    with pytest.raises(UserError, match=r"the observation of reset\(\) is .*an image \(4, 5, 1\) of uint8"):
        EvaluationEnv(Odd(frames=[frame])).reset(seed=0)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 5, 9), np.uint8), ((3, 64, 64), np.uint8), ((4, 5, 3), np.float32)])
def test_other_images_are_refused_before_anything_else(shape, dtype):
    gymnasium.register("Odd-v0", lambda: Odd(shape, dtype), max_episode_steps=5)
    with pytest.raises(UserError, match=r"images are uint8, height x width x 1, 3 or 4"):
        make_own_env("Odd-v0")


@pytest.fixture(scope="module")
def pictures(once) -> pathlib.Path:
    """Some episodes of the point that is drawn."""
    return once("pictures", lambda folder: (folder.mkdir(), pixels.collect(PIXELS, 4, folder / "pictures.npz")))


def test_a_file_of_ones_own_images_stays_bytes(pictures):
    file = pictures / "pictures.npz"
    dataset, _ = own_npz.read(resolve(PIXELS), file)
    assert (dataset.observations.dtype, dataset.observations.shape[1:]) == (np.uint8, (16, 16, 1))
    with np.load(file) as arrays:
        ends = np.flatnonzero(arrays["terminals"])
        length = len(arrays["terminals"])
    assert len(dataset.observations) == length + len(ends)  # a row more for each, of which only a successor is made
    starts = np.concatenate([[0], (ends + 1 + np.arange(1, len(ends) + 1))[:-1]])
    np.testing.assert_array_equal(np.unique(dataset.firsts), starts)
    assert dataset.num_bytes < 1.3 * (length + len(ends)) * 256  # and no floats of them


@pytest.mark.slow(20)
def test_a_run_from_images_from_beginning_to_end(pictures, tmp_path, capsys):
    """Several seeds, evaluated, gone on with, loaded, filmed; and what is refused."""
    small = {"hidden_sizes": (8,), "encoder_sizes": (2, 8), "batch_size": 4, "num_candidates": 2}
    short = {"offline_steps": 4, "log_interval": 2, "eval_interval": 2, "eval_episodes": 2, "eval_workers": 1}
    data = {"env_id": PIXELS, "dataset_path": pictures / "pictures.npz", "frame_stack": 3, "p_aug": 0.5}
    given = {**small, **short, **data, "num_seeds": 2}
    whole = drol.main(drol.Args(**given, run_dir=tmp_path / "whole"))
    paths = tuple(shutil.copytree(outcome.path, tmp_path / "cut" / outcome.path.name) for outcome in whole)
    for path in paths:  # as after a power cut
        (path / "checkpoints" / "step-000000004.npz").unlink()
    cut = drol.main(drol.Args(resume=paths))
    assert (whole[0].step, cut[0].step) == (4, 4)
    for seed in ("seed0", "seed1"):
        (a, b) = (np.load(tmp_path / name / seed / "checkpoints" / "step-000000004.npz") for name in ("whole", "cut"))
        assert ".state.params.actor.encoder.stages[0].first.kernel" in a.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert read_table(tmp_path / "whole" / seed / "train.csv") == read_table(tmp_path / "cut" / seed / "train.csv")
    run = tmp_path / "whole" / "seed0"
    assert read_config(run)["sizes"] == {"observation": [16, 16, 3], "action": 2}

    policy = load_policy(run)
    env = policy.make_env()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (16, 16, 3)
    action = policy(observation, jax.random.key(0))
    batch = policy(np.stack([observation, observation]), jax.random.split(jax.random.key(0)))
    assert (action.shape, batch.shape) == ((2,), (2, 2))
    with pytest.raises(UserError, match="its actor sees images"):
        export(ExportArgs(run, tmp_path / "actor.npz"))
    capsys.readouterr()
    drol.main(drol.Args(evaluate=run, eval_episodes=1, video=tmp_path / "film.gif"))
    assert (tmp_path / "film.gif").stat().st_size > 1000


def test_what_goes_with_images_alone_or_not_with_them_is_refused(pictures, tmp_path, refusal):
    file = ["--dataset-path", pictures / "pictures.npz", "--run-dir", tmp_path / "run", "--offline-steps", 2]
    assert "nobody fine-tunes from images" in refusal("--env-id", PIXELS, *file, "--online-steps", 3)
    assert "nobody fine-tunes from images" in refusal("--env-id", "visual-cube-single", "--online-steps", 3)
    assert "--p-aug" in refusal("--env-id", PIXELS, *file, "--p-aug", 1.5)
    pixels.collect("pixels:Point-v0", 2, tmp_path / "states.npz")
    of_states = ["--env-id", "pixels:Point-v0", "--dataset-path", tmp_path / "states.npz", "--offline-steps", 2]
    for option in ("--frame-stack 3", "--encoder-sizes 8 64"):
        line = refusal(*of_states, "--run-dir", tmp_path / "run", *option.split())
        assert line == f"error: {option} is of images, and observations are vectors here"


def test_published_settings_of_visual_tasks():
    for name, alpha in (
        ("cube-single", 300),
        ("puzzle-3x3", 300),
        ("puzzle-4x4", 300),
        ("cube-double", 100),
        ("scene", 100),
    ):
        args, origins = complete(fql.Args(), resolve(f"visual-{name}"), fql.published_settings)
        assert (args.alpha, args.frame_stack, args.p_aug, args.offline_steps) == (alpha, 3, 0.5, 500_000)
        assert (args.discount, args.q_agg, origins["alpha"]) == (0.99, "mean", "published")
    args, origins = complete(drol.Args(), resolve("visual-scene"), drol.published_settings)
    assert (args.frame_stack, args.p_aug, args.offline_steps, args.num_candidates) == (3, 0.5, 500_000, 16)
    assert origins["bc_coef"] == "default"  # nothing is published for DROL
    for algorithm in (drol, fql):
        args, _ = complete(algorithm.Args(), resolve("cube-single"), algorithm.published_settings)
        assert (args.frame_stack, args.p_aug) == (None, None)


# What OGBench draws, in another process: MuJoCo chooses its renderer when it is first imported

DRAW = """
import sys
import numpy as np
from common.data import ogbench_npz, recipes
from common.env_ids import resolve
from common.envs import make_evaluation_env, try_to_render

spec = resolve("visual-cube-single")
print(try_to_render(spec).renderer)
np.random.seed(0)
episode = recipes.manipulation(spec, 4)()
assert (episode["observations"].dtype, episode["observations"].shape) == (np.uint8, (4, 64, 64, 3))
assert episode["observations"].std() > 10
np.savez_compressed(sys.argv[1], **episode)
dataset, _ = ogbench_npz.read(spec, __import__("pathlib").Path(sys.argv[1]))
np.testing.assert_array_equal(dataset.observations, episode["observations"])
assert (dataset.firsts.tolist(), dataset.transitions.tolist()) == ([0] * 4, [0, 1, 2])
assert (dataset.rewards == -1).all() and dataset.masks.all()
env = make_evaluation_env(spec, frame_stack=3)
first, _ = env.reset(seed=0)
second = env.step(np.full(5, 0.5, np.float32))[0]
np.testing.assert_array_equal(second[..., :6], first[..., :6])
assert (second[..., 6:] != first[..., 6:]).any()
env.close()
"""


@pytest.mark.slow(15)
@pytest.mark.skipif(sys.platform != "linux" or ctypes.util.find_library("EGL") is None, reason="nothing draws here")
def test_a_visual_task_is_collected_read_and_seen(tmp_path):
    variables = os.environ | {"MUJOCO_GL": "egl"}
    program = [sys.executable, "-c", DRAW, str(tmp_path / "visual.npz")]
    drawn = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, env=variables, timeout=240)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith("egl: ")


@pytest.mark.slow(3)
def test_where_nothing_draws_a_line_says_what_is_needed(tmp_path):
    """Before anything is downloaded or collected."""
    variables = {"MUJOCO_GL": "disable"}
    run = run_script("--env-id", "visual-cube-single", "--dataset-dir", tmp_path / "data", variables=variables)
    (line,) = run.stderr.strip().splitlines()
    assert (run.returncode, "images need EGL" in line, (tmp_path / "data").exists()) == (2, True, False)
