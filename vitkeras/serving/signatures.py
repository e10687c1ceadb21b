"""The signatures of an export: from image files or pixels to class names, scores and features."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from vitkeras.arguments import check_choice
from vitkeras.data.decoding import MAX_PIXELS
from vitkeras.data.image_headers import read_header
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.models.features import features as make_features

#: Images of a request that are decoded in parallel.
NUM_PARALLEL = 8
#: Pixels of the largest image that is decoded in parallel; larger ones are decoded one at a time.
#: A request thus holds at most 2 * MAX_PIXELS decoded pixels, whatever its batch size.
MAX_PARALLEL_PIXELS = MAX_PIXELS // NUM_PARALLEL


def decode_batch(
    preprocessing: Preprocessing, image_bytes: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes and resizes images. An invalid image affects neither the others nor the request.

    Complete JPEG, PNG and WebP files of any mode are decoded, with the code of training and
    evaluation.

    Args:
        preprocessing: Preprocessing of the run.
        image_bytes: String `(b,)`; b may be 0.
    Returns:
        Images, uint8 `(b, h, w, 3)`, zeros for an invalid image; and whether each is valid, bool
        `(b,)`.
    """
    batch_size = tf.size(image_bytes, tf.int64)
    blank = tf.zeros((*preprocessing.image_size, 3), tf.uint8)

    def decode_small(index, content):
        header = read_header(content)
        image = tf.cond(
            header.num_pixels <= MAX_PARALLEL_PIXELS,
            lambda: preprocessing.evaluation_image(content, header),
            lambda: blank,
        )
        return index, image, header

    def decode_large(index, image, header):
        return index, tf.cond(
            header.num_pixels <= MAX_PARALLEL_PIXELS,
            lambda: image,
            lambda: preprocessing.evaluation_image(image_bytes[index], header),
        )

    # `ignore_errors` drops invalid images; the indices show which are left. `Dataset.enumerate`
    # would take 2 ms. The blank image at the end keeps the batch from being empty.
    dataset = (
        tf.data.Dataset.from_tensor_slices((tf.range(batch_size), image_bytes))
        .map(decode_small, num_parallel_calls=NUM_PARALLEL, deterministic=False)
        .ignore_errors()
        .map(decode_large)
        .ignore_errors()
        .concatenate(tf.data.Dataset.from_tensors((batch_size, blank)))
        .batch(batch_size + 1)
    )
    indices, images = dataset.get_single_element()  # (v + 1,), (v + 1, h, w, 3) for v valid images
    last = tf.size(indices) - 1  # the blank image
    rows = tf.tensor_scatter_nd_update(
        tf.fill([batch_size + 1], last), indices[:, None], tf.range(last + 1)
    )[:-1]
    return tf.gather(images, rows), rows < last


def assert_shape(tensor: tf.Tensor, spec: tf.TensorSpec, rule: str) -> tf.Tensor:
    """Returns a tensor; fails when executed unless it has the rank and channels of its spec."""
    # Servers do not check shapes, and TensorFlow would infer the static shape of the spec here.
    shape = tf.shape(tf.compat.v1.placeholder_with_default(tensor, None))
    valid = tf.size(shape) == len(spec.shape)
    if spec.shape[-1] is not None:
        valid &= tf.reduce_all(shape[-1:] == spec.shape[-1])
    message = f"`{spec.name}` must be {rule}. Received shape:"
    check = tf.debugging.Assert(valid, [message, shape], summarize=9)
    with tf.control_dependencies([check]):
        return tf.identity(tensor)


def make_forward(
    model: keras.Model, activation: str = "softmax"
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns a function from images, uint8 `(b, h, w, 3)`, to features and probabilities, float32.

    The features are the input of the layer `head`.

    Args:
        model: A model with a layer `head` that returns logits.
        activation: From logits to probabilities: "softmax" or "sigmoid".
    """
    check_choice("activation", activation, ("softmax", "sigmoid"))
    extended = type(model)(model.input, [model.get_layer("head").input, model.output])

    def forward(images):
        features, logits = (tf.cast(x, tf.float32) for x in extended(images, training=False))
        return {"features": features, "probabilities": getattr(tf.nn, activation)(logits)}

    return forward


def make_signatures(
    model: keras.Model,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    top: int,
    xla: bool,
    feature_layers: Sequence[int] = (),
    activation: str = "softmax",
) -> dict[str, tuple[Callable[[tf.Tensor], dict[str, tf.Tensor]], tf.TensorSpec]]:
    """Returns the function of each signature and the spec of its input, by name.

    Args:
        model: A model with a layer `head` that returns logits.
        preprocessing: Preprocessing of the run.
        class_names: Class names in the order of the logits.
        top: Number of classes in an answer.
        xla: Whether to add the signature `xla`.
        feature_layers: Blocks whose maps the signature `feature_maps` returns; none for no such
            signature.
        activation: See `make_forward`.
    """
    names, forward = tf.constant(class_names), make_forward(model, activation)
    images_spec = tf.TensorSpec((None, *preprocessing.image_size, 3), tf.uint8)
    # One function for all signatures: the graph holds the model once.
    plain = tf.function(forward, input_signature=[images_spec])
    compiled = tf.function(forward, input_signature=[images_spec], jit_compile=True)

    bytes_spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
    uint8_spec, float_spec = (
        tf.TensorSpec((None, None, None, 3), dtype, name="pixels")
        for dtype in (tf.uint8, tf.float32)
    )
    bytes_rule = "strings of shape (b,), each a complete JPEG, PNG or WebP file"
    pixels_rule = "of shape (b, h, w, 3), values 0 to 255"

    def decode(image_bytes):
        return decode_batch(preprocessing, assert_shape(image_bytes, bytes_spec, bytes_rule))

    def classify(images, valid, forward):
        mask = valid[:, None]
        probabilities = tf.where(mask, forward(images)["probabilities"], 0.0)
        scores, label_ids = tf.math.top_k(probabilities, top)
        return {
            "classes": tf.where(mask, tf.gather(names, label_ids), ""),
            "scores": scores,
            "label_ids": tf.where(mask, label_ids, -1),
            "probabilities": probabilities,
            "valid": valid,
        }

    def from_bytes(image_bytes):
        return classify(*decode(image_bytes), plain)

    def from_bytes_with_xla(image_bytes):
        return classify(*decode(image_bytes), compiled)

    def from_pixels(pixels):
        images = preprocessing.resize(assert_shape(pixels, uint8_spec, pixels_rule))
        return classify(images, tf.ones(tf.shape(images)[:1], tf.bool), plain)

    def from_float_pixels(pixels):
        pixels = assert_shape(pixels, float_spec, pixels_rule)
        finite = tf.math.is_finite(pixels)
        images = preprocessing.resize(tf.where(finite, pixels, 0.0))
        return classify(images, tf.reduce_all(finite, (1, 2, 3)), plain)

    def features(image_bytes):
        images, valid = decode(image_bytes)
        return {
            "features": tf.where(valid[:, None], plain(images)["features"], 0.0),
            "valid": valid,
        }

    signatures = {
        "serving_default": (from_bytes, bytes_spec),
        "pixels": (from_pixels, uint8_spec),
        "pixels_float": (from_float_pixels, float_spec),
        "features": (features, bytes_spec),
    }
    if xla:
        signatures["xla"] = (from_bytes_with_xla, bytes_spec)
    if feature_layers:
        maps = make_features(model, feature_layers)

        def feature_maps(image_bytes):
            images, valid = decode(image_bytes)
            masked = {
                name: tf.where(tf.reshape(valid, [-1] + [1] * (len(value.shape) - 1)), value, 0.0)
                for name, value in maps(images, training=False).items()
            }
            return masked | {"valid": valid}

        signatures["feature_maps"] = (feature_maps, bytes_spec)
    return signatures
