"""Data sets of many files, and several hosts that share their work."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, photo

import vitkeras as vk
from vitkeras import data, training
from vitkeras.data import caching, stored
from vitkeras.data.hosts import Share
from vitkeras.data.stored import Columns, Records
from vitkeras.errors import InputError, RunError
from vitkeras.runs import RunDirectory

COUNT, BATCH = 750, 48


class Numbered:
    """A source of 750 images, each with its number in its first pixels."""

    class_names = ["even", "odd"]
    bad_images = []
    content = "1"

    def num_examples(self, split):
        return COUNT if split == "train" else 50

    def version(self, split):
        return self.content

    def stored(self, split):
        images = np.zeros((self.num_examples(split), 4, 4, 3), np.uint8)
        numbers = np.arange(len(images))
        images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers % 256, numbers // 256
        encoded = [tf.io.encode_png(image) for image in images]
        return Columns({"image_bytes": tf.stack(encoded), "label": tf.range(len(images)) % 2})


def number(image):
    return int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])


@pytest.fixture(params=["columns", "records"])
def source(request, tmp_path, monkeypatch):
    if request.param == "columns":
        return Numbered()
    monkeypatch.setattr(caching, "IMAGES_PER_FILE", 25)
    monkeypatch.setattr(stored, "SHUFFLE_BLOCK", 120)  # smaller than a stream
    return caching.CachedSource(Numbered(), "disk", tmp_path)


def batches(source, host=0, hosts=1, augmentation=None, epochs=2, seed=0, start=(0, 0)):
    stream = data.training_batches(
        source, data.Preprocessing((4, 4)), BATCH, epochs, seed,
        augmentation or data.Augmentation(), *start, host, hosts,
    )  # fmt: skip
    assert stream.element_spec[0].shape == (BATCH // hosts, 4, 4, 3)
    return [(images.numpy(), labels.numpy()) for images, labels in stream]


def test_three_hosts_read_each_image_exactly_once_per_epoch(source):
    steps = COUNT // BATCH
    of_hosts = [batches(source, host, 3) for host in range(3)]
    for epoch in range(2):
        seen = [
            number(image)
            for host in of_hosts
            for images, _ in host[epoch * steps : (epoch + 1) * steps]
            for image in images
        ]
        assert len(seen) == len(set(seen)) == steps * BATCH
    first, second = (
        [number(i) for images, _ in of_hosts[0][begin : begin + steps] for i in images]
        for begin in (0, steps)
    )
    assert first != second and first != sorted(first)


@pytest.mark.parametrize("hosts", [3, 4])
@pytest.mark.parametrize(
    "augmentation",
    [
        data.Augmentation("inception_flip"),
        data.Augmentation("inception", mixup_alpha=0.4, mixup_per_example=True),
        data.Augmentation(mixup_alpha=0.4, cutmix_alpha=1.0),
    ],
)
def test_any_number_of_hosts_makes_the_same_batches(source, hosts, augmentation):
    whole = batches(source, augmentation=augmentation)
    of_hosts = [batches(source, host, hosts, augmentation) for host in range(hosts)]
    assert len(whole) == 2 * (COUNT // BATCH)
    for batch, *parts in zip(whole, *of_hosts, strict=True):
        for one, many in zip(batch, zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(one, np.concatenate(many))


def test_a_host_reads_no_more_than_its_own(source):
    stored, steps = source.stored("train"), COUNT // BATCH
    reads = tf.Variable(0, dtype=tf.int64)
    inner = getattr(stored, "parse", None) or (lambda row: row)

    def counted(row):
        with tf.control_dependencies([reads.assign_add(1)]):
            return tf.nest.map_structure(tf.identity, inner(row))

    if isinstance(stored, Records):
        stored.parse = counted
        assert stored.most_groups == 30
    else:
        stored.load = counted
    for hosts, read in ((1, BATCH), (3, 16), (4, 16)):  # 4 do not divide 6 groups of 8
        share = Share.of(BATCH, stored.most_groups, 0, hosts)
        assert share.num_groups == 6
        reads.assign(0)
        assert sum(1 for _ in stored.shuffled(5, share, 0, steps)) == steps * read == int(reads)
        reads.assign(0)
        rest = [e["image_bytes"] for e in stored.shuffled(5, share, 9, steps).as_numpy_iterator()]
        assert len(rest) == (steps - 9) * read == int(reads)


def hashes(batches):
    return [
        hashlib.sha256(b"".join(part.tobytes() for part in batch)).digest() for batch in batches
    ]


def test_batches_are_those_of_seed_epoch_and_step_alone(source):
    augmentation = data.Augmentation("inception_flip", randaug_layers=2, mixup_alpha=0.2)
    whole = hashes(batches(source, augmentation=augmentation, epochs=3))
    steps = COUNT // BATCH
    assert len(set(whole)) == len(whole) == 3 * steps
    assert whole == hashes(batches(source, augmentation=augmentation, epochs=3))
    step = int(np.random.default_rng().integers(3 * steps))
    rest = batches(source, augmentation=augmentation, epochs=3, start=divmod(step, steps))
    assert hashes(rest) == whole[step:], step
    other = hashes(batches(source, augmentation=augmentation, epochs=3, seed=1))
    assert not set(other) & set(whole)


@pytest.mark.parametrize("hosts", [1, 3, 4])
def test_hosts_evaluate_each_example_once(source, hosts):
    of_hosts = [
        list(
            data.evaluation_batches(source, "validation", data.Preprocessing((4, 4)), 12, h, hosts)
        )
        for h in range(hosts)
    ]
    assert {len(host) for host in of_hosts} == {5}  # 60 places for 50 examples
    seen = []
    for step in range(5):
        for host in of_hosts:
            images, labels, weights = (part.numpy() for part in host[step])
            assert len(images) == 12 // hosts
            kept = weights > 0
            seen += [number(image) for image in images[kept]]
            assert (labels[kept] == np.array([number(i) for i in images[kept]]) % 2).all()
    assert seen == list(range(50))


def test_shares():
    assert Share.of(4096, 1024).num_groups == 64 and Share.of(4096, 10).num_groups == 8
    assert Share.of(1, 5).num_groups == 1 and Share.of(96, 64, 1, 3).num_groups == 12
    share = Share.of(96, 64, 1, 3)
    assert list(share.slots) == list(range(32, 64)) and share.place(33) == 96 + 33


def test_streams_are_equal_parts_whatever_the_files():
    for takes in ([7], [100, 1, 3], [5] * 40, [1] * 9):
        records = Records([(f"f{i}", 2, take) for i, take in enumerate(takes)], None)
        for groups in (1, 2, 3, 6):
            columns = records._streams(Share(groups, groups))
            lengths = columns["take"].numpy().sum(1)
            assert lengths.sum() == sum(takes) and np.ptp(lengths) <= 1
            pieces = zip(*(columns[k].numpy().ravel() for k in columns), strict=True)
            named = [dict(zip(columns, piece, strict=True)) for piece in pieces]
            rows = [
                (piece["file"], place)
                for piece in named
                for place in range(piece["skip"], piece["skip"] + piece["take"])
            ]
            assert len(set(rows)) == len(rows) == sum(takes)


def test_a_stream_of_one_piece_comes_in_another_order_each_epoch(tmp_path):
    source = caching.CachedSource(Numbered(), "disk", tmp_path)
    records = Records(source.stored("train").pieces[:1], source.stored("train").parse)
    orders = [
        [e["image_bytes"] for e in records.shuffled(seed, Share(9, 1), 0, 9).as_numpy_iterator()]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2] and len(set(orders[0])) == 81


def test_what_is_on_disk_is_whole_and_of_this_data(tmp_path):
    numbered = Numbered()
    source = caching.CachedSource(numbered, "disk", tmp_path)
    packed = source.stored("train")
    assert len(packed) == COUNT and len(packed.pieces) == 2
    labels = [int(e["label"]) for e in packed.in_order().as_numpy_iterator()]
    assert sum(labels) == COUNT // 2 and labels != [i % 2 for i in range(COUNT)]
    in_order = source.stored("validation").in_order().as_numpy_iterator()
    assert [number(tf.io.decode_png(e["image_bytes"])) for e in in_order] == list(range(50))
    folders = {path.name for path in tmp_path.iterdir()}
    again = caching.CachedSource(numbered, "disk", tmp_path)
    again._write = None  # it is there
    assert len(again.stored("train")) == COUNT
    numbered.content = "2"
    caching.CachedSource(numbered, "disk", tmp_path).stored("train")
    assert len({path.name for path in tmp_path.iterdir()} - folders) == 1


def test_nothing_stays_of_a_cache_that_could_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    source = caching.CachedSource(Numbered(), "disk", tmp_path / "file")
    with pytest.raises(InputError, match="a folder with room .*file"):
        source.stored("train")

    class Broken(Numbered):
        def stored(self, split):
            rows = {"file": tf.constant([__file__, "none"]), "label": tf.constant([0, 1])}
            return Columns(rows, lambda x: x | {"image_bytes": tf.io.read_file(x["file"])})

    with pytest.raises(tf.errors.NotFoundError):
        caching.CachedSource(Broken(), "disk", tmp_path / "new").stored("validation")
    assert not list((tmp_path / "new").glob("*"))


@pytest.mark.parametrize("cache", ["disk", "disk:", "memory:x", "ram", "disk:gs://bucket/x"])
def test_a_cache_that_cannot_be(cache):
    with pytest.raises(InputError, match=f"`cache` must be .*cache='{cache}'"):
        data.open_source("digits", cache=cache)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_the_same_images_are_trained_on_wherever_they_are_kept(cache, photos, data_dir, tmp_path):
    for dataset in ("digits", f"folder:{photos}"):
        plain = data.open_source(dataset, data_dir)
        kept = data.open_source(
            dataset, data_dir, cache=f"disk:{tmp_path}" if cache == "disk" else cache
        )
        for split in ("train", "test"):
            images = [
                sorted(e["image_bytes"] for e in s.stored(split).in_order().as_numpy_iterator())
                for s in (plain, kept)
            ]
            assert images[0] == images[1] and len(images[0]) == kept.num_examples(split)


def test_a_folder_in_an_object_store():
    # TensorFlow's file system in memory stands for a bucket: paths with ://, no folders of its own.
    for name in ("ant", "bee"):
        for i in range(6):
            tf.io.gfile.makedirs(f"ram://bucket/photos/{name}")
            content = tf.io.encode_png(np.asarray(photo(9, 9, seed=i))).numpy()
            tf.io.write_file(f"ram://bucket/photos/{name}/{i}.png", content)
    tf.io.write_file("ram://bucket/photos/bee/bad.jpg", b"no image")
    source = data.open_source("folder:ram://bucket/photos/")
    sizes = [source.num_examples(split) for split in ("train", "validation", "test")]
    assert sum(sizes) == 12 and source.class_names == ["ant", "bee"]
    assert [path for path, _ in source.bad_images] == ["bee/bad.jpg"]
    stream = data.training_batches(source, data.Preprocessing((4, 4)), 4, 1)
    assert sum(len(images) for images, _ in stream) == 8
    with pytest.raises(InputError, match="must name a folder. Received: ram://bucket/none"):
        data.open_source("folder:ram://bucket/none")


def test_what_was_whole_is_not_decoded_again(photos, tmp_path, monkeypatch):
    from vitkeras.data import checking

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            photo(8, 8, seed=i).save(root / name / f"{i}.png")
    (root / "bee" / "bad.png").write_bytes(b"text")
    decoded, decodable = [], checking._decodable
    monkeypatch.setattr(
        checking, "_decodable", lambda f, d: (decoded.extend(f), decodable(f, d))[1]
    )

    def read():
        decoded.clear()
        source = data.FolderSource(root)
        sizes = [source.num_examples(split) for split in ("train", "validation", "test")]
        return sum(sizes), [path for path, _ in source.bad_images], len(decoded)

    assert read() == (10, ["bee/bad.png"], 11)
    assert read() == (10, ["bee/bad.png"], 1)  # what is bad may have been mended
    (root / "ant" / "3.png").write_bytes(b"text")
    size, bad, count = read()
    assert (size, sorted(bad), count) == (9, ["ant/3.png", "bee/bad.png"], 2)
    found = next((tmp_path / "cache").rglob("*.npy"))
    found.write_bytes(found.read_bytes()[:50])
    assert read()[2] == 11
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "ant" / "0.png"))  # no folder
    assert read()[0] == 9


def test_a_label_that_no_class_has(data_dir):
    source = data.open_source("digits", data_dir)
    source.class_names.pop()
    with pytest.raises(InputError, match="integer from 0 to 8.* with label 9"):
        source._check_labels("train")
    with pytest.raises(tf.errors.InvalidArgumentError, match="integer from 0 to 8"):
        list(data.training_batches(source, data.Preprocessing((8, 8)), 64, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="integer from 0 to 8"):
        list(data.evaluation_batches(source, "test", data.Preprocessing((8, 8)), 64))


def test_an_image_that_breaks_while_a_run_trains(tmp_path):
    root = tmp_path / "photos"
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            photo(8, 8, seed=i).save(root / name / f"{i}.png")
    source = data.open_source(f"folder:{root}")
    batches = data.training_batches(source, data.Preprocessing((8, 8)), 8, 1)
    for i in range(10):
        (root / "bee" / f"{i}.png").write_bytes(b"text")
    model = vk.vit("Ti/4", image_size=8, num_classes=2, **TINY)
    model.compile("sgd", training.SmoothedCrossEntropy())
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    match = r"could not be read \(.*(decode|image|Unknown).*\); experiments.preflight"
    with pytest.raises(RunError, match=match):
        with training.hold(run, model.distribute_strategy):
            model.fit(batches, verbose=0, shuffle=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="negative"):
        with training.hold(run, model.distribute_strategy):
            tf.debugging.assert_equal(1, 2, "negative")
