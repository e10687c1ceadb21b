"""Image files for exports, valid and invalid, and what a correct answer to each is."""

import io
import struct
import zlib

import numpy as np

from helpers.images import chunk, giant, photo
from vitkeras import data

CLASS_NAMES = [f"class {i}" for i in range(7)]
SIZE = (32, 48)
PREPROCESSING = data.Preprocessing(SIZE)


def encode(kind="JPEG", mode="RGB", height=60, width=50, seed=0, **options):
    buffer = io.BytesIO()
    photo(height, width, mode, seed).save(buffer, kind, **options)
    return buffer.getvalue()


def black_png(side, first=b""):
    """A black grayscale PNG file, with the chunk `first` before its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((side + 1) * side), 9))
    return b"\x89PNG\r\n\x1a\n" + first + header + pixels + chunk(b"IEND", b"")


def _giant_png_with_late_header():
    """A PNG file of which the bytes at the usual position of the size declare 1x1 pixels."""
    return black_png(10_500, chunk(b"prVt", struct.pack(">II", 1, 1)))


def _gif_with_giant_frame():
    content = bytearray(encode("GIF", "P"))
    content[6:10] = struct.pack("<HH", 10, 10)
    frame = content.index(b"\x2c", 13 + 3 * 256)
    content[frame + 5 : frame + 9] = struct.pack("<HH", 50_000, 50_000)
    return bytes(content)


JPEG, PNG = encode(), encode("PNG", height=20, width=90, seed=3)
PNG_PIXELS = np.asarray(photo(20, 90, seed=3))  # (20, 90, 3)
GOOD = {
    "JPEG": JPEG, "PNG": PNG, "CMYK": encode(mode="CMYK"), "gray JPEG": encode(mode="L"),
    "progressive JPEG": encode(seed=5, progressive=True), "RGBA PNG": encode("PNG", "RGBA"),
    "16 bit PNG": encode("PNG", "I;16"), "palette PNG": encode("PNG", "P"),
    "PNG of the model's size": encode("PNG", height=SIZE[0], width=SIZE[1]),
}  # fmt: skip
#: Valid where TensorFlow is 2.20 or later.
WEBP = encode("WEBP")
BAD = {
    "empty": b"", "one byte": b"\xff", "garbage": b"this is not an image, not at all" * 9,
    "garbage after a JPEG signature": JPEG[:3] + b"garbage" * 20,
    "garbage after a PNG signature": PNG[:8] + b"garbage" * 20,
    "JPEG truncated in the header": JPEG[:40], "truncated JPEG": JPEG[: len(JPEG) // 2],
    "PNG truncated in the header": PNG[:20], "truncated PNG": PNG[: len(PNG) // 2],
    "BMP": encode("BMP"), "GIF": encode("GIF", "P"),
    "animated WebP": encode("WEBP", save_all=True, append_images=[photo(60, 50, seed=1)]),
    "TIFF": encode("TIFF"), "PPM": encode("PPM"),
    "giant JPEG": giant("JPEG"), "giant PNG": giant("PNG"),
    "GIF with a giant frame": _gif_with_giant_frame(),
    "giant PNG with a late header": _giant_png_with_late_header(),
}  # fmt: skip


def check_good(answer, index, expected):
    """Checks the answer to a valid image, given its probabilities."""
    assert answer["valid"][index]
    probabilities = answer["probabilities"][index]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    best = np.argsort(-probabilities)[:5]
    assert answer["label_ids"][index].tolist() == best.tolist()
    assert answer["classes"][index].tolist() == [CLASS_NAMES[i] for i in best]
    np.testing.assert_array_equal(answer["scores"][index], probabilities[best])


def check_bad(answer, index):
    """Checks the answer to an invalid image."""
    assert not answer["valid"][index]
    assert not answer["probabilities"][index].any() and not answer["scores"][index].any()
    assert (answer["label_ids"][index] == -1).all() and (answer["classes"][index] == "").all()
