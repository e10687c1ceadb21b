import hashlib

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import write_photos
from helpers.models import TINY
from helpers.sources import labels_of, number

import vitkeras as vk
from vitkeras import data, training
from vitkeras.errors import InputError, RunError
from vitkeras.io.run_directory import RunDirectory
from vitkeras.training.loop import exclusive_run

COUNT, BATCH = 100, 24
STEPS = COUNT // BATCH
FULL = data.Augmentation(
    "inception_flip", color_jitter=0.2, randaug_layers=1, erasing_rate=0.3, mixup_alpha=0.5,
    cutmix_alpha=1.0,
)  # fmt: skip


def batches(source, host=0, num_hosts=1, augmentation=None, epochs=2, seed=0, start=(0, 0)):
    stream = data.training_batches(
        source, data.Preprocessing((4, 4)), BATCH, epochs, seed,
        augmentation or data.Augmentation(), *start, host, num_hosts,
    )  # fmt: skip
    assert stream.element_spec[0].shape == (BATCH // num_hosts, 4, 4, 3)
    return [(images.numpy(), labels.numpy()) for images, labels in stream]


def hashes(batches):
    return [
        hashlib.sha256(b"".join(array.tobytes() for array in batch)).digest() for batch in batches
    ]


def test_three_hosts_read_each_image_exactly_once_per_epoch(numbered_source):
    hosts = [batches(numbered_source, host, 3) for host in range(3)]
    for epoch in range(2):
        numbers = [
            number(image)
            for host in hosts
            for images, _ in host[epoch * STEPS : (epoch + 1) * STEPS]
            for image in images
        ]
        assert len(numbers) == len(set(numbers)) == STEPS * BATCH
    first, second = (
        [number(i) for images, _ in hosts[0][begin : begin + STEPS] for i in images]
        for begin in (0, STEPS)
    )
    assert first != second and first != sorted(first)


@pytest.mark.parametrize(
    "augmentation, hosts",
    [
        (data.Augmentation("inception_flip"), {3: (0, 1, 2)}),
        # 4 hosts read more than they keep
        (
            data.Augmentation("inception", mixup_alpha=0.4, mixup_per_example=True),
            {4: (0, 1, 2, 3)},
        ),
        (data.Augmentation(mixup_alpha=0.4, cutmix_alpha=1.0), {3: (1,), 4: (1, 2)}),
    ],
)
def test_any_number_of_hosts_makes_the_same_batches(numbered_source, augmentation, hosts):
    expected = batches(numbered_source, augmentation=augmentation)
    assert len(expected) == 2 * STEPS
    for num_hosts, indices in hosts.items():
        size = BATCH // num_hosts
        for host in indices:
            shard = slice(host * size, (host + 1) * size)
            of_host = batches(numbered_source, host, num_hosts, augmentation)
            for batch, of_batch in zip(expected, of_host, strict=True):
                for array, part in zip(batch, of_batch, strict=True):
                    np.testing.assert_array_equal(array[shard], part)


def test_batches_depend_on_seed_epoch_and_step_only(numbered_source):
    expected = hashes(batches(numbered_source, augmentation=FULL, epochs=3))
    assert len(set(expected)) == len(expected) == 3 * STEPS
    tf.random.set_seed(int(np.random.default_rng().integers(1000)))  # must not matter
    step = int(np.random.default_rng().integers(3 * STEPS))
    resumed = batches(numbered_source, augmentation=FULL, epochs=3, start=divmod(step, STEPS))
    assert hashes(resumed) == expected[step:], step


def test_mixed_batches_of_a_resumed_run(numbered_source):
    augmentation = data.Augmentation("inception_flip", mixup_alpha=0.5, cutmix_alpha=1.0)
    expected = batches(numbered_source, augmentation=augmentation)
    assert expected[0][1].shape == (BATCH, 2) and expected[0][0].dtype == np.uint8
    for epoch, step in ((0, 2), (1, 1)):
        resumed = batches(numbered_source, augmentation=augmentation, start=(epoch, step))
        assert hashes(resumed) == hashes(expected[epoch * STEPS + step :])


@pytest.fixture(params=["digits", "photos"])
def real_source(request, digits, photos):
    return digits if request.param == "digits" else data.open_source(f"folder:{photos}")


def test_resumed_batches_of_real_data(real_source):
    def batches(seed, first_epoch=0, epochs=2):
        stream = data.training_batches(
            real_source, data.Preprocessing((8, 8)), 8, epochs, seed,
            data.Augmentation("inception_flip"), first_epoch,
        )  # fmt: skip
        return hashes([(images.numpy(), labels.numpy()) for images, labels in stream])

    steps = data.steps_per_epoch(real_source, 8)
    expected, resumed, other = batches(0), batches(0, 1), batches(1, epochs=1)
    assert len(expected) == 2 * steps == 2 * len(resumed) == 2 * len(other)
    assert expected[steps:] == resumed
    assert len(set(expected + other)) == len(expected + other)


def test_each_epoch_has_its_own_order(real_source):
    # Without augmentation, only the order differs between epochs.
    stream = data.training_batches(real_source, data.Preprocessing((8, 8)), 4, 2)
    images = np.concatenate([images for images, _ in stream])
    first, second = np.split(images, 2)
    assert not np.array_equal(first, second)
    common = {i.tobytes() for i in first} & {i.tobytes() for i in second}
    assert len(common) > 0.5 * len(first)


def test_an_epoch_has_each_image_at_most_once(digits):
    stream = data.training_batches(digits, data.Preprocessing((8, 8)), 64, 1)
    images = np.concatenate([images for images, _ in stream])
    assert len(images) == 22 * 64 > digits.num_examples("train") - 64
    assert len({i.tobytes() for i in images}) > 0.99 * len(images)


def test_evaluation_counts_every_example_once(real_source):
    stream = data.evaluation_batches(real_source, "train", data.Preprocessing((8, 8)), 16)
    images, labels, weights = zip(*stream.as_numpy_iterator(), strict=True)
    assert {batch.shape for batch in images} == {(16, 8, 8, 3)}
    labels, weights = np.concatenate(labels), np.concatenate(weights)
    assert weights.sum() == real_source.num_examples("train") and set(weights) <= {0.0, 1.0}
    assert labels[weights > 0].tolist() == labels_of(real_source, "train")


@pytest.mark.parametrize("num_hosts", [1, 3, 4])
def test_hosts_evaluate_each_example_once(numbered_source, num_hosts):
    hosts = [
        list(
            data.evaluation_batches(
                numbered_source, "validation", data.Preprocessing((4, 4)), 12, host, num_hosts
            ).as_numpy_iterator()
        )
        for host in range(num_hosts)
    ]
    assert {len(host) for host in hosts} == {5}  # 50 examples and 10 images of padding
    numbers = []
    for step in range(5):
        for host in hosts:
            images, labels, weights = host[step]
            assert len(images) == 12 // num_hosts
            kept = [number(image) for image in images[weights > 0]]
            assert (labels[weights > 0] == np.array(kept) % 2).all()
            numbers += kept
    assert numbers == list(range(50))


@pytest.mark.parametrize("batch_size", [99, 0, -1])
def test_invalid_batch_sizes(photos, batch_size):
    source = data.open_source(f"folder:{photos}")
    with pytest.raises(InputError, match=f"`batch_size` .*batch_size={batch_size}, 29 training"):
        data.steps_per_epoch(source, batch_size)


@pytest.mark.slow
def test_a_model_trains_on_mixed_batches(digits):
    model = vk.vit("Ti/4", image_size=8, num_classes=10, **TINY)
    model.compile("adam", training.SmoothedCrossEntropy(0.1), metrics=["accuracy"])
    augmentation = data.Augmentation(mixup_alpha=0.5, cutmix_alpha=1.0)
    stream = data.training_batches(digits, data.Preprocessing((8, 8)), 8, 1, 0, augmentation)
    history = model.fit(stream, verbose=0, shuffle=False, steps_per_epoch=3).history
    assert np.isfinite(history["loss"][0]) and 0 <= history["accuracy"][0] <= 1


def test_an_image_that_becomes_unreadable_stops_the_run(tmp_path):
    files = [f"{c}/{i}.png" for c in ("ant", "bee") for i in range(10)]
    root = write_photos(tmp_path / "photos", files)
    batches = data.training_batches(
        data.open_source(f"folder:{root}"), data.Preprocessing((8, 8)), 8, 1
    )
    for i in range(10):
        (root / "bee" / f"{i}.png").write_bytes(b"text")
    model = vk.vit("Ti/4", image_size=8, num_classes=2, **TINY)
    model.compile("sgd", training.SmoothedCrossEntropy())
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    match = r"could not be read \(.*not a JPEG, PNG or WebP image.*vitkeras preflight"
    with pytest.raises(RunError, match=match):
        with exclusive_run(run, model.distribute_strategy):
            model.fit(batches, verbose=0, shuffle=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="negative"):
        with exclusive_run(run, model.distribute_strategy):
            tf.debugging.assert_equal(1, 2, "negative")
