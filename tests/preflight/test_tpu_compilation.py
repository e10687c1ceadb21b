"""Compilation for a TPU on a machine without one (extra `aot`)."""

import importlib.util
import os

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import compiled
from helpers.processes import python

from vitkeras.errors import InputError
from vitkeras.preflight import tpu_compilation
from vitkeras.preflight.lowering import lower, train_module
from vitkeras.preflight.tpu_compilation import (
    CompiledStep,
    compile_module,
    largest_batch,
    run_in_process,
)
from vitkeras.preflight.tpu_slices import parse_slice

SLICE = parse_slice("v5e:2x2")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `aot` is not installed"
)


def statistics(model, images, microbatches=1):
    return compile_module(train_module(model, images), SLICE, images, microbatches).statistics


@needs_libtpu
@pytest.mark.slow
def test_microbatches_take_less_memory_and_as_many_operations():
    plain, accumulating = compiled(dtype="mixed_bfloat16"), compiled(dtype="mixed_bfloat16")
    accumulating.compile(accumulating.optimizer, accumulating.loss, accumulation_steps=4)
    one, four = statistics(plain, 256), statistics(accumulating, 256, 4)
    assert four["temporary_gib"] < 0.6 * one["temporary_gib"]
    # A microbatch has less traffic per image: more of it stays in on-chip memory.
    assert four["hbm_gb"] > 2 * statistics(plain, 64)["hbm_gb"]
    # Elementwise operations of the loop are counted for one iteration.
    assert np.isclose(one["tflop"], four["tflop"], rtol=0.25)


@needs_libtpu
@pytest.mark.slow
def test_remat_takes_less_memory():
    models = (compiled(num_layers=4, remat=remat) for remat in (False, True))
    plain, remat = (statistics(model, 256) for model in models)
    assert remat["temporary_gib"] < 0.75 * plain["temporary_gib"]
    assert 1.2 < remat["tflop"] / plain["tflop"] < 1.45


@pytest.mark.parametrize(
    "start, multiple_of, limit",
    [(64, 1, 8), (64, 1, 100), (64, 1, 1000), (8, 1, 4), (1024, 1, 200), (9, 3, 100),
     (16, 16, 100), (5, 5, 100), (64, 64, 63)],
)  # fmt: skip
def test_the_largest_batch_is_found_by_bisection(start, multiple_of, limit, monkeypatch):
    tried = []

    def fake_compile(module, tpu_slice, images):
        tried.append(images)
        if images > 2 * limit:
            raise InputError(f"The compiler rejects it: {tpu_compilation.OUT_OF_MEMORY}: too much")
        return CompiledStep({"memory_fraction": images / limit}, "")

    monkeypatch.setattr(tpu_compilation, "compile_module", fake_compile)
    found = largest_batch(lambda images: "", SLICE, start, multiple_of)
    assert found <= limit < found + max(multiple_of, found / 8 + 1) and len(tried) < 12
    assert found in (0, *tried) and not any(images % multiple_of for images in tried)


@needs_libtpu
def test_errors_of_the_compiler_become_input_errors():
    with pytest.raises(InputError, match="v5e:2x2"):
        compile_module("module { nonsense }", SLICE, 1)


@needs_libtpu
def test_random_bits_come_from_the_generator_of_the_chip():
    def dropout(x, seed):
        return tf.nn.experimental.stateless_dropout(x, 0.1, seed)

    x = tf.zeros((8192, 3072))  # larger than the on-chip memory
    module = lower(dropout, x, tf.constant([1, 2]))
    assert "PHILOX" in module  # the form for a CPU
    found = compile_module(module, SLICE, 1).statistics
    # Input and output, and the bits written and read: 16 bytes per element. Philox moves 80.
    assert found["hbm_gb"] < 30 * 8192 * 3072 / 1e9


def test_the_compiler_process_imports_no_tensorflow():
    code = (
        "import sys; from vitkeras.preflight import tpu_compiler, tpu_slices;"
        "print({'tensorflow', 'keras'} & set(sys.modules))"
    )
    assert python("-c", code).stdout.strip() == "set()"


def test_a_killed_process_becomes_an_input_error():
    assert run_in_process(abs, -3) == 3
    with pytest.raises(InputError, match="memory"):
        run_in_process(os._exit, 1)
