#!/usr/bin/env bash
# What to find out first on a machine with a GPU: how long updates take, and what XLA's choices bring. Not run on one yet.
#
#     results/accelerator.sh FOLDER [OTHER ARGUMENTS OF speed.py]
set -euo pipefail
out=$(realpath -m "${1:?a folder for what is found out}")
shift
cd "$(dirname "$0")/.."
mkdir -p "$out"

measure() { # NAME FLAGS [ARGUMENTS]: a table of updates as XLA compiles them with these flags
    local name=$1 flags=$2
    shift 2
    printf '\n== %s %s (%s)\n' "$name" "$flags" "$(date +%T)"
    XLA_FLAGS="${XLA_FLAGS:-} $flags" python results/speed.py --updates-only --rounds 3 --out "$out/$name" "$@"
}

measure plain "" --num-seeds 1 8 "$@"
# Products by cuBLAS, with bias and GELU in the same kernel, instead of by Triton.
measure cublas --xla_gpu_enable_triton_gemm=false --num-candidates 16 --num-seeds 1 "$@"
# Launches recorded as CUDA graphs: none at all, and the loop over updates as well.
measure no-graphs --xla_gpu_enable_command_buffer= --num-candidates 16 --num-seeds 1 "$@"
graphs=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,WHILE
measure loop-as-graph "--xla_gpu_enable_command_buffer=$graphs" --num-candidates 16 --num-seeds 1 "$@"
