"""A trained policy for a program of one's own.

    policy = load_policy("runs/door")
    action = policy(observation, jax.random.key(0))

`python -m common.policy RUN_DIR --out actor.npz` writes its actor for programs without JAX (see numpy_actor.py).
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

from common import algorithms, command_line, machine
from common.actions import Bounds, from_unit
from common.arguments import RunArgs
from common.env_ids import EnvSpec
from common.envs import make_evaluation_env
from common.errors import UserError, exit_in_one_line
from common.files import write_whole
from common.run_directory import RunDirectory, read_config

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Key, Shaped

NUM_LATENTS = 1024  # of an exported actor


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, so that `jax.jit(policy)` works
class Policy:
    """What a run has learned so far, as it is evaluated. A function for `jax.jit` and `jax.vmap`, not a pytree.

    Called as it is, it runs on the CPU. Under `jax.jit` it runs where that runs.

    Attributes:
        params: of the networks, NumPy arrays.
        act: (params, observation, key) -> action, within the environment's bounds.
        spec: environment and task.
        dataset_path: data that it was trained on; Minari's names the environment.
        step: updates.
        action_bounds: of the environment; None where they are [-1, 1].
        observation_shape: of one observation.
        frame_stack: of images: how many are an observation.
    """

    params: Any
    act: Callable[..., Float[Array, " action"]]
    spec: EnvSpec
    dataset_path: pathlib.Path
    step: int
    action_bounds: Bounds | None
    observation_shape: tuple[int, ...]
    frame_stack: int

    def __call__(
        self, observation: Shaped[Array | np.ndarray, "..."], key: Key[Array, "*keys"]
    ) -> Float[Array, "*batch a"]:
        """The action, within the environment's bounds, for one observation [o] and a key, or for a batch [batch, o].

        Args:
            observation: as `make_env` gives it: flat, or the last frames side by side in the channels.
            key: of the latent. For a batch one for each observation, or one that is split.
        """
        with jax.default_device(machine.policy_device()):
            params, observation = jax.tree.map(jnp.asarray, (self.params, observation))
            if observation.ndim == len(self.observation_shape):
                return self.act(params, observation, key)
            keys = key if key.shape else jax.random.split(key, len(observation))
            return jax.vmap(functools.partial(self.act, params))(observation, keys)

    def make_env(self, **kwargs: Any) -> gymnasium.Env:
        """The environment that it is evaluated in; `kwargs` go to the environment (`render_mode="rgb_array"`)."""
        own = {"own_actions": True, "frame_stack": self.frame_stack}
        return make_evaluation_env(self.spec, self.dataset_path, **own, **kwargs)


def load_policy(run_dir: str | os.PathLike) -> Policy:
    """The newest policy of a run, which may still be training. Takes no GPU's memory beforehand, if JAX has not begun.

    Args:
        run_dir: its folder.

    Raises:
        UserError: this is no run, without a checkpoint yet, or its script is not here.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    path = pathlib.Path(run_dir)
    name = read_config(path)["algorithm"]
    algorithm = algorithms.load(name)
    run = RunDirectory.open(path, name, lock=False)
    args = run.read_args(algorithm.Args)
    init_state = functools.partial(algorithm.init_state, args, *run.sizes)
    step, params = run.newest_params(init_state)
    bounds = run.config["dataset"].get("action_bounds")

    def act(params: Any, observation: Shaped[Array, "*o"], key: Key[Array, ""]) -> Float[Array, " action"]:
        return from_unit(algorithm.sample_action(args, params, observation, key), bounds)

    observation_shape, _ = run.sizes
    data, frame_stack = run.find_data(RunArgs()), args.frame_stack or 1
    return Policy(params, act, run.spec, data, step, bounds, observation_shape, frame_stack)


@dataclasses.dataclass(frozen=True)
class Args:
    """Write the actor of a run for programs without JAX."""

    run: tyro.conf.Positional[pathlib.Path]
    """Run directory."""
    out: pathlib.Path = pathlib.Path("actor.npz")
    """File: `weight_0`, `bias_0`, .. of its layers, `latents`, drawn from its prior, `low` and `high` of actions."""


def export(args: Args) -> None:
    """Write the actor.

    Raises:
        UserError: there is none to be had, or the name does not end in .npz.
    """
    machine.use_cpu_alone()
    policy, name = load_policy(args.run), read_config(args.run)["algorithm"]
    algorithm, actor = algorithms.load(name), getattr(policy.params, "actor", None)
    if len(policy.observation_shape) > 1:
        raise UserError(f"{args.run}: its actor sees images; only one of vectors is exported for NumPy")
    if not hasattr(algorithm, "sample_latents") or not hasattr(actor, "layers"):
        raise UserError(
            f"{args.run}: only an actor f(s, z) can be exported, and {name}.py has none with sample_latents"
        )
    latents = algorithm.sample_latents(jax.random.key(0), (NUM_LATENTS, actor.layers[-1].out_features))
    arrays = {f"weight_{i}": layer.weight for i, layer in enumerate(actor.layers)}
    arrays |= {f"bias_{i}": layer.bias for i, layer in enumerate(actor.layers)} | {"latents": latents}
    arrays |= dict(zip(("low", "high"), policy.action_bounds or ([-1.0], [1.0]), strict=True))
    if args.out.suffix != ".npz":
        raise UserError(f"--out {args.out}: the name has to end in .npz")
    write_whole(args.out, lambda temporary: np.savez(temporary, **{k: np.asarray(a) for k, a in arrays.items()}))
    print(f"{args.out}: the actor after {policy.step:,} updates; common/numpy_actor.py calls it")


if __name__ == "__main__":
    exit_in_one_line(lambda: export(command_line.read(Args)))
