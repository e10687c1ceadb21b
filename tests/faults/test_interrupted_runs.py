"""Runs that are killed, stopped, out of disk space or fed invalid data, and how they resume."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from helpers.processes import ROOT, command, finish_hosts, start_hosts

from vitkeras.io.locks import exclusive_lock


def train_arguments(workdir, data_dir, **fields):
    """A run on the digits: 3 epochs of 44 steps in executions of 3, dropout and EMA."""
    fields = {
        "data_dir": data_dir, "batch_size": 32, "epochs": 3, "evaluate_every": 2,
        "save_steps": 4, "dropout_rate": 0.1, "ema_momentum": 0.9, "hidden_dim": 32,
        "mlp_dim": 64, "num_layers": 2, "warmup_steps": 3, "steps_per_execution": 3, **fields,
    }  # fmt: skip
    return [
        "train", "--config=digits", f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]  # fmt: skip


def start(arguments, **options):
    """Starts a command in a fresh process."""
    return subprocess.Popen(
        [sys.executable, "-m", "vitkeras", *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def result_of(code, out, error):
    """The result that a command printed, if it succeeded."""
    assert code == 0, error
    return json.loads(out.splitlines()[-1])


def read_until(process, text):
    """Reads standard error of a process up to a line with a text."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"no {text!r} in {''.join(seen)[-2000:]}")


def wait_for(folder, process, condition):
    """Waits until the names in a folder meet a condition, or the process has ended."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if condition(set(os.listdir(folder))):
                return
        time.sleep(0.001)


def has_new_state(before):
    return lambda names: any(name.startswith("step-") for name in names - before)


def is_saving(names):
    return any(name.startswith(".step-") for name in names)


def assert_same_runs(run, other):
    """States and metrics are equal byte for byte, models by weights (.keras files have a date)."""
    names = sorted(path.name for path in (run / "state").iterdir())
    assert names == sorted(path.name for path in (other / "state").iterdir())
    files = [f"state/{name}/{file}" for name in names for file in ("arrays.npz", "state.json")]
    for file in [*files, "metrics.csv", "config.json", "curves.png"]:
        assert (run / file).read_bytes() == (other / file).read_bytes(), file
    for which in ("best", "last"):
        models = [keras.saving.load_model(each / f"{which}.keras") for each in (run, other)]
        for weight, expected in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_array_equal(weight, expected, err_msg=which)


@pytest.fixture(scope="module")
def uninterrupted(data_dir, tmp_path_factory):
    """Directory and result of a run without faults."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return workdir, result_of(*command(*train_arguments(workdir, data_dir)))


def stop(arguments, workdir, number):
    """Sends a signal to a run after its next save, and checks that it stops as announced."""
    before = {path.name for path in workdir.glob("state/step-*")}
    process = start(arguments)
    read_until(process, "parameters")  # logged before training
    wait_for(workdir / "state", process, has_new_state(before))
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert f"{number.name}: stopping" in error and "the same command resumes" in error


@pytest.fixture(scope="module")
def stopped(data_dir, tmp_path_factory):
    """Directory of a run that SIGTERM stopped within the first epoch."""
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    stop(train_arguments(workdir, data_dir), workdir, signal.SIGTERM)
    assert not (workdir / "metrics.csv").exists()
    return workdir


@pytest.mark.slow
def test_run_stopped_by_either_signal_resumes_bit_for_bit(
    stopped, uninterrupted, data_dir, tmp_path
):
    shutil.copytree(stopped, tmp_path / "run")
    arguments = train_arguments(tmp_path / "run", data_dir)
    stop(arguments, tmp_path / "run", signal.SIGINT)
    code, out, error = command(*arguments)
    assert result_of(code, out, error)["loss"] == uninterrupted[1]["loss"]
    assert "Resuming after step" in error
    assert_same_runs(tmp_path / "run", uninterrupted[0])


def test_loss_that_is_not_finite_ends_the_run(data_dir, tmp_path):
    code, _, error = command(
        *train_arguments(
            tmp_path / "run", data_dir, learning_rate=1e30, warmup_steps=0, save_steps=1, epochs=2,
            steps_per_execution=1,
        )
    )  # fmt: skip
    assert code == 1
    message = error.splitlines()[-1]
    step = int(message.partition("loss=nan after step ")[2].partition(".")[0])
    newest = max((tmp_path / "run" / "state").iterdir())
    assert newest.name == f"step-{step - 1:09d}"


@pytest.mark.slow
def test_second_run_in_the_same_directory_is_refused(uninterrupted, data_dir):
    before = sorted(uninterrupted[0].rglob("*"))
    with exclusive_lock(uninterrupted[0]):
        code, _, error = command(*train_arguments(uninterrupted[0], data_dir))
    assert code == 2 and "another process is using" in error
    assert sorted(uninterrupted[0].rglob("*")) == before


@pytest.mark.slow
def test_run_resumes_bit_for_bit_after_a_full_disk_and_a_damaged_state(
    stopped, uninterrupted, data_dir, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    arguments = train_arguments(run, data_dir)
    states = {path: path.read_bytes() for path in run.glob("state/*/*")}
    size = max(map(len, states.values()))

    def limit_file_size():  # the kernel then refuses to write more, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = start(arguments, preexec_fn=limit_file_size)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in error, error
    assert "could not be saved" in error and "File too large" in error
    assert {path: path.read_bytes() for path in run.glob("state/*/*")} == states
    temporary = [path.name for path in run.rglob(".*") if path.name != ".lock"]
    assert not temporary, temporary
    previous, newest = sorted((run / "state").iterdir())
    content = (newest / "arrays.npz").read_bytes()
    (newest / "arrays.npz").write_bytes(content[: len(content) // 2])
    code, _, error = command(*arguments)
    assert code == 0 and f"{newest.name} is damaged" in error, error
    assert f"Resuming after step {int(previous.name.removeprefix('step-'))} " in error
    assert_same_runs(run, uninterrupted[0])


@pytest.mark.slow
def test_two_hosts_resume_after_one_is_lost_and_equal_one_device(data_dir, tmp_path):
    fields = {"dropout_rate": 0, "stochastic_depth_rate": 0, "epochs": 4, "evaluate_every": 2}
    fields["batch_size"] = 128
    single, run = tmp_path / "single", tmp_path / "hosts"
    expected = result_of(
        *command(*train_arguments(single, data_dir, strategy="one_device", **fields))
    )
    arguments = train_arguments(run, data_dir, strategy="multi_worker", **fields)
    arguments = ["-m", "vitkeras", *arguments]

    chief, other = hosts = start_hosts(2, *arguments)
    try:
        while not list(run.glob("state/step-*")) and all(host.poll() is None for host in hosts):
            time.sleep(0.05)
        other.kill()
        chief.wait(timeout=60)  # it must not wait for the lost host forever
    finally:
        (code, _, error), _ = finish_hosts(hosts, timeout=60)
    assert code == 1 and "Another host was lost" in error and "Traceback" not in error, error

    differing = [*arguments, "--config.seed={host}"]
    for code, _, error in finish_hosts(start_hosts(2, *differing), timeout=300):
        assert code == 2 and "the same config and the same data" in error, error

    outputs = finish_hosts(start_hosts(2, *arguments), timeout=600)
    for output in outputs:
        result = result_of(*output)
        assert abs(result["loss"] - expected["loss"]) < 1e-4 and result["examples"] == 179
    log = outputs[0][2]
    assert "Resuming after step" in log and "2 replicas, 64 images per replica" in log
    assert "Resuming" not in outputs[1][2]  # only the chief logs
    texts = [(each / "metrics.csv").read_text() for each in (run, single)]
    tables = [[row.split(",") for row in text.splitlines()] for text in texts]
    assert tables[0][0] == tables[1][0] and len(tables[0]) == len(tables[1]) == 5
    for row, expected_row in zip(*(table[1:] for table in tables), strict=True):
        for cell, other in zip(row, expected_row, strict=True):
            assert cell == other == "" or abs(float(cell) - float(other)) < 1e-4


#: Runs a command. Host 1 has another version of Keras, or is killed at a moment.
HOST = """
import os, signal
from vitkeras.cli import from_config, main
from vitkeras.training import strategy

check_same_on_hosts, installed_versions = strategy.check_same_on_hosts, strategy.installed_versions

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def check_config(strategy, values, rule):
    die() if "config" in values else check_same_on_hosts(strategy, values, rule)

if {host}:
    MOMENT
main.console_main()
"""
MOMENTS = {
    "versions": "strategy.installed_versions = lambda: installed_versions() | {'keras': '3.0.0'}",
    "killed before the versions are compared": "strategy.check_same_versions = die",
    "killed before the model is built": "from_config.build_model = die",
    "killed before the configs are compared": "strategy.check_same_on_hosts = check_config",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_hosts_with_other_versions_or_lost_before_training_end_with_a_sentence(
    moment, data_dir, tmp_path
):
    arguments = train_arguments(tmp_path / "run", data_dir, strategy="multi_worker", batch_size=128)
    hosts = start_hosts(2, "-c", HOST.replace("MOMENT", MOMENTS[moment]), *arguments)
    (code, _, error), (other_code, _, other_error) = finish_hosts(hosts, timeout=120)
    assert "Traceback" not in error, error
    if moment == "versions":
        for text in (error, other_error):
            assert "same versions of packages and Python. Received: hosts that differ in" in text
        assert code == other_code == 2 and "keras (3.0.0 here)" in other_error
    else:
        assert other_code == -signal.SIGKILL
        assert code == 1 and "Another host was lost" in error, error


@pytest.mark.slow
@pytest.mark.parametrize(
    "index, number, expected", [(0, signal.SIGINT, 130), (1, signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_host_that_waits_for_another_one_ends_after_its_time_or_a_signal(
    index, number, expected, data_dir, tmp_path
):
    arguments = train_arguments(tmp_path / "run", data_dir, strategy="multi_worker")
    workers = ["127.0.0.1:0", "127.0.0.1:0"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        workers[index] = f"127.0.0.1:{free.getsockname()[1]}"
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        missing = workers[1 - index] = f"127.0.0.1:{closed.getsockname()[1]}"
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        process = start(arguments, env=environment | {"VITKERAS_CONNECT_SECONDS": "12"})
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1 and "Traceback" not in error, error
        assert f"Waiting for the hosts {missing} in TF_CONFIG, 0 of 12 seconds." in error
        assert f"Waiting for the hosts {missing} in TF_CONFIG, 10 of 12 seconds." in error
        assert "error: All hosts in TF_CONFIG must start within 12 seconds." in error
        process = start(arguments, env=environment)
        try:
            read_until(process, f"Waiting for the hosts {missing}")
            process.send_signal(number)
            _, error = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == expected and "Traceback" not in error, error


@pytest.mark.slow
def test_run_killed_at_any_moment_resumes_bit_for_bit(data_dir, tmp_path):
    # Many weights and few tokens: saves take a while, so that a kill can interrupt one.
    fields = {
        "batch_size": 32, "variant": "Ti/8", "hidden_dim": 256, "mlp_dim": 1024, "num_layers": 3,
        "epochs": 3, "evaluate_every": 2, "save_steps": 3, "steps_per_execution": 1,
    }  # fmt: skip
    reference, run = tmp_path / "reference", tmp_path / "run"
    arguments = train_arguments(run, data_dir, **fields)
    result_of(*command(*train_arguments(reference, data_dir, **fields)))
    rng = random.Random(0)
    moments = ["start", "training"] + ["saving"] * 3
    rng.shuffle(moments)
    kills_in_saves = 0
    for moment in moments:
        process = start(arguments)
        if moment == "start":
            time.sleep(rng.uniform(0, 7))
        else:
            read_until(process, "parameters")  # logged before training
            before = {path.name for path in run.glob("state/step-*")}
            if moment == "training":
                time.sleep(rng.uniform(0, 8))
            else:
                wait_for(run / "state", process, has_new_state(before))
                wait_for(run / "state", process, is_saving)
        assert process.poll() is None, process.stderr.read()[-2000:]
        process.kill()
        process.communicate()
        kills_in_saves += any((run / "state").glob(".step-*"))
    code, _, error = command(*arguments)
    assert code == 0, error
    step = error.partition("Resuming after step ")[2].partition("\n")[0]
    print(f"{len(moments)} kills, {kills_in_saves} of them in a save; resumed at step {step}")
    assert kills_in_saves
    assert_same_runs(run, reference)
    assert not list(run.rglob(".*.*"))
