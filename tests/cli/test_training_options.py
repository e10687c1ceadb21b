"""A run with the options for small and skewed data, and every command on it."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers.models import TINY
from helpers.processes import finish_hosts, start_hosts, succeed

from vitkeras import data
from vitkeras.evaluation.metrics import make_evaluator
from vitkeras.io.run_directory import RunDirectory


def train_flags(photos, workdir, **more):
    """A run with a learning rate of almost 0: no evaluation is better than the first."""
    fields = {
        "dataset": f"folder:{photos}", "variant": "Ti/8", "image_size": (32, 48), **TINY,
        "batch_size": 8, "epochs": 9, "warmup_steps": 2, "learning_rate": 1e-30,
        "crop": "resize_and_flip", "resize": "crop", "crop_fraction": 0.9, "loss": "sigmoid",
        "class_weights": "balanced", "early_stopping": 2, "early_stopping_metric": "accuracy",
        **more,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config=folder", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """Run directory, result and log."""
    workdir = tmp_path_factory.mktemp("runs") / "photos"
    result, log = succeed("train", *train_flags(photos, workdir))
    return workdir, result, log


def test_the_run_ends_early_and_is_finished(run):
    workdir, result, log = run
    assert result["epochs"] == 3 and result["loss_function"] == "sigmoid"
    assert "The weights of the classes in the loss are 0.967 (ant) to 1.07 (bee)." in log
    assert "warning: 3 of 3 classes have fewer than 20 training images: bee (9), ant (10)" in log
    assert "warning: An epoch has 3 steps" in log and "times as many" not in log
    text = "after epoch 3: val_accuracy has not improved in 2 evaluations since epoch 1"
    assert text in log
    rows = list(csv.DictReader((workdir / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    assert rows[0]["val_loss"] == rows[2]["val_loss"]
    before = (workdir / "metrics.csv").read_bytes()
    again, log = succeed("train", f"--workdir={workdir}")
    assert again == result and text in log and "epoch 4" not in log
    assert (workdir / "metrics.csv").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_after_the_same_epoch(run, tmp_path):
    workdir, result, _ = run
    resumed = tmp_path / "run"
    shutil.copytree(workdir, resumed)
    *_, last = sorted((resumed / "state").iterdir())
    expected = json.loads((last / "state.json").read_text())
    shutil.rmtree(last)
    again, log = succeed("train", f"--workdir={resumed}")
    assert again == result | {"workdir": str(resumed)} and "after step 6 of 27" in log
    assert (resumed / "metrics.csv").read_bytes() == (workdir / "metrics.csv").read_bytes()
    assert json.loads((last / "state.json").read_text()) == expected  # with the hash of all arrays


@pytest.mark.slow
def test_all_commands_crop_and_give_sigmoid_scores(run, photos, tmp_path):
    workdir, result, _ = run
    record = json.loads((workdir / "preprocessing.json").read_text())
    assert record["crop_fraction"] == 0.9 and record["resize"] == "bilinear"
    preprocessing = data.Preprocessing((32, 48), crop_fraction=0.9)
    evaluated, _ = succeed("evaluate", f"--workdir={workdir}", "--batch_size=2")
    assert evaluated["loss_function"] == "sigmoid"
    assert evaluated["loss"] == pytest.approx(result["loss"], abs=1e-5)

    model = RunDirectory(workdir).load_model()
    source = data.open_source(f"folder:{photos}")
    batches = data.evaluation_batches(source, "test", preprocessing, 4)
    assert make_evaluator(model, "sigmoid")(batches)["loss"] == pytest.approx(evaluated["loss"])
    shutil.copytree(workdir, tmp_path / "run")
    workdir = tmp_path / "run"
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(24, 3)))
    RunDirectory(workdir).save_model(model, "best")
    path = photos / "ant" / "02.png"
    images = preprocessing.evaluation_image(path.read_bytes())[None]
    expected = 1 / (1 + np.exp(-model(images).numpy()[0].astype("float64")))
    assert abs(expected.sum() - 1) > 0.05
    exported = tmp_path / "photos"
    succeed("export", f"--workdir={workdir}", f"--output={exported}")
    for origin in (f"--workdir={workdir}", f"--saved_model={exported}"):
        (row,) = succeed("predict", origin, path)[0]["predictions"]
        found = {each["class"]: each["probability"] for each in row["top"]}
        actual = [found[name] for name in ("ant", "bee", "cow")]
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    card = (exported / "1" / "model_card.md").read_text()
    assert "do not sum to 1" in card and "cover 35x53 (height x width) with the aspect" in card


@pytest.mark.slow
def test_all_hosts_end_after_the_same_epoch(photos, tmp_path):
    flags = train_flags(photos, tmp_path / "run", strategy="multi_worker")
    hosts = start_hosts(2, "-m", "vitkeras", "train", *flags)
    for code, out, error in finish_hosts(hosts, timeout=300):
        assert code == 0, error
        assert json.loads(out.splitlines()[-1])["epochs"] == 3
    hosts = start_hosts(2, "-m", "vitkeras", "train", *flags)
    (code, _, error), (other_code, _, _) = finish_hosts(hosts, timeout=300)
    assert code == other_code == 0 and "The run has ended early, after epoch 3" in error
