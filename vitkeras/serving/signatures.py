"""What the served graph computes: from image bytes or pixels to names, scores and features."""

import tensorflow as tf

from vitkeras.data.preprocessing import MAX_PIXELS, declared_pixels

#: Images of a request that are decoded at the same moment, none larger than MAX_PIXELS / PARALLEL;
#: larger ones come one by one. So a request holds twice MAX_PIXELS decoded pixels at most, whatever
#: its batch size.
PARALLEL = 8
SMALL = MAX_PIXELS // PARALLEL


def decode_batch(preprocessing, image_bytes):
    """Decodes and resizes each image; one that cannot be decoded harms no other, nor the request.

    Whole JPEG and PNG files of any mode are decoded, by the code that training and evaluation use.
    Nothing else is: other kinds depend on the runtime's version, and a GIF's header does not tell
    how large its frames are.

    Args:
        preprocessing: A `Preprocessing`.
        image_bytes: Strings `(b,)`, b from 0.
    Returns:
        uint8 `(b, h, w, 3)`, zeros where there is no image, and bool `(b,)`, where there is one.
    """
    count = tf.size(image_bytes, tf.int64)
    blank = tf.zeros((*preprocessing.image_size, 3), tf.uint8)

    def decode(content, pixels):
        return preprocessing.evaluation_image(content, pixels)

    def decode_small(place, content):
        content = jpeg_or_png(content)
        pixels = declared_pixels(content)
        return (
            place,
            tf.cond(pixels <= SMALL, lambda: decode(content, pixels), lambda: blank),
            pixels,
        )

    def decode_large(place, image, pixels):
        content = image_bytes[place]
        return place, tf.cond(pixels <= SMALL, lambda: image, lambda: decode(content, pixels))

    # What fails vanishes: numbered, those that are left tell which did. (`enumerate` takes 2 ms.)
    images = (
        tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
        .map(decode_small, num_parallel_calls=PARALLEL, deterministic=False)
        .ignore_errors()
        .map(decode_large)
        .ignore_errors()
        .concatenate(tf.data.Dataset.from_tensors((count, blank)))  # never is there none
        .batch(count + 1)
    )
    places, images = images.get_single_element()  # (v + 1,), (v + 1, h, w, 3)
    last = tf.size(places) - 1  # the blank one, for whom no other is found
    rows = tf.tensor_scatter_nd_update(
        tf.fill([count + 1], last), places[:, None], tf.range(last + 1)
    )[:-1]
    return tf.gather(images, rows), rows < last


def jpeg_or_png(content):
    """Returns the bytes again, once it is sure that they begin as a JPEG or a PNG.

    A PNG whose first chunk is another than IHDR would hide its size from `declared_pixels`.
    """

    def begins(text, at=0):
        return tf.strings.substr(content + tf.constant(b"\0" * 16), at, len(text)) == text

    right = begins(b"\xff\xd8\xff") | (begins(b"\x89PNG\r\n\x1a\n") & begins(b"IHDR", at=12))
    with tf.control_dependencies([tf.debugging.Assert(right, ["no JPEG or PNG"])]):
        return tf.identity(content)


def checked(tensor, spec, rule):
    """Returns the tensor again, once it is sure that it has the rank and channels of its spec."""
    # A server checks no shapes, and TensorFlow takes a spec's for granted: here it is forgotten.
    shape = tf.shape(tf.compat.v1.placeholder_with_default(tensor, None))
    right = tf.size(shape) == len(spec.shape)
    if spec.shape[-1] is not None:
        right &= tf.reduce_all(shape[-1:] == spec.shape[-1])
    text = f"`{spec.name}` must be {rule}. Received a shape of"
    check = tf.debugging.Assert(right, [text, shape], summarize=9)
    with tf.control_dependencies([check]):
        return tf.identity(tensor)


def make_forward(model):
    """Returns a function from uint8 images to a dict of features and probabilities, float32."""
    both = type(model)(model.input, [model.get_layer("head").input, model.output])

    def forward(images):
        features, logits = (tf.cast(x, tf.float32) for x in both(images, training=False))
        return {"features": features, "probabilities": tf.nn.softmax(logits)}

    return forward


def signatures(model, preprocessing, class_names, top, xla):
    """Returns, by name, the functions that are served and the specs of their one input.

    Args:
        model: Gives logits; its layer `head` sees the features.
        preprocessing: The run's `Preprocessing`.
        class_names: Names in the order of the logits.
        top: How many classes an answer names.
        xla: Whether to add the signature `xla`.
    """
    size = (None, *preprocessing.image_size, 3)
    forward, names = make_forward(model), tf.constant(class_names)
    # One function that all signatures call: the graph holds the model once.
    plain = tf.function(forward, input_signature=[tf.TensorSpec(size, tf.uint8)])
    compiled = tf.function(forward, input_signature=plain.input_signature, jit_compile=True)

    def answer(images, valid, model_of):
        kept = valid[:, None]
        probabilities = tf.where(kept, model_of(images)["probabilities"], 0.0)
        scores, best = tf.math.top_k(probabilities, top)
        return {
            "classes": tf.where(kept, tf.gather(names, best), ""),
            "scores": scores,
            "label_ids": tf.where(kept, best, -1),
            "probabilities": probabilities,
            "valid": valid,
        }

    def decoded(image_bytes):
        rule = "strings of shape (images,), each a whole JPEG or PNG file"
        return decode_batch(preprocessing, checked(image_bytes, strings, rule))

    def from_bytes(image_bytes):
        return answer(*decoded(image_bytes), plain)

    def from_bytes_compiled(image_bytes):
        return answer(*decoded(image_bytes), compiled)

    def from_pixels(pixels):
        images = preprocessing.pixels(checked(pixels, integers, rule_of_pixels))
        return answer(images, tf.ones(tf.shape(images)[:1], tf.bool), plain)

    def from_floats(pixels):
        pixels = checked(pixels, floats, rule_of_pixels)
        finite = tf.math.is_finite(pixels)
        images = preprocessing.pixels(tf.where(finite, pixels, 0.0))
        return answer(images, tf.reduce_all(finite, (1, 2, 3)), plain)

    def features(image_bytes):
        images, valid = decoded(image_bytes)
        values = plain(images)["features"]
        return {"features": tf.where(valid[:, None], values, 0.0), "valid": valid}

    rule_of_pixels = "of shape (images, height, width, 3), values 0 to 255"
    strings = tf.TensorSpec((None,), tf.string, name="image_bytes")
    integers, floats = (
        tf.TensorSpec((None, None, None, 3), dtype, name="pixels")
        for dtype in (tf.uint8, tf.float32)
    )
    served = {
        "serving_default": (from_bytes, strings),
        "pixels": (from_pixels, integers),
        "pixels_float": (from_floats, floats),
        "features": (features, strings),
    }
    return served | ({"xla": (from_bytes_compiled, strings)} if xla else {})
