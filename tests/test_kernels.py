"""experiments/kernels.py: what is counted in a compiled program, on one that is small enough to count by hand."""

import importlib.util

import kernels

import jax
import jax.numpy as jnp
import pytest
from conftest import run_script

PROGRAM = """
HloModule jit_train, is_scheduled=true, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%fused_square (param_0: f32[4,8]) -> f32[4,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  ROOT %multiply.1 = f32[4,8]{1,0} multiply(%param_0, %param_0)
}

%fused_rows (param_0.1: f32[5000,8], param_1.1: s32[4]) -> f32[4,8] {
  %param_0.1 = f32[5000,8]{1,0} parameter(0)
  %param_1.1 = s32[4]{0} parameter(1)
  ROOT %gather.1 = f32[4,8]{1,0} gather(%param_0.1, %param_1.1), offset_dims={1}, slice_sizes={1,8}
}

%fused_product (param_0.2: f32[4,8], param_1.2: f32[8,2]) -> f32[4,2] {
  %param_0.2 = f32[4,8]{1,0} parameter(0)
  %param_1.2 = f32[8,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,2]{1,0} dot(%param_0.2, %param_1.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_step (param_0.3: f32[600], param_1.3: f32[8,2]) -> (f32[8,2], f32[8,2]) {
  %param_0.3 = f32[600]{0} parameter(0)
  %param_1.3 = f32[8,2]{1,0} parameter(1)
  %sqrt.1 = f32[600]{0} sqrt(%param_0.3)
  %slice.1 = f32[16]{0} slice(%sqrt.1), slice={[100:116]}
  %bitcast.1 = f32[8,2]{1,0} bitcast(%slice.1)
  %add.1 = f32[8,2]{1,0} add(%param_1.3, %bitcast.1)
  ROOT %tuple.1 = (f32[8,2]{1,0}, f32[8,2]{1,0}) tuple(%add.1, %bitcast.1)
}

%fused_log (param_0.4: f32[1000,3], param_1.4: f32[3], param_2.4: s32[]) -> f32[1000,3] {
  %param_0.4 = f32[1000,3]{1,0} parameter(0)
  %param_1.4 = f32[3]{0} parameter(1)
  %bitcast.2 = f32[1,3]{1,0} bitcast(%param_1.4)
  %param_2.4 = s32[] parameter(2)
  %constant.1 = s32[] constant(0)
  ROOT %update.1 = f32[1000,3]{1,0} dynamic-update-slice(%param_0.4, %bitcast.2, %param_2.4, %constant.1)
}

%inner_body (state: f32[4,8]) -> f32[4,8] {
  %state = f32[4,8]{1,0} parameter(0)
  ROOT %square = f32[4,8]{1,0} fusion(%state), kind=kLoop, calls=%fused_square, metadata={op_name="jit(train)/mul"}
}

%body (carry: (f32[4,8], f32[5000,8], s32[4], f32[8,2], f32[600], f32[1000,3])) -> (f32[4,8], f32[8,2]) {
  %carry = (f32[4,8]{1,0}, f32[5000,8]{1,0}, s32[4]{0}, f32[8,2]{1,0}, f32[600]{0}, f32[1000,3]{1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%carry), index=0
  %data = f32[5000,8]{1,0} get-tuple-element(%carry), index=1
  %drawn = s32[4]{0} get-tuple-element(%carry), index=2
  %weights = f32[8,2]{1,0} get-tuple-element(%carry), index=3
  %moments = f32[600]{0} get-tuple-element(%carry), index=4
  %log = f32[1000,3]{1,0} get-tuple-element(%carry), index=5
  %metrics = f32[3]{0} constant({1, 2, 3})
  %i = s32[] constant(7)
  %rows = f32[4,8]{1,0} fusion(%data, %drawn), kind=kLoop, calls=%fused_rows
  %powers = f32[4,8]{1,0} while(%rows), condition=%less, body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}
  %product = f32[4,2]{1,0} fusion(%powers, %weights), kind=kCustom, calls=%fused_product
  %step = (f32[8,2]{1,0}, f32[8,2]{1,0}) fusion(%moments, %weights), kind=kLoop, calls=%fused_step
  %logged = f32[1000,3]{1,0} fusion(%log, %metrics, %i), kind=kLoop, calls=%fused_log
  ROOT %out = (f32[4,8]{1,0}, f32[8,2]{1,0}) tuple(%powers, %weights)
}

ENTRY %main (start: (f32[4,8], f32[8,2])) -> (f32[4,8], f32[8,2]) {
  %start = (f32[4,8]{1,0}, f32[8,2]{1,0}) parameter(0)
  %first = (f32[4,8]{1,0}, f32[8,2]{1,0}) while(%start), body=%other, backend_config={"known_trip_count":{"n":"2"}}
  ROOT %all = (f32[4,8]{1,0}, f32[8,2]{1,0}) while(%first), body=%body, backend_config={"known_trip_count":{"n":"1000"}}
}
"""


def test_an_update_is_counted_as_by_hand():
    program, entry = kernels.parse(PROGRAM)
    launched = [kernel.name for kernel, _ in kernels.kernels(program, kernels.loop_over_updates(program, entry))]
    assert launched == ["rows", "square", "square", "square", "product", "step", "logged"]
    rows, square, product = (4 * 8 + 4) + 4 * 8, 2 * 4 * 8, (4 * 8 + 8 * 2) + 4 * 2  # read and written
    step, logged = (16 + 16) + 2 * 16, (3 + 1) + 3  # of 600 moments 16, of the log one row, at its number
    assert kernels.count(program, entry) == {
        "kernels": 7,
        "products": 1,
        "operations": 2 * 4 * 8 * 2,
        "bytes": 4 * (rows + 3 * square + product + step + logged),
    }
    assert program["inner_body"]["square"].operation() == "jit(train)/mul"


def test_a_product_of_cublas_is_one_and_what_it_works_in_is_no_traffic():
    call = (
        "  %gemm.1 = (f32[4,2]{1,0}, s8[4194304]{0}) custom-call(%x, %weights, %bias), "
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},"epilogue":"BIAS_GELU"}}\n'
        "  %bias = f32[2]{0} constant({1, 2})\n"
    )
    fused = "  %product = f32[4,2]{1,0} fusion(%powers, %weights), kind=kCustom, calls=%fused_product\n"
    assert fused in PROGRAM
    program, entry = kernels.parse(PROGRAM.replace(fused, fused + call))
    before, after = kernels.count(*kernels.parse(PROGRAM)), kernels.count(program, entry)
    assert after["kernels"] == before["kernels"] + 1
    assert after["products"] == before["products"] + 1
    assert after["operations"] == before["operations"] + 2 * 4 * 8 * 2
    assert after["bytes"] == before["bytes"] + 4 * (4 * 8 + 8 * 2 + 2 + 4 * 2)


def test_the_loop_over_updates_is_found_in_what_xla_writes():
    def update(x, _):
        return jnp.tanh(x @ x), x.sum()

    text = jax.jit(lambda x: jax.lax.scan(update, x, length=kernels.UPDATES)).lower(jnp.eye(64)).compile().as_text()
    program, entry = kernels.parse(text)
    counted = kernels.count(program, entry)
    assert counted["products"] == 1
    assert counted["operations"] == 2 * 64**3
    assert counted["bytes"] > 2 * 4 * 64**2
    with pytest.raises(kernels.UserError, match="no loop"):
        kernels.loop_over_updates(*kernels.parse(jax.jit(jnp.sin).lower(1.0).compile().as_text()))


@pytest.mark.slow(1)
@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is not None, reason="a plugin is here")
def test_without_the_cuda_plugin_one_line_says_how_to_get_it():
    result = run_script(script="results/experiments/kernels.py")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith('pip install "jax[cuda12]" (4 GB; no GPU needed)')
    assert len(result.stderr.splitlines()) == 1
