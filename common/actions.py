"""Actions are learned in [-1, 1]; an environment with other finite bounds has its own back when it acts."""

from typing import Any

from common.errors import UserError

import gymnasium
import numpy as np

ACTION_BOUND = 1 - 1e-5  # actions to learn from are clipped to +-ACTION_BOUND, as in the reference implementations
ROUNDING = 1e-4  # how far beyond 1 actions may lie: a sum in float32, not another unit
Bounds = list[list[float]]  # low and high, a number for each dimension


def bounds_of(space: gymnasium.Space, where: str) -> Bounds | None:
    """Lowest and highest actions; None where they are -1 and 1 already.

    Args:
        space: of actions.
        where: whose, for a message.

    Raises:
        UserError: actions are not vectors of real numbers, or not bounded.
    """
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
        raise UserError(f"{where}: actions are not vectors of real numbers ({space})")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite([low, high]).all() and (low < high).all()):
        raise UserError(f"{where}: actions need a finite low and a larger high in each dimension, not {space}")
    return None if (low == -1).all() and (high == 1).all() else [low.tolist(), high.tolist()]


def to_unit(actions: Any, bounds: Bounds | None) -> Any:
    """From the environment's bounds to [-1, 1]."""
    if bounds is None:
        return actions
    low, high = np.array(bounds)
    return 2 * (actions - low) / (high - low) - 1


def from_unit(actions: Any, bounds: Bounds | None) -> Any:
    """From [-1, 1] to the environment's bounds; of NumPy or JAX."""
    if bounds is None:
        return actions
    low, high = np.array(bounds)
    return (low + (high - low) * (actions + 1) / 2).clip(low, high)


def describe(bounds: Bounds | None) -> str:
    """'[-0.4, 0.4]'; where dimensions differ '[-2 0, 2 1]'."""
    low, high = bounds or [[-1.0], [1.0]]
    if len(set(low)) == len(set(high)) == 1:
        low, high = low[:1], high[:1]
    return "[{}, {}]".format(*(" ".join(f"{value:.6g}" for value in end) for end in (low, high)))


class UnitActions(gymnasium.wrappers.TransformAction):
    """An environment that is acted in within [-1, 1]."""

    def __init__(self, env: gymnasium.Env, bounds: Bounds):
        """Args:
        env: environment.
        bounds: its own.
        """
        space = env.action_space
        unit = gymnasium.spaces.Box(-1, 1, space.shape, np.float32)
        super().__init__(env, lambda action: from_unit(action, bounds).astype(space.dtype), unit)
