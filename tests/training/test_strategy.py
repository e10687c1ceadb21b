import pytest
import tensorflow as tf

from vitkeras.errors import InputError, RunError
from vitkeras.training.loop import host_errors
from vitkeras.training.strategy import check_global_batch, check_strategy_name, make_strategy


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


@pytest.mark.parametrize("text", ["{", '{"cluster": {"worker": ["a:1"]}}'])
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
