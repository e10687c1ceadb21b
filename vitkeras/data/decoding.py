"""Decoding of JPEG, PNG and WebP to RGB in TensorFlow, within bounds of memory and time.

The graph loads in every TensorFlow; those before 2.20 refuse WebP files when it is executed.
"""

import functools

import tensorflow as tf

#: Maximum number of pixels of an image: 10,000 x 10,000, 300 MB decoded. A small file may declare
#: any size in its header.
MAX_PIXELS = 10**8
#: Bytes of a JPEG in which the EXIF segment is looked for.
EXIF_BYTES = 2**17
EXIF_NUMBER = int.from_bytes(b"Exif\0\0")
WHITE = (255, 255, 255)
#: Pixels that are composited at a time.
BLOCK_PIXELS = 2**22
#: Flags in the header of a WebP file.
WEBP_ANIMATION, WEBP_ALPHA = 2, 16
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
        exif_orientation: Whether the EXIF orientation of a JPEG is applied.
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

    def jpeg():
        image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
        return orient(image, jpeg_orientation(image_bytes)) if exif_orientation else image

    def opaque():
        return tf.io.decode_image(image_bytes, channels=3, expand_animations=False)

    def transparent():
        image = tf.io.decode_image(image_bytes, channels=4, expand_animations=False)
        return composite(image, background)

    def png_or_webp():
        return tf.cond(has_alpha(image_bytes), transparent, opaque)

    image = tf.cond(tf.io.is_jpeg(image_bytes), jpeg, png_or_webp)
    return tf.ensure_shape(image, (None, None, 3))


def has_alpha(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns whether a PNG or WebP may have transparent pixels, bool.

    Args:
        image_bytes: Scalar string.
    """

    def webp():
        flags, header = tf.unstack(_numbers(image_bytes, 20, (1, 4)))
        lossless = _has(image_bytes, b"VP8L", 12) & (header // 2**28 % 2 == 1)
        return lossless | (_has(image_bytes, b"VP8X", 12) & (flags // WEBP_ALPHA % 2 == 1))

    return tf.cond(is_webp(image_bytes), webp, lambda: png_has_alpha(image_bytes))


def _has(image_bytes, text, position=0):
    """Returns whether a string has a text at a position; shorter strings do not."""
    padded = image_bytes + tf.constant(b"\0" * 32)
    return tf.strings.substr(padded, position, len(text)) == text


def is_webp(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns whether a scalar string starts as a WebP file does, bool."""
    return _has(image_bytes, b"RIFF") & _has(image_bytes, b"WEBP", 8)


def png_has_alpha(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns whether a PNG may have an alpha channel or a transparent color, bool.

    Args:
        image_bytes: Scalar string.
    """
    length = tf.cast(tf.strings.length(image_bytes), tf.int64)
    padded = image_bytes + tf.constant(b"\0" * 32)

    def chunk_name(position):
        return tf.strings.substr(padded, position + 4, 4)

    def comes_before_pixels(position):
        return ~tf.reduce_any(chunk_name(position) == tf.constant([b"tRNS", b"IDAT", b"\0" * 4]))

    def next_chunk(position):
        digits = tf.io.decode_raw(tf.strings.substr(padded, position, 4), tf.uint8)
        powers = 256 ** tf.range(3, -1, -1, dtype=tf.int64)
        size = tf.reduce_sum(tf.cast(digits, tf.int64) * powers)
        return (tf.cast(tf.minimum(tf.cast(position, tf.int64) + 12 + size, length), tf.int32),)

    # A file with more chunks is decoded as if it had alpha, which gives the same pixels.
    (position,) = tf.while_loop(
        comes_before_pixels, next_chunk, (tf.constant(8),), maximum_iterations=200
    )
    color_type = tf.strings.substr(padded, 25, 1)
    is_opaque = (color_type != b"\4") & (color_type != b"\6") & (chunk_name(position) == b"IDAT")
    return ~is_opaque


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


def jpeg_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a JPEG, int32, 1 to 8; 1 if there is none.

    Args:
        image_bytes: Scalar string.
    """
    head = tf.cast(
        tf.io.decode_raw(tf.strings.substr(image_bytes, 0, EXIF_BYTES), tf.uint8), "int64"
    )
    size = tf.size(head, tf.int64)
    head = tf.pad(head, [[0, 16]])

    def number(position, length, little_endian=False):
        """Reads unsigned integers at positions; 0 outside of the file."""
        offsets = tf.range(length, dtype=tf.int64)
        positions = tf.clip_by_value(position[..., None] + offsets, 0, size + 15)
        powers = tf.where(little_endian, offsets, length - 1 - offsets)
        return tf.reduce_sum(tf.gather(head, positions) * 256**powers, -1)

    def is_exif(position):
        return (number(position, 2) == 0xFFE1) & (number(position + 4, 6) == EXIF_NUMBER)

    def is_other_segment(position):
        marker = number(position, 2)
        in_header = (marker >= 0xFFC0) & (marker != 0xFFDA) & (position + 4 < size)
        return in_header & ~is_exif(position)

    def next_segment(position):
        return (position + 2 + tf.maximum(number(position + 2, 2), 2),)

    def read(start):
        little_endian = number(start, 2) == 0x4949
        directory = start + number(start + 4, 4, little_endian)
        count = tf.minimum(number(directory, 2, little_endian), 100)
        entries = directory + 2 + 12 * tf.range(count)
        is_orientation = number(entries, 2, little_endian) == 0x0112
        values = number(entries + 8, 2, little_endian)
        value = tf.reduce_max(tf.where(is_orientation & (entries + 10 <= size), values, 0))
        return tf.where((value >= 1) & (value <= 8), value, 1)

    one = tf.constant(1, tf.int64)
    (position,) = tf.while_loop(
        is_other_segment, next_segment, (tf.constant(2, tf.int64),), maximum_iterations=100
    )
    found = tf.cond(is_exif(position), lambda: read(position + 10), lambda: one)
    return tf.cast(found, tf.int32)


def assert_supported(content: tf.Tensor) -> tf.Tensor:
    """Returns a scalar string; fails when executed unless it starts as a supported image does.

    A PNG file whose first chunk is not IHDR is refused, as is a WebP file with another first chunk
    than those of images: `declared_pixels` would read a wrong size.
    """
    is_png = _has(content, b"\x89PNG\r\n\x1a\n") & _has(content, b"IHDR", 12)
    flags = _numbers(content, 20, (1,))[0]
    is_still = _has(content, b"VP8 ", 12) | _has(content, b"VP8L", 12)
    is_still |= _has(content, b"VP8X", 12) & (flags // WEBP_ANIMATION % 2 == 0)
    valid = _has(content, b"\xff\xd8\xff") | is_png | (is_webp(content) & is_still)
    check = tf.debugging.Assert(valid, ["not a JPEG, PNG or WebP image"])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(content)


def _numbers(image_bytes, begin, lengths):
    """Returns little-endian integers of some lengths that follow each other, int64."""
    padded = image_bytes + tf.constant(b"\0" * 32)
    text = tf.strings.substr(padded, begin, sum(lengths))
    digits = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int64)
    powers = 256 ** tf.concat([tf.range(n, dtype=tf.int64) for n in lengths], 0)
    parts = tf.split(digits * powers, list(lengths))
    return tf.stack([tf.reduce_sum(part) for part in parts])


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


def declared_pixels(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns height times width from the header of an image, int64; 0 for other formats.

    Args:
        image_bytes: Scalar string.
    """

    def png_side(begin):
        # Padded with zeros, so that a short file can be read too.
        text = tf.strings.substr(image_bytes + tf.constant(b"\0" * 32), begin, 4)
        digits = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int64)
        return tf.reduce_sum(digits * 256 ** tf.range(3, -1, -1, dtype=tf.int64))

    def jpeg():
        return tf.cast(tf.io.extract_jpeg_shape(image_bytes), tf.int64)[:2]

    def png():
        return tf.stack([png_side(16), png_side(20)])

    def webp():
        lossless = _numbers(image_bytes, 21, (4,))[0]
        return tf.case(
            [
                (_has(image_bytes, b"VP8 ", 12), lambda: _numbers(image_bytes, 26, (2, 2)) % 2**14),
                (
                    _has(image_bytes, b"VP8L", 12),
                    lambda: tf.stack([lossless, lossless // 2**14]) % 2**14 + 1,
                ),
            ],
            default=lambda: _numbers(image_bytes, 24, (3, 3)) + 1,
        )

    is_png = _has(image_bytes, b"\x89PNG")
    sides = tf.case(
        [(tf.io.is_jpeg(image_bytes), jpeg), (is_png, png), (is_webp(image_bytes), webp)],
        default=lambda: tf.zeros((2,), tf.int64),
        exclusive=False,
    )
    return tf.reduce_prod(sides)
