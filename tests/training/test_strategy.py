import pytest

from vitkeras.errors import InputError
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
