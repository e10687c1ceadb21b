"""Cross-entropy losses in float32: softmax and sigmoid, with label smoothing and class weights."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from vitkeras.arguments import check_range


@keras.saving.register_keras_serializable(package="vitkeras")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy of logits, in nats, with label smoothing for integer labels too.

    Keras's `SparseCategoricalCrossentropy` has no label smoothing.

    Args:
        label_smoothing: Fraction of the target that is distributed evenly over all classes.
        class_weights: Weight of each class; None for equal weights. The loss of an example is
            multiplied by the weight of its label, as by `class_weight` of Keras's `fit`, and the
            mean is over the number of examples. Of class probabilities, it is multiplied by the
            expected weight. Label smoothing does not change the weight.
    Call arguments:
        y_true: Integer labels `(b,)`, or class probabilities `(b, classes)` as mixup makes them.
        y_pred: Logits `(b, classes)`.
    Raises:
        InputError: If `label_smoothing` is not in [0, 1), or a weight is negative or not finite.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_range("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")
        self.label_smoothing = label_smoothing
        if class_weights is not None:
            class_weights = [float(weight) for weight in class_weights]
            valid = bool(np.isfinite(class_weights).all()) and min(class_weights) >= 0
            check_range("class_weights", class_weights, valid, "finite numbers of 0 or more")
        self.class_weights = class_weights

    def call(self, y_true, y_pred):
        logits = ops.cast(y_pred, "float32")  # (b, classes)
        losses = self._example_losses(y_true, logits)  # (b,)
        if self.class_weights is None:
            return losses
        weights = ops.convert_to_tensor(self.class_weights, "float32")
        if _are_probabilities(y_true, logits):
            return losses * ops.matmul(ops.cast(y_true, "float32"), weights)
        return losses * ops.take(weights, ops.cast(ops.reshape(y_true, (-1,)), "int32"))

    def _example_losses(self, y_true, logits):
        log_probs = ops.log_softmax(logits)
        target = _select(log_probs, y_true)
        smoothing = self.label_smoothing
        return -(1 - smoothing) * target - smoothing * ops.mean(log_probs, axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "class_weights": self.class_weights,
        }


@keras.saving.register_keras_serializable(package="vitkeras")
class SmoothedSigmoidCrossEntropy(SmoothedCrossEntropy):
    """Sigmoid cross-entropy of logits, in nats: the sum over the classes of a binary cross-entropy.

    The target of the class of an example is 1 and that of the others 0, before label smoothing.
    Arguments are those of `SmoothedCrossEntropy`.

    Source: Beyer et al. 2020, "Are we done with ImageNet?"; `sigmoid_xent` of
        https://github.com/google-research/big_vision.
    """

    def _example_losses(self, y_true, logits):
        smoothing = self.label_smoothing
        target = (1 - smoothing) * _select(logits, y_true) + smoothing * ops.mean(logits, axis=-1)
        return ops.sum(ops.softplus(logits), axis=-1) - target


#: From `loss` of a config to its class.
LOSSES = {"softmax": SmoothedCrossEntropy, "sigmoid": SmoothedSigmoidCrossEntropy}


def balanced_class_weights(counts: Sequence[int] | np.ndarray) -> list[float]:
    """Returns the weights n / (k n_c) of scikit-learn's `class_weight="balanced"`.

    The mean weight of all examples is 1. A class without examples has weight 0, and k does not
    count it.

    Args:
        counts: Number of examples of each class, n_c.
    """
    counts = np.asarray(counts, np.float64)
    used = counts > 0
    weights = np.zeros_like(counts)
    weights[used] = counts.sum() / (used.sum() * counts[used])
    return weights.tolist()


def _are_probabilities(y_true, logits):
    """Returns whether labels are class probabilities."""
    return len(y_true.shape) == 2 and y_true.shape[1] == logits.shape[1] > 1


def _select(values, y_true):
    """Returns the value of the class of each example, or its expectation, `(b,)`."""
    if _are_probabilities(y_true, values):
        return ops.sum(ops.cast(y_true, "float32") * values, axis=-1)
    labels = ops.cast(ops.reshape(y_true, (-1, 1)), "int32")
    return ops.take_along_axis(values, labels, axis=-1)[:, 0]
