"""Pictures of attention for TensorBoard, while a model trains."""

import keras
import numpy as np
import tensorflow as tf

from experiments import figures
from vitkeras import analysis

#: Images of the validation split that are looked at, its first.
NUM_IMAGES = 4


class AttentionPictures(keras.callbacks.Callback):
    """Writes attention distance by depth, and the rollout on each image, every few epochs.

    It looks at the weights that train, and changes nothing.

    Args:
        images: The same ones each time, uint8 `(b, h, w, 3)` of the model's size.
        every: Epochs between two times; after the last epoch it is always done.
        folder: Where TensorBoard looks.
    """

    def __init__(self, images, every, folder):
        super().__init__()
        self.images, self.every = images, every
        self.writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch, logs=None):
        """Draws, with the epoch's number from 0, as Keras counts the curves beside them."""
        if (epoch + 1) % self.every and epoch + 1 != self.params["epochs"]:
            return
        tokens, name = analysis.layout(self.model), self.model.name
        distances = figures.distances(
            analysis.attention_distances(self.model, self.images),
            analysis.uniform_distance(tokens.grid, tokens.stride), self.images.shape[1:3], name,
        )  # fmt: skip
        maps = 100 * analysis.attention_rollout(self.model, self.images)
        with self.writer.as_default(step=epoch):
            tf.summary.image("attention distance", _pixels(distances))
            for number, (image, values) in enumerate(zip(self.images, maps, strict=True)):
                title = f"attention rollout, image {number + 1}"
                figure = figures.over_image(image, values, title, "% of all tokens", name)
                tf.summary.image(title, _pixels(figure))
        self.writer.flush()


def first_images(source, preprocessing):
    """Returns the first images of the validation split, as the model takes them."""
    examples = source.stored("validation").in_order().take(NUM_IMAGES)
    return np.stack([preprocessing.evaluation_image(e["image_bytes"]).numpy() for e in examples])


def _pixels(figure):
    """Returns a figure as tf.summary takes it, `(1, h, w, 3)`."""
    return tf.io.decode_png(figures.to_png(figure), channels=3)[None]
