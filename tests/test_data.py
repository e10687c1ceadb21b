import itertools
import resource

import numpy as np
import pytest
import tensorflow as tf
from conftest import giant, odd_files, photo
from PIL import Image

from vitkeras import data
from vitkeras.data.hosts import Share
from vitkeras.data.preprocessing import declared_pixels
from vitkeras.data.splits import few_shots
from vitkeras.data.stored import Records
from vitkeras.errors import InputError


def encoded(tmp_path, mode="RGB", kind="PNG", height=30, width=44, seed=0):
    photo(height, width, mode, seed).save(tmp_path / "x", kind)
    return (tmp_path / "x").read_bytes()


def bilinear(image, height, width):
    """Half-pixel bilinear resize without antialias, in float64."""
    for axis, new in ((0, height), (1, width)):
        old = image.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


def test_evaluation_image_is_a_straight_bilinear_resize(tmp_path):
    expected = bilinear(np.asarray(photo(30, 44), np.float64), 16, 24)
    preprocessing = data.Preprocessing((16, 24))
    image_bytes = encoded(tmp_path)
    image = preprocessing.evaluation_image(image_bytes)
    assert image.dtype == tf.uint8
    np.testing.assert_allclose(image, expected, atol=0.501)
    mapped = tf.data.Dataset.from_tensors(image_bytes).map(preprocessing.evaluation_image)
    assert mapped.element_spec.shape == (16, 24, 3)
    np.testing.assert_array_equal(next(iter(mapped)), image)
    pixels = preprocessing.pixels(data.decode_image(image_bytes)[None])  # as served
    np.testing.assert_array_equal(pixels[0], image)


def test_antialias_is_recorded_and_smooths(tmp_path):
    image_bytes = encoded(tmp_path, height=160, width=240)
    plain, smooth = (data.Preprocessing((16, 24), antialias) for antialias in (False, True))
    assert smooth == data.Preprocessing.from_json(smooth.to_json()) != plain
    reference = photo(160, 240).resize((24, 16), Image.Resampling.BILINEAR)
    out = smooth.evaluation_image(image_bytes).numpy().astype(int)
    assert np.abs(out - np.asarray(reference)).max() <= 1
    assert np.abs(out - plain.evaluation_image(image_bytes).numpy()).max() > 1


@pytest.mark.parametrize("kind, mode", [
    ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"), ("PNG", "LA"),
    ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("BMP", "RGB"), ("GIF", "P"),
])  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path, kind, mode):
    image = data.decode_image(encoded(tmp_path, mode, kind)).numpy()
    assert image.shape == (30, 44, 3) and image.dtype == np.uint8
    if mode in ("RGBA", "P", "CMYK") or kind == "BMP":
        reference = np.asarray(photo(30, 44), int)
        assert np.abs(image - reference).mean() < 25
    if mode in ("L", "LA", "I;16"):
        reference = np.asarray(photo(30, 44).convert("L"), int)
        assert np.abs(image[..., 0] - reference).mean() < 3
        assert (image[..., 0] == image[..., 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_header_that_declares_too_much_is_refused_before_it_takes_memory(tmp_path, kind):
    assert int(declared_pixels(encoded(tmp_path, kind=kind))) == 30 * 44
    image_bytes = giant(kind)
    assert int(declared_pixels(image_bytes)) == 2_500_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    augmentation = data.Augmentation("inception")
    for use in (
        data.decode_image,
        lambda x: augmentation.image(data.Preprocessing((8, 8)), x, tf.constant([0, 0])),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="at most 100,000,000 pixels"):
            use(image_bytes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_no_image_declares_nothing():
    for content in (b"", b"BM", b"GIF8", b"\x89PNG", b"hello, world, this is no image at all"):
        assert int(declared_pixels(content)) == 0


def test_odd_files_of_a_folder_are_decoded_or_named(tmp_path):
    root = tmp_path / "photos"
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            photo(30, 40, seed=i).save(root / name / f"{i}.png")
    whole = (root / "ant" / "0.png").read_bytes()
    odd = odd_files(whole)
    for name, content in odd.items():
        (root / "bee" / name).write_bytes(content)
    source = data.FolderSource(root)
    for split in ("train", "validation", "test"):
        source.check(split)
    reasons = dict(source.bad_images)
    assert set(reasons) == {f"bee/{name}" for name in odd if name.startswith("bad")}
    assert reasons["bee/bad_empty.jpg"] == "the file is empty"
    assert "at most 100,000,000 pixels" in reasons["bee/bad_giant.png"]
    assert sum(source.num_examples(split) for split in ("train", "validation", "test")) == 14


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("crop", data.CROPS)
@pytest.mark.parametrize(
    "more", [{}, {"color_jitter": 0.4, "randaug_layers": 2, "erasing_rate": 1}]
)
def test_augmentation_is_a_function_of_its_seed(tmp_path, kind, crop, more):
    preprocessing, augmentation = data.Preprocessing((16, 24)), data.Augmentation(crop, **more)
    image_bytes = encoded(tmp_path, kind=kind)

    def augment(seed):
        return augmentation.image(preprocessing, image_bytes, tf.stack([seed, 7]))

    images = [augment(seed).numpy() for seed in range(6)]
    assert all(image.shape == (16, 24, 3) and image.dtype == np.uint8 for image in images)
    different = {image.tobytes() for image in images}
    assert len(different) == (1 if crop == "none" and not more else 6)
    mapped = tf.data.Dataset.range(6).map(lambda s: augment(tf.cast(s, tf.int32)))
    for image, again in zip(images, mapped, strict=True):
        np.testing.assert_array_equal(again, image)


def test_the_jpeg_crop_is_a_part_of_the_image(tmp_path):
    # A picture whose value tells the place: a crop spans between 5 and 100 % of the area.
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.mgrid[:64, :64] * 4
    for encode in (tf.io.encode_png, lambda x: tf.io.encode_jpeg(x, quality=100)):
        image_bytes = encode(ramp).numpy()
        areas, flipped = [], 0
        for seed in range(60):
            image = data.Augmentation("inception_flip").image(
                data.Preprocessing((32, 32)), image_bytes, tf.constant([seed, 0])
            )
            y, x = (np.asarray(image[..., c], float) / 4 for c in (0, 1))
            flipped += x[:, 0].mean() > x[:, -1].mean()
            areas.append((np.ptp(y) + 1) * (np.ptp(x) + 1) / 64**2)
        assert 0.03 < min(areas) < 0.25 and 0.7 < max(areas) < 1.05
        assert 15 < flipped < 45


def test_affine_turns_shears_scales_and_shifts_within_its_bounds():
    # Red and green tell the place in the input, blue whether a pixel lies wholly inside it.
    side = 64
    image = np.full((side, side, 3), 255, np.uint8)
    image[..., 1], image[..., 0] = np.mgrid[:side, :side] * 4
    image_bytes = tf.io.encode_png(image).numpy()
    centre = (side - 1) / 2
    maps = []
    for seed in range(80):
        moved = data.Augmentation("affine").image(
            data.Preprocessing((side, side)), image_bytes, tf.constant([seed, 0])
        )
        moved = np.asarray(moved, float)
        y, x = np.nonzero(moved[..., 2] > 254.999)
        known = np.stack([x - centre, y - centre, np.ones(len(x))], 1)
        found = moved[y, x, :2] / 4 - centre
        linear, *_ = np.linalg.lstsq(known, found, rcond=None)
        np.testing.assert_allclose(
            known @ linear, found, atol=0.25
        )  # values are rounded, 4 for a pixel
        maps.append(linear.T)
    low, high = np.min(maps, 0), np.max(maps, 0)  # rows x, y; columns x, y, shift
    bounds = np.array([[1.15, 0.48, side / 8], [0.30, 1.15, side / 8]])
    assert (np.abs(maps) <= bounds + 0.02).all()
    assert (high[[0, 1], [0, 1]] > 1.05).all() and (low[[0, 1], [0, 1]] > 0.81).all()
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 2)):
        assert low[i, j] < -0.5 * bounds[i, j] and high[i, j] > 0.5 * bounds[i, j]


def test_preprocessing_record_goes_round_and_is_checked():
    preprocessing = data.Preprocessing((16, 24))
    assert data.Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    with pytest.raises(InputError, match="preprocessing record must hold.*bicubic"):
        data.Preprocessing.from_json(preprocessing.to_json() | {"resize": "bicubic"})
    with pytest.raises(InputError, match="preprocessing record must hold image_size"):
        data.Preprocessing.from_json(
            {k: v for k, v in preprocessing.to_json().items() if k != "image_size"}
        )


def test_unknown_augmentation():
    with pytest.raises(InputError, match="`augmentation` must be one of.*'cutout'"):
        data.Augmentation("cutout")
    for field, value in (("mixup_alpha", -1), ("color_jitter", 2), ("randaug_magnitude", 31)):
        with pytest.raises(InputError, match=f"`{field}` must be .*{field}={value}"):
            data.Augmentation(**{field: value})


def test_stratified_split_is_stratified_whole_and_steady():
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    names = [f"file{i}" for i in range(84)]
    fractions = {"train": 0.8, "validation": 0.1, "test": 0.1}
    parts = data.stratified_split(names, labels, fractions)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(84))
    assert np.bincount(labels[parts["test"]]).tolist() == [5, 3, 1]
    assert np.bincount(labels[parts["validation"]]).tolist() == [5, 3, 1]
    other = data.stratified_split(names, labels, fractions, seed=1)
    assert other["test"].tolist() != parts["test"].tolist()
    more = data.stratified_split([*names, "new"], [*labels, 0], fractions)
    assert len(set(more["test"]) ^ set(parts["test"])) <= 2


def test_digits_are_all_there_once(data_dir):
    source = data.open_source("digits", data_dir)
    sizes = {split: source.num_examples(split) for split in ("train", "validation", "test")}
    assert sizes == {"train": 1439, "validation": 179, "test": 179}
    from sklearn.datasets import load_digits

    bunch = load_digits()
    seen = []
    for split in sizes:
        labels = []
        for example in source.stored(split).in_order().as_numpy_iterator():
            image = tf.io.decode_png(example["image_bytes"]).numpy()[..., 0]
            seen.append((example["label"], np.round(image / 255.0 * 16).astype(int).tobytes()))
            labels.append(example["label"])
        assert np.ptp(np.bincount(labels) / len(labels)) < 0.02
    expected = zip(bunch.target, bunch.images.astype(int), strict=True)
    assert sorted(seen) == sorted((label, image.tobytes()) for label, image in expected)
    assert source.class_names == [str(i) for i in range(10)]


@pytest.fixture(params=["digits", "photos"])
def source(request, data_dir, photos):
    name = "digits" if request.param == "digits" else f"folder:{photos}"
    return data.open_source(name, data_dir)


def test_batches_depend_on_seed_and_epoch_alone(source):
    preprocessing = data.Preprocessing((8, 8))

    def batches(seed, first_epoch=0, epochs=2):
        tf.random.set_seed(int(np.random.randint(1000)))  # must not matter
        stream = data.training_batches(
            source,
            preprocessing,
            8,
            epochs,
            seed,
            data.Augmentation("inception_flip"),
            first_epoch,
        )
        assert stream.element_spec[0].shape == (8, 8, 8, 3)
        return [(images.numpy(), labels.numpy()) for images, labels in stream]

    steps = data.steps_per_epoch(source, 8)
    whole, later, other = batches(0), batches(0, 1), batches(1, epochs=1)
    assert len(whole) == 2 * steps == 2 * len(later) == 2 * len(other)
    for (images, labels), (again, same) in zip(whole[steps:], later, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, same)
    assert not np.array_equal(whole[0][0], whole[steps][0])
    assert not np.array_equal(whole[0][0], other[0][0])


def test_each_epoch_has_its_own_order(source):
    # Not augmented, so only the order can tell one epoch from another.
    stream = data.training_batches(source, data.Preprocessing((8, 8)), 4, 2)
    images = np.concatenate([images for images, _ in stream])
    first, second = np.split(images, 2)
    assert not np.array_equal(first, second)
    both = {i.tobytes() for i in first} & {i.tobytes() for i in second}
    assert len(both) > 0.5 * len(first)


def test_an_epoch_shows_each_image_at_most_once(data_dir):
    source = data.open_source("digits", data_dir)
    stream = data.training_batches(source, data.Preprocessing((8, 8)), 64, 1)
    images = np.concatenate([images for images, _ in stream])
    assert len(images) == 22 * 64
    have = [e["image_bytes"] for e in source.stored("train").in_order().as_numpy_iterator()]
    assert len({i.tobytes() for i in images}) > 0.99 * len(images)
    assert len(have) - len(images) < 64


def test_evaluation_counts_every_example_once(source):
    preprocessing = data.Preprocessing((8, 8))
    split = "train"
    batches = list(data.evaluation_batches(source, split, preprocessing, 16))
    weights = np.concatenate([w for _, _, w in batches])
    labels = np.concatenate([y for _, y, _ in batches])
    assert all(images.shape == (16, 8, 8, 3) for images, _, _ in batches)
    assert weights.sum() == source.num_examples(split) and set(weights) <= {0.0, 1.0}
    expected = [e["label"] for e in source.stored(split).in_order().as_numpy_iterator()]
    assert labels[weights > 0].tolist() == expected


def test_a_batch_larger_than_the_data(photos):
    source = data.open_source(f"folder:{photos}")
    with pytest.raises(InputError, match="batch_size=99, .* training images"):
        data.steps_per_epoch(source, 99)
    for batch_size in (0, -1):
        with pytest.raises(InputError, match=f"must be at least 1 .*batch_size={batch_size},"):
            data.steps_per_epoch(source, batch_size)


def test_folder_is_split_and_its_bad_file_named(photos):
    source = data.FolderSource(photos)
    sizes = [source.num_examples(split) for split in ("train", "validation", "test")]
    assert sum(sizes) == 35 and sizes[1] == sizes[2] == 3
    assert source.class_names == ["ant", "bee", "cow"]
    assert [path for path, _ in source.bad_images] == ["bee/01.jpg"]
    assert source.bad_images[0][1]
    again = data.FolderSource(photos)
    labels = [e["label"] for e in again.stored("train").in_order().as_numpy_iterator()]
    assert labels == [e["label"] for e in source.stored("train").in_order().as_numpy_iterator()]


def make(root, files):
    for i, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        photo(8, 8, seed=i).save(root / file)
    return root


def test_folder_with_its_own_splits(tmp_path):
    train = [f"train/{c}/{i}.png" for c in ("a", "b") for i in range(10)]
    root = make(tmp_path, [*train, "test/b/0.png", "test/b/1.png"])
    source = data.FolderSource(root)
    sizes = [source.num_examples(split) for split in ("train", "validation", "test")]
    assert sizes == [18, 2, 2]
    assert [e["label"] for e in source.stored("test").in_order().as_numpy_iterator()] == [1, 1]
    make(root, ["val/a/0.png"])
    source = data.FolderSource(root)
    assert [source.num_examples(s) for s in ("train", "validation", "test")] == [20, 1, 2]
    make(root, ["test/c/0.png"])
    with pytest.raises(InputError, match=r"must be in train/ too. Received: \['c'\]"):
        data.FolderSource(root)


def test_a_folder_without_test_is_not_a_folder_of_splits_as_classes(tmp_path):
    make(tmp_path, ["train/a/0.png", "val/a/0.png"])
    with pytest.raises(InputError, match="must have test/ too"):
        data.FolderSource(tmp_path)


def test_a_split_that_no_class_is_large_enough_for(tmp_path):
    source = data.FolderSource(make(tmp_path, ["a/0.png", "b/0.png"]))
    with pytest.raises(InputError, match="split validation, with none. Give every class 3"):
        source.num_examples("validation")


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="must name a folder. Received: .*none"):
        data.open_source(f"folder:{tmp_path}/none")
    with pytest.raises(InputError, match="which has no sub-folder"):
        data.FolderSource(tmp_path)
    make(tmp_path, ["a/0.png"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="Every class folder must hold.*b, which has none"):
        data.FolderSource(tmp_path)
    (tmp_path / "b" / "0.jpg").write_bytes(b"")
    (tmp_path / "a" / "0.png").write_bytes(b"text")
    with pytest.raises(InputError, match="must have an image that can be decoded.*2 files"):
        data.FolderSource(tmp_path).check("train")


def test_unknown_dataset(data_dir):
    with pytest.raises(InputError, match="Received: dataset='digitz'. Did you mean \"digits\""):
        data.open_source("digitz", data_dir)


def test_tfds_features_of_the_wrong_kind_and_a_missing_download(tmp_path):
    import tensorflow_datasets as tfds

    class NumberedLabel(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None
        label = np.int64

        def _info(self):
            features = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": self.label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            raise AssertionError("Manual directory does not exist.")

        def _generate_examples(self):
            yield from ()

    class ByHand(NumberedLabel):
        label = tfds.features.ClassLabel(num_classes=2)

    with pytest.raises(InputError, match="label a class label. .*'numbered_label' with Image and "):
        data.open_source("numbered_label", str(tmp_path))
    with pytest.raises(InputError, match="dataset='by_hand'.*Manual directory does not exist"):
        data.open_source("by_hand", str(tmp_path))
    with pytest.raises(InputError, match="Received: dataset='by_hand:9.9.9'"):
        data.open_source("by_hand:9.9.9", str(tmp_path))


def test_any_tfds_builder_whose_splits_are_cut(tmp_path):
    import tensorflow_datasets as tfds

    class OnlyTrain(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None
        with_test = False

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["no", "yes"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20)} | (
                {"test": self._generate_examples(5)} if self.with_test else {}
            )

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": np.asarray(photo(5 + i, 9, seed=i)), "label": i % 2}

    class TrainAndTest(OnlyTrain):
        with_test = True

    class SecretTest(OnlyTrain):
        def _split_generators(self, dl_manager):
            secret = ((i, example | {"label": -1}) for i, example in self._generate_examples(3))
            return {
                "train": self._generate_examples(20),
                "validation": self._generate_examples(4),
                "test": secret,
            }

    def sizes(name, **options):
        source = data.open_source(name, str(tmp_path), **options)
        assert source.class_names == ["no", "yes"]
        for image, _, _ in data.evaluation_batches(source, "test", data.Preprocessing((4, 4)), 5):
            assert image.shape == (5, 4, 4, 3)
        return [source.num_examples(split) for split in ("train", "validation", "test")]

    assert sizes("only_train") == [16, 2, 2]
    assert sizes("only_train", validation_percent=20) == [14, 4, 2]
    assert sizes("train_and_test") == [18, 2, 5]
    assert sizes("train_and_test", validation_percent=40) == [12, 8, 5]
    assert sizes("train_and_test", validation_percent=40, shots=3) == [6, 8, 5]
    assert sizes("secret_test") == [18, 2, 4]


def labels_of(source, split):
    return [example["label"] for example in source.stored(split).in_order().as_numpy_iterator()]


def images_of(source, split, shuffle_seed=None):
    stored = source.stored(split)
    order = stored.in_order()
    if shuffle_seed is not None:
        order = stored.shuffled(shuffle_seed, Share(len(stored), 1), 0, 1)
    return [e["image_bytes"] for e in order.as_numpy_iterator()]


def test_few_shots_are_of_each_class_and_chosen_by_the_seed():
    labels = np.random.default_rng(0).integers(0, 4, 200).tolist()
    found = few_shots(map(str, itertools.count()), iter(labels), 5)
    assert {label: len(places) for label, places in found.items()} == dict.fromkeys(range(4), 5)
    for label, places in found.items():
        assert places == sorted(places) and all(labels[i] == label for i in places)
    again = few_shots([str(i) for i in range(200)], labels, 5)
    assert again == found and few_shots(map(str, range(200)), labels, 5, seed=1) != found
    more = few_shots(map(str, range(200)), labels, 6)
    assert all(set(found[label]) < set(more[label]) for label in found)
    rare = few_shots(["a", "b", "c"], [0, 0, 1], 2)
    assert rare == {0: [0, 1], 1: [2]}


def test_shots_of_a_tfds_set_are_the_same_in_every_epoch(data_dir, monkeypatch):
    import tensorflow_datasets as tfds

    whole = data.open_source("digits", data_dir)
    with monkeypatch.context() as patch:  # only labels are looked at
        patch.setattr(tfds.features.Image, "decode_example", lambda *_: 1 / 0)
        source = data.open_source("digits", data_dir, shots=3)
    assert [source.num_examples(s) for s in ("train", "validation", "test")] == [30, 179, 179]
    assert labels_of(source, "validation") == labels_of(whole, "validation")
    assert np.bincount(labels_of(source, "train")).tolist() == [3] * 10
    chosen = images_of(source, "train")
    assert set(chosen) < set(images_of(whole, "train"))
    for seed in (1, 2):
        assert sorted(images_of(source, "train", seed)) == sorted(chosen)
    assert data.steps_per_epoch(source, 8) == 3
    fingerprints = [
        data.open_source("digits", data_dir, seed, shots=shots).fingerprint()
        for seed, shots in ((0, None), (0, 3), (1, 3), (0, 4))
    ]
    assert fingerprints[0] == whole.fingerprint() and "shots_sha256" not in fingerprints[0]
    assert fingerprints[1] == source.fingerprint()
    assert len({str(fingerprint) for fingerprint in fingerprints}) == 4


@pytest.mark.parametrize("shots", [None, 2])
def test_few_examples_are_read_once_for_all_epochs(data_dir, shots, monkeypatch):
    source = data.open_source("digits", data_dir, shots=shots)
    reads, read = tf.Variable(0, dtype=tf.int64), Records.in_order

    def counted(self, share=None):
        return read(self, share).map(lambda x: (reads.assign_add(1), x)[1])

    monkeypatch.setattr(Records, "in_order", counted)
    monkeypatch.setattr(Records, "shuffled", None)
    batches = data.training_batches(source, data.Preprocessing((8, 8)), 10, epochs=3)
    assert sum(1 for _ in batches) == 3 * (2 if shots else 143)
    assert int(reads) == 1439


def test_shots_of_a_folder_are_images_that_can_be_decoded(photos):
    whole = data.FolderSource(photos)
    source = data.open_source(f"folder:{photos}", shots=8)
    sizes = [source.num_examples(s) for s in ("train", "validation", "test")]
    assert sizes == [24, 3, 3] and np.bincount(labels_of(source, "train")).tolist() == [8, 8, 8]
    assert set(images_of(source, "train")) < set(images_of(whole, "train"))
    assert images_of(source, "test") == images_of(whole, "test")
    assert [path for path, _ in source.bad_images] == ["bee/01.jpg"]
    fingerprints = [
        data.FolderSource(photos, shots=shots).fingerprint()["files_sha256"] for shots in (8, 8, 7)
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    few = data.open_source(f"folder:{photos}", shots=10)
    with pytest.raises(InputError, match="shots=10, class bee with 9"):
        few.num_examples("train")


def test_the_percentage_that_validates(photos, tmp_path, data_dir):
    def sizes(name, percent):
        source = data.open_source(name, data_dir, validation_percent=percent)
        return [source.num_examples(split) for split in ("train", "validation", "test")]

    assert sizes("digits", 50) == sizes("digits", None)  # which has a split of its own
    assert sizes(f"folder:{photos}", 25) == [23, 9, 3]
    files = [f"{c}/{i}.png" for c in ("a", "b") for i in range(10)]
    root = make(tmp_path, [f"train/{file}" for file in files] + ["test/b/0.png"])
    assert sizes(f"folder:{root}", 30) == [14, 6, 1]
    make(tmp_path, ["val/a/0.png"])
    assert sizes(f"folder:{root}", 30) == [20, 1, 1]
    for percent in (0, 90, -1):
        with pytest.raises(InputError, match=f"`validation_percent` must be .*={percent}"):
            data.open_source("digits", data_dir, validation_percent=percent)
    with pytest.raises(InputError, match="`shots` must be at least 1.*=0"):
        data.open_source("digits", data_dir, shots=0)
