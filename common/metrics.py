"""Metrics of an update side by side in one array."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class MetricsRow(eqx.Module):
    """What a loop over updates writes at once, where a dict would be written number by number."""

    names: tuple[str, ...] = eqx.field(static=True)
    values: Float[Array, "*updates metrics"]

    @staticmethod
    def of(metrics: dict[str, Float[Array, ""]]) -> "MetricsRow":
        """The metrics of one update."""
        return MetricsRow(tuple(metrics), jnp.stack(list(metrics.values())))

    def columns(self) -> dict[str, Float[Array, "*updates"]]:
        """Each metric over the updates of a loop."""
        return {name: self.values[..., i] for i, name in enumerate(self.names)}
