import json
import socket

import pytest
import tensorflow as tf
from absl import logging

from vitkeras.errors import InputError, RunError
from vitkeras.training import strategy as strategies
from vitkeras.training.loop import host_errors
from vitkeras.training.strategy import (
    check_global_batch,
    check_same_on_hosts,
    check_same_versions,
    check_strategy_name,
    make_strategy,
)


def test_strategies_by_name(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    assert make_strategy("auto").num_replicas_in_sync == 1
    assert type(make_strategy("mirrored")).__name__ == "MirroredStrategy"
    with pytest.raises(InputError, match="no TF_CONFIG"):
        make_strategy("multi_worker")


def test_unknown_strategy():
    for check in (check_strategy_name, make_strategy):
        with pytest.raises(InputError, match="strategy='miror'. Did you mean \"mirrored\""):
            check("miror")
        for name in ("mirrored:2", "tpu:"):
            with pytest.raises(InputError, match=f"strategy='{name}'"):
                check(name)
    check_strategy_name("tpu:mine")


def test_missing_tpu(monkeypatch):
    def no_tpu(tpu):
        raise ValueError(f"nothing at {tpu}")

    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    monkeypatch.setattr("tensorflow.distribute.cluster_resolver.TPUClusterResolver", no_tpu)
    with pytest.raises(InputError, match="`strategy=tpu` .*'local'.*nothing at local"):
        make_strategy("tpu")
    monkeypatch.setenv("TPU_NAME", "mine")
    with pytest.raises(InputError, match="'mine'"):
        make_strategy("auto")
    with pytest.raises(InputError, match="'other'"):
        make_strategy("tpu:other")


def test_global_batch_is_divisible_by_replicas_and_microbatches():
    assert check_global_batch(12, 4) == 3
    with pytest.raises(InputError, match="batch_size=10, 4 replicas, .* Nearest: 8, 12"):
        check_global_batch(10, 4)
    with pytest.raises(InputError, match="accumulation_steps=3. Nearest: 12, 24"):
        check_global_batch(16, 4, 3)


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", "1", '{"cluster": 1}', '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": [1, 2]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": "ab"}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "evaluator": ["b:1"]}, '
        '"task": {"type": "evaluator", "index": 0}}',
    ],
)  # fmt: skip
def test_tf_config_must_be_valid(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match="TF_CONFIG must be JSON"):
        make_strategy("multi_worker")


def test_a_host_that_is_lost_before_training_is_reported():
    class Strategy(tf.distribute.MultiWorkerMirroredStrategy):
        def __init__(self):
            pass

    error = tf.errors.UnavailableError(None, None, "Connection reset by peer")
    with pytest.raises(RunError, match="Another host was lost"):
        with host_errors(Strategy()):
            raise error
    with pytest.raises(tf.errors.UnavailableError):
        with host_errors(tf.distribute.get_strategy()):
            raise error


def test_a_host_waits_for_the_others_with_messages_and_not_forever(monkeypatch):
    own, listening, silent = (socket.socket() for _ in range(3))
    for each in (own, listening, silent):
        each.bind(("127.0.0.1", 0))
    chief, started, missing = (
        f"127.0.0.1:{each.getsockname()[1]}" for each in (own, listening, silent)
    )
    own.close()
    cluster = {"chief": [chief], "worker": [started, missing], "ps": ["localhost:2"]}
    task = {"cluster": cluster, "task": {"type": "chief", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    monkeypatch.setenv("VITKERAS_CONNECT_SECONDS", "1.5")
    monkeypatch.setattr(strategies, "MESSAGE_SECONDS", 0.1)
    monkeypatch.setattr(strategies, "limit_connection_time", lambda *_: None)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: "a strategy")
    messages = []
    monkeypatch.setattr(logging, "info", lambda text, *values: messages.append(text % values))
    with listening, silent:
        listening.listen()
        with pytest.raises(RunError, match=f"within 1.5 seconds.*no answer from {missing}\\."):
            make_strategy("auto")
        assert f"Waiting for the hosts {missing} in TF_CONFIG, 1 of 1.5 seconds." == messages[-1]
        silent.listen()
        assert make_strategy("auto") == "a strategy"
        with socket.create_server(("", int(chief.partition(":")[2]))):
            with pytest.raises(RunError, match="already in use.* needs its port to be free"):
                make_strategy("auto")


def test_the_time_to_wait_for_hosts_must_be_a_number(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    for text in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("VITKERAS_CONNECT_SECONDS", text)
        with pytest.raises(InputError, match="VITKERAS_CONNECT_SECONDS must be a positive number"):
            make_strategy("multi_worker")


@pytest.mark.parametrize("name", ["vitkeras", "keras", "tensorflow", "Python"])
def test_hosts_with_other_versions_are_refused(name, monkeypatch):
    def mean_over_hosts(strategy, values):  # the other host has the versions of this one, but one
        names = ["vitkeras", "keras", "tensorflow", "Python"]
        return [x + (each == name) for x, each in zip(values, names, strict=True)]

    monkeypatch.setattr(strategies, "mean_over_hosts", mean_over_hosts)
    with pytest.raises(InputError, match=rf"same versions .* differ in {name} \([\d.]+ here\)\."):
        check_same_versions(tf.distribute.get_strategy())


def test_what_differs_between_hosts_is_named(monkeypatch):
    monkeypatch.setattr(strategies, "mean_over_hosts", lambda _, values: [values[0], 0.5])
    with pytest.raises(InputError, match="the same config. Received: hosts that differ in data"):
        check_same_on_hosts(
            tf.distribute.get_strategy(), {"config": 1, "data": 2}, "the same config"
        )
