from pathlib import Path

import keras
import pytest
import tensorflow as tf

from vitkeras.errors import InputError
from vitkeras.preflight.lowering import lower


class NotForTPU(keras.layers.Layer):
    """A layer with an operation that no TPU runs."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def call(self, x):
        if self.kind == "dynamic shape":
            return tf.reduce_sum(tf.boolean_mask(x, x[:, 0] > 0), keepdims=True)  # LINE 1
        if self.kind == "string":
            return tf.strings.to_number(tf.strings.as_string(x))  # LINE 2
        if self.kind == "unsupported":
            return tf.linalg.eig(x[:3, :3])[0]  # LINE 3
        count = tf.cast(x[0, 0], tf.int32)
        if self.kind == "range":
            return tf.reduce_sum(tf.range(count), keepdims=True)  # LINE 4
        if self.kind == "tile":
            return tf.tile(x, [count, 1])  # LINE 5
        if self.kind == "python":
            return tf.py_function(lambda x: x, [x], tf.float32)  # LINE 6
        if self.kind == "function":
            return tf.function(lambda: tf.reduce_sum(tf.unique(x[0])[0]))()  # LINE 7
        if self.kind == "branch":
            positive = lambda: tf.reduce_sum(tf.where(x > 0))  # noqa: E731 # LINE 8
            return tf.cond(x[0, 0] > 0, positive, lambda: tf.constant(0, tf.int64))
        return tf.while_loop(
            lambda i, s: i < 3,
            lambda i, s: (i + 1, s + tf.reduce_sum(x[x > i])),  # LINE 9
            [0.0, 0.0],
        )


KINDS = ("dynamic shape", "string", "unsupported", "range", "tile", "python", "function", "branch",
         "loop")  # fmt: skip


@pytest.mark.parametrize("mark, kind", list(enumerate(KINDS, 1)))
def test_an_operation_that_no_tpu_runs_is_named_with_its_line(kind, mark):
    layer = NotForTPU(kind)
    lines = Path(__file__).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if text.endswith(f"# LINE {mark}"))
    with pytest.raises(InputError, match="TPU") as caught:
        lower(lambda x: layer(x), tf.ones((4, 5)))
    assert f"test_lowering.py:{line}" in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
