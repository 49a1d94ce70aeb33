"""The machine that a run runs on."""

import os

import jax


def available_cores() -> int:
    """CPU cores that this process may use: fewer than the machine has, under a job scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_device() -> str:
    """What JAX computes on."""
    kind, platform = jax.devices()[0].device_kind, jax.default_backend()
    return f"{jax.local_device_count()} x {kind} ({platform}), {available_cores()} CPU cores, jax {jax.__version__}"
