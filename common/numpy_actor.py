"""An exported actor, in NumPy alone: copy this file to where it is needed.

actor = dict(np.load("actor.npz"))
action = act(actor, observation, rng.choice(actor["latents"]))
"""

from collections.abc import Mapping

import numpy as np


def act(actor: Mapping[str, np.ndarray], observation: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """clip(f(s, z), -1, 1), rescaled to the bounds of the environment's actions.

    Args:
        actor: `weight_0`, `bias_0`, .., `low`, `high`, as `python -m common.policy` writes them.
        observation: s, [..., o].
        latent: z, [..., a]; `latents` of the file were drawn from its prior.

    Returns:
        The action, [..., a].
    """
    unit_action = np.clip(forward(actor, np.concatenate([observation, latent], axis=-1)), -1, 1)
    return actor["low"] + (actor["high"] - actor["low"]) * (unit_action + 1) / 2


def forward(layers: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The output of an MLP, [..., outputs], with GELU (tanh approximation) after each of its hidden layers.

    Args:
        layers: `weight_0` [hidden, inputs], `bias_0` [hidden], `weight_1`, ..
        x: [..., inputs], in the precision that is computed in.
    """
    last = sum(name.startswith("bias") for name in layers) - 1
    for i in range(last + 1):
        x = x @ layers[f"weight_{i}"].T + layers[f"bias_{i}"]
        if i < last:
            x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi, dtype=x.dtype) * (x + 0.044715 * x**3)))
    return x
