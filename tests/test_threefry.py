"""Random numbers are JAX's own. Run as a script, which imports JAX alone, this file writes what those are."""

import functools
import math
import pathlib
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

MANY = (31, 67)  # more numbers than are computed again at each use


def draws() -> dict[str, np.ndarray]:
    """Numbers of each kind, few and many, also under jit, vmap and scan."""
    key = jax.random.key(2**31 + 7)

    def scanned(key: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        key, normal_key = jax.random.split(key)
        return key, jax.random.normal(normal_key, MANY)

    functions = {
        "bits": lambda key: jax.random.bits(key, MANY),
        "bytes": lambda key: jax.random.bits(key, MANY, jnp.uint8),
        "few": lambda key: jax.random.bits(key, (3,)),
        "normal": lambda key: jax.random.normal(key, MANY),
        "uniform": lambda key: jax.random.uniform(key, MANY, minval=-2.0),
        "randint": lambda key: jax.random.randint(key, MANY, 0, 1_000_003),
        "split": lambda key: jax.random.key_data(jax.random.split(key, MANY)),
        "fold_in": lambda key: jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(jnp.arange(2000)),
        "vmap": lambda key: jax.vmap(lambda key: jax.random.bits(key, MANY))(jax.random.split(key, 3)),
        "scan": lambda key: jax.lax.scan(scanned, key, length=3)[1],
    }
    jitted = {name: np.asarray(jax.jit(function)(key)) for name, function in functions.items()}
    return jitted | {"not jitted": np.asarray(jax.random.normal(key, MANY))}


@pytest.mark.slow(4)
def test_all_random_numbers_are_jax_s_own(tmp_path: pathlib.Path):
    file = tmp_path / "draws.npz"
    subprocess.run([sys.executable, __file__, file], check=True)
    expected, actual = np.load(file), draws()
    assert set(expected) == set(actual)
    for name, numbers in actual.items():
        np.testing.assert_array_equal(numbers, expected[name], err_msg=name)


def test_rounds_are_gone_through_once_whatever_uses_the_numbers():
    import drol  # here: the script above does not

    bits = jax.jit(lambda key: jax.random.bits(key, MANY)).lower(jax.random.key(0))
    latents = jax.jit(lambda key: drol.sample_latents(key, MANY)).lower(jax.random.key(0))  # uses each three times
    if jax.default_backend() == "cpu":
        assert "complex" in bits.as_text(), "JAX's own rounds"
    rounds = [program.compile().as_text().count(" xor(") for program in (bits, latents)]
    assert rounds[1] < 1.5 * rounds[0]


def threefry(key: np.ndarray, counters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32-20 in NumPy; a counter is (high, low)."""
    rotations = np.array([13, 15, 26, 6, 17, 29, 16, 24], np.uint32)
    schedule = [*key[:, None], key[:1] ^ key[1:] ^ np.uint32(0x1BD11BDA)]
    x0 = (counters >> np.uint64(32)).astype(np.uint32) + schedule[0]
    x1 = counters.astype(np.uint32) + schedule[1]
    for i in range(20):
        x0 = x0 + x1
        x1 = x0 ^ (x1 << rotations[i % 8] | x1 >> 32 - rotations[i % 8])
        if i % 4 == 3:
            s = i // 4 + 1
            x0, x1 = x0 + schedule[s % 3], x1 + schedule[(s + 1) % 3] + np.uint32(s)
    return x0, x1


@functools.partial(jax.jit, static_argnums=1)
def bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.bits(key, shape)


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    st.lists(st.integers(0, 60), max_size=3).map(tuple), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)
def test_bits_of_all_shapes_are_threefry_s(shape: tuple[int, ...], high: int, low: int):
    words = np.array([high, low], np.uint32)
    x0, x1 = threefry(words, np.arange(math.prod(shape), dtype=np.uint64))
    np.testing.assert_array_equal(bits(jax.random.wrap_key_data(words), shape).ravel(), x0 ^ x1)


if __name__ == "__main__":
    np.savez(sys.argv[1], **draws())
