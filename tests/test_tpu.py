"""Compiling for a TPU on a machine that has none (extra `aot`)."""

import importlib.util
import json
import os
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, python
from test_preflight import compiled

from experiments import tpu, tpu_module
from vitkeras.errors import InputError

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `aot` is not installed"
)


@pytest.mark.parametrize(
    "name", ["", "v5e", "v9:2x2", "v5e:2", "v5e:2x4x", "2x4", "v5e:0x4", "v5e:3x5", "v5e:16x32",
             "v5e:2x2x1", "v4:2x4", "v4:2x0x2", "v4:1x2x2", "v5p:32x32x32"],
)  # fmt: skip
def test_no_slice(name):
    with pytest.raises(InputError, match=rf"`tpu` must be a chip .*Received: tpu={name}\."):
        tpu.parse_slice(name)


def test_slices():
    assert tpu.parse_slice("V5E:2x4") == tpu.Slice("v5e", "v5e:2x4", 8)
    assert tpu.parse_slice("v4:2x2x1") == tpu.Slice("v4", "v4:2x2x1", 8)
    assert tpu.parse_slice("v5p:2x2x4").replicas == 16


@pytest.mark.parametrize("dtype, share", [("float32", 0), ("mixed_bfloat16", 1)])
def test_products_are_those_of_the_model(dtype, share):
    model = compiled(dtype=dtype)
    module = tpu.evaluation_module(model, 16)
    found = tpu_module.products(module)
    # Patches, then in each block qkv, scores, values, out and the MLP, then the head.
    n, t, d, f = 64, 65, TINY["hidden_dim"], TINY["mlp_dim"]
    block = t * d * 3 * d + 2 * t * t * d + t * d * d + 2 * t * d * f
    expected = 2 * 16 * (n * 8 * 8 * 3 * d + 2 * block + d * 5)
    assert sum(product.flops for product in found) == expected
    assert tpu_module.share_in("bf16", found) == pytest.approx(share, abs=0.01)
    train = tpu_module.products(tpu.train_module(model, 16))
    # No gradient of the images; the scores of both blocks are made twice.
    once_more = 2 * 16 * 2 * t * t * d
    assert sum(p.flops for p in train) == (3 * expected - 2 * 16 * n * 8 * 8 * 3 * d + once_more)


def test_products_of_convolutions():
    x = tf.zeros((2, 9, 9, 3))
    layer = keras.layers.Conv2D(5, 3, padding="same")
    layer.build(x.shape)
    module = tpu.lower(lambda x: layer(x), x)
    assert [p.flops for p in tpu_module.products(module)] == [2 * 2 * 9 * 9 * 5 * 3 * 3 * 3]


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


def test_what_moves_is_what_lies_in_the_large_memory():
    rows = tpu_module.moved(COMPILED)
    tile = 104 * 128  # what 100 x 100 is filled up to
    sizes = [(row.opcode, row.size) for row in rows]
    assert sizes == [
        ("copy-start", 4 * tile), ("fusion", 2 * tile + 4 * tile), ("fusion", 2 * tile),
        ("add", 3 * 3 * 8 * 128 * 4),
    ]  # fmt: skip
    assert ("fusion vit/block_N/mlp/mul", 2, 8 * tile) in tpu_module.by_operation(rows)


class Hostile(keras.layers.Layer):
    """A layer that a TPU cannot run, in one way or another."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def call(self, x):
        if self.way == "dynamic shape":
            return tf.reduce_sum(tf.boolean_mask(x, x[:, 0] > 0), keepdims=True)  # HERE 1
        if self.way == "string":
            return tf.strings.to_number(tf.strings.as_string(x))  # HERE 2
        if self.way == "unsupported":
            return tf.linalg.eig(x[:3, :3])[0]  # HERE 3
        count = tf.cast(x[0, 0], tf.int32)
        if self.way == "range":
            return tf.reduce_sum(tf.range(count), keepdims=True)  # HERE 4
        if self.way == "tile":
            return tf.tile(x, [count, 1])  # HERE 5
        if self.way == "python":
            return tf.py_function(lambda x: x, [x], tf.float32)  # HERE 6
        if self.way == "function":
            return tf.function(lambda: tf.reduce_sum(tf.unique(x[0])[0]))()  # HERE 7
        if self.way == "branch":
            some = lambda: tf.reduce_sum(tf.where(x > 0))  # noqa: E731 # HERE 8
            return tf.cond(x[0, 0] > 0, some, lambda: tf.constant(0, tf.int64))
        return tf.while_loop(
            lambda i, s: i < 3,
            lambda i, s: (i + 1, s + tf.reduce_sum(x[x > i])),  # HERE 9
            [0.0, 0.0],
        )


WAYS = ("dynamic shape", "string", "unsupported", "range", "tile", "python", "function", "branch",
        "loop")  # fmt: skip


@pytest.mark.parametrize("mark, way", list(enumerate(WAYS, 1)))
def test_a_step_that_no_tpu_takes_is_refused_with_its_line(way, mark):
    layer = Hostile(way)
    lines = (ROOT / "tests/test_tpu.py").read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if text.endswith(f"# HERE {mark}"))
    with pytest.raises(InputError, match="cannot be compiled for a TPU") as caught:
        tpu.lower(lambda x: layer(x), tf.ones((4, 5)))
    assert f"test_tpu.py:{line}" in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@needs_libtpu
def test_a_config_compiles_for_a_slice(tmp_path):
    done = python(
        "-m", "experiments.preflight", f"--config={ROOT / 'experiments/configs/digits.py'}",
        "--config.dtype=mixed_bfloat16", "--config.clip_norm=1.0", "--config.ema_momentum=0.99",
        "--config.accumulation_steps=2",
        f"--config.data_dir={tmp_path}", "--seconds=1", "--tpu=v5e:2x2",
        f"--output={tmp_path / 'p.html'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    found = result["tpu"]
    assert "gib_per_replica" not in result["model"] and "at most" in found["verdict"]
    assert any("they will wait" in text for text in result["warnings"])
    train, evaluate = found["train"], found["evaluate"]
    assert found["replicas"] == 4 and train["images"] == 16
    assert train["pieces"] == 2 and evaluate["pieces"] == 1
    assert train["device"] == "TPU v5 lite" and train["bfloat16_share"] > 0.99
    assert 2.5 < train["tflop"] / evaluate["tflop"] < 3.5
    assert 0 < evaluate["temporary_gib"] <= train["temporary_gib"] < 1
    assert 0 < train["hbm_gb"] <= train["accessed_gb"]
    assert found["train_remat"]["tflop"] > 1.2 * train["tflop"]
    assert re.search(r"GB, \d+ times: fusion", (tmp_path / "p.html").read_text())


@needs_libtpu
def test_pieces_take_less_memory_and_as_much_arithmetic():
    place = tpu.parse_slice("v5e:2x2")
    whole, pieces = compiled(dtype="mixed_bfloat16"), compiled(dtype="mixed_bfloat16")
    pieces.compile(pieces.optimizer, pieces.loss, accumulation_steps=4)
    facts = [
        tpu.compile_module(tpu.train_module(model, 256), place, 256, number).facts
        for model, number in ((whole, 1), (pieces, 4))
    ]
    assert facts[1]["temporary_gib"] < 0.6 * facts[0]["temporary_gib"]
    # A quarter of the images at a time moves less for each: more of it stays in the fast memory.
    quarter = tpu.compile_module(tpu.train_module(whole, 64), place, 64).facts["hbm_gb"]
    assert facts[1]["hbm_gb"] > 2 * quarter
    assert np.isclose(
        facts[0]["tflop"], facts[1]["tflop"], rtol=0.25
    )  # what is elementwise counts once


@needs_libtpu
def test_the_table_and_what_moves_most(tmp_path):
    page = tmp_path / "table.md"
    done = python("-m", "experiments.tpu_table", "--only=0", "--operations=3", f"--output={page}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == []
    text = page.read_text()
    assert re.search(r"\n\| digits \| 64 (\| [\d.e+]+ ){9}\|\n", text)
    assert "## What moves most: digits" in text and len(re.findall(r"\n\| \d\.\d{3} \|", text)) == 3


@needs_libtpu
def test_computing_blocks_again_takes_less_memory():
    place = tpu.parse_slice("v5e:2x2")
    models = (compiled(num_layers=6, dropout_rate=0.1, remat=remat) for remat in (False, True))
    once, again = (tpu.compile_module(tpu.train_module(m, 256), place, 256).facts for m in models)
    assert again["temporary_gib"] < 0.75 * once["temporary_gib"]
    assert 1.2 < again["tflop"] / once["tflop"] < 1.45


@pytest.mark.parametrize(
    "start, unit, most", [(64, 1, 8), (64, 1, 100), (64, 1, 1000), (8, 1, 4), (1024, 1, 200),
                          (9, 3, 100), (16, 16, 100), (5, 5, 100), (64, 64, 63)],
)  # fmt: skip
def test_the_largest_batch_is_found_by_halving(start, unit, most, monkeypatch):
    asked = []

    def compiler(module, place, images):
        asked.append(images)
        if images > 2 * most:
            raise InputError("The compiler refuses the step: RESOURCE_EXHAUSTED: too much")
        return tpu.Report({"memory_share": images / most}, "")

    monkeypatch.setattr(tpu, "compile_module", compiler)
    found = tpu.largest_batch(lambda images: "", tpu.parse_slice("v5e:2x2"), start, unit)
    assert found <= most < found + max(unit, found / 8 + 1) and len(asked) < 12
    assert found in (0, *asked) and not any(images % unit for images in asked)


@needs_libtpu
def test_what_the_compiler_refuses():
    with pytest.raises(InputError, match="compiler for v5e:2x2 refuses the step: "):
        tpu.compile_module("module { nonsense }", tpu.parse_slice("v5e:2x2"), 1)


def test_step_times_on_many_chips():
    chip = tpu.CHIPS["v5e"]
    one, two = (tpu.step_times(chip, n, 64 * n, 64, 6.8, 20.0, 86e6) for n in (8, 256))
    assert one[0] == two[0] == pytest.approx(6.8e12 / 197e12 + 28 * 86e6 / 819e9)
    assert one[1] == pytest.approx(2 * 7 / 8 * 4 * 86e6 / 200e9) and two[1] < 2 * one[1]
    half = tpu.step_times(chip, 16, 64 * 8, 64, 6.8, 20.0, 86e6)
    assert half[0] == pytest.approx(6.8e12 / 197e12 / 2 + 28 * 86e6 / 819e9)


def test_the_page_on_scaling(tmp_path):
    rows = {
        "paper_pretrain:B/16,imagenet": "64 | 1 | 4 | 0.1 | 6.8 | 26 | 34 | 32 | 0.99 | 1800",
        "paper_pretrain:B/16,imagenet ema_momentum=0.9": "64 | 9 | 9 | 9 | 9 | 9 | 9 | 9 | 9 | 9",
        "paper_pretrain:L/16,imagenet": "32 | 3.4 | 4 | 0.1 | 12 | 60 | 60 | 70 | 0.99 | 450",
        "paper_pretrain:H/14,jft": "8 | The compiler refuses | | | | | | | |",
    }
    table, page = tmp_path / "table.md", tmp_path / "scaling.md"
    table.write_text("".join(f"| {name} | {row} |\n" for name, row in rows.items()))
    done = python("-m", "experiments.scaling", table, f"--output={page}")
    assert done.returncode == 2 and "with B/16, L/16." in done.stderr
    table.write_text(table.read_text() + "| paper_pretrain:H/14,jft | 8 | 7 | 4 | 1 | 8 | 60 |\n")
    done = python("-m", "experiments.scaling", table, f"--output={page}")
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.count("\n| 1024 | 4 | 1 |") == 3 and "\n| 8 | 512 | 8 |" in text
    assert "89 million" in text and "256 chips" in text


@needs_libtpu
def test_random_bits_are_the_chips_own():
    def drop(x, seed):
        return tf.nn.experimental.stateless_dropout(x, 0.1, seed)

    x = tf.zeros((8192, 3072))  # more than the fast memory holds
    module = tpu.lower(drop, x, tf.constant([1, 2]))
    assert "PHILOX" in module  # as TensorFlow hands it out for a CPU
    facts = tpu.compile_module(module, tpu.parse_slice("v5e:2x2"), 1).facts
    # The image in and out, the bits out and in again: 16 bytes each; Philox moves 80.
    assert facts["hbm_gb"] < 30 * 8192 * 3072 / 1e9


def test_a_process_that_is_killed_is_answered_with_a_sentence():
    assert tpu.in_a_process(abs, -3) == 3
    with pytest.raises(InputError, match="too little memory"):
        tpu.in_a_process(os._exit, 1)
