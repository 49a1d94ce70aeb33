"""Trained policies that act where no oracle is scripted: an ant and four hands (see experts/README.md)."""

import math
import pathlib
from collections.abc import Callable, Sequence

from common.files import sha256
from common.numpy_actor import forward

import numpy as np

EXPERTS = pathlib.Path(__file__).parents[1] / "experts"
Expert = Callable[[np.ndarray], np.ndarray]


def describe(name: str) -> str:
    """File and SHA-256 of 'ant', 'door', .., for the provenance of a data set."""
    return f"common/experts/{name}.npz, SHA-256 {sha256(EXPERTS / f'{name}.npz')}"


def load_ant() -> Expert:
    """The mode of its policy, [8], of the ant's state without its position (27) and a direction (2): [29]."""
    layers = _load("ant", ("hidden0", "hidden1", "mean"))
    return lambda x: np.tanh(forward(layers, x.astype(np.float32)))


def load_hand(hand: str) -> Expert:
    """A one-step actor: from an observation [o] to an action [a] in [-1, 1], with a fresh latent each time."""
    layers = _load(hand, ("layer0", "layer1", "layer2"))
    d = layers["bias_2"].size

    def act(observation: np.ndarray) -> np.ndarray:
        direction = np.random.normal(size=d)
        # Uniform in the ball of radius sqrt(d), as drol.sample_latents draws.
        latent = math.sqrt(d) * np.random.uniform() ** (1 / d) * direction / np.linalg.norm(direction)
        return np.clip(forward(layers, np.concatenate([observation, latent]).astype(np.float32)), -1, 1)

    return act


def _load(name: str, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Layers as `forward` takes them; the files' kernels are [inputs, outputs]."""
    with np.load(EXPERTS / f"{name}.npz") as file:
        weights = {f"weight_{i}": file[f"{layer}_kernel"].T for i, layer in enumerate(layers)}
        return weights | {f"bias_{i}": file[f"{layer}_bias"] for i, layer in enumerate(layers)}
