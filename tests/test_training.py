import json
import threading

import keras
import numpy as np
import pytest
from conftest import TINY

import vitkeras as vk
from vitkeras import training
from vitkeras.errors import InputError, RunError
from vitkeras.evaluation import make_evaluator
from vitkeras.runs import RunDirectory
from vitkeras.training import callbacks, checkpoints


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_schedule_warms_up_and_falls_to_zero(decay):
    schedule = training.WarmupDecay(0.1, total_steps=100, warmup_steps=10, decay=decay)
    rates = np.array([float(schedule(step)) for step in range(101)])
    np.testing.assert_allclose(rates[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    left = 1 - np.arange(91) / 90
    expected = left if decay == "linear" else (1 + np.cos(np.pi * (1 - left))) / 2
    np.testing.assert_allclose(rates[10:], 0.1 * expected, atol=1e-6)
    again = training.WarmupDecay.from_config(schedule.get_config())
    assert float(again(42)) == float(schedule(42))


def test_bad_schedules_and_optimizers():
    with pytest.raises(InputError, match="warmup_steps=50, total_steps=50"):
        training.WarmupDecay(0.1, 50, 50)
    with pytest.raises(InputError, match="`decay` must be one of.*'step'"):
        training.WarmupDecay(0.1, 50, 5, "step")
    with pytest.raises(InputError, match="`learning_rate` must be positive.*=-1"):
        training.WarmupDecay(-1, 50, 5)
    for number in ({"weight_decay": -1}, {"clip_norm": 0}, {"ema_momentum": 1.0}):
        with pytest.raises(InputError, match=f"`{next(iter(number))}` must be"):
            training.make_optimizer("sgd", 0.1, **number)
    with pytest.raises(InputError, match="label_smoothing=1"):
        training.SmoothedCrossEntropy(1)
    with pytest.raises(InputError, match="must be one of adamw, sgd.*'lamb'"):
        training.make_optimizer("lamb", 0.1)


def apply_random(optimizer, weight, steps, seed=0):
    """Returns the weight after each of some steps, and the gradients."""
    rng, values = np.random.default_rng(seed), []
    gradients = rng.normal(size=(steps, *weight.shape)).astype("float32")
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        values.append(np.array(weight))
    return np.array(values), gradients


def test_momentum_takes_the_rate_of_the_step_as_the_authors_code_does():
    schedule = training.WarmupDecay(0.1, 8, 3)
    optimizer = training.make_optimizer("sgd", schedule, weight_decay=0.2)
    weight = keras.Variable(np.ones((3, 2), "float32"), name="kernel")
    values, gradients = apply_random(optimizer, weight, 8)
    expected, velocity = np.ones((3, 2)), np.zeros((3, 2))
    for step in range(8):
        rate = float(schedule(step))
        velocity = 0.9 * velocity + gradients[step]
        expected = expected * (1 - 0.2 * rate) - rate * velocity
        np.testing.assert_allclose(values[step], expected, rtol=1e-5)
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config() and again.momentum == 0.9


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weights_stand_still_after_the_last_step(name, layer_decay, decay):
    schedule = training.WarmupDecay(0.1, 5, 1, decay)
    optimizer = training.make_optimizer(name, schedule, 0.2, layer_decay=layer_decay)
    layer = keras.layers.Dense(2, use_bias=False, name="block_00")
    layer.build((None, 3))
    values, _ = apply_random(optimizer, layer.kernel, 9)
    assert all(np.abs(values[i] - values[i + 1]).min() > 1e-6 for i in range(4))
    np.testing.assert_array_equal(values[4], values[8])  # Keras's SGD moves on


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_is_decoupled_and_on_kernels_only(name):
    model = vk.vit("Ti/4", image_size=8, num_classes=3, layer_scale=0.1, **TINY)
    for weight in model.trainable_variables:
        weight.assign(np.ones(weight.shape))
    optimizer = training.make_optimizer(
        name, 0.5, weight_decay=0.1, variables=model.trainable_variables
    )
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    kernels = 0
    for weight in model.trainable_variables:
        expected = 0.95 if len(weight.shape) == 2 else 1.0
        kernels += len(weight.shape) == 2
        np.testing.assert_allclose(weight, expected, rtol=1e-6, err_msg=weight.path)
    assert kernels == 1 + 4 * 2 + 1


def test_loss_is_cross_entropy_with_and_without_smoothing():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype("float32"), rng.integers(0, 5, 6)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    np.testing.assert_allclose(training.SmoothedCrossEntropy()(labels, logits), plain, rtol=1e-6)
    smooth = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    expected = smooth(np.eye(5)[labels], logits)
    loss = training.SmoothedCrossEntropy(0.2)
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-6)
    assert training.SmoothedCrossEntropy.from_config(loss.get_config()).label_smoothing == 0.2


def test_strategies(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert training.make_strategy("auto").num_replicas_in_sync == 1
    assert type(training.make_strategy("mirrored")).__name__ == "MirroredStrategy"
    with pytest.raises(InputError, match="strategy='miror'. Did you mean \"mirrored\""):
        training.make_strategy("miror")
    with pytest.raises(InputError, match="strategy='mirrored:2'"):
        training.make_strategy("mirrored:2")

    def no_tpu(tpu):
        raise ValueError(f"nothing at {tpu}")

    monkeypatch.setattr("tensorflow.distribute.cluster_resolver.TPUClusterResolver", no_tpu)
    with pytest.raises(InputError, match="the name 'local', and no such TPU"):
        training.make_strategy("tpu")
    monkeypatch.setenv("TPU_NAME", "mine")
    with pytest.raises(InputError, match="the name 'mine', and no such TPU"):
        training.make_strategy("auto")
    with pytest.raises(InputError, match="the name 'other', and no such TPU"):
        training.make_strategy("tpu:other")
    monkeypatch.delenv("TPU_NAME")
    with pytest.raises(InputError, match="no TF_CONFIG"):
        training.make_strategy("multi_worker")
    assert training.check_global_batch(12, 4) == 3
    with pytest.raises(InputError, match="batch_size=10, 4 replicas, .* Nearest: 8, 12"):
        training.check_global_batch(10, 4)
    with pytest.raises(InputError, match="accumulation_steps=3. Nearest: 12, 24"):
        training.check_global_batch(16, 4, 3)


def small_model(**options):
    model = vk.vit("Ti/4", image_size=8, num_classes=3, dropout_rate=0.1, **TINY)
    optimizer = training.make_optimizer(
        "adamw", 1e-2, variables=model.trainable_variables, **options
    )
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, training.SmoothedCrossEntropy(), metrics=["accuracy"])
    return model


IMAGES = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 3)).astype("float32")
LABELS = np.arange(12) % 3


def test_a_restored_state_goes_on_bit_for_bit(tmp_path):
    model = small_model(ema_momentum=0.9, clip_norm=1.0)
    model.fit(IMAGES, LABELS, batch_size=4, epochs=1, shuffle=False, verbose=0)
    arrays = checkpoints.arrays_of(model)
    assert any("seed_generator" in name for name in arrays)
    checkpoints.save_state(tmp_path, 3, arrays, {"epoch": 1})
    other = small_model(ema_momentum=0.9, clip_norm=1.0)
    other.train_on_batch(IMAGES, LABELS)  # makes the metrics
    found, extra = checkpoints.latest_state(tmp_path)
    assert extra["step"] == 3 and extra["epoch"] == 1
    checkpoints.restore(other, found)
    for trained in (model, other):
        trained.train_on_batch(IMAGES, LABELS)
        trained.train_on_batch(IMAGES, LABELS)
    for name, array in checkpoints.arrays_of(model).items():
        np.testing.assert_array_equal(array, checkpoints.arrays_of(other)[name], err_msg=name)
    with pytest.raises(RunError, match="another model or optimizer"):
        checkpoints.restore(small_model(), found)


def test_a_damaged_state_is_named_and_the_one_before_taken(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save_state(tmp_path, step, {"x": np.full(100, step)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]
    file = tmp_path / "step-000000003" / "arrays.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = []
    arrays, extra = checkpoints.latest_state(tmp_path, said.append)
    assert extra["step"] == 2 and arrays["x"][0] == 2
    assert len(said) == 1 and "step-000000003 is damaged" in said[0]
    checkpoints.remove_newer(tmp_path, 2)  # else it would count as one of the two that are kept
    checkpoints.save_state(tmp_path, 4, {"x": np.full(100, 4)}, {})
    checkpoints.save_state(tmp_path, 5, {"x": np.full(100, 5)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]
    assert checkpoints.latest_state(tmp_path, said.append)[1]["step"] == 5
    (tmp_path / "step-000000005").rename(tmp_path / "step-000000002")
    (tmp_path / "step-000000004" / "state.json").unlink()
    (tmp_path / "step-000000002" / "state.json").unlink()
    assert checkpoints.latest_state(tmp_path, said.append) is None  # without its marker, not whole
    (tmp_path / "step-000000002" / "state.json").write_text("{")
    with pytest.raises(RunError, match="No saved state in .* can be read any more"):
        checkpoints.latest_state(tmp_path, said.append)
    assert "step-000000002 cannot be read" in said[-1]


def test_a_state_is_written_as_it_was_when_saved(tmp_path, monkeypatch):
    gate, real = threading.Event(), checkpoints.save_state

    def late(*arguments):
        gate.wait(10)
        real(*arguments)

    monkeypatch.setattr(checkpoints, "save_state", late)
    writer, rows = checkpoints.StateWriter(tmp_path), [{"epoch": 1}]
    writer.save(7, {"x": np.zeros(3)}, {"rows": rows})
    rows.append({"epoch": 2})
    gate.set()
    writer.wait()
    assert checkpoints.latest_state(tmp_path)[1]["rows"] == [{"epoch": 1}]


def test_the_moving_average_is_kept_and_what_trains_is_not_touched(tmp_path):
    model = small_model(ema_momentum=0.5)
    kept = keras.models.clone_model(model)
    run = RunDirectory(tmp_path / "run")
    run.create({"a": 1}, ["x", "y", "z"], {}, {})
    seen = []
    keeper = callbacks.ModelKeeper(run, kept, lambda: {"accuracy": len(seen) % 2, "loss": 0.5})
    track = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda b, logs: seen.append(
            [v.numpy() for v in model.trainable_variables]
        )
    )
    model.fit(
        IMAGES, LABELS, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[track, keeper]
    )
    averages = seen[0]
    for weights in seen[1:]:
        averages = [0.5 * a + 0.5 * w for a, w in zip(averages, weights, strict=True)]
    last = run.load_model("last")
    for variable, expected in zip(last.trainable_variables, averages, strict=True):
        np.testing.assert_allclose(variable, expected, atol=1e-6)
    assert not np.array_equal(last.trainable_variables[0], seen[-1][0])
    assert keeper.best == [1, -0.5]


def test_evaluation_is_exact_whatever_the_batch(tmp_path):
    import tensorflow as tf

    model = small_model()
    model.fit(IMAGES, LABELS, epochs=3, verbose=0)
    logits = model.predict(IMAGES, verbose=0).astype("float64")
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -logs[np.arange(12), LABELS].mean(), (logits.argmax(1) == LABELS).mean()
    evaluate = make_evaluator(model)
    for batch in (1, 5, 8, 12, 20):
        padding = -12 % batch
        columns = (
            np.concatenate([IMAGES, np.ones((padding, 8, 8, 3), "float32")]),
            np.concatenate([LABELS, np.zeros(padding, int)]).astype("int32"),
            np.repeat([1.0, 0.0], [12, padding]).astype("float32"),
        )
        result = evaluate(tf.data.Dataset.from_tensor_slices(columns).batch(batch))
        assert result["examples"] == 12
        np.testing.assert_allclose((result["loss"], result["accuracy"]), expected, rtol=1e-5)


def test_run_directory_refuses_another_run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(InputError, match="has no config.json"):
        run.load_model()
    config, rest = {"epochs": 3, "image_size": (8, 8)}, ({"image_size": [8, 8]}, {"train": 7})
    run.create(config, ["a", "b"], *rest)
    run.create(config, ["a", "b"], *rest)
    run.create(config | {"save_steps": 5, "strategy": "mirrored"}, ["a", "b"], *rest)
    with pytest.raises(InputError, match="another config: epochs=3 there, 4 now"):
        run.create(config | {"epochs": 4}, ["a", "b"], *rest)
    with pytest.raises(InputError, match="another class_names"):
        run.create(config, ["a", "c"], *rest)
    with pytest.raises(InputError, match="another dataset: train=7 there, 8 now"):
        run.create(config, ["a", "b"], rest[0], {"train": 8})
    with pytest.raises(InputError, match="has not saved this model yet"):
        run.load_model("best")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="which holds other files"):
        RunDirectory(tmp_path / "other").create({}, [], {}, {})
    assert json.loads((tmp_path / "run" / "class_names.json").read_text()) == ["a", "b"]
    (tmp_path / "run" / "config.json").unlink()  # as if `create` had been killed before its end
    run.create(config, ["a", "c"], *rest)
    assert run.class_names == ["a", "c"] and run.config["epochs"] == 3


def test_progress_tells_rate_and_time_left():
    import io

    out = io.StringIO()
    position = callbacks.Position(epochs=2, steps_per_epoch=3)
    line = callbacks.ProgressLine(position, batch_size=4, file=out)
    small_model().fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0, callbacks=[position, line])
    first, second = out.getvalue().splitlines()
    assert first.startswith("epoch 1/2 step 3/3 ") and "images/s" in first and "left" in first
    assert "loss" in second and second.endswith("0:00:00 left")
