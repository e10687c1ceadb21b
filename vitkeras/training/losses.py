"""The loss: cross-entropy of labels or shares of classes, in float32."""

import keras
from keras import ops

from vitkeras.errors import check_range


@keras.saving.register_keras_serializable(package="vitkeras")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy of logits, with label smoothing for integer labels too (Keras's has none).

    Labels are integers `(b,)`, or shares of all classes `(b, classes)`, as mixing makes them.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes.
    """

    def __init__(self, label_smoothing=0.0, **kwargs):
        super().__init__(**kwargs)
        check_range("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")
        self.label_smoothing = label_smoothing

    def call(self, labels, logits):
        """Returns the loss of each example, `(b,)`, in nats."""
        logs = ops.log_softmax(ops.cast(logits, "float32"))  # (b, classes)
        if len(labels.shape) == 2 and labels.shape[1] == logs.shape[1] > 1:
            chosen = ops.sum(ops.cast(labels, "float32") * logs, axis=-1)
        else:
            labels = ops.cast(ops.reshape(labels, (-1, 1)), "int32")
            chosen = ops.take_along_axis(logs, labels, axis=-1)[:, 0]
        share = self.label_smoothing
        return -(1 - share) * chosen - share * ops.mean(logs, axis=-1)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
