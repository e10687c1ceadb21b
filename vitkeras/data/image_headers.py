"""What the headers of JPEG, PNG and WebP files say, read in TensorFlow without decoding."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

#: Bytes in which the EXIF segment of a JPEG is looked for, and which are read of an EXIF block.
EXIF_BYTES = 2**17
#: Maximum number of chunks of a file that are visited.
MAX_CHUNKS = 200
#: Flags of a WebP file in the extended format.
WEBP_ANIMATION, WEBP_EXIF, WEBP_ALPHA = 2, 8, 16
#: Bytes of a file that hold its header, and those that hold the name and the size of a chunk.
HEADER_BYTES, CHUNK_BYTES = 32, 10


def _patterns(length, *patterns):
    """Returns bytes `(n, length)`, and which of them a file must have; None is any byte."""
    values = np.zeros((len(patterns), length), np.int64)
    required = np.zeros((len(patterns), length), bool)
    for row, pattern in enumerate(patterns):
        for column, value in enumerate(pattern):
            if value is not None:
                values[row, column], required[row, column] = value, True
    return values, required


def _weights(length, *numbers):
    """Returns the factors of bytes, `(n, length)`, in numbers of (position, bytes, byte order)."""
    weights = np.zeros((len(numbers), length), np.int64)
    for row, (position, size, byte_order) in enumerate(numbers):
        powers = 256 ** np.arange(size)
        weights[row, position : position + size] = powers[:: -1 if byte_order == "big" else 1]
    return weights


#: The formats, in this order in all tables. TensorFlow reads no size of a PNG whose first chunk is
#: not IHDR, nor of a WebP whose first chunk is none of these.
JPEG, PNG, WEBP_LOSSY, WEBP_LOSSLESS, WEBP_EXTENDED, UNKNOWN = range(6)
_ANY = [None] * 4
SIGNATURES = _patterns(
    16,
    b"\xff\xd8\xff",
    [*b"\x89PNG\r\n\x1a\n", *_ANY, *b"IHDR"],
    *([*b"RIFF", *_ANY, *b"WEBP", *name] for name in (b"VP8 ", b"VP8L", b"VP8X")),
)
#: Height and width of a PNG, of a lossy WebP, both in one number of a lossless WebP, height and
#: width of an extended WebP, and its flags.
HEADER_NUMBERS = _weights(
    HEADER_BYTES,
    (20, 4, "big"), (16, 4, "big"), (28, 2, "little"), (26, 2, "little"), (21, 4, "little"),
    (27, 3, "little"), (24, 3, "little"), (20, 1, "little"),
)  # fmt: skip
#: For JPEG, PNG and WebP: the name of an EXIF chunk, position of the first chunk, where the size of
#: a chunk is, bytes that it does not count, whether it is rounded up to an even number, and the
#: position of the data.
CHUNK_NAMES = _patterns(
    CHUNK_BYTES, [0xFF, 0xE1, None, None, *b"Exif\0\0"], [*_ANY, *b"eXIf"], b"EXIF"
)
FIRST_CHUNK = np.array([2, 8, 12])
CHUNK_SIZES = _weights(CHUNK_BYTES, (2, 2, "big"), (0, 4, "big"), (4, 4, "little"))
CHUNK_OVERHEAD = np.array([2, 12, 8])
CHUNKS_ARE_EVEN = np.array([0, 0, 1])
CHUNK_DATA = np.array([4, 8, 8])
#: Other chunks of a PNG: a transparent color, pixels.
PNG_NAMES = _patterns(CHUNK_BYTES, [*_ANY, *b"tRNS"], [*_ANY, *b"IDAT"])


class ImageHeader(NamedTuple):
    """What the header of an image says; scalar tensors.

    Attributes:
        is_jpeg: Whether it is a JPEG, bool.
        is_supported: Whether the file starts as a JPEG, a PNG or a WebP of one frame does, bool.
        num_pixels: Height times width, int64; 0 for other formats.
        has_alpha: Whether a PNG or WebP may have transparent pixels, bool.
        orientation: EXIF orientation, 1 to 8, int32; 1 if there is none. In a PNG it is read
            before the pixels, where the standard puts it.
    """

    is_jpeg: tf.Tensor
    is_supported: tf.Tensor
    num_pixels: tf.Tensor
    has_alpha: tf.Tensor
    orientation: tf.Tensor


HEADER_SPEC = ImageHeader(
    tf.TensorSpec((), tf.bool),
    tf.TensorSpec((), tf.bool),
    tf.TensorSpec((), tf.int64),
    tf.TensorSpec((), tf.bool),
    tf.TensorSpec((), tf.int32),
)


@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
def read_header(image_bytes: tf.Tensor) -> ImageHeader:
    """Reads the header of an image. The bytes, a scalar string, may be any.

    Raises:
        tf.errors.InvalidArgumentError: If a JPEG declares no size.
    """
    # Few operations on tables instead of branches: they are in the graph of every input pipeline,
    # which is optimized whenever an iterator is created.
    header = _bytes(image_bytes, 0, HEADER_BYTES)
    found = _matches(header[:16], SIGNATURES)
    kind = tf.where(tf.reduce_any(found), tf.argmax(found, output_type=tf.int32), UNKNOWN)
    is_jpeg, is_png = kind == JPEG, kind == PNG
    *sides, bits, height, width, flags = tf.unstack(
        tf.reduce_sum(header * tf.constant(HEADER_NUMBERS), 1)
    )
    flags = tf.where(kind == WEBP_EXTENDED, flags, 0)
    jpeg_sides = tf.cond(
        is_jpeg, lambda: tf.io.extract_jpeg_shape(image_bytes)[:2], lambda: tf.zeros(2, tf.int32)
    )
    jpeg_height, jpeg_width = tf.unstack(tf.cast(jpeg_sides, tf.int64))
    all_sides = [
        [jpeg_height, jpeg_width],
        # The standard allows 31 bits; the product of 32 bits overflows.
        [tf.minimum(side, 2**31) for side in sides[:2]],
        [side % 2**14 for side in sides[2:]],
        [bits // 2**14 % 2**14 + 1, bits % 2**14 + 1],
        [height + 1, width + 1],
        [tf.constant(0, tf.int64)] * 2,
    ]
    chunks = _visit_chunks(image_bytes, is_jpeg, is_png, is_jpeg | is_png | _has(flags, WEBP_EXIF))
    png_alpha = (header[25] == 4) | (header[25] == 6) | ~chunks.is_opaque
    webp_alpha = _has(flags, WEBP_ALPHA) | ((kind == WEBP_LOSSLESS) & _has(bits, 2**28))
    return ImageHeader(
        is_jpeg,
        (kind != UNKNOWN) & ~_has(flags, WEBP_ANIMATION),
        tf.reduce_prod(tf.gather(all_sides, kind)),
        (is_png & png_alpha) | webp_alpha,
        _tiff_orientation(tf.strings.substr(image_bytes, chunks.exif, EXIF_BYTES)),
    )


class _Chunks(NamedTuple):
    """Position of the data of the EXIF chunk, or the end; whether no chunk declares transparency.

    A PNG with more than `MAX_CHUNKS` is decoded as if it had alpha, which gives the same pixels.
    """

    exif: tf.Tensor
    is_opaque: tf.Tensor


def _visit_chunks(image_bytes, is_jpeg, is_png, has_chunks):
    """Visits the chunks of a file up to its pixels."""
    index = tf.where(is_jpeg, 0, tf.where(is_png, 1, 2))
    length = tf.cast(tf.strings.length(image_bytes), tf.int64)
    end = tf.where(is_jpeg, tf.minimum(length, EXIF_BYTES), length)
    names, required = (
        tf.concat([tf.gather(exif, [index]), tf.constant(png)], 0)
        for exif, png in zip(CHUNK_NAMES, PNG_NAMES, strict=True)
    )
    sizes = tf.gather(CHUNK_SIZES, index)
    overhead = tf.gather(CHUNK_OVERHEAD, index)
    is_even = tf.gather(CHUNKS_ARE_EVEN, index)

    def visit(position, exif, has_color, is_last):
        chunk = _bytes(image_bytes, position, CHUNK_BYTES)
        is_exif, is_color, is_data = tf.unstack(_matches(chunk, (names, required)))
        # A JPEG has no marker here, or the one of its scan.
        is_scan = (chunk[0] != 0xFF) | (chunk[1] < 0xC0) | (chunk[1] == 0xDA)
        is_last = (is_png & is_data) | (is_jpeg & (is_exif | is_scan))
        size = tf.reduce_sum(chunk * sizes)
        following = tf.minimum(position + overhead + size + size % 2 * is_even, end)
        exif = tf.where(is_exif & (exif == end), position, exif)
        return following, exif, has_color | is_color, is_last

    start = tf.minimum(tf.where(has_chunks, tf.gather(FIRST_CHUNK, index), end), end)
    _, exif, has_color, ends_with_pixels = tf.while_loop(
        lambda position, exif, has_color, is_last: (position < end) & ~is_last,
        visit,
        (start, end, tf.constant(False), tf.constant(False)),
        maximum_iterations=MAX_CHUNKS,
    )
    data = tf.minimum(exif + tf.gather(CHUNK_DATA, index), length)
    data = tf.where(exif < end, data, length)
    # Also WebP files may have the prefix that JPEG files have.
    has_prefix = tf.strings.substr(image_bytes, data, 6) == b"Exif\0\0"
    return _Chunks(tf.where(has_prefix, data + 6, data), ends_with_pixels & ~has_color)


def _tiff_orientation(block):
    """Returns the orientation in the first directory of an EXIF block, int32."""
    digits = tf.cast(tf.io.decode_raw(block, tf.uint8), tf.int64)
    size = tf.size(digits, tf.int64)
    digits = tf.pad(digits, [[0, 16]])
    is_little_endian = digits[0] == 0x49

    def number(positions, length):
        """Reads unsigned integers; 0 outside of the block."""
        offsets = np.arange(length)
        powers = tf.where(is_little_endian, 256**offsets, 256 ** offsets[::-1])
        indices = tf.clip_by_value(positions[..., None] + offsets, 0, size + 15)
        return tf.reduce_sum(tf.gather(digits, indices) * powers, -1)

    directory = number(tf.constant(4, tf.int64), 4)
    entries = directory + 2 + 12 * tf.range(tf.minimum(number(directory, 2), 100))
    is_orientation = (number(entries, 2) == 0x0112) & (entries + 10 <= size)
    value = tf.reduce_max(tf.where(is_orientation, number(entries + 8, 2), 0))
    return tf.cast(tf.where((value >= 1) & (value <= 8), value, 1), tf.int32)


def _bytes(text, position, length):
    """Returns bytes at a position of a string, int64 `(length,)`; 0 behind its end."""
    part = tf.strings.substr(text, position, length)
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=length), tf.int64)


def _matches(digits, patterns):
    """Returns which of the patterns bytes `(length,)` have, bool `(n,)`."""
    values, required = patterns
    return tf.reduce_all((digits == values) | ~tf.convert_to_tensor(required), 1)


def _has(number, flag):
    return number // flag % 2 == 1
