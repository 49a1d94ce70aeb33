"""What an update is made of on an H100, counted without one: kernels, matrix products, bytes, operations.

    pip install "jax[cuda12]" && python results/experiments/kernels.py [--out results/speed/kernels.md] [--list]

XLA compiles for a GPU that is not there, if it is told what the GPU is like. Out comes the program that an H100 would
run, but for what XLA chooses by trying kernels out. So this is a count and not a measurement: it says what is launched,
and from data-sheet numbers how long launches, memory and arithmetic would each take if nothing else did.
"""

import collections
import dataclasses
import functools
import itertools
import math
import pathlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import basics
import drol
import fql
from common import command_line
from common.errors import UserError, exit_in_one_line
from common.replay import Batch

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

OBSERVATION_DIM, ACTION_DIM = 37, 5  # cube-double
UPDATES = 1000  # of the loop that is compiled
LAUNCH_S, BYTES_S, FLOPS_S = 2e-6, 3.35e12, 495e12  # a launch inside a loop; HBM3; dense TF32 (NVIDIA's data sheet)
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
KERNELS = {"fusion", "custom-call", "copy", "dot", "convolution", "sort", "reduce", "scatter", "gather", "transpose"}
INDEXING = {"slice", "dynamic-slice", "gather", "dynamic-update-slice"}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}  # else 4


@dataclasses.dataclass(frozen=True)
class KernelArgs:
    """Count the kernels of an update on an H100."""

    num_candidates: tuple[int, ...] = (1, 16, 64)
    """Values of K."""
    num_seeds: tuple[int, ...] = (1, 8)
    """Numbers of seeds that are trained together."""
    out: pathlib.Path | None = None
    """Write the table to this file as well."""
    list: bool = False
    """Print each kernel: the arrays that it writes, and the last operation in it by JAX's name."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a compiled program: `name = shape opcode(arguments), attributes`."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """The instructions whose results it reads."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def operation(self) -> str:
        """Of JAX's that it comes from; of a fusion, the last one."""
        named = re.search(r'op_name="([^"]*)"', self.attributes)
        return named[1] if named else ""

    def calls(self) -> list[str]:
        """The computations that it runs."""
        return re.findall(r"\b(?:calls|to_apply)=%?([\w.\-]+)", self.attributes)


Computation = dict[str, Instruction]  # by name
Program = dict[str, Computation]  # by name


def parse(text: str) -> tuple[Program, str]:
    """The computations of a program in XLA's notation, and the name of the first that runs."""
    program, entry, current = {}, "", {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = program.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        # A shape is a word without blanks, or several in parentheses.
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(,.*)?$", line):
            name, shape, opcode, arguments, attributes = match.groups()
            current[name] = Instruction(name, shape, opcode, arguments, attributes or "")
    return program, entry


def loop_over_updates(program: Program, entry: str) -> str:
    """The body of the loop that turns UPDATES times."""
    for instruction in program[entry].values():
        if instruction.opcode == "while" and trips(instruction) == UPDATES:
            return body(instruction)
    raise UserError(f"the compiled program has no loop of {UPDATES} turns")


def trips(loop: Instruction) -> int:
    """How often a loop turns; 1 if XLA does not know."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    return int(known[1]) if known else 1


def body(loop: Instruction) -> str:
    """The computation that a loop repeats."""
    return re.search(r"body=%?([\w.\-]+)", loop.attributes)[1]


def kernels(program: Program, computation: str) -> Iterator[tuple[Instruction, Computation]]:
    """Each kernel as often as it is launched, beside the computation that it stands in."""
    for instruction in program[computation].values():
        if instruction.opcode == "while":
            yield from trips(instruction) * list(kernels(program, body(instruction)))
        elif instruction.opcode == "call":
            yield from (kernel for name in instruction.calls() for kernel in kernels(program, name))
        elif instruction.opcode in KERNELS:
            yield instruction, program[computation]


def products(program: Program, instruction: Instruction, around: Computation) -> Iterator[int]:
    """The floating-point operations of each matrix product in a kernel: XLA's own, or one of cuBLAS."""
    contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)[}\]]', instruction.attributes)
    if instruction.opcode in ("dot", "custom-call") and contracted:
        sizes = dimensions(around[instruction.operands[0]].shape)
        depth = math.prod(sizes[int(i)] for i in contracted[1].replace('"', "").split(","))
        yield 2 * math.prod(dimensions(result_shapes(instruction)[0])) * depth
    for name in instruction.calls():
        for inner in program[name].values():
            yield from products(program, inner, program[name])


def dimensions(shape: str) -> list[int]:
    """Of one array, as in f32[2,256]{1,0}."""
    return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]


def result_shapes(instruction: Instruction) -> list[str]:
    """Of the arrays that it writes. What a library works in, bytes beside its result, holds nothing for others."""
    shapes = re.findall(r"\w+\[[\d,]*\]", instruction.shape)
    is_library = instruction.opcode == "custom-call"
    return [shape for i, shape in enumerate(shapes) if not (is_library and i > 0 and shape.startswith("s8["))]


def num_bytes(shape: str) -> int:
    """Of one array, or of several in parentheses."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(BYTES.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n) for dtype, sizes in arrays)


def bytes_moved(program: Program, kernel: Instruction, around: Computation) -> int:
    """What it reads of its operands, once each, and its results."""
    if not kernel.calls():
        arrays = [*result_shapes(kernel), *(around[name].shape for name in kernel.operands)]
        return sum(map(num_bytes, arrays))
    inside = program[kernel.calls()[0]]
    needed = bytes_needed(inside)
    total = num_bytes(kernel.shape)
    for instruction in inside.values():
        if instruction.opcode == "parameter":
            total += needed[instruction.name]
        elif instruction.opcode == "dynamic-update-slice":  # in place
            total += num_bytes(inside[instruction.operands[1]].shape) - num_bytes(instruction.shape)
    return total


def bytes_needed(inside: Computation) -> collections.Counter[str]:
    """Of each array of a fused computation: an element is computed where it is asked for, and only there."""
    needed: collections.Counter[str] = collections.Counter()
    for instruction in reversed(inside.values()):  # whoever asks comes after what it asks for
        size = num_bytes(instruction.shape)
        own = needed[instruction.name] = min(needed.get(instruction.name, size), size)  # all of the result
        for position, name in enumerate(instruction.operands):
            asked = num_bytes(inside[name].shape)
            if instruction.opcode in INDEXING and position == 0:
                asked = own if instruction.opcode != "dynamic-update-slice" else 0
            elif asked == size:  # element by element
                asked = own
            needed[name] += asked
    return needed


def count(program: Program, entry: str) -> collections.Counter[str]:
    """Kernels, matrix products, bytes moved and floating-point operations of the products, of one update."""
    total: collections.Counter[str] = collections.Counter()
    for kernel, around in kernels(program, loop_over_updates(program, entry)):
        operations = list(products(program, kernel, around))
        total["kernels"] += 1
        total["products"] += len(operations)
        total["operations"] += sum(operations)
        total["bytes"] += bytes_moved(program, kernel, around)
    return total


def compile_for_h100(algorithm: types.ModuleType, args: Any, num_seeds: int) -> str:
    """The program of UPDATES updates, as `main` would compile it."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", topology_name="", target_config=H100, topology="1x1x1")
    except Exception as error:
        raise UserError('XLA has no compiler for GPUs here: pip install "jax[cuda12]" (4 GB; no GPU needed)') from error
    there = SingleDeviceSharding(topology.devices[0])

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=there)

    each = (num_seeds, UPDATES, args.batch_size)
    observations, actions, numbers = array(*each, OBSERVATION_DIM), array(*each, ACTION_DIM), array(*each)
    batches = Batch(observations, actions, numbers, numbers, observations)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_seeds))
    init = functools.partial(algorithm.init_state, args, (OBSERVATION_DIM,), ACTION_DIM)
    states, keys = jax.tree.map(
        lambda leaf: array(*leaf.shape, dtype=leaf.dtype), (jax.eval_shape(jax.vmap(init), keys), keys)
    )
    chunk = jax.vmap(functools.partial(algorithm.train_chunk, args))
    return jax.jit(chunk, donate_argnums=0).lower(states, batches, keys).compile().as_text()


def main(args: KernelArgs) -> None:
    """Compile, count, print a Markdown table."""
    lines = [
        f"A count and not a measurement: what XLA (jax {jax.__version__}) makes of an update for an H100.",
        "Times in microseconds, if nothing else took any: 2 a launch, 3.35 TB/s of memory, 495 Tflop/s.",
        "",
        "| | seeds | kernels | matrix products | MB moved | Gflop | launches | memory | arithmetic |",
        "|:--|" + "--:|" * 8,
    ]
    jax.config.update("jax_platforms", "cpu")  # nothing runs on a GPU, should there be one
    methods = [(f"DROL({k})", drol, {"num_candidates": k}) for k in args.num_candidates] + [("FQL", fql, {})]
    for num_seeds, (name, algorithm, given) in itertools.product(args.num_seeds, methods):
        settings = basics.settings(algorithm, **given)
        program, entry = parse(compile_for_h100(algorithm, settings, num_seeds))
        n = count(program, entry)
        times = 1e6 * LAUNCH_S * n["kernels"], 1e6 * n["bytes"] / BYTES_S, 1e6 * n["operations"] / FLOPS_S
        cells = [f"{n['kernels']} | {n['products']} | {n['bytes'] / 1e6:.0f} | {n['operations'] / 1e9:.1f}"]
        cells += [f"{time:.0f}" for time in times]
        lines.append(f"| {name} | {num_seeds} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
        if args.list:
            for kernel, _ in kernels(program, loop_over_updates(program, entry)):
                print(f"{kernel.name:40} {kernel.shape:60} {kernel.operation()}")
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if args.out is not None:
        args.out.write_text(table)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(KernelArgs)))
