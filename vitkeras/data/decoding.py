"""Decoding of JPEG, PNG and WebP to RGB in TensorFlow, within bounds of memory and time.

The graph loads in every TensorFlow; those before 2.20 refuse WebP files when it is executed.
"""

import functools

import tensorflow as tf

from vitkeras.data import image_headers
from vitkeras.data.image_headers import declared_pixels, has_alpha

#: Maximum number of pixels of an image: 10,000 x 10,000, 300 MB decoded. A small file may declare
#: any size in its header.
MAX_PIXELS = 10**8
WHITE = (255, 255, 255)
#: Pixels that are composited at a time.
BLOCK_PIXELS = 2**22
#: Maximum of pixels times scans of a JPEG, each of which is a pass over all pixels; progressive
#: files have about ten scans.
MAX_SCANNED_PIXELS = 16 * MAX_PIXELS
#: Maximum number of compressed text chunks of a PNG, of which each takes up to 8 MB.
MAX_TEXT_CHUNKS = 8


def decode_image(
    image_bytes: tf.Tensor,
    num_pixels: tf.Tensor | None = None,
    background: tuple[int, int, int] = WHITE,
    exif_orientation: bool = True,
) -> tf.Tensor:
    """Decodes a JPEG, PNG or WebP of any mode to RGB.

    Grayscale is repeated over the channels, and 16 bits are reduced to 8. Other formats and
    animations are refused: what TensorFlow decodes depends on its version.

    Args:
        image_bytes: Scalar string.
        num_pixels: Result of `declared_pixels` for the image, if the caller has it.
        background: Color under transparent pixels, 0 to 255.
        exif_orientation: Whether the EXIF orientation is applied.
    Returns:
        uint8 `(h, w, 3)`.
    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no such image, or the header declares more
            than `MAX_PIXELS`.
    """
    decoder = _decoder(tuple(background), exif_orientation, num_pixels is not None)
    return decoder(image_bytes) if num_pixels is None else decoder(image_bytes, num_pixels)


@functools.lru_cache
def _decoder(background, exif_orientation, has_num_pixels):
    """Returns the function that decodes; it is traced once for all pipelines of a process."""

    def decode(image_bytes, num_pixels=None):
        return _decode(image_bytes, num_pixels, background, exif_orientation)

    scalars = [tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64)]
    return tf.function(decode, input_signature=scalars[: 1 + has_num_pixels], autograph=False)


def _decode(image_bytes, num_pixels, background, exif_orientation):
    image_bytes = assert_supported(image_bytes)
    num_pixels = declared_pixels(image_bytes) if num_pixels is None else num_pixels
    image_bytes = assert_bounded(image_bytes, num_pixels)

    def opaque():
        return tf.io.decode_image(image_bytes, channels=3, expand_animations=False)

    def transparent():
        image = tf.io.decode_image(image_bytes, channels=4, expand_animations=False)
        return composite(image, background)

    def png_or_webp():
        return tf.cond(has_alpha(image_bytes), transparent, opaque)

    image = tf.cond(tf.io.is_jpeg(image_bytes), opaque, png_or_webp)
    if exif_orientation:
        image = orient(image, image_headers.exif_orientation(image_bytes))
    return tf.ensure_shape(image, (None, None, 3))


def composite(image: tf.Tensor, background: tuple[int, int, int]) -> tf.Tensor:
    """Puts an RGBA image on a background color, rounded to the nearest integer.

    Works on blocks of rows, so that it needs little more memory than the images.

    Args:
        image: uint8 `(h, w, 4)`.
        background: RGB, 0 to 255.
    Returns:
        uint8 `(h, w, 3)`.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    rows = tf.maximum(BLOCK_PIXELS // tf.maximum(width, 1), 1)
    num_blocks = (height + rows - 1) // rows

    def blend(i, blocks):
        block = image[i * rows : (i + 1) * rows]
        opacity = tf.cast(block[..., 3:], tf.uint16)
        # At most 255 * 255 + 127, which uint16 holds.
        total = tf.cast(block[..., :3], tf.uint16) * opacity
        total += tf.constant(background, tf.uint16) * (255 - opacity) + 127
        return i + 1, blocks.write(i, tf.cast(total // 255, tf.uint8))

    blocks = tf.TensorArray(tf.uint8, num_blocks, infer_shape=False, element_shape=(None, None, 3))
    _, blocks = tf.while_loop(
        lambda i, _: i < num_blocks, blend, (0, blocks), parallel_iterations=1
    )
    return blocks.concat()


def orient(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns an image `(h, w, c)` as its EXIF orientation, 1 to 8, shows it."""

    def one_of(*orientations):
        return tf.reduce_any(orientation == tf.constant(orientations))

    def upright():
        out = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
        out = tf.cond(one_of(2, 3, 6, 7), lambda: tf.reverse(out, [1]), lambda: out)
        return tf.cond(one_of(3, 4, 7, 8), lambda: tf.reverse(out, [0]), lambda: out)

    return tf.cond(orientation == 1, lambda: image, upright)


def assert_supported(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns `image_bytes`; fails when executed unless it starts as a supported image does."""
    supported = image_headers.is_supported(image_bytes)
    check = tf.debugging.Assert(supported, ["not a JPEG, PNG or WebP image"])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(image_bytes)


def assert_bounded(image_bytes: tf.Tensor, num_pixels: tf.Tensor) -> tf.Tensor:
    """Returns `image_bytes`; fails when executed if decoding would take much memory or time.

    Args:
        image_bytes: Scalar string, a JPEG or PNG.
        num_pixels: Result of `declared_pixels`, int64.
    """

    def jpeg():
        # Nothing else in a JPEG starts with this marker, except thumbnails in its header.
        scans = tf.cast(count(image_bytes, b"\xff\xda"), tf.int64)
        return [
            tf.debugging.Assert(
                num_pixels * scans <= MAX_SCANNED_PIXELS,
                ["An image has too many scans for its size. Number of scans:", scans],
            )
        ]

    def png():
        chunks = count(image_bytes, b"zTXt") + count(image_bytes, b"iTXt")
        return [
            tf.debugging.Assert(
                chunks <= MAX_TEXT_CHUNKS,
                [f"A PNG must have at most {MAX_TEXT_CHUNKS} compressed texts. It has", chunks],
            )
        ]

    def checked(assertions):
        def branch():
            with tf.control_dependencies([each for each in assertions() if each is not None]):
                return tf.identity(image_bytes)

        return branch

    message = f"An image must have at most {MAX_PIXELS:,} pixels. Its header declares"
    check = tf.debugging.Assert(num_pixels <= MAX_PIXELS, [message, num_pixels])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.cond(tf.io.is_jpeg(image_bytes), checked(jpeg), checked(png))


def count(text: tf.Tensor, pattern: bytes) -> tf.Tensor:
    """Returns how often a pattern occurs in a scalar string, int32."""
    return tf.shape(tf.raw_ops.StringSplitV2(input=[text], sep=pattern).values)[0] - 1
