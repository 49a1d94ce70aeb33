"""JAX's random bits on a CPU: the same, in a third of the time. Importing this is enough; keys are what they were.

There, JAX turns the rounds of threefry in five loops over two arrays, and drawing took as long as small networks take
to learn; elsewhere it writes the rounds out. Written out on a CPU, they would be gone through again wherever a number
is used, since XLA takes integers for cheap; what a loop carries is computed once.
"""

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir
from jaxtyping import Array, Complex64, UInt32

EVEN, ODD = (13, 15, 26, 6), (17, 29, 16, 24)  # rotations of four rounds
PARITY = 0x1BD11BDA

Words = UInt32[Array, "..."]  # key and counter are broadcast against each other


def threefry2x32(key1: Words, key2: Words, x1: Words, x2: Words) -> tuple[Words, Words]:
    """Twenty rounds on the counter (x1, x2) (Salmon, Moraes, Dror, Shaw, 2011: Parallel random numbers)."""
    key3 = key1 ^ key2 ^ jnp.uint32(PARITY)
    first = four_rounds((x1 + key1, x2 + key2), EVEN, (key2, key3), jnp.uint32(1))

    def eight_rounds(turn: Array, carried: tuple) -> tuple:
        pair, (a, b, c) = carried
        number = 2 * turn.astype(jnp.uint32)
        words = four_rounds(from_pair(pair), ODD, (a, b), number + 2)
        words = four_rounds(words, EVEN, (b, c), number + 3)
        return to_pair(words), (c, a, b)

    pair, _ = jax.lax.fori_loop(0, 2, eight_rounds, (to_pair(first), (key3, key1, key2)))
    return from_pair(pair)


def four_rounds(
    words: tuple[Words, Words], rotations: tuple[int, ...], keys: tuple[Words, Words], number: UInt32[Array, ""]
) -> tuple[Words, Words]:
    """Four rounds, then the next two words of the key."""
    x1, x2 = words
    for rotation in rotations:
        x1 = x1 + x2
        x2 = x1 ^ (x2 << rotation | x2 >> 32 - rotation)
    return x1 + keys[0], x2 + keys[1] + number


def to_pair(words: tuple[Words, Words]) -> Complex64[Array, "..."]:
    """Two words as one number: each of two would be computed on its own, rounds and all."""
    return jax.lax.complex(*(jax.lax.bitcast_convert_type(word, jnp.float32) for word in words))


def from_pair(pair: Complex64[Array, "..."]) -> tuple[Words, Words]:
    """The two words."""
    return tuple(jax.lax.bitcast_convert_type(half, jnp.uint32) for half in (pair.real, pair.imag))


mlir.register_lowering(threefry2x32_p, mlir.lower_fun(threefry2x32, multiple_results=True), platform="cpu")
