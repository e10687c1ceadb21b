"""What the headers of JPEG, PNG and WebP files say, read in TensorFlow without decoding.

The functions take any bytes as a scalar string; a damaged file gives a valid result too.
"""

from collections.abc import Callable

import tensorflow as tf

#: Bytes in which the EXIF segment of a JPEG is looked for, and which are read of an EXIF block.
EXIF_BYTES = 2**17
#: Maximum number of chunks of a file that are visited.
MAX_CHUNKS = 200
#: Flags in the header of a WebP file.
WEBP_ANIMATION, WEBP_EXIF, WEBP_ALPHA = 2, 8, 16
#: Zeros behind a string, so that what lies behind its end can be read.
PADDING = b"\0" * 32


def has_text(image_bytes: tf.Tensor, text: bytes, position: int = 0) -> tf.Tensor:
    """Returns whether a file has a text at a position below 16, bool."""
    start = tf.strings.substr(image_bytes, 0, 32) + PADDING
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
    # A file with more chunks is decoded as if it had alpha, which gives the same pixels.
    _, name = _png_chunk(image_bytes, b"tRNS")
    color_type = tf.strings.substr(image_bytes + PADDING, 25, 1)
    return ~((color_type != b"\4") & (color_type != b"\6") & (name == b"IDAT"))


def exif_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of an image, int32, 1 to 8; 1 if there is none.

    In a PNG it is read before the pixels, where the standard puts it.
    """
    position = tf.case(
        [
            (tf.io.is_jpeg(image_bytes), lambda: _jpeg_exif(image_bytes)),
            (_has_webp_flag(image_bytes, WEBP_EXIF), lambda: _webp_exif(image_bytes)),
            (has_text(image_bytes, b"\x89PNG"), lambda: _png_exif(image_bytes)),
        ],
        default=lambda: tf.constant(0, tf.int64),
    )

    def read():
        length = tf.strings.length(image_bytes)
        position_inside = tf.minimum(position, tf.cast(length, tf.int64))
        return _tiff_orientation(tf.strings.substr(image_bytes, position_inside, EXIF_BYTES))

    return tf.cond(position > 0, read, lambda: 1)


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


def _jpeg_exif(image_bytes):
    """Returns the position of the EXIF block of a JPEG, int64; 0 if there is none."""
    head = tf.strings.substr(image_bytes, 0, EXIF_BYTES)
    text = head + PADDING

    def is_exif(position):
        name = tf.strings.substr(text, position + 4, 6)
        return (_number(text, position, 2) == 0xFFE1) & (name == b"Exif\0\0")

    def is_last(position):
        marker = _number(text, position, 2)
        return is_exif(position) | (marker < 0xFFC0) | (marker == 0xFFDA)

    def following(position):
        return position + 2 + tf.maximum(_number(text, position + 2, 2), 2)

    position = _walk(head, 2, is_last, following)
    return tf.where(is_exif(position), position + 10, 0)


def _png_exif(image_bytes):
    """Returns the position of the EXIF block of a PNG, int64; 0 if there is none."""
    position, name = _png_chunk(image_bytes, b"eXIf")
    return tf.where(name == b"eXIf", position + 8, 0)


def _webp_exif(image_bytes):
    """Returns the position of the EXIF block of a WebP file, int64; 0 if there is none."""
    text = image_bytes + PADDING

    def name(position):
        return tf.strings.substr(text, position, 4)

    def following(position):
        size = _number(text, position + 4, 4, "little")
        return position + 8 + size + size % 2

    position = _walk(image_bytes, 12, lambda position: name(position) == b"EXIF", following)
    prefix = tf.strings.substr(text, position + 8, 6) == b"Exif\0\0"
    start = position + 8 + tf.where(prefix, tf.constant(6, tf.int64), 0)
    return tf.where(name(position) == b"EXIF", start, 0)


def _png_chunk(image_bytes, wanted):
    """Returns position and name of the first chunk of a PNG that is wanted or has pixels.

    Returns:
        int64 and string; the name of another chunk if `MAX_CHUNKS` come before.
    """
    text = image_bytes + PADDING

    def name(position):
        return tf.strings.substr(text, position + 4, 4)

    def is_last(position):
        return (name(position) == wanted) | (name(position) == b"IDAT")

    position = _walk(image_bytes, 8, is_last, lambda at: at + 12 + _number(text, at, 4))
    return position, name(position)


def _walk(
    image_bytes: tf.Tensor,
    start: int,
    is_last: Callable[[tf.Tensor], tf.Tensor],
    following: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Returns the position of the last chunk, or the length of the file, int64."""
    length = tf.cast(tf.strings.length(image_bytes), tf.int64)
    (position,) = tf.while_loop(
        lambda position: (position < length) & ~is_last(position),
        lambda position: (tf.minimum(following(position), length),),
        (tf.minimum(tf.constant(start, tf.int64), length),),
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
