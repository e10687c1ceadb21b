"""Decoding of JPEG, PNG and WebP to RGB in TensorFlow, within bounds of memory and time.

The graph loads in every TensorFlow; those before 2.20 refuse WebP files when it is executed.
"""

import functools

import tensorflow as tf

from vitkeras.data.image_headers import HEADER_SPEC, ImageHeader, read_header

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
#: For each EXIF orientation, whether the transposed or untransposed image is flipped vertically,
#: and horizontally.
FLIPS = [[o in (3, 4, 7, 8), o in (2, 3, 6, 7)] for o in range(9)]


def decode_image(
    image_bytes: tf.Tensor,
    header: ImageHeader | None = None,
    background: tuple[int, int, int] = WHITE,
    exif_orientation: bool = True,
) -> tf.Tensor:
    """Decodes a JPEG, PNG or WebP of any mode to RGB.

    Grayscale is repeated over the channels, and 16 bits are reduced to 8. Other formats and
    animations are refused: what TensorFlow decodes depends on its version.

    Args:
        image_bytes: Scalar string.
        header: Result of `read_header` for the image, if the caller has it.
        background: Color under transparent pixels, 0 to 255.
        exif_orientation: Whether the EXIF orientation is applied.
    Returns:
        uint8 `(h, w, 3)`.
    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no such image, or the header declares more
            than `MAX_PIXELS`.
    """
    header = read_header(image_bytes) if header is None else header
    return _decoder(tuple(background), exif_orientation)(image_bytes, header)


@functools.lru_cache
def _decoder(background, exif_orientation):
    """Returns the function that decodes; it is traced once for all pipelines of a process."""

    def decode(image_bytes, header):
        return _decode(image_bytes, header, background, exif_orientation)

    signature = [tf.TensorSpec((), tf.string), HEADER_SPEC]
    return tf.function(decode, input_signature=signature, autograph=False)


def _decode(image_bytes, header, background, exif_orientation):
    image_bytes = assert_decodable(image_bytes, header)

    def opaque():
        return tf.io.decode_image(image_bytes, channels=3, expand_animations=False)

    def transparent():
        image = tf.io.decode_image(image_bytes, channels=4, expand_animations=False)
        return composite(image, background)

    image = tf.cond(header.has_alpha, transparent, opaque)
    if exif_orientation:
        image = orient(image, header.orientation)
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

    def upright():
        is_transposed = orientation >= 5
        is_flipped = tf.gather(FLIPS, orientation)  # vertically, horizontally
        axes = tf.where(is_transposed, [1, 0, 2], [0, 1, 2])
        return tf.reverse(tf.transpose(image, axes), tf.where(is_flipped)[:, 0])

    return tf.cond(orientation == 1, lambda: image, upright)


def assert_decodable(image_bytes: tf.Tensor, header: ImageHeader) -> tf.Tensor:
    """Returns `image_bytes`; fails when executed if the format is not supported, or if decoding
    would take much memory or time."""

    # Nothing else in a JPEG starts with this marker, except thumbnails in its header.
    def scans():
        return count(image_bytes, b"\xff\xda")

    def texts():
        return count(image_bytes, b"zTXt") + count(image_bytes, b"iTXt")

    num_parts = tf.cond(header.is_jpeg, scans, texts)
    # Unlike `tf.debugging.Assert`, the operation adds no branch to the graph.
    check = tf.raw_ops.Assert
    pixels = f"An image must have at most {MAX_PIXELS:,} pixels. Its header declares"
    scans_message = "An image has too many scans for its size. Number of scans:"
    texts_message = f"A PNG must have at most {MAX_TEXT_CHUNKS} compressed texts. It has"
    scanned = header.num_pixels * num_parts
    checks = [
        check(condition=header.is_supported, data=["not a JPEG, PNG or WebP image"]),
        check(condition=header.num_pixels <= MAX_PIXELS, data=[pixels, header.num_pixels]),
        check(
            condition=~header.is_jpeg | (scanned <= MAX_SCANNED_PIXELS),
            data=[scans_message, num_parts],
        ),
        check(
            condition=header.is_jpeg | (num_parts <= MAX_TEXT_CHUNKS),
            data=[texts_message, num_parts],
        ),
    ]
    with tf.control_dependencies([each for each in checks if each is not None]):
        return tf.identity(image_bytes)


def count(text: tf.Tensor, pattern: bytes) -> tf.Tensor:
    """Returns how often a pattern occurs in a scalar string, int64."""
    parts = tf.raw_ops.StringSplitV2(input=[text], sep=pattern).values
    return tf.size(parts, tf.int64) - 1
