"""Cross-entropy loss in float32."""

import keras
from keras import ops

from vitkeras.arguments import check_range


@keras.saving.register_keras_serializable(package="vitkeras")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy of logits, in nats, with label smoothing for integer labels too.

    Keras's `SparseCategoricalCrossentropy` has no label smoothing.

    Args:
        label_smoothing: Fraction of the target that is distributed evenly over all classes.
    Call arguments:
        y_true: Integer labels `(b,)`, or class probabilities `(b, classes)` as mixup makes them.
        y_pred: Logits `(b, classes)`.
    Raises:
        InputError: If `label_smoothing` is not in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        check_range("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        log_probs = ops.log_softmax(ops.cast(y_pred, "float32"))  # (b, classes)
        if len(y_true.shape) == 2 and y_true.shape[1] == log_probs.shape[1] > 1:
            target = ops.sum(ops.cast(y_true, "float32") * log_probs, axis=-1)
        else:
            labels = ops.cast(ops.reshape(y_true, (-1, 1)), "int32")
            target = ops.take_along_axis(log_probs, labels, axis=-1)[:, 0]
        smoothing = self.label_smoothing
        return -(1 - smoothing) * target - smoothing * ops.mean(log_probs, axis=-1)  # (b,)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
