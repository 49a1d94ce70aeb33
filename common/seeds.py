"""Several seeds in one program: their keys, and which device trains which."""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from common import machine

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key


class RunKeys(NamedTuple):
    """What is random in a run, by purpose; each [places]."""

    init: Key[Array, " places"]
    train: Key[Array, " places"]
    evaluation: Key[Array, " places"]
    exploration: Key[Array, " places"]


class Seeds:
    """Seeds that are trained together. Arrays have a leading axis of places, one a seed, spread over the devices.

    As few on each device as possible: with 3 seeds on 2 devices each has 2 places, and the last one stays empty. It
    gets what the last seed has, and what it computes is thrown away.
    """

    def __init__(self, seeds: Sequence[int]):
        """Args:
        seeds: the numbers, from each of which everything random in its run follows.
        """
        self.numbers = list(seeds)
        devices = jax.local_devices()
        seeds_per_device = math.ceil(len(seeds) / len(devices))
        used = devices[: math.ceil(len(seeds) / seeds_per_device)]
        mesh = Mesh(np.array(used), ("seed",))
        places = len(used) * seeds_per_device
        self.by_seed = NamedSharding(mesh, PartitionSpec("seed"))  # of arrays whose leading axis is the places
        self.shared = NamedSharding(mesh, PartitionSpec())  # of arrays that every device holds
        self._seed_of_place = np.minimum(np.arange(places), len(seeds) - 1)
        self.keys = jax.device_put(keys_of_runs(np.array(seeds)[self._seed_of_place]), self.by_seed)
        self._layout = f"{seeds_per_device} on each of {len(used)} device{'s' if len(used) > 1 else ''}" + (
            f", {places - len(seeds)} of {places} places empty" if places > len(seeds) else ""
        )

    def __len__(self) -> int:
        return len(self.numbers)

    def __str__(self) -> str:
        return ", ".join(map(str, self.numbers)) + (f" ({self._layout})" if len(self) > 1 else "")

    def spread(self, tree: Any) -> Any:
        """Put arrays with a leading axis of seeds in their places."""
        return jax.tree.map(lambda leaf: jax.device_put(leaf[self._seed_of_place], self.by_seed), tree)

    def gather(self, tree: Any) -> Any:
        """NumPy arrays with a leading axis of seeds, copied from their places, all at once."""
        return jax.tree.map(lambda leaf: np.array(leaf)[: len(self)], jax.device_get(tree))

    def initialise(self, init: Callable[[Key[Array, ""]], Any]) -> Any:
        """What `init` makes of the initialisation key of each seed, in their places."""
        options = machine.quick_to_compile()
        return jax.jit(jax.vmap(init), out_shardings=self.by_seed, compiler_options=options)(self.keys.init)

    def vmap(
        self, function: Callable[..., Any], *, shared: Collection[int] = (), donate: Sequence[int] = ()
    ) -> Callable[..., Any]:
        """`function` of one seed, compiled to run for all of them at once, wherever their places are.

        Args:
            function: of arrays.
            shared: positions of arguments that are the same for all seeds, without an axis of places.
            donate: of arguments whose memory the result may take.
        """

        @functools.partial(jax.jit, donate_argnums=donate, compiler_options=machine.quick_to_run())
        def together(*arguments: Any) -> Any:
            return jax.vmap(function, [None if i in shared else 0 for i in range(len(arguments))])(*arguments)

        return together


def keys_of_runs(seeds: Sequence[int] | Int[np.ndarray, " seeds"]) -> RunKeys:
    """The keys of runs, each [seeds]."""
    return _keys_of_runs(np.array(seeds))


@jax.jit  # one program, where each operation would be compiled on its own
def _keys_of_runs(seeds: Int[Array, " seeds"]) -> RunKeys:
    split = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), len(RunKeys._fields)))
    return RunKeys(*jnp.unstack(split(seeds), axis=1))
