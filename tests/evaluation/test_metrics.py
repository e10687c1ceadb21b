import numpy as np
import tensorflow as tf
from helpers.training import IMAGES, LABELS, compiled_model

from vitkeras.evaluation.metrics import make_evaluator


def test_metrics_do_not_depend_on_the_batch_size():
    model = compiled_model()
    model.fit(IMAGES, LABELS, epochs=3, verbose=0)
    logits = model(IMAGES).numpy().astype("float64")
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -logs[np.arange(12), LABELS].mean(), (logits.argmax(1) == LABELS).mean()
    assert abs(expected[0] - np.log(3)) > 1e-2
    targets = np.eye(3)[LABELS]
    binary = np.log1p(np.exp(-logits)) * targets + np.log1p(np.exp(logits)) * (1 - targets)
    evaluate, evaluate_sigmoid = make_evaluator(model), make_evaluator(model, "sigmoid")
    for batch_size in (1, 5, 8, 12, 20):
        padding = -12 % batch_size
        columns = (
            np.concatenate([IMAGES, np.full((padding, 8, 8, 3), 255, "float32")]),
            np.concatenate([LABELS, np.zeros(padding, int)]).astype("int32"),
            np.repeat([1.0, 0.0], [12, padding]).astype("float32"),
        )
        batches = tf.data.Dataset.from_tensor_slices(columns).batch(batch_size)
        result = evaluate_sigmoid(batches)
        assert result["loss_function"] == "sigmoid" and result["accuracy"] == expected[1]
        np.testing.assert_allclose(result["loss"], binary.sum(1).mean(), rtol=1e-5)
        result = evaluate(batches)
        assert result["examples"] == 12
        np.testing.assert_allclose((result["loss"], result["accuracy"]), expected, rtol=1e-5)
