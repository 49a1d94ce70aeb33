"""An exported actor, in NumPy alone: copy this file to where it is needed.

actor = dict(np.load("actor.npz"))
action = act(actor, observation, rng.choice(actor["latents"]))
"""

from collections.abc import Mapping

import numpy as np


def act(actor: Mapping[str, np.ndarray], observation: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """clip(f(s, z), -1, 1), rescaled to the bounds of the environment's actions.

    Args:
        actor: `weight_0` [hidden, o + a], `bias_0` [hidden], .., `low`, `high`, as
            `python -m common.policy` writes them.
        observation: s, [..., o].
        latent: z, [..., a]; `latents` of the file were drawn from its prior.

    Returns:
        The action, [..., a].
    """
    x, last = np.concatenate([observation, latent], axis=-1), sum(name.startswith("bias") for name in actor) - 1
    for i in range(last + 1):
        x = x @ actor[f"weight_{i}"].T + actor[f"bias_{i}"]
        if i < last:  # GELU, tanh approximation
            x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    low, high = actor["low"], actor["high"]
    return low + (high - low) * (np.clip(x, -1, 1) + 1) / 2
