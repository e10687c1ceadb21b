import io
import resource

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import chunk, encode, giant, photo, png_with_texts, repeat_last_scan
from PIL import Image, ImageOps

from vitkeras import data
from vitkeras.data import decoding
from vitkeras.data.decoding import MAX_TEXT_CHUNKS
from vitkeras.data.image_headers import read_header


@pytest.fixture
def set_constant(monkeypatch):
    """A function that changes a constant of decoding, and of its graphs."""

    def change(name, value):
        monkeypatch.setattr(decoding, name, value)
        decoding._decoder.cache_clear()

    yield change
    decoding._decoder.cache_clear()


@pytest.mark.parametrize("format, mode", [
    ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"), ("PNG", "LA"),
    ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
])  # fmt: skip
def test_every_mode_becomes_rgb(format, mode):
    image = data.decode_image(encode(photo(30, 44, mode), format)).numpy()
    assert image.shape == (30, 44, 3) and image.dtype == np.uint8
    if mode in ("RGBA", "P", "CMYK"):
        reference = np.asarray(photo(30, 44), int)
        assert np.abs(image - reference).mean() < 25
    if mode in ("L", "LA", "I;16"):
        reference = np.asarray(photo(30, 44).convert("L"), int)
        assert np.abs(image[..., 0] - reference).mean() < 3
        assert (image[..., 0] == image[..., 2]).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_header_that_declares_too_many_pixels_is_rejected_before_memory_is_allocated(format):
    assert int(read_header(encode(photo(30, 44), format)).num_pixels) == 30 * 44
    image_bytes = giant(format)
    assert int(read_header(image_bytes).num_pixels) == 2_500_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    augmentation = data.Augmentation("inception")
    for decode in (
        data.decode_image,
        lambda x: augmentation.image(data.Preprocessing((8, 8)), x, tf.constant([0, 0])),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="at most 100,000,000 pixels"):
            decode(image_bytes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_declared_pixels_of_an_unknown_format_is_zero():
    for content in (b"", b"BM", b"GIF8", b"\x89PNG", b"hello, world, this is no image at all"):
        assert int(read_header(content).num_pixels) == 0


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_whatever_tensorflow_decodes(format):
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a JPEG, PNG or WebP image"):
        data.decode_image(encode(photo(30, 44), format))


def transparent(mode):
    """A PIL image with every alpha from 0 to 255 over saturated colors."""
    rng = np.random.default_rng(0)
    if mode == "LA":
        pixels = rng.integers(0, 256, (16, 16, 2), "uint8")
        pixels[..., 1] = np.arange(256).reshape(16, 16)
        return Image.fromarray(pixels, "LA")
    pixels = rng.integers(0, 256, (16, 16, 4), "uint8")
    pixels[..., 3] = np.arange(256).reshape(16, 16)
    image = Image.fromarray(pixels, "RGBA")
    return image.quantize(64) if mode == "P" else image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 128, 255)])
def test_transparent_pixels_are_composited(mode, background):
    image = transparent(mode)
    preprocessing = data.Preprocessing((16, 16), background=background)
    assert data.Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    out = preprocessing.evaluation_image(encode(image)).numpy().astype(int)
    rgba = np.asarray(image.convert("RGBA"), float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + np.array(background) * (1 - alpha)
    np.testing.assert_allclose(out, expected, atol=0.51)
    assert np.abs(out - rgba[..., :3]).max() > 100
    trained = data.Augmentation("none").image(preprocessing, encode(image), tf.constant([0, 0]))
    np.testing.assert_array_equal(trained, out)
    crop = data.Augmentation("inception").image(preprocessing, encode(image), tf.constant([0, 1]))
    assert crop.shape == (16, 16, 3)


def test_a_transparent_color_of_an_rgb_png_is_composited():
    pixels = np.zeros((8, 8, 3), "uint8")
    pixels[:4] = (10, 20, 30)
    content = encode(Image.fromarray(pixels), transparency=(10, 20, 30))
    out = data.decode_image(content).numpy()
    assert (out[:4] == 255).all() and (out[4:] == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied(orientation, byte_order, kind):
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    image = photo(30, 44, "RGB" if byte_order == ">" else "L")
    content = encode(image, kind, exif=exif)
    assert (b"MM\0*" if byte_order == ">" else b"II*\0") in content
    assert int(read_header(content).orientation) == orientation
    opened = Image.open(io.BytesIO(content))
    expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), int)
    out = data.decode_image(content).numpy()
    assert out.shape == expected.shape and np.abs(out - expected).max() <= 3
    ignored = data.decode_image(content, exif_orientation=False).numpy()
    assert ignored.shape == (30, 44, 3)
    size = expected.shape[:2]
    preprocessing = data.Preprocessing(size)
    np.testing.assert_array_equal(preprocessing.evaluation_image(content), out)
    trained = data.Augmentation("none").image(preprocessing, content, tf.constant([0, 1]))
    np.testing.assert_array_equal(trained, out)
    if byte_order == ">":
        crops = [  # the same box of the upright image
            data.Augmentation("inception").image(preprocessing, each, tf.constant([3, 1])).numpy()
            for each in (content, encode(Image.fromarray(out)))
        ]
        assert crops[0].shape == (*size, 3)
        assert np.abs(crops[0].astype(int) - crops[1]).max() <= 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_files_without_a_valid_orientation_are_left_as_they_are(kind):

    def orientation(content):
        try:
            return read_header(content).orientation
        except tf.errors.InvalidArgumentError:  # the mutated JPEG declares no size
            assert kind == "JPEG"
            return 1

    content = encode(photo(12, 16), kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    oriented = encode(photo(12, 16), kind, exif=exif)
    begin = oriented.index(b"MM\0*")
    assert int(orientation(content)) == 1 and int(orientation(oriented)) == 6
    rng = np.random.default_rng(0)
    for _ in range(300):
        mutated = bytearray(oriented)
        for position in [*rng.integers(2, 40, 2), *rng.integers(begin - 12, begin + 20, 2)]:
            mutated[position] = rng.integers(0, 256)
        assert 1 <= int(orientation(bytes(mutated))) <= 8
    for cut in [*range(40), *range(begin - 20, len(oriented))]:
        assert 1 <= int(orientation(oriented[:cut])) <= 8


def test_a_segment_of_a_jpeg_that_looks_like_pixels_of_a_png():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(photo(12, 16), "JPEG", exif=exif)
    comment = b"\xff\xfe\x00\x06IDAT"
    assert int(read_header(content[:2] + comment + content[2:]).orientation) == 6


def test_the_exif_block_of_a_webp_may_have_the_prefix_of_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(photo(12, 16), "WEBP", exif=exif)
    name = content.index(b"EXIF")
    block = content[name + 8 :]
    prefixed = content[:name] + b"EXIF" + (len(block) + 6).to_bytes(4, "little") + b"Exif\0\0"
    assert int(read_header(prefixed + block).orientation) == 6


def test_transparency_is_found_in_the_header():

    def has_alpha(content):
        return read_header(content).has_alpha

    opaque = [encode(photo(9, 9, mode)) for mode in ("RGB", "L", "P", "1", "I;16")]
    alpha = [encode(transparent(mode)) for mode in ("RGBA", "LA", "P")]
    alpha.append(encode(photo(9, 9), transparency=(1, 2, 3)))
    text = chunk(b"tEXt", b"x")
    many = [content[:33] + text * 300 + content[33:] for content in (opaque[0], alpha[0])]
    found = [bool(has_alpha(content)) for content in [*opaque, *alpha, *many]]
    assert found == [False] * 5 + [True] * 4 + [True] * 2
    for content, same in zip(many, (opaque[0], alpha[0]), strict=True):
        np.testing.assert_array_equal(data.decode_image(content), data.decode_image(same))
    for content in opaque + alpha:
        for cut in range(0, 60):
            has_alpha(content[:cut])


def test_large_images_are_composited_in_blocks(set_constant):
    image = transparent("RGBA")
    expected = data.decode_image(encode(image)).numpy()
    for pixels in (1, 16 * 3, 16 * 5, 16 * 16):
        set_constant("BLOCK_PIXELS", pixels)
        np.testing.assert_array_equal(data.decode_image(encode(image)), expected)


def test_texts_of_a_png_that_inflate_are_bounded():
    expected = data.decode_image(encode(photo(16, 16)))
    few = png_with_texts(photo(16, 16), MAX_TEXT_CHUNKS)
    np.testing.assert_array_equal(data.decode_image(few), expected)
    for kind in (b"zTXt", b"iTXt"):
        many = png_with_texts(photo(16, 16), 100, kind)  # 0.7 MB, which would inflate to 700 MB
        with pytest.raises(tf.errors.InvalidArgumentError, match="at most 8 compressed texts"):
            data.decode_image(many)


def test_scans_of_a_jpeg_are_bounded_by_its_size(set_constant):
    content = encode(photo(32, 32), "JPEG", progressive=True)
    scans = content.count(b"\xff\xda")
    assert scans > 5
    set_constant("MAX_SCANNED_PIXELS", 1000 * 32 * 32)
    for number, allowed in ((scans, True), (1000, True), (1001, False)):
        repeated = repeat_last_scan(content, number - scans)
        assert repeated.count(b"\xff\xda") == number
        if allowed:
            assert data.decode_image(repeated).shape == (32, 32, 3)
            continue
        for decode in (data.decode_image, random_crop):
            with pytest.raises(tf.errors.InvalidArgumentError, match="too many scans"):
                decode(repeated)


def random_crop(content):
    augmentation = data.Augmentation("inception")
    return augmentation.image(data.Preprocessing((16, 16)), content, tf.constant([0, 1]))


EXIF = Image.Exif()
EXIF[0x0112] = 6
WEBP = {"lossy": {"quality": 90}, "lossless": {"lossless": True}, "extended": {"exif": EXIF}}


@pytest.mark.parametrize("name", WEBP)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_webp(name, mode):
    image = photo(30, 44, mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.tile(np.arange(44, dtype=np.uint8) * 5, (30, 1))))
    content = encode(image, "WEBP", **WEBP[name])
    assert int(read_header(content).num_pixels) == 30 * 44
    with Image.open(io.BytesIO(content)) as read:
        rgba = ImageOps.exif_transpose(read).convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    out = data.decode_image(content).numpy().astype(int)
    # Pillow rounds its composite in another way.
    assert np.abs(out - np.asarray(expected, int)).max() <= 1
    for cut in (0, 3, 11, 15, 19, 25, len(content) // 2):
        with pytest.raises(tf.errors.InvalidArgumentError):
            data.decode_image(content[:cut])


@pytest.mark.parametrize("options", [{"quality": 1}, {"lossless": True}])
def test_pixels_of_a_webp_are_bounded(options):
    content = encode(Image.new("RGB", (11_000, 10_000)), "WEBP", method=0, **options)
    assert int(read_header(content).num_pixels) == 110_000_000
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 100,000,000 pixels"):
        data.decode_image(content)


def test_animations_are_refused():
    frames = [photo(8, 8, seed=seed) for seed in (0, 1)]
    content = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a JPEG, PNG or WebP image"):
        data.decode_image(content)
