"""`jax.lax.scan` with metrics in one array."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def scan(
    step: Callable[[Any, Any], tuple[Any, dict[str, Float[Array, ""]]]], state: Any, inputs: Any
) -> tuple[Any, dict[str, Float[Array, " turns"]]]:
    """`jax.lax.scan` of a step that gives numbers by name, which are written in one array.

    Each on its own would be a kernel of its own on a GPU: 136 an update of DROL(16) instead of 129
    (results/experiments/kernels.py).
    """
    names: list[str] = []

    def in_a_row(state: Any, each: Any) -> tuple[Any, Float[Array, " names"]]:
        state, numbers = step(state, each)
        names[:] = numbers
        return state, jnp.stack(list(numbers.values()))

    state, rows = jax.lax.scan(in_a_row, state, inputs)
    return state, {name: rows[:, i] for i, name in enumerate(names)}
