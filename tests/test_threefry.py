"""Random numbers are JAX's own, which the tests have. Run as a script, this file writes those of common/threefry.py."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

MANY = (31, 67)  # more numbers than are computed again at each use
SHAPES = ((), (1,), (3,), (2, 5), (0, 4), (60, 7), (5, 1, 13), MANY)


def draws() -> dict[str, np.ndarray]:
    """Numbers of each kind, few and many, also under jit, vmap and scan."""
    key = jax.random.key(2**31 + 7)

    def scanned(key: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        key, normal_key = jax.random.split(key)
        return key, jax.random.normal(normal_key, MANY)

    functions = {f"bits {shape}": lambda key, shape=shape: jax.random.bits(key, shape) for shape in SHAPES} | {
        "bytes": lambda key: jax.random.bits(key, MANY, jnp.uint8),
        "normal": lambda key: jax.random.normal(key, MANY),
        "uniform": lambda key: jax.random.uniform(key, MANY, minval=-2.0),
        "randint": lambda key: jax.random.randint(key, MANY, 0, 1_000_003),
        "split": lambda key: jax.random.key_data(jax.random.split(key, MANY)),
        "fold_in": lambda key: jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(jnp.arange(2000)),
        "vmap": lambda key: jax.vmap(lambda key: jax.random.bits(key, MANY))(jax.random.split(key, 3)),
        "scan": lambda key: jax.lax.scan(scanned, key, length=3)[1],
    }
    jitted = jax.jit(lambda key: {name: function(key) for name, function in functions.items()})(key)
    return jax.tree.map(np.asarray, jitted | {"not jitted": jax.random.normal(key, MANY)})


def programs() -> dict[str, np.ndarray]:
    """Whether rounds are written out, and how many are in bits, and in latents, which use each bit three times."""
    import drol

    bits = jax.jit(lambda key: jax.random.bits(key, MANY)).lower(jax.random.key(0))
    latents = jax.jit(lambda key: drol.sample_latents(key, MANY)).lower(jax.random.key(0))
    rounds = [program.compile().as_text().count(" xor(") for program in (bits, latents)]
    return {"written out": np.array("complex" in bits.as_text()), "rounds": np.array(rounds)}


@pytest.fixture(scope="module")
def ours(once) -> dict[str, np.ndarray]:
    from conftest import REPOSITORY, run_script

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        result = run_script(folder / "ours.npz", script=__file__, variables={"PYTHONPATH": str(REPOSITORY)})
        assert result.returncode == 0, result.stderr

    with np.load(once("random", make) / "ours.npz") as file:
        return dict(file)


@pytest.mark.slow(4)
def test_all_random_numbers_are_jax_s_own(ours):
    jax_s = draws()
    assert ours["written out"]
    assert not programs()["written out"]  # those of this process are not ours
    assert {"written out", "rounds", *jax_s} == set(ours)
    for name, numbers in jax_s.items():
        np.testing.assert_array_equal(numbers, ours[name], err_msg=name)


@pytest.mark.slow(4)
def test_rounds_are_gone_through_once_whatever_uses_the_numbers(ours):
    assert 0 < ours["rounds"][1] < 1.5 * ours["rounds"][0]


def test_words_are_threefry_s():
    """Threefry-2x32-20 in NumPy."""
    from common.threefry import threefry2x32

    key, (x0, x1) = np.array([1, 2**31 + 5], np.uint32), np.random.default_rng(0).integers(0, 2**32, (2, 97), np.uint32)
    words = jax.jit(threefry2x32)(*key, x0, x1)
    rotations = np.array([13, 15, 26, 6, 17, 29, 16, 24], np.uint32)
    schedule = [*key[:, None], key[:1] ^ key[1:] ^ np.uint32(0x1BD11BDA)]
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for i in range(20):
        x0 = x0 + x1
        x1 = x0 ^ (x1 << rotations[i % 8] | x1 >> 32 - rotations[i % 8])
        if i % 4 == 3:
            s = i // 4 + 1
            x0, x1 = x0 + schedule[s % 3], x1 + schedule[(s + 1) % 3] + np.uint32(s)
    np.testing.assert_array_equal(words, (x0, x1))


if __name__ == "__main__":
    programs_of_ours = programs()  # importing drol is enough
    np.savez(sys.argv[1], **draws(), **programs_of_ours)
