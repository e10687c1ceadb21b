import functools
import json

import pytest
from helpers.processes import python

import vitkeras as vk
from experiments.benchmarks import attention, checkpointing, input_pipeline, model, serving

SMALL = ("--variant=Ti/16", "--image_size=32", "--rounds=1")
NAMES = ("attention", "model", "checkpointing", "input_pipeline", "serving")


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_as_a_module_and_imports_tensorflow_only_to_measure(name):
    code = (
        f"import sys, experiments.benchmarks.{name} as m; from vitkeras.cli import runner;"
        "runner.run(m, m.__name__, ['--help']); print('tensorflow' in sys.modules)"
    )
    process = python("-c", code)
    assert process.stdout.endswith("False\n"), process.stderr
    process = python("-m", f"experiments.benchmarks.{name}", "--rounds=0")
    assert process.returncode == 2 and "rounds" in process.stderr, process.stderr


@pytest.fixture
def two_layers(monkeypatch):
    monkeypatch.setattr(vk, "vit", functools.partial(vk.vit, num_layers=2))


@pytest.mark.slow
def test_model(run_module, two_layers):
    code, out, err = run_module(model, *SMALL, "--nobaseline")
    assert code == 0, err
    result = json.loads(out)
    for name in ("infer", "infer_xla", "train", "train_xla"):
        assert result[name]["vitkeras"] > 0 and name in err


def test_attention(run_module):
    code, out, err = run_module(attention, *SMALL)
    assert code == 0, err
    result = json.loads(out)
    assert result["shape"] == [8, 5, 3, 3, 64]
    for name in ("infer", "infer_xla", "train", "train_xla"):
        assert set(result[name]) == {"matmul", "dot_product_attention"} and name in err


@pytest.mark.slow
def test_checkpointing(run_module):
    code, out, err = run_module(checkpointing, *SMALL, "--save_steps=2")
    assert code == 0, err
    result = json.loads(out)
    # Ti/16 has 5 million parameters; AdamW adds two moments of each.
    assert result["bytes"] > 5e6 * 3 * 4 and result["cost"] > -1


@pytest.mark.slow
def test_input_pipeline(run_module):
    code, out, err = run_module(input_pipeline, "--image_size=64", "--rounds=1")
    assert code == 0, err
    result = json.loads(out)
    for name in ("crop", "randaug", "keras_randaug", "pil_randaug"):
        assert result[name] > 0 and name in err


@pytest.mark.slow
def test_serving(run_module, two_layers):
    code, out, err = run_module(serving, *SMALL, "--nobaseline")
    assert code == 0, err
    result = json.loads(out)
    for batch in (1, 8, 32):
        for name in ("vitkeras", "vitkeras_xla"):
            found = result[f"{batch}_{name}"]
            assert 0 < found["p50_ms"] <= found["p99_ms"] and found["images_s"] > 0
    assert result["1_vitkeras"]["requests"] == 8 and result["8_vitkeras"]["ratio"] == 1.0
    assert "batch 32 vitkeras_xla" in err
