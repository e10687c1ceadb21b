import keras
import pytest
import tensorflow as tf
from helpers.models import TINY, compiled

from vitkeras.preflight.hlo_statistics import (
    dtype_fraction,
    hbm_traffic,
    matrix_products,
    sum_by_operation,
)
from vitkeras.preflight.lowering import evaluation_module, lower, train_module


@pytest.mark.parametrize("dtype, fraction", [("float32", 0), ("mixed_bfloat16", 1)])
def test_matrix_products_of_a_model(dtype, fraction):
    model = compiled(dtype=dtype)
    found = matrix_products(evaluation_module(model, 16))
    # Patches, then in each block qkv, scores, values, out and the MLP, then the head.
    n, t, d, f = 64, 65, TINY["hidden_dim"], TINY["mlp_dim"]
    block = t * d * 3 * d + 2 * t * t * d + t * d * d + 2 * t * d * f
    expected = 2 * 16 * (n * 8 * 8 * 3 * d + 2 * block + d * 5)
    assert sum(product.flops for product in found) == expected
    assert dtype_fraction("bf16", found) == pytest.approx(fraction, abs=0.01)
    train = matrix_products(train_module(model, 16))
    # No gradient of the images; the scores of both blocks are recomputed.
    recomputed = 2 * 16 * 2 * t * t * d
    assert sum(p.flops for p in train) == 3 * expected - 2 * 16 * n * 8 * 8 * 3 * d + recomputed


def test_matrix_products_of_a_convolution():
    x = tf.zeros((2, 9, 9, 3))
    layer = keras.layers.Conv2D(5, 3, padding="same")
    layer.build(x.shape)
    module = lower(lambda x: layer(x), x)
    assert [p.flops for p in matrix_products(module)] == [2 * 2 * 9 * 9 * 5 * 3 * 3 * 3]


COMPILED = """HloModule step

%body (p: (f32[8,128])) -> (f32[8,128]) {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %add.1 = f32[8,128]{1,0:T(8,128)} add(%p, %p), metadata={op_name="loop/add"}
}

ENTRY %main (a: f32[100,100]) -> f32[100,100] {
  %a = f32[100,100]{1,0:T(8,128)} parameter(0)
  %copy-start.1 = (f32[100,100]{1,0:T(8,128)S(1)}, f32[100,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done.1 = f32[100,100]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %fusion.1 = bf16[100,100]{1,0:T(8,128)(2,1)} fusion(%copy-done.1, %a), kind=kLoop, calls=%x, metadata={op_name="vit_1/block_00_1/mlp/mul"}
  %fusion.2 = bf16[100,100]{1,0:T(8,128)(2,1)S(1)} fusion(%fusion.1), kind=kLoop, calls=%x, metadata={op_name="vit_1/block_01_1/mlp/mul"}
  %while.1 = (f32[8,128]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %bitcast.1 = f32[100,100]{1,0:T(8,128)} bitcast(%fusion.2)
}
"""  # noqa: E501


def test_traffic_is_what_is_in_hbm():
    traffic = hbm_traffic(COMPILED)
    padded = 104 * 128  # elements of 100 x 100 with the padding of its tiles
    sizes = [(row.opcode, row.num_bytes) for row in traffic]
    assert sizes == [
        ("copy-start", 4 * padded), ("fusion", 2 * padded + 4 * padded), ("fusion", 2 * padded),
        ("add", 3 * 3 * 8 * 128 * 4),
    ]  # fmt: skip
    assert ("fusion vit/block_N/mlp/mul", 2, 8 * padded) in sum_by_operation(traffic)
