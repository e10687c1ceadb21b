"""`fit`, `evaluate`, `predict` and `vitkeras train` on a TPUStrategy whose graph runs on CPUs."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.processes import ENVIRONMENT, ROOT, python

TF219_PYTHON = os.environ.get("TF219_PYTHON")
RUNS = ROOT / "tests/helpers/tpu_runs.py"
EMULATED = ROOT / "tests/helpers/emulated_tpu.py"
DIFFERENCES = ("history", "weights", "evaluation", "outputs", "batch_outputs")


def run(cores, *cases, executable=sys.executable):
    """Returns the results of cases of `tpu_runs.py`."""
    done = subprocess.run(
        [executable, RUNS, str(cores), *cases], cwd=ROOT, capture_output=True, text=True,
        timeout=1800, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_equal(result, steps):
    # Outputs are logits, after up to 140 steps.
    bounds = {name: 5e-5 if "outputs" in name else 1e-5 for name in DIFFERENCES}
    assert all(result[name] < bounds[name] for name in DIFFERENCES if name in result), result
    assert result["between_replicas"] == 0
    assert result["moved"] > 1e-3
    assert result["iterations"] == steps


def check_collectives(result, cores):
    ranks = list(range(cores))
    assert result == {
        "sum": [sum(ranks)] * cores,
        "gathered": [ranks] * cores,
        "gathered_int64": [[[r + 3 for r in ranks]]] * cores,
        "mirrored": [1 + 3 * 2 * (cores - 1) / 2] * cores,
        "first": [7] * cores,
        "parts": [6] * cores,
        "summed": 6 * cores,
    }


def check_masks(result):
    assert set(result) == {"Dropout", "StochasticDepth"}
    assert all(each == {"all_differ": True, "as_one_device": True} for each in result.values())


def test_two_cores_equal_one_device():
    result = run(2, "collectives", "fit")
    check_collectives(result["collectives"], 2)
    check_equal(result["fit"], 6)


@pytest.mark.slow
def test_executions_ema_and_masks():
    result = run(2, "execution", "end_of_data", "ema", "masks", "refused")
    check_equal(result["execution"], 140)
    check_equal(result["end_of_data"], 6)
    check_equal(result["ema"], 6)
    check_masks(result["masks"])
    fit, predict, loop = result["refused"]
    assert "shape (None, 8, 8, 3)" in fit and predict == fit
    assert "must not be in a loop" in loop


@pytest.mark.slow
def test_eight_cores_equal_one_device():
    result = run(8, "collectives", "masks", "fit")
    check_collectives(result["collectives"], 8)
    check_masks(result["masks"])
    check_equal(result["fit"], 6)


@pytest.mark.slow
@pytest.mark.skipif(not TF219_PYTHON, reason="TF219_PYTHON names no Python, as .ci/run does")
def test_tensorflow_2_19():
    result = run(2, "collectives", "masks", "fit", "accumulation", executable=TF219_PYTHON)
    assert result["tensorflow"].startswith("2.19.")
    check_collectives(result["collectives"], 2)
    check_masks(result["masks"])
    check_equal(result["fit"], 6)
    check_equal(result["accumulation"], 6)


@pytest.mark.slow
def test_xla_knows_every_operation():
    result = run(2, "operations")["operations"]
    unknown = result["errors"].pop("strings")[0]
    assert "unsupported operations" in unknown and "AsString" in unknown
    assert len(result["errors"]) == 5
    for label, errors in result["errors"].items():
        assert errors == [None] * 3, (label, errors)  # training, evaluation, prediction
    expected = {"Einsum", "StatelessRandomUniformV2", "While", "XlaOptimizationBarrier"}
    assert expected <= set(result["operations"])


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(data_dir, tmp_path):
    def arguments(workdir):
        fields = {
            "strategy": "tpu", "data_dir": data_dir, "batch_size": 64, "epochs": 2,
            "save_steps": 5, "dropout_rate": 0.1, "ema_momentum": 0.9, "hidden_dim": 32,
            "mlp_dim": 64, "num_layers": 1, "warmup_steps": 3, "steps_per_execution": 5,
            "accumulation_steps": 2,
        }  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        return [EMULATED, 2, "train", "--config=digits", f"--workdir={workdir}", *flags]

    def arrays(workdir):
        (last,) = sorted(workdir.glob("state/step-*"))[-1:]
        with np.load(last / "arrays.npz") as file:
            return last.name, dict(file)

    complete, killed = tmp_path / "complete", tmp_path / "killed"
    done = python(*arguments(complete), timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "EmulatedTPUStrategy, 2 replicas" in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["examples"] == 179

    process = subprocess.Popen(
        [sys.executable, *map(str, arguments(killed))], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    while process.poll() is None and not list(killed.glob("state/step-*")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "last.keras").exists()
    done = python(*arguments(killed), timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Resuming after step" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["loss"] == result["loss"]
    (step, expected), (last, actual) = arrays(complete), arrays(killed)
    assert step == last and set(expected) == set(actual)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
