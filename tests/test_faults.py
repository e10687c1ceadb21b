"""Real runs that are killed, stopped, starved of disk or fed nonsense, and what is left of them."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, finish_hosts, python, start_hosts

from vitkeras import storage


def arguments(workdir, data_dir, *more, **fields):
    """A run on the digits: 3 epochs of 44 steps in executions of 3, dropout and EMA."""
    fields = {
        "data_dir": data_dir, "batch_size": 32, "epochs": 3, "evaluate_every": 2,
        "save_steps": 4, "dropout_rate": 0.1, "ema_momentum": 0.9, "hidden_dim": 32,
        "mlp_dim": 64, "num_layers": 2, "warmup_steps": 3, "steps_per_execution": 3, **fields,
    }  # fmt: skip
    return [
        "-m", "experiments.train", "--config=experiments/configs/digits.py",
        f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items()), *more,
    ]  # fmt: skip


def start(command, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, **options,
    )  # fmt: skip


def follow(process, text):
    """Reads a process's standard error up to a line with this text."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} never came: {''.join(seen)[-2000:]}")


def wait_for(folder, process, fits):
    """Returns as soon as the names in the folder fit, or the process has ended."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if fits(set(os.listdir(folder))):
                return


def newer_than(before):
    return lambda names: any(name.startswith("step-") for name in names - before)


def being_written(names):
    return any(name.startswith(".step-") for name in names)


def same_runs(one, other):
    """Byte for byte: states and metrics; the models by their weights (a .keras has a date)."""
    names = sorted(path.name for path in (one / "state").iterdir())
    assert names == sorted(path.name for path in (other / "state").iterdir())
    files = [f"state/{name}/{file}" for name in names for file in ("arrays.npz", "state.json")]
    for file in [*files, "metrics.csv", "config.json", "curves.png"]:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    for which in ("best", "last"):
        models = [keras.saving.load_model(run / f"{which}.keras") for run in (one, other)]
        for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=which)


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = python(*arguments(workdir, data_dir))
    assert done.returncode == 0, done.stderr
    return workdir, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_is_saved_and_goes_on_bit_for_bit(number, whole, data_dir, tmp_path):
    command = arguments(tmp_path / "run", data_dir)
    process = start(command)
    follow(process, "parameters")
    wait_for(tmp_path / "run" / "state", process, newer_than(set()))  # inside the first epoch
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert f"{number.name}: stopping" in error and "the same command goes on" in error
    done = python(*command)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["loss"] == whole[1]["loss"]
    same_runs(tmp_path / "run", whole[0])


def test_a_loss_that_is_no_number_stops_the_run(data_dir, tmp_path):
    command = arguments(
        tmp_path / "run", data_dir, learning_rate=1e30, warmup_steps=0, save_steps=1, epochs=2,
        steps_per_execution=1,
    )  # fmt: skip
    done = python(*command)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    sentence = done.stderr.splitlines()[-1]
    step = int(sentence.partition(" after step ")[2].partition(";")[0])
    assert sentence.startswith("error: The loss is nan after step ")
    (newest, *_) = sorted((tmp_path / "run" / "state").iterdir(), reverse=True)
    assert newest.name == f"step-{step - 1:09d}"


def test_a_second_run_in_one_directory_is_refused(whole, data_dir):
    before = sorted(whole[0].rglob("*"))
    with storage.lock(whole[0]):
        done = python(*arguments(whole[0], data_dir))
    assert done.returncode == 2 and "where another process is training" in done.stderr
    assert sorted(whole[0].rglob("*")) == before


def test_a_damaged_state_is_named_replaced_and_leaves_no_trace(whole, data_dir, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    newest = max((tmp_path / "run" / "state").iterdir())
    content = (newest / "arrays.npz").read_bytes()
    (newest / "arrays.npz").write_bytes(content[: len(content) // 2])
    done = python(*arguments(tmp_path / "run", data_dir))
    assert done.returncode == 0, done.stderr
    assert f"{newest.name} is damaged" in done.stderr and "going on after step" in done.stderr
    same_runs(tmp_path / "run", whole[0])


def test_a_full_disk_is_named_and_the_old_state_is_whole(data_dir, tmp_path):
    command = arguments(tmp_path / "run", data_dir, epochs=1, evaluate_every=1)
    process = start(command)
    while not list((tmp_path / "run").glob("state/step-*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    (state, *_) = (tmp_path / "run" / "state").glob("step-*")
    size = (state / "arrays.npz").stat().st_size

    def small_files_only():  # the kernel then refuses to write more, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = start(command, preexec_fn=small_files_only)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in error, error
    assert "could not be saved" in error and "File too large" in error
    assert (state / "state.json").exists() and state.parent.exists()
    left = [p.name for p in (tmp_path / "run").rglob(".*") if p.name != ".lock"]
    assert not left, left
    done = python(*command)
    assert done.returncode == 0 and "going on after step" in done.stderr


@pytest.mark.slow
def test_two_hosts_one_of_which_dies_go_on_to_the_numbers_of_one_device(data_dir, tmp_path):
    fields = {"dropout_rate": 0, "stochastic_depth_rate": 0, "epochs": 12, "evaluate_every": 6}
    fields["batch_size"] = 128
    alone = python(*arguments(tmp_path / "alone", data_dir, strategy="one_device", **fields))
    assert alone.returncode == 0, alone.stderr
    run = tmp_path / "hosts"
    command = arguments(run, data_dir, strategy="multi_worker", **fields)

    chief, other = hosts = start_hosts(2, *command)
    try:
        while not list(run.glob("state/step-*")):
            assert chief.poll() is None and other.poll() is None
            time.sleep(0.05)
        other.kill()
        died = time.monotonic()
        chief.wait(timeout=30)
    finally:
        (code, _, error), _ = finish_hosts(hosts, timeout=30)
    assert code == 1 and "Another host was lost" in error, error
    assert "Traceback" not in error and time.monotonic() - died < 30

    differing = [*command, "--config.seed={host}"]
    for code, _, error in finish_hosts(start_hosts(2, *differing), timeout=120):
        assert code == 2 and "the same config and the same data" in error, error

    results = finish_hosts(start_hosts(2, *command), timeout=300)
    expected = json.loads(alone.stdout.splitlines()[-1])
    for code, out, error in results:
        assert code == 0, error
        got = json.loads(out.splitlines()[-1])
        assert abs(got["loss"] - expected["loss"]) < 1e-4 and got["examples"] == 179
    assert "going on after step" in results[0][2] and "2 replicas of 64" in results[0][2]
    ours, theirs = ((r / "metrics.csv").read_text() for r in (run, tmp_path / "alone"))
    table = [[row.split(",") for row in text.splitlines()] for text in (ours, theirs)]
    assert table[0][0] == table[1][0] and len(table[0]) == len(table[1]) == 13
    for row, same in zip(*(rows[1:] for rows in table), strict=True):
        for one, two in zip(row, same, strict=True):
            assert one == two == "" or abs(float(one) - float(two)) < 1e-4


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_no_trace(data_dir, tmp_path):
    # Large enough that a save takes a while, so that a kill can fall into one.
    fields = {
        "batch_size": 32, "hidden_dim": 256, "mlp_dim": 1024, "num_layers": 4, "epochs": 6,
        "evaluate_every": 3, "save_steps": 3, "steps_per_execution": 1,
    }  # fmt: skip
    twin, run = tmp_path / "twin", tmp_path / "run"
    done = python(*arguments(twin, data_dir, **fields), timeout=600)
    assert done.returncode == 0, done.stderr
    rng = random.Random(0)
    moments = ["start"] * 5 + ["training"] * 9 + ["saving"] * 6
    rng.shuffle(moments)
    inside = 0
    for moment in moments:
        process = start(arguments(run, data_dir, **fields))
        if moment == "start":
            time.sleep(rng.uniform(0, 7))
        else:
            follow(process, "parameters")  # the line that is printed before training
            before = {path.name for path in run.glob("state/step-*")}
            if moment == "training":
                time.sleep(rng.uniform(0, 12))
            else:
                wait_for(run / "state", process, newer_than(before))
                wait_for(run / "state", process, being_written)
        assert process.poll() is None, process.stderr.read()[-2000:]
        process.kill()
        process.communicate()
        inside += any((run / "state").glob(".step-*"))
    done = python(*arguments(run, data_dir, **fields), timeout=600)
    assert done.returncode == 0, done.stderr
    steps = done.stderr.partition("going on after step ")[2].partition("\n")[0]
    print(f"20 kills, {inside} of them inside a save; the last process went on after step {steps}")
    assert inside >= 3
    same_runs(run, twin)
    assert not list(run.rglob(".*.*"))
