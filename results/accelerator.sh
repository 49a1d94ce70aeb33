#!/usr/bin/env bash
# What to find out first on a machine with a GPU.
#
#     results/accelerator.sh speed FOLDER [ARGUMENTS]  # how long updates take, and what XLA's choices bring (speed.py)
#     results/accelerator.sh paper FOLDER [ARGUMENTS]  # DROL on cube-double: a million updates, ten evaluations (drol.py)
set -euo pipefail
part=${1:?speed or paper} out=$(realpath -m "${2:?a folder for what is found out}")
shift 2
cd "$(dirname "$0")/.."
mkdir -p "$out"

measure() { # NAME FLAGS [ARGUMENTS]: a table of updates as XLA compiles them with these flags
    local name=$1 flags=$2
    shift 2
    printf '\n== %s %s (%s)\n' "$name" "$flags" "$(date +%T)"
    XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$flags" python results/speed.py --updates-only --rounds 3 --out "$out/$name" "$@"
}

case $part in
speed)
    measure plain "" --profile "$out/profile" "$@"
    # Products by cuBLAS, with bias and GELU in the same kernel, instead of by Triton.
    measure cublas --xla_gpu_enable_triton_gemm=false --num-candidates 16 --num-seeds 1 "$@"
    # Launches recorded as CUDA graphs: none at all, and the loop over updates as well.
    measure no-graphs --xla_gpu_enable_command_buffer= --num-candidates 16 --num-seeds 1 "$@"
    graphs=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,WHILE
    measure loop-as-graph "--xla_gpu_enable_command_buffer=$graphs" --num-candidates 16 --num-seeds 1 "$@"
    ;;
paper) # collects 1000 episodes first, where the official data cannot be had: minutes on 16 cores, half an hour on two
    time python drol.py --env-id cube-double --eval-interval 100000 --run-dir "$out/cube-double" "$@"
    ;;
*)
    echo "error: $part: the part is speed or paper" >&2
    exit 2
    ;;
esac
