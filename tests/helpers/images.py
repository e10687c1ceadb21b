"""Image files made on the fly: photographs, unusual files and headers that declare huge images."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def photo(height, width, mode="RGB", seed=0):
    """Returns a smooth PIL image in one of PIL's modes, with colors that depend on the seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def encode(image, format="PNG", **options):
    """Returns a PIL image as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_photos(root, files, size=(8, 8)):
    """Writes a small photo to each of the relative paths and returns `root`."""
    for i, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        photo(*size, seed=i).save(root / file)
    return root


def giant(format):
    """Returns a small file whose header declares 50,000 x 50,000 pixels."""
    content = bytearray(encode(photo(20, 30), format))
    if format == "PNG":
        content[16:24] = struct.pack(">II", 50_000, 50_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        frame = content.index(b"\xff\xc0")
        content[frame + 5 : frame + 9] = struct.pack(">HH", 50_000, 50_000)
    return bytes(content)


def odd_files(png):
    """Returns unusual files by name; names of files that cannot be decoded start with "bad".

    `png` is the content of a PNG file.
    """
    frames = [photo(30, 40, seed=i) for i in range(3)]
    return {
        "bad_animated.png": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": encode(photo(30, 40, "CMYK"), "JPEG"),
        "deep.png": encode(photo(30, 40, "I;16")),
        "png.jpg": png,
        "bad_cut.png": png[: len(png) // 2],
        "bad_empty.jpg": b"",
        "bad_text.png": b"hello",
        "bad_giant.png": giant("PNG"),
        "bad_giant.jpg": giant("JPEG"),
    }


def chunk(name, content):
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(
        ">I", zlib.crc32(name + content)
    )  # fmt: skip


def png_with_texts(image, count, kind=b"zTXt"):
    """Returns a PNG with compressed texts of 7 MB before the pixels."""
    text = zlib.compress(b"a" * 7_000_000)
    content = b"k\0\0" + text if kind == b"zTXt" else b"k\0\1\0\0\0" + text
    png = encode(image)
    return png[:33] + chunk(kind, content) * count + png[33:]


def repeat_last_scan(jpeg, count):
    """Returns a progressive JPEG that has its last scan more often."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * count + jpeg[-2:]
