"""What the headers of JPEG, PNG and WebP files say, read in TensorFlow without decoding.

The functions take any bytes as a scalar string; a damaged file gives a valid result too.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

#: Bytes in which the EXIF segment of a JPEG is looked for, and which are read of an EXIF block.
EXIF_BYTES = 2**17
#: Maximum number of chunks of a file that are visited.
MAX_CHUNKS = 200
#: Flags in the header of a WebP file.
WEBP_ANIMATION, WEBP_EXIF, WEBP_ALPHA = 2, 8, 16
#: How the chunks of JPEG, PNG and WebP files are laid out: position of the first one, lengths of
#: the parts of a name at 0 and 4, name of the EXIF chunk, bytes beside those that its size counts,
#: whether sizes are rounded up to even ones, and where the data begins.
CHUNKS = {
    "start": np.array([2, 8, 12]),
    "first_length": np.array([2, 0, 4]),
    "second_length": np.array([6, 4, 0]),
    "exif": [b"\xff\xe1Exif\0\0", b"eXIf", b"EXIF"],
    "overhead": np.array([2, 12, 8]),
    "even": np.array([0, 0, 1]),
    "data": np.array([4, 8, 8]),
}
#: The size of a chunk is the sum of its first eight bytes times these.
SIZE_WEIGHTS = [
    [0, 0, 2**8, 1, 0, 0, 0, 0],
    [2**24, 2**16, 2**8, 1, 0, 0, 0, 0],
    [0, 0, 0, 0, 1, 2**8, 2**16, 2**24],
]
#: Zeros behind a string, so that what lies behind its end can be read.
PADDING = b"\0" * 32


def has_text(image_bytes: tf.Tensor, text: bytes, position: int = 0) -> tf.Tensor:
    """Returns whether a file has a text at a position below 16, bool."""
    start = tf.strings.substr(image_bytes, 0, 32) + PADDING if position else image_bytes
    return tf.strings.substr(start, position, len(text)) == text


def is_webp(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns whether a file starts as a WebP file does, bool."""
    return has_text(image_bytes, b"RIFF") & has_text(image_bytes, b"WEBP", 8)


def is_supported(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns whether a file starts as a JPEG, a PNG or a WebP file with one frame does, bool.

    A PNG file whose first chunk is not IHDR does not, nor does a WebP file with another first
    chunk than those of images: `declared_pixels` would read a wrong size.
    """
    is_png = has_text(image_bytes, b"\x89PNG\r\n\x1a\n") & has_text(image_bytes, b"IHDR", 12)
    is_still = has_text(image_bytes, b"VP8 ", 12) | has_text(image_bytes, b"VP8L", 12)
    is_extended = has_text(image_bytes, b"VP8X", 12)
    is_still |= is_extended & ~_has_webp_flag(image_bytes, WEBP_ANIMATION)
    is_jpeg = has_text(image_bytes, b"\xff\xd8\xff")
    return is_jpeg | is_png | (is_webp(image_bytes) & is_still)


def declared_pixels(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns height times width from the header of an image, int64; 0 for other formats."""
    start = tf.strings.substr(image_bytes, 0, 32) + PADDING

    def jpeg():
        return tf.cast(tf.io.extract_jpeg_shape(image_bytes), tf.int64)[:2]

    def png():
        return _number(start, 16, 4), _number(start, 20, 4)

    def webp():
        def lossy():
            return [_number(start, at, 2, "little") % 2**14 for at in (26, 28)]

        def lossless():
            bits = _number(start, 21, 4, "little")
            return [part % 2**14 + 1 for part in (bits, bits // 2**14)]

        def extended():
            return [_number(start, at, 3, "little") + 1 for at in (24, 27)]

        cases = [(has_text(image_bytes, b"VP8 ", 12), lossy)]
        cases += [(has_text(image_bytes, b"VP8L", 12), lossless)]
        return tf.case(cases, default=extended)

    formats = [
        (tf.io.is_jpeg(image_bytes), jpeg),
        (has_text(image_bytes, b"\x89PNG"), lambda: tf.stack(png())),
        (is_webp(image_bytes), lambda: tf.stack(webp())),
    ]
    return tf.reduce_prod(tf.case(formats, default=lambda: tf.zeros(2, tf.int64)))


def has_alpha(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns whether a PNG or WebP may have transparent pixels, bool."""

    def webp():
        start = tf.strings.substr(image_bytes, 0, 32) + PADDING
        bit = _number(start, 21, 4, "little") // 2**28 % 2 == 1
        lossless = has_text(image_bytes, b"VP8L", 12) & bit
        return lossless | _has_webp_flag(image_bytes, WEBP_ALPHA)

    return tf.cond(is_webp(image_bytes), webp, lambda: png_has_alpha(image_bytes))


def png_has_alpha(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns whether a PNG may have an alpha channel or a transparent color, bool."""
    text = image_bytes + PADDING

    def name(position):
        return tf.strings.substr(text, position + 4, 4)

    def is_last(position):
        return (name(position) == b"tRNS") | (name(position) == b"IDAT")

    def following(position):
        return position + 12 + _number(text, position, 4)

    end = tf.cast(tf.strings.length(image_bytes), tf.int64)
    position = _walk(tf.constant(8, tf.int64), end, is_last, following)
    color_type = tf.strings.substr(text, 25, 1)
    # A file with more chunks is decoded as if it had alpha, which gives the same pixels.
    is_opaque = (color_type != b"\4") & (color_type != b"\6") & (name(position) == b"IDAT")
    return ~is_opaque


def exif_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of an image, int32, 1 to 8; 1 if there is none.

    In a PNG it is read before the pixels, where the standard puts it.
    """
    # One loop for all formats: branches would make the graph of an input pipeline slow to start.
    is_jpeg = has_text(image_bytes, b"\xff\xd8\xff")
    is_png = has_text(image_bytes, b"\x89PNG")
    has_chunks = is_jpeg | is_png | _has_webp_flag(image_bytes, WEBP_EXIF)
    index = tf.where(is_jpeg, 0, tf.where(is_png, 1, 2))
    layout = {name: tf.constant(values)[index] for name, values in CHUNKS.items()}
    size_weights = tf.constant(SIZE_WEIGHTS, tf.int64)[index]
    length = tf.strings.length(image_bytes)
    text = tf.strings.substr(image_bytes, 0, tf.where(is_jpeg, EXIF_BYTES, length)) + PADDING
    end = tf.cast(tf.strings.length(text) - len(PADDING), tf.int64)

    def name(position):
        first = tf.strings.substr(text, position, layout["first_length"])
        return first + tf.strings.substr(text, position + 4, layout["second_length"])

    def is_last(position):
        marker = _number(text, position, 2)
        pixels = is_jpeg & ((marker < 0xFFC0) | (marker == 0xFFDA))
        return pixels | (name(position) == layout["exif"]) | (name(position) == b"IDAT")

    def following(position):
        digits = tf.io.decode_raw(tf.strings.substr(text, position, 8), tf.uint8)
        size = tf.reduce_sum(tf.cast(digits, tf.int64) * size_weights)
        return position + layout["overhead"] + size + size % 2 * layout["even"]

    position = _walk(tf.where(has_chunks, layout["start"], end), end, is_last, following)
    begin = tf.minimum(position + layout["data"], end)
    has_prefix = tf.strings.substr(text, begin, 6) == b"Exif\0\0"
    begin = tf.where(has_prefix, tf.minimum(begin + 6, end), begin)

    def read():
        return _tiff_orientation(tf.strings.substr(image_bytes, begin, EXIF_BYTES))

    return tf.cond((position < end) & (name(position) == layout["exif"]), read, lambda: 1)


def _tiff_orientation(block):
    """Returns the orientation in the first directory of an EXIF block, int32."""
    digits = tf.cast(tf.io.decode_raw(block, tf.uint8), tf.int64)
    size = tf.size(digits, tf.int64)
    digits = tf.pad(digits, [[0, 16]])
    is_little_endian = digits[0] == 0x49

    def number(positions, length):
        """Reads unsigned integers; 0 outside of the block."""
        offsets = tf.range(length, dtype=tf.int64)
        indices = tf.clip_by_value(positions[..., None] + offsets, 0, size + 15)
        powers = tf.where(is_little_endian, offsets, length - 1 - offsets)
        return tf.reduce_sum(tf.gather(digits, indices) * 256**powers, -1)

    directory = number(tf.constant(4, tf.int64), 4)
    entries = directory + 2 + 12 * tf.range(tf.minimum(number(directory, 2), 100))
    is_orientation = (number(entries, 2) == 0x0112) & (entries + 10 <= size)
    value = tf.reduce_max(tf.where(is_orientation, number(entries + 8, 2), 0))
    return tf.cast(tf.where((value >= 1) & (value <= 8), value, 1), tf.int32)


def _walk(
    start: tf.Tensor,
    end: tf.Tensor,
    is_last: Callable[[tf.Tensor], tf.Tensor],
    following: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Returns the position of the last chunk, or the end, int64."""
    (position,) = tf.while_loop(
        lambda position: (position < end) & ~is_last(position),
        lambda position: (tf.minimum(following(position), end),),
        (tf.minimum(start, end),),
        maximum_iterations=MAX_CHUNKS,
    )
    return position


def _has_webp_flag(image_bytes, flag):
    """Returns whether a WebP file in the extended format has a flag, bool."""
    start = tf.strings.substr(image_bytes, 0, 32) + PADDING
    is_extended = is_webp(image_bytes) & has_text(image_bytes, b"VP8X", 12)
    return is_extended & (_number(start, 20, 1) // flag % 2 == 1)


def _number(text, position, length, byte_order="big"):
    """Returns the unsigned integer at a position of a padded string, int64."""
    part = tf.strings.substr(text, position, length)
    digits = tf.cast(tf.io.decode_raw(part, tf.uint8), tf.int64)
    exponents = list(range(length))
    if byte_order == "big":
        exponents.reverse()
    return tf.reduce_sum(digits * tf.constant([256**n for n in exponents], tf.int64))
