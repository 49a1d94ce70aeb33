"""The machine: its devices, its memory, and how XLA compiles for it."""

import functools
import os
import re
from typing import Any, Literal

from common import threefry  # noqa: F401 (random bits, written out for a CPU)
from common.errors import UserError
from common.processes import available_cores, free_memory

import jax
import numpy as np

# Settings of JAX's that decide numbers, or stop the scripts; another project may have left others in the environment.
NUMBERS = {
    "jax_enable_x64": False,  # hence float32; an accelerator rounds the operands of products further (NVIDIA's: TF32)
    "jax_default_matmul_precision": None,  # as the backend has it, and as the papers' code leaves it
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}
DataMemory = Literal["auto", "device", "host", "disk"]
HEADROOM = 0.9  # of the memory that is free; the rest is for what a compiled program needs beside its arguments


def use_cpu_alone() -> None:
    """For a process that only evaluates policies: it takes no accelerator, nor the memory of one that is training.

    Before JAX is first used; later it changes nothing.
    """
    jax.config.update("jax_platforms", "cpu")


def check() -> None:
    """Raises `UserError` where JAX cannot train as it is set up here; what would only change numbers is put right."""
    platforms = jax.config.jax_platforms  # as JAX_PLATFORMS has it
    is_accelerator_alone = bool(platforms) and "cpu" not in platforms.split(",")
    if is_accelerator_alone:
        jax.config.update("jax_platforms", f"{platforms},cpu")  # where policies are evaluated
    try:
        if jax.devices()[0].platform == "cpu" and is_accelerator_alone:
            raise RuntimeError
    except (RuntimeError, AssertionError) as error:  # the latter without a word
        setting = f"JAX_PLATFORMS={platforms}; unset it" if platforms else str(error)
        raise UserError(f"JAX finds no device to compute on with {setting}") from error
    if jax.config.jax_disable_jit:
        raise UserError("JAX_DISABLE_JIT is set, with which a training would take weeks; unset it")
    for name, value in NUMBERS.items():
        if (found := getattr(jax.config, name, value)) != value:
            print(f"note: {name.upper()} is {found}; this computes with {value} all the same", flush=True)
            jax.config.update(name, value)
    if "MUJOCO_GL" in os.environ:
        try:
            import mujoco  # noqa: F401 (it chooses its renderer here)
        except (ImportError, AttributeError, RuntimeError) as error:
            raise UserError(f"MuJoCo does not start with MUJOCO_GL={os.environ['MUJOCO_GL']}; unset it") from error


def describe_device() -> str:
    """What JAX computes on."""
    kind, platform = jax.devices()[0].device_kind, jax.default_backend()
    return f"{jax.local_device_count()} x {kind} ({platform}), {available_cores()} CPU cores, jax {jax.__version__}"


def place_data(data_memory: DataMemory, dataset: Any) -> DataMemory:
    """Where a data set lies: where it is asked for, else on the device if it fits there, else where it is.

    Args:
        data_memory: as asked for.
        dataset: tree of NumPy arrays, which may be mapped from the disk.
    """
    if data_memory != "auto":
        return data_memory
    leaves = jax.tree.leaves(dataset)
    is_mapped = any(isinstance(leaf, np.memmap) for leaf in leaves)
    if _fits_on_device(sum(leaf.nbytes for leaf in leaves), is_mapped):
        return "device"
    return "disk" if is_mapped else "host"


def _fits_on_device(num_bytes: int, is_mapped: bool) -> bool:
    """Whether so much can still be put on each device. A CPU's memory is the host's: what is there stays."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    free = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if "bytes_limit" in s]
    return num_bytes <= HEADROOM * min(free) if free else not is_mapped


def fits_on_host(data_memory: DataMemory, num_bytes: int) -> bool:
    """Whether so much is to be read into the host's memory, and not to be mapped from the disk."""
    return data_memory != "disk" and (data_memory != "auto" or num_bytes <= HEADROOM * free_memory())


CompilerOptions = dict[str, int | bool | str]


def known_options(options: CompilerOptions) -> CompilerOptions:
    """Those of XLA's compiler options that this XLA has: they come and go, and none changes more than rounding."""
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: int | bool | str) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(0).compile()
    except jax.errors.JaxRuntimeError as error:
        if not re.search("No such compile option|not a valid enum value", str(error)):
            raise
        return False
    return True


def quick_to_run() -> CompilerOptions:
    """Compiler options for the loop over updates, which is what a training spends its time on.

    On a GPU, kernels of an update that do not need each other overlap: on an H200 an update of DROL(16) takes 0.397 ms
    instead of 0.469, to the same bits, and one of FQL 0.530 instead of 0.706 (results/gpu). On a CPU, sums and
    products are not YNNPACK's, which with JAX 0.10 takes ten times as long for what LayerNorm sums up on its way back,
    and vectors are as wide as the processor has them: an update of the quick start takes two thirds of the time, one
    of the paper's sizes five sixths.
    """
    if jax.default_backend() == "gpu":
        return known_options({"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"})
    if jax.default_backend() == "cpu":
        return known_options({"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": 512})
    return {}


def single_threaded() -> CompilerOptions:
    """Compiler options for small programs that run beside a large one on the same cores."""
    return known_options({"xla_cpu_multi_thread_eigen": False}) if policy_device().platform == "cpu" else {}


def quick_to_compile() -> CompilerOptions:
    """Compiler options for a program that runs once. On a CPU initialisation takes five seconds to compile without."""
    if jax.default_backend() != "cpu":
        return {}
    return known_options({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})


def policy_device() -> jax.Device:
    """Where policies are evaluated: the CPU, where no call waits for a chunk of updates to end."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX has begun without one, in a notebook say
        return jax.local_devices()[0]
