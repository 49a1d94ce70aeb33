"""The machine that a run runs on."""

import math
import os
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

HEADROOM = 0.9  # of the memory that is free; the rest is for what a compiled program needs beside its arguments


def available_cores() -> int:
    """CPU cores that this process may use: fewer than the machine has, under a job scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_device() -> str:
    """What JAX computes on."""
    kind, platform = jax.devices()[0].device_kind, jax.default_backend()
    return f"{jax.local_device_count()} x {kind} ({platform}), {available_cores()} CPU cores, jax {jax.__version__}"


class Placement(NamedTuple):
    """Which device trains which seeds: the leading axis of every array has one entry a place."""

    by_seed: NamedSharding  # of arrays whose leading axis is the places: as many on each device, maybe more than seeds
    shared: NamedSharding  # of arrays that every device holds
    seed_of_place: np.ndarray
    description: str

    def spread(self, tree: Any) -> Any:
        """Put arrays with a leading axis of seeds in their places; an empty place gets what the last seed has."""
        return jax.tree.map(lambda leaf: jax.device_put(leaf[self.seed_of_place], self.by_seed), tree)


def place_seeds(num_seeds: int) -> Placement:
    """Spread seeds over the local devices, as few on each as possible.

    With 3 seeds on 2 devices each has 2 places, and the last one stays empty: what it computes is thrown away.
    """
    devices = jax.local_devices()
    seeds_per_device = math.ceil(num_seeds / len(devices))
    used = devices[: math.ceil(num_seeds / seeds_per_device)]
    mesh = Mesh(np.array(used), ("seed",))
    places = len(used) * seeds_per_device
    empty = f", {places - num_seeds} of {places} places empty" if places > num_seeds else ""
    return Placement(
        by_seed=NamedSharding(mesh, PartitionSpec("seed")),
        shared=NamedSharding(mesh, PartitionSpec()),
        seed_of_place=np.minimum(np.arange(places), num_seeds - 1),
        description=f"{seeds_per_device} on each of {len(used)} device{'s' if len(used) > 1 else ''}{empty}",
    )


def keep_on_host(data_memory: Literal["auto", "device", "host"], num_bytes: int) -> bool:
    """Whether the data set stays on the host: if it is asked for, or it does not fit on the device, which is said."""
    if data_memory == "auto" and not _fits_on_device(num_bytes):
        print(f"the data set ({num_bytes / 1e6:,.0f} MB) does not fit on the device and stays on the host", flush=True)
        return True
    return data_memory == "host"


def _fits_on_device(num_bytes: int) -> bool:
    """Whether so much can still be put on each device. A CPU's memory is the host's: there it makes no difference."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    free = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if "bytes_limit" in s]
    return not free or num_bytes <= HEADROOM * min(free)


def single_threaded() -> dict[str, bool]:
    """Compiler options for small programs that run beside a large one on the same cores."""
    return {"xla_cpu_multi_thread_eigen": False} if policy_device().platform == "cpu" else {}


def quick_to_compile() -> dict[str, int | bool]:
    """Compiler options for a program that runs once. On a CPU initialisation takes five seconds to compile without."""
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False} if on_cpu else {}


def policy_device() -> jax.Device:
    """Where policies are evaluated: the CPU, where no call waits for a chunk of updates to end."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to use the accelerator alone
        return jax.local_devices()[0]
