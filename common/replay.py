"""Transitions in memory: the data set, what is collected online beside it, and batches drawn from both."""

import concurrent.futures
from collections.abc import Callable
from typing import Any

from common import machine
from common.arguments import NO_IMAGES_ONLINE, RunArgs
from common.errors import UserError
from common.seeds import Seeds

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

PADDING = 3  # pixels that images are padded with before they are cropped to their size again


class Dataset(eqx.Module):
    """Trajectories laid end to end, every observation stored once.

    Row t + 1 is the successor of row t inside a trajectory. The last row of a trajectory is only a successor: it starts
    no transition, and what it has beside its observation is never read (of Minari's sets it is zeros, added after the
    last step of each episode). `rewards` and `masks` belong to the row's state (ogbench >= 1.2.0).

    Of images a row has one frame, and an observation is the last `frame_stack` of its trajectory.
    """

    observations: (
        Float[Array | np.ndarray, "rows observation"] | UInt8[Array | np.ndarray, "rows height width channels"]
    )
    actions: Float[Array | np.ndarray, "rows action"]
    rewards: Float[Array | np.ndarray, " rows"]
    masks: Float[Array | np.ndarray, " rows"]  # 0 where the task is complete, else 1: bootstrap with this
    transitions: Int[Array | np.ndarray, " transitions"]  # rows that start a transition
    firsts: Int[Array | np.ndarray, " rows"] | None = None  # of images: where the trajectory of each row begins
    frame_stack: int = eqx.field(static=True, default=1)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of an observation: its length; of images height, width and the channels of all frames."""
        *size, channels = self.observations.shape[1:]
        return *size, channels * self.frame_stack

    @property
    def action_dim(self) -> int:
        """Length of an action."""
        return self.actions.shape[1]

    @property
    def num_transitions(self) -> int:
        """That can be drawn."""
        return self.transitions.shape[0]

    @property
    def num_bytes(self) -> int:
        """In memory."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def describe_size(self) -> str:
        """For people: transitions and bytes in memory."""
        return f"{self.num_transitions:,} transitions, {self.num_bytes / 1e6:.0f} MB"


Observations = (
    Float[Array | np.ndarray, "*batch observation"] | UInt8[Array | np.ndarray, "*batch height width channels"]
)


class Batch(eqx.Module):
    """B transitions; or a single one, or those of several updates."""

    observations: Observations
    actions: Float[Array | np.ndarray, "*batch action"]
    rewards: Float[Array | np.ndarray, "*batch"]
    masks: Float[Array | np.ndarray, "*batch"]  # 0 where the task is complete: no bootstrapping
    next_observations: Observations


def take_batch(dataset: Dataset, transitions: Int[Array | np.ndarray, "*batch"]) -> Batch:
    """The row after the one that starts a transition holds its next observation."""
    rows = dataset.transitions[transitions]
    return Batch(
        observations=observed(dataset, rows, rows),
        actions=dataset.actions[rows],
        rewards=dataset.rewards[rows],
        masks=dataset.masks[rows],
        next_observations=observed(dataset, rows + 1, rows),
    )


def observed(
    dataset: Dataset, rows: Int[Array | np.ndarray, "*batch"], starts: Int[Array | np.ndarray, "*batch"]
) -> Observations:
    """What is observed in `rows`: of images the last frames side by side in the channels, the oldest first.

    Before the first frame of its trajectory, which is that of `starts`, there is that one again.
    """
    if dataset.firsts is None:
        return dataset.observations[rows]
    ages = np.arange(dataset.frame_stack)[::-1]
    frames = dataset.observations[(rows[..., None] - ages).clip(dataset.firsts[starts][..., None])]
    return frames.swapaxes(-4, -3).swapaxes(-3, -2).reshape(*rows.shape, *dataset.observation_shape)


def draw_shifts(key: Key[Array, ""], batch_size: int, p_aug: float) -> Int[Array, "batch 2"]:
    """How far each image of a batch is shifted, down and to the right: with probability p_aug anywhere, else none is.

    A shifted image is a crop, of its own size, of one that was padded by PADDING with the pixels of its edge.

    Args:
        key: that of the batch, of which `draw_transitions` takes other numbers.
    """
    coin_key, shifts_key = jax.random.split(jax.random.fold_in(key, 2))  # 0 and 1 are what `randint` splits off
    shifts = jax.random.randint(shifts_key, (batch_size, 2), -PADDING, PADDING + 1)
    return jnp.where(jax.random.bernoulli(coin_key, p_aug), shifts, 0)


def shift(
    image: UInt8[Array, "height width channels"], shifts: Int[Array, " 2"]
) -> UInt8[Array, "height width channels"]:
    """Its frames alike."""
    rows, columns = (jnp.clip(jnp.arange(n) + by, 0, n - 1) for n, by in zip(image.shape, shifts, strict=False))
    return image[rows[:, None], columns]


def augment(batch: Batch, shifts: Int[Array, "*batch 2"]) -> Batch:
    """An observation and the next one are shifted alike."""
    size = shifts.shape[:-1]

    def shift_all(images: UInt8[Array, "*batch height width channels"]) -> UInt8[Array, "*batch height width channels"]:
        flat = images.reshape(-1, *images.shape[len(size) :])
        return jax.vmap(shift)(flat, shifts.reshape(-1, 2)).reshape(images.shape)

    observations, next_observations = map(shift_all, (batch.observations, batch.next_observations))
    return Batch(observations, batch.actions, batch.rewards, batch.masks, next_observations)


def draw_transitions(key: Key[Array, ""], batch_size: int, num_transitions: int) -> Int[Array, " batch"]:
    """Uniform with replacement."""
    return jax.random.randint(key, (batch_size,), 0, num_transitions)


def sample_batch(dataset: Dataset, batch_size: int, key: Key[Array, ""]) -> Batch:
    """Transitions of the data set, uniform with replacement."""
    return take_batch(dataset, draw_transitions(key, batch_size, dataset.num_transitions))


class Replay(eqx.Module):
    """What was collected online, beside the data set."""

    ring: Batch  # a row a transition, the oldest overwritten
    added: Int[Array, ""]  # transitions so far


def check_room(args: RunArgs, dataset: Dataset) -> None:
    """Raises `UserError` if fine-tuning does not go with this data set, buffer and batch size."""
    if args.online_steps == 0:
        return
    if dataset.firsts is not None:
        raise UserError(NO_IMAGES_ONLINE)
    if args.buffer_size <= dataset.num_transitions:
        size = f"the data set alone has {dataset.num_transitions} transitions"
        raise UserError(f"--buffer-size {args.buffer_size}: {size}")
    if args.balanced_sampling and args.batch_size < 2:
        raise UserError(f"--batch-size {args.batch_size}: out of range (--balanced-sampling halves it)")


def rows_of_ring(args: RunArgs, num_transitions: int) -> int:
    """Room for all that will be collected, or for what a data set of so many transitions leaves of the buffer."""
    return max(min(args.online_steps, args.buffer_size - num_transitions), 0)


def empty_replay(args: RunArgs, dataset: Dataset) -> Replay:
    """Before anything is collected."""
    rows = rows_of_ring(args, dataset.num_transitions)
    observations = jnp.zeros((rows, *dataset.observation_shape), dataset.observations.dtype)
    actions = jnp.zeros((rows, dataset.action_dim))
    numbers = jnp.zeros(rows)
    return Replay(Batch(observations, actions, numbers, numbers, observations), jnp.zeros((), jnp.int32))


def resized(replay: Replay, rows: int) -> Replay:
    """With a ring of so many rows, which was not full: NumPy arrays, or their shapes."""

    def resize(leaf: Any) -> Any:
        if not leaf.shape:  # the number of those added
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)
        return np.concatenate([leaf, np.zeros((rows - len(leaf), *leaf.shape[1:]), leaf.dtype)])

    return jax.tree.map(resize, replay)


def add_transition(replay: Replay, transition: Batch) -> Replay:
    """In the place of the oldest one, once the ring is full."""
    slot = replay.added % replay.ring.rewards.shape[0]
    ring = jax.tree.map(lambda rows, row: rows.at[slot].set(row), replay.ring, transition)
    return Replay(ring, replay.added + 1)


def sample_replay(dataset: Dataset, replay: Replay, batch_size: int, balanced: bool, key: Key[Array, ""]) -> Batch:
    """Uniform over the data set and what was collected online; or, balanced, half from each."""
    num_offline = dataset.num_transitions
    num_online = jnp.minimum(replay.added, replay.ring.rewards.shape[0])
    if balanced:
        offline_key, online_key = jax.random.split(key)
        half = batch_size // 2
        offline = sample_batch(dataset, half, offline_key)
        slots = jax.random.randint(online_key, (batch_size - half,), 0, num_online)
        return jax.tree.map(lambda rows, ring: jnp.concatenate([rows, ring[slots]]), offline, replay.ring)
    drawn = jax.random.randint(key, (batch_size,), 0, num_offline + num_online)
    is_offline = drawn < num_offline
    offline = take_batch(dataset, jnp.where(is_offline, drawn, 0))
    slots = jnp.where(is_offline, 0, drawn - num_offline)

    def choose(rows: Array, ring: Array) -> Array:
        return jnp.where(is_offline.reshape(-1, *[1] * (rows.ndim - 1)), rows, ring[slots])

    return jax.tree.map(choose, offline, replay.ring)


Draws = tuple[Int[Array, "*updates batch"], Int[Array, "*updates batch 2"] | None]  # transitions, and shifts of images


class Batches:
    """What the updates of a chunk learn from, each from transitions that are drawn uniformly with replacement.

    Gathered on the device where the data set lies; or, where it does not fit there, the same on the host, in a thread
    while the chunk before is computed. Images are cropped on the device.
    """

    def __init__(
        self,
        args: RunArgs,
        dataset: Dataset,
        seeds: Seeds,
        keys_of_update: Callable[[Key[Array, ""], Int[Array, ""]], tuple[Key[Array, ""], ...]],
        end_of_chunk: Callable[[int], int],
    ):
        """Args:
        args: `data_memory`, `batch_size` and `p_aug`.
        dataset: NumPy arrays.
        seeds: whose batches.
        keys_of_update: of the key of a run and the number of an update; the first of them is the batch's.
        end_of_chunk: of the chunk that begins after an update.
        """
        self._on_host, num_transitions = args.data_memory != "device", dataset.num_transitions
        # Without a copy on a CPU, where arrays are aligned for that (`check.allocate`).
        self.dataset = dataset if self._on_host else jax.device_put(dataset, seeds.shared)
        self._seeds, self._end_of_chunk = seeds, end_of_chunk
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "batches")
        self._ahead: tuple[tuple[int, int], concurrent.futures.Future[Batch]] | None = None
        # On the host they are drawn there: the device is busy.
        self._keys = jax.device_put(seeds.keys.train, machine.policy_device()) if self._on_host else seeds.keys.train

        def draw(key: Key[Array, ""], step: Int[Array, ""]) -> Draws:
            batch_key, *_ = keys_of_update(key, step)
            transitions = draw_transitions(batch_key, args.batch_size, num_transitions)
            return transitions, draw_shifts(batch_key, args.batch_size, args.p_aug) if args.p_aug else None

        def draw_all(keys: Key[Array, " places"], step: Int[Array, ""], num_updates: int) -> Draws:
            of_seed = jax.vmap(draw, in_axes=(None, 0))
            return jax.vmap(of_seed, in_axes=(0, None))(keys, step + jnp.arange(num_updates))

        def gather(dataset: Dataset, keys: Key[Array, " places"], step: Int[Array, ""], num_updates: int) -> Batch:
            transitions, shifts = draw_all(keys, step, num_updates)
            batch = take_batch(dataset, transitions)
            return batch if shifts is None else augment(batch, shifts)

        self._draw = jax.jit(draw_all, static_argnums=2)
        self._gather = jax.jit(gather, static_argnums=3, out_shardings=seeds.by_seed)
        self._augment = jax.jit(augment, donate_argnums=0, out_shardings=seeds.by_seed)

    def __call__(self, step: int, end: int) -> Batch:
        """Of the updates after `step` up to `end`, [places, updates, batch, ...]."""
        if not self._on_host:
            return self._gather(self.dataset, self._keys, step, end - step)
        chunk, batches = self._ahead or (None, None)
        result = batches.result() if chunk == (step, end) else self._fetch(step, end)
        following = (end, self._end_of_chunk(end))
        self._ahead = (following, self._thread.submit(self._fetch, *following)) if following[1] > end else None
        return result

    def _fetch(self, step: int, end: int) -> Batch:
        transitions, shifts = jax.device_get(self._draw(self._keys, step, end - step))
        batch = jax.device_put(take_batch(self.dataset, transitions), self._seeds.by_seed)
        return batch if shifts is None else self._augment(batch, jax.device_put(shifts, self._seeds.by_seed))

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)
