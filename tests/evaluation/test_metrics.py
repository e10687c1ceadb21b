import numpy as np
import tensorflow as tf
from helpers.models import make
from helpers.training import IMAGES, LABELS, compiled_model
from sklearn.metrics import top_k_accuracy_score

from vitkeras.evaluation.metrics import ExampleResults, make_evaluator, make_example_evaluator


def padded(images, labels, batch_size):
    """Full batches with weights, as `evaluation_batches` makes them; the padding is not black."""
    padding = -len(images) % batch_size
    columns = (
        np.concatenate([images, np.full((padding, *images.shape[1:]), 255, images.dtype)]),
        np.concatenate([labels, np.zeros(padding, int)]).astype("int32"),
        np.repeat([1.0, 0.0], [len(images), padding]).astype("float32"),
    )
    return tf.data.Dataset.from_tensor_slices(columns).batch(batch_size)


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
        batches = padded(IMAGES, LABELS, batch_size)
        result = evaluate_sigmoid(batches)
        assert result["loss_function"] == "sigmoid" and result["accuracy"] == expected[1]
        np.testing.assert_allclose(result["loss"], binary.sum(1).mean(), rtol=1e-5)
        result = evaluate(batches)
        assert result["examples"] == 12
        np.testing.assert_allclose((result["loss"], result["accuracy"]), expected, rtol=1e-5)


def test_results_of_examples_are_in_order_and_do_not_depend_on_the_batch_size():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (23, 16, 24, 3)).astype("uint8")
    labels = rng.integers(0, 9, 23)
    for num_classes, bfloat16 in ((9, False), (9, True), (3, False), (1, False)):
        model = make(num_classes=num_classes, dtype="mixed_bfloat16" if bfloat16 else None)
        own = labels % num_classes
        logits = model(images).numpy().astype("float64")
        exp = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = exp / exp.sum(1, keepdims=True)
        bound = {"atol": 0.05} if bfloat16 else {"atol": 1e-5}  # batches round differently
        evaluate = make_example_evaluator(model)
        summed = make_evaluator(model)(padded(images, own, 8))
        for batch_size in (1, 8, 40):
            batches = list(evaluate(padded(images, own, batch_size)))
            assert [len(batch.labels) for batch in batches][:-1] == [batch_size] * (
                22 // batch_size
            )
            results = ExampleResults.concatenate(batches)
            assert results.labels.tolist() == own.tolist()
            losses = -np.log(probabilities[np.arange(23), own])
            np.testing.assert_allclose(results.losses, losses, rtol=1e-4, **bound)
            np.testing.assert_allclose(results.probabilities, probabilities.max(1), **bound)
            own_probabilities = probabilities[np.arange(23), own]
            np.testing.assert_allclose(results.label_probabilities, own_probabilities, **bound)
            if bfloat16:
                continue
            assert results.predicted.tolist() == logits.argmax(1).tolist()
            assert results.correct.mean() == summed["accuracy"]
            assert abs(results.losses.mean() - summed["loss"]) < 1e-5
            if num_classes == 9:
                top = top_k_accuracy_score(own, logits, k=5, labels=range(9))
                assert 0 < top < 1 and results.in_top.mean() == top
            else:
                assert results.in_top.all()


def test_results_of_examples_with_the_sigmoid_loss():
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 24, 3)).astype("uint8")
    labels, model = np.arange(7) % 3, make()
    logits = model(images).numpy().astype("float64")
    (results,) = make_example_evaluator(model, "sigmoid")(padded(images, labels, 8))
    probabilities = 1 / (1 + np.exp(-logits))
    assert results.predicted.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(results.probabilities, probabilities.max(1), atol=1e-5)
    own = probabilities[np.arange(7), labels]
    np.testing.assert_allclose(results.label_probabilities, own, atol=1e-5)
    expected = make_evaluator(model, "sigmoid")(padded(images, labels, 8))["loss"]
    assert abs(results.losses.mean() - expected) < 1e-5


def test_equal_logits_are_resolved_as_by_argmax():
    model = make(num_classes=9)
    for weight in model.get_layer("head").weights:
        weight.assign(tf.zeros_like(weight))
    labels = np.arange(9)
    (results,) = make_example_evaluator(model)(padded(np.zeros((9, 16, 24, 3)), labels, 9))
    assert (results.predicted == 0).all() and results.in_top.tolist() == [True] * 5 + [False] * 4
