import json
import threading

import numpy as np
import pytest
from helpers.processes import python
from helpers.training import IMAGES, LABELS, compiled_model

from vitkeras.errors import RunError
from vitkeras.training import checkpoints


def assert_same_state(model, other):
    arrays, others = checkpoints.get_arrays(model), checkpoints.get_arrays(other)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


@pytest.mark.parametrize("options", [
    {},
    {"freeze": "blocks:1", "name": "adamw", "layer_decay": 0.5, "weight_decay": 0.1},
    {"freeze": "blocks:1", "name": "sgd", "layer_decay": 0.5, "weight_decay": 0.1},
], ids=["plain", "adamw", "sgd"])  # fmt: skip
def test_restored_state_resumes_bit_for_bit(options, tmp_path):
    options = {**options, "ema_momentum": 0.9, "clip_norm": 1.0}
    model = compiled_model(**options)
    model.fit(IMAGES, LABELS, batch_size=4, epochs=1, shuffle=False, verbose=0)
    arrays = checkpoints.get_arrays(model)
    assert any("seed_generator" in name for name in arrays)
    checkpoints.save_state(tmp_path, 3, arrays, {"epoch": 1})
    other = compiled_model(**options)
    other.fit(IMAGES[:4], LABELS[:4], batch_size=4, verbose=0)  # creates the metrics
    arrays, record = checkpoints.latest_state(tmp_path)
    assert record["step"] == 3 and record["epoch"] == 1
    checkpoints.restore(other, arrays)
    assert_same_state(model, other)
    for trained in (model, other):
        trained.fit(IMAGES[:8], LABELS[:8], batch_size=4, shuffle=False, verbose=0)
    assert_same_state(model, other)
    with pytest.raises(RunError, match="same model and optimizer"):
        checkpoints.restore(compiled_model(), arrays)


def test_damaged_state_is_logged_and_the_previous_one_is_used(tmp_path, caplog):
    for step in (1, 2, 3):
        checkpoints.save_state(tmp_path, step, {"x": np.full(100, step)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]
    file = tmp_path / "step-000000003" / "arrays.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    arrays, record = checkpoints.latest_state(tmp_path)
    assert record["step"] == 2 and arrays["x"][0] == 2
    assert len(caplog.records) == 1 and "step-000000003 is damaged" in caplog.text
    checkpoints.remove_newer(tmp_path, 2)  # otherwise it counts as one of the two kept states
    checkpoints.save_state(tmp_path, 4, {"x": np.full(100, 4)}, {})
    checkpoints.save_state(tmp_path, 5, {"x": np.full(100, 5)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]
    assert checkpoints.latest_state(tmp_path)[1]["step"] == 5
    assert len(caplog.records) == 1


def test_state_without_marker_is_ignored_and_unreadable_states_are_an_error(tmp_path, caplog):
    checkpoints.save_state(tmp_path, 1, {"x": np.zeros(3)}, {})
    marker = tmp_path / "step-000000001" / "state.json"
    marker.unlink()
    assert checkpoints.latest_state(tmp_path) is None and not checkpoints.has_state(tmp_path)
    marker.write_text("{")
    with pytest.raises(RunError, match=f"{tmp_path}.*no state can be read"):
        checkpoints.latest_state(tmp_path)
    assert "step-000000001 cannot be read" in caplog.text


def test_every_change_of_the_record_is_noticed(tmp_path):
    record = {"epoch": 3, "epoch_step": 7, "best": [0.5, -1.25], "rows": [{"loss": 1.5}]}
    checkpoints.save_state(tmp_path / "state", 9, {"x": np.arange(3)}, record)
    folder = tmp_path / "state" / "step-000000009"
    assert checkpoints.latest_state(tmp_path / "state")[1] == {"step": 9, **record}
    text = (folder / "state.json").read_text()
    content = json.loads(text)
    changed = [{**content, key: None} for key in content]
    changed += [{**content, "step": 10}, {**content, "best": [0.5, -1.26]}, {**content, "new": 1}]
    texts = [json.dumps(each) for each in changed] + [
        text[:i] + "0" + text[i + 1 :] for i in range(len(text)) if text[i] != "0"
    ]
    for damaged in [*texts, "", "[]", "7", "null"]:
        (folder / "state.json").write_text(damaged)
        with pytest.raises(RunError, match="no state can be read"):
            checkpoints.latest_state(tmp_path / "state")
    (folder / "state.json").write_text(text)
    folder.rename(folder.with_name("step-000000010"))
    with pytest.raises(RunError, match="no state can be read"):
        checkpoints.latest_state(tmp_path / "state")


def test_later_changes_of_the_record_are_not_written(tmp_path, monkeypatch):
    gate, save_state = threading.Event(), checkpoints.save_state

    def delayed(*arguments):
        gate.wait(10)
        save_state(*arguments)

    monkeypatch.setattr(checkpoints, "save_state", delayed)
    writer, rows = checkpoints.StateWriter(tmp_path), [{"epoch": 1}]
    writer.save(7, {"x": np.zeros(3)}, {"rows": rows})
    rows.append({"epoch": 2})
    gate.set()
    writer.wait()
    assert checkpoints.latest_state(tmp_path)[1]["rows"] == [{"epoch": 1}]


def test_saved_compiled_model_resumes_in_a_fresh_process(tmp_path):
    model = compiled_model(
        "blocks:1", dropout_rate=0.0, weight_decay=0.1, layer_decay=0.5, ema_momentum=0.9
    )
    model.train_on_batch(IMAGES, LABELS)
    model.save(tmp_path / "model.keras")
    model.train_on_batch(IMAGES, LABELS)
    code = (
        "import sys, keras, numpy as np, vitkeras\n"
        "from helpers.training import IMAGES, LABELS\n"
        "model = keras.saving.load_model(sys.argv[1])\n"
        "model.run_eagerly = True\n"
        "model.train_on_batch(IMAGES, LABELS)\n"
        "optimizer = model.optimizer\n"
        "print(type(optimizer).__name__, optimizer.layer_decay, int(optimizer.iterations))\n"
        "names = [v.path for v in model.weights]\n"
        "np.savez(sys.argv[2], **dict(zip(names, model.get_weights())))"
    )
    done = python("-c", code, tmp_path / "model.keras", tmp_path / "weights.npz")
    assert done.stdout.strip() == "LayerwiseAdamW 0.5 2", done.stderr[-2000:]
    assert "Skipping" not in done.stderr
    with np.load(tmp_path / "weights.npz") as weights:
        for variable in model.weights:
            np.testing.assert_array_equal(variable, weights[variable.path], err_msg=variable.path)
