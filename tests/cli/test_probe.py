"""probe, and the other commands on the run that it writes."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers.images import photo
from helpers.models import make
from helpers.processes import command, fail, python, succeed

import vitkeras as vk
from vitkeras import data
from vitkeras.evaluation import features, few_shot, probing
from vitkeras.io.run_directory import RunDirectory

SIZE = (32, 48)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of pretrained weights, of another image size."""
    path = tmp_path_factory.mktemp("weights") / "model.keras"
    make(image_size=(16, 16), num_classes=7).save(path)
    return path


def flags(photos, weights, workdir, *more):
    return (
        f"--weights={weights}", f"--workdir={workdir}", f"--config.dataset=folder:{photos}",
        f"--config.image_size={SIZE}", "--config.batch_size=16", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(photos, weights, tmp_path_factory):
    """A run on the folder of photos: its directory, result, standard output and log."""
    workdir = tmp_path_factory.mktemp("probes") / "photos"
    code, out, log = command("probe", *flags(photos, weights, workdir))
    assert code == 0, log
    return workdir, json.loads(out.splitlines()[-1]), out, log


def test_the_run_is_an_ordinary_one_with_the_best_head(run, weights):
    workdir, result, out, log = run
    assert "29 train, 3 validation, 3 test images" in log and "35 to compute" in log
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json", "class_names.json", "preprocessing.json", "dataset.json", "versions.json",
        "best.keras", "probe.json", "features", "bad_images.txt", ".lock",
    }  # fmt: skip
    record = json.loads((workdir / "probe.json").read_text())
    rows = {each["name"]: each for each in record["results"]}
    assert [len(each["test"]) for each in record["results"]] == [3, 1, 1, 1]
    assert rows[record["head"]]["test"] == [result["accuracy"]]
    candidates = [name for name in rows if re.match("linear|ridge.*all", name)]
    assert record["head"] in candidates
    best = max(rows[name]["validation"][0] for name in candidates)
    assert record["validation_accuracy"] == result["validation_accuracy"] == best
    for name in rows:
        (line,) = [line for line in out.splitlines() if line.startswith(name)]
        assert line.endswith("(head of the model)") == (name == record["head"])
    model, original = RunDirectory(workdir).load_model(), vk.from_pretrained(weights)
    assert [layer.name for layer in model.layers if layer.trainable and layer.weights] == ["head"]
    assert model.config.image_size == SIZE and model.config.num_classes == 3
    for layer in ("block_00", "block_01", "norm"):
        pairs = zip(model.get_layer(layer).weights, original.get_layer(layer).weights, strict=True)
        for actual, expected in pairs:
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_gives_the_numbers_of_probe(run, split):
    result, _ = succeed("evaluate", f"--workdir={run[0]}", f"--split={split}")
    expected = run[1]["accuracy" if split == "test" else "validation_accuracy"]
    assert result["accuracy"] == pytest.approx(expected)


def test_logits_of_the_model_are_those_of_the_solution(run, photos):
    source, preprocessing = data.open_source(f"folder:{photos}"), data.Preprocessing(SIZE)
    (key,) = (run[0] / "features").iterdir()
    cache = features.FeatureCache(run[0] / "features", key.name)
    found = features.extract_features(source, preprocessing, pytest.fail, 1, cache)
    if "ridge" in run[1]["head"]:
        head = few_shot.ridge_head(*found["train"], 3)
    else:
        probes = few_shot.linear_probes(*found["train"])
        head = few_shot.best_linear_probe(probes, *found["validation"]).head
    model = RunDirectory(run[0]).load_model()
    for split in ("validation", "test"):
        ((images, _, _),) = data.evaluation_batches(source, split, preprocessing, 3)
        logits = model(images).numpy()
        np.testing.assert_allclose(logits, head.logits(found[split].values), atol=1e-4)
        assert np.ptp(logits) > 0.1


def test_the_same_command_reads_the_features_and_gives_the_same(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    (workdir / "best.keras").unlink()
    result, log = succeed("probe", f"--workdir={workdir}")
    assert "35 images cached, 0 to compute" in log
    assert result == run[1] | {"workdir": str(workdir)}
    model, other = (RunDirectory(path).load_model() for path in (workdir, run[0]))
    for actual, expected in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_other_splits_share_the_features(run, photos, weights, tmp_path):
    more = ("--config.seed=1", "--config.shots=3", f"--features={run[0]}/features")
    more += ("--config.dtype=mixed_bfloat16",)
    result, log = succeed("probe", *flags(photos, weights, tmp_path / "run", *more))
    assert "0 to compute" in log and not (tmp_path / "run" / "features").exists()
    assert "3 of 3 classes have fewer than 5 training images, of which all are used: ant 3" in log
    config = RunDirectory(tmp_path / "run").config
    assert (config["seed"], config["dtype"]) == (1, "mixed_bfloat16")
    model = RunDirectory(tmp_path / "run").load_model()
    assert model.get_layer("norm").compute_dtype == "bfloat16"
    names = {
        each["name"] for each in json.loads((tmp_path / "run/probe.json").read_text())["results"]
    }
    assert "9 nearest neighbors" in names
    error = fail("probe", *flags(photos, weights, run[0], "--config.seed=1"))
    assert "seed was 0 and is now 1" in error


def test_train_does_not_write_into_the_run(run):
    error = fail("train", f"--workdir={run[0]}")
    assert "`workdir` must be a new directory" in error and "--config.init_from=" in error


@pytest.mark.slow
def test_predict_explain_and_training_from_the_run(run, photos, tmp_path):
    image = sorted((photos / "ant").iterdir())[0]
    result, _ = succeed("predict", f"--workdir={run[0]}", image)
    assert len(result["predictions"][0]["top"]) == 3
    succeed("explain", f"--workdir={run[0]}", f"--output={tmp_path}/explained", image)
    _, log = succeed(
        "train", "--config=folder", f"--config.dataset=folder:{photos}", "--config.epochs=1",
        f"--config.init_from={run[0]}", "--config.variant=auto", "--config.warmup_steps=0",
        f"--config.image_size={SIZE}", "--config.batch_size=16", f"--workdir={tmp_path}/trained",
    )  # fmt: skip
    assert "weights copied" in log
    error = fail("probe", f"--workdir={tmp_path}/trained")
    assert "a run of `vitkeras train`" in error


@pytest.mark.slow
def test_the_run_is_exported(run, photos, tmp_path):
    succeed("export", f"--workdir={run[0]}", f"--output={tmp_path}/saved")
    card = (tmp_path / "saved/1/model_card.md").read_text()
    assert f"{run[1]['validation_accuracy']:.1%} of 3 validation images, {run[1]['head']}" in card
    image = sorted((photos / "ant").iterdir())[0]
    results = [
        succeed("predict", model, image)[0]["predictions"][0]["top"]
        for model in (f"--workdir={run[0]}", f"--saved_model={tmp_path}/saved")
    ]
    for entry, served in zip(*results, strict=True):
        assert entry["class"] == served["class"]
        assert entry["probability"] == pytest.approx(served["probability"], abs=1e-5)


@pytest.mark.slow
def test_two_replicas_give_the_same_features(run, photos, weights, tmp_path):
    code = (
        "import sys, tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "two = [tf.config.LogicalDeviceConfiguration()] * 2\n"
        "tf.config.set_logical_device_configuration(cpu, two)\n"
        "from vitkeras.cli import main; sys.exit(main.main(sys.argv[1:]))"
    )
    more = ("--config.strategy=mirrored", "--config.batch_size=10")  # 35 images: 5 are padding
    process = python("-c", code, "probe", *flags(photos, weights, tmp_path / "run", *more))
    assert process.returncode == 0, process.stderr[-2000:]
    arrays = []
    for workdir in (run[0], tmp_path / "run"):
        (path,) = (workdir / "features").glob("*/*.npz")
        with np.load(path) as shard:
            arrays.append((shard["digests"], shard["features"]))
    np.testing.assert_array_equal(arrays[0][0], arrays[1][0])
    np.testing.assert_allclose(arrays[0][1], arrays[1][1], atol=1e-5)
    more = ("--config.strategy=mirrored", "--config.batch_size=9")
    process = python("-c", code, "probe", *flags(photos, weights, tmp_path / "other", *more))
    assert process.returncode == 2 and "Nearest: 8, 10" in process.stderr


def test_bad_input_is_refused_before_features_are_computed(run, photos, weights, tmp_path):
    new = tmp_path / "new"
    assert "`--weights` must be given" in fail("probe", f"--workdir={new}")
    error = fail("probe", *flags(photos, weights, new, "--config.init_from=other.npz"))
    assert "init_from=other.npz" in error
    assert "none.npz" in fail("probe", *flags(photos, tmp_path / "none.npz", new))
    (tmp_path / "one").mkdir()
    shutil.copytree(photos / "ant", tmp_path / "one" / "ant")
    error = fail("probe", *flags(tmp_path / "one", weights, new))
    assert "two or more classes" in error and "1 classes" in error
    for split in ("train", "test"):
        for i, name in enumerate(("ant", "bee")):
            (tmp_path / "split" / split / name).mkdir(parents=True)
            photo(9, 9, seed=i).save(tmp_path / "split" / split / name / "a.png")
    (tmp_path / "split/train/bee/a.png").write_text("no image")
    error = fail("probe", *flags(tmp_path / "split", weights, new))
    assert "1 without a training image: bee" in error
    error = fail("probe", *flags(photos, weights, new, "--config.batch_size=0"))
    assert "batch_size" in error
    assert not new.exists()


def test_tiny_images_few_of_them_and_unusual_class_names(weights, tmp_path):
    for label, name in enumerate(("a,b", 'say "hä"')):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            photo(1, 1, seed=10 * label + i).save(tmp_path / "photos" / name / f"{i}.png")
    result, log = succeed("probe", *flags(tmp_path / "photos", weights, tmp_path / "run"))
    assert "4 train, 2 validation, 2 test" in log and 'a,b 2, say "hä" 2' in log
    assert result["head"].startswith(("linear", "ridge"))


def test_a_class_without_an_image_in_the_other_splits():
    rng = np.random.default_rng(0)
    centers = 3 * rng.normal(size=(3, 8))
    found = {}
    for split, labels in {"train": [0, 1, 2] * 9, "validation": [0, 1], "test": [2]}.items():
        labels = np.array(labels)
        values = (centers[labels] + rng.normal(size=(len(labels), 8))).astype("float32")
        found[split] = probing.SplitFeatures(values, labels)
    results, best, head = probing.probe_features(found, 3)
    assert best.name.startswith("linear probe")  # of equal ones
    assert head.kernel.shape == (8, 3)
    assert best in results and best.validation == best.test == [1]
