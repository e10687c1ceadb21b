"""Attention figures for TensorBoard during training."""

import keras
import numpy as np
import tensorflow as tf
from etils import epath

from vitkeras import interpret
from vitkeras.interpret import figures
from vitkeras.io.figures import to_png

#: Number of validation images, the first ones, whose attention is plotted.
NUM_IMAGES = 4


class AttentionPictures(keras.callbacks.Callback):
    """Logs attention distances, and the attention rollout of some images, every few epochs.

    The figures show the weights in training, which they do not change.

    Args:
        images: The images, uint8 `(b, h, w, 3)` of the model's size.
        every: Number of epochs between two figures; the last epoch is always logged.
        folder: Folder of the TensorBoard event files.
    """

    def __init__(self, images: np.ndarray, every: int, folder: epath.PathLike):
        super().__init__()
        self.images, self.every = images, every
        self.writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every and epoch + 1 != self.params["epochs"]:
            return
        layout, name = interpret.token_layout(self.model), self.model.name
        distances = figures.plot_attention_distances(
            interpret.attention_distances(self.model, self.images),
            float(interpret.uniform_distance(layout.grid, layout.stride)),
            self.images.shape[1:3], name,
        )  # fmt: skip
        maps = 100 * interpret.attention_rollout(self.model, self.images)
        with self.writer.as_default(step=epoch):  # from 0, like Keras's own curves
            tf.summary.image("attention distance", _to_image(distances))
            for index, (image, values) in enumerate(zip(self.images, maps, strict=True)):
                title = f"attention rollout, image {index + 1}"
                figure = figures.plot_heatmap(image, values, title, "% of all tokens", name)
                tf.summary.image(title, _to_image(figure))
        self.writer.flush()


def first_images(source, preprocessing) -> np.ndarray:
    """Returns the first validation images of a data source, uint8 `(b, h, w, 3)`."""
    examples = source.examples("validation").in_order().take(NUM_IMAGES)
    return np.stack([preprocessing.evaluation_image(e["image_bytes"]).numpy() for e in examples])


def _to_image(figure):
    """Returns a figure as `tf.summary.image` takes it, uint8 `(1, h, w, 3)`."""
    return tf.io.decode_png(to_png(figure), channels=3)[None]
