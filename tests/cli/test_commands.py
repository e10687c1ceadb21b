"""train, evaluate, predict and export, one after the other on the same run."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from helpers.processes import ROOT, command, fail, python, succeed

import vitkeras as vk
from vitkeras.io.run_directory import RunDirectory

SIZES = {"variant": "Ti/8", "hidden_dim": 24, "mlp_dim": 48, "num_heads": 3, "num_layers": 2}
MODEL = [f"--config.{name}={value}" for name, value in SIZES.items()]


def train_flags(photos, workdir, *more, image_size=(32, 48)):
    """Returns flags of a run of two epochs of three steps."""
    return (
        "--config=folder", f"--workdir={workdir}", f"--config.dataset=folder:{photos}",
        "--config.batch_size=8", "--config.epochs=2", "--config.warmup_steps=2",
        "--config.ema_momentum=0.9", f"--config.image_size={image_size}", *MODEL, *more,
    )  # fmt: skip


def train(photos, workdir, *more, **options):
    """Trains and returns the result and the log."""
    return succeed("train", *train_flags(photos, workdir, *more, **options))


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run on the folder of photos: its directory, result, standard output and log."""
    workdir = tmp_path_factory.mktemp("runs") / "photos"
    code, out, log = command("train", *train_flags(photos, workdir))
    assert code == 0, log
    return workdir, json.loads(out.splitlines()[-1]), out, log


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """An export of the run: its folder and the result of the command."""
    base = tmp_path_factory.mktemp("saved") / "photos"
    result, _ = succeed("export", f"--workdir={run[0]}", f"--output={base}")
    return base, result


def test_a_run_directory_is_complete(run):
    workdir, result, out, log = run
    assert result["examples"] == 3 and 0 <= result["accuracy"] <= 1
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json", "class_names.json", "preprocessing.json", "dataset.json", "versions.json",
        "best.keras", "last.keras", "state", "metrics.csv", "curves.png", "tensorboard",
        "bad_images.txt", ".lock",
    }  # fmt: skip
    rows = (workdir / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("epoch,step,learning_rate")
    assert (workdir / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert f"export --workdir={workdir}" in out
    path, _, reason = (workdir / "bad_images.txt").read_text().strip().partition("\t")
    assert path == "bee/01.jpg" and path in log
    assert reason.startswith("Invalid JPEG data, size 200") and "{" not in reason
    versions = json.loads((workdir / "versions.json").read_text())
    assert versions["vitkeras"] == vk.__version__


def test_the_saved_model_loads_after_importing_vitkeras_alone(run):
    code = (
        "import sys, keras, vitkeras\n"
        "for name in ('best', 'last'):\n"
        "    model = keras.saving.load_model(f'{sys.argv[1]}/{name}.keras')\n"
        "    print(type(model).__name__, model.compiled, model.config.variant)"
    )
    done = python("-c", code, run[0])
    assert done.stdout.splitlines() == ["VisionModel False None"] * 2, done.stderr[-2000:]


def test_evaluate_gives_the_numbers_of_train(run):
    result, _ = succeed("evaluate", f"--workdir={run[0]}", "--batch_size=2")
    assert result["accuracy"] == run[1]["accuracy"]
    assert result["examples"] == 3 and abs(result["loss"] - run[1]["loss"]) < 1e-5
    result, _ = succeed("evaluate", f"--workdir={run[0]}", "--split=train", "--weights=last")
    assert result["examples"] == 29 and result["weights"] == "last"


def test_evaluate_refuses_other_data(run, photos, tmp_path):
    folder, workdir = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, folder)
    shutil.copytree(run[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**config, "dataset": f"folder:{folder}"}))
    assert succeed("evaluate", f"--workdir={workdir}")[0]["accuracy"] == run[1]["accuracy"]
    first = next(folder.glob("ant/*.png"))
    for added, what in (("ant/new.png", "dataset"), ("dog/new.png", "class_names")):
        (folder / added).parent.mkdir(exist_ok=True)
        shutil.copy(first, folder / added)
        error = fail("evaluate", f"--workdir={workdir}")
        assert f"The {what} must be that of the run" in error


def test_a_finished_run_is_not_trained_again(run, photos):
    before = (run[0] / "metrics.csv").read_bytes()
    path = run[0] / "config.json"
    config = json.loads(path.read_text())
    for name in ("resize", "crop_fraction", "loss", "class_weights", "early_stopping"):
        del config[name]  # as a version without these fields wrote it
    path.write_text(json.dumps(config))
    result, log = succeed("train", f"--workdir={run[0]}", "--config.remat=True")
    assert result == run[1] and "2 epochs are done" in log
    assert (run[0] / "metrics.csv").read_bytes() == before


def test_a_resumed_run_is_bit_exact(run, tmp_path, monkeypatch):
    complete, resumed = run[0], tmp_path / "resumed"
    shutil.copytree(complete, resumed)
    for name in ("last.keras", "metrics.csv", "curves.png"):
        (resumed / name).unlink()
    _, second = sorted((resumed / "state").iterdir())
    shutil.rmtree(second)
    monkeypatch.chdir(tmp_path)
    result, log = succeed("train", "--workdir=resumed")  # with the config of the run
    assert "after step 3 of 6" in log
    assert (resumed / "metrics.csv").read_bytes() == (complete / "metrics.csv").read_bytes()
    with np.load(resumed / "state" / second.name / "arrays.npz") as actual:
        with np.load(complete / "state" / second.name / "arrays.npz") as expected:
            for name in expected:
                np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
    assert result | {"workdir": ""} == run[1] | {"workdir": ""}


def test_a_finished_run_is_extended(run, tmp_path):
    workdir = tmp_path / "extended"
    shutil.copytree(run[0], workdir)
    rows = (workdir / "metrics.csv").read_text()
    for flag in ("--config.learning_rate=1", "--config.total_steps=6", "--config.epochs=4"):
        fail("train", f"--workdir={workdir}", "--extend_epochs=1", flag)
        assert (workdir / "metrics.csv").read_text() == rows
        assert not (workdir / "extensions.json").exists()

    result, log = succeed("train", f"--workdir={workdir}", "--extend_epochs=2")
    assert "Resuming after step 6 of 12" in log and result["epochs"] == 4
    assert json.loads((workdir / "extensions.json").read_text()) == [{"from": 2, "to": 4}]
    extended = (workdir / "metrics.csv").read_text()
    assert extended.startswith(rows)
    config = RunDirectory(workdir).config
    assert config == RunDirectory(run[0]).config | {"epochs": 4}
    schedule = vk.training.WarmupDecay(
        config["learning_rate"], 12, config["warmup_steps"], config["lr_schedule"]
    )
    rates = [float(row["learning_rate"]) for row in csv.DictReader(extended.splitlines())]
    assert len(rates) == 4 and rates[2] > 0
    np.testing.assert_allclose(rates[2:], [schedule(9), schedule(12)], atol=1e-9)

    shutil.rmtree(sorted((workdir / "state").iterdir())[1])  # as if killed in the last epoch
    error = fail("train", f"--workdir={workdir}", "--extend_epochs=2")
    assert "3 of 4 epochs are done" in error
    again, log = succeed("train", f"--workdir={workdir}")
    assert again == result and "Resuming after step 9 of 12" in log
    assert (workdir / "metrics.csv").read_text() == extended


def test_a_run_is_used_from_any_directory_and_with_moved_data(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run[0], "run")
    shutil.copytree(photos, "moved")
    config = json.loads((run[0] / "config.json").read_text())
    config["dataset"] = f"folder:{tmp_path}/gone"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert "gone" in fail("evaluate", "--workdir=run")
    assert "gone" in fail("train", "--workdir=run")
    result, _ = succeed("evaluate", "--workdir=run", "--dataset=folder:moved")
    assert result["accuracy"] == run[1]["accuracy"]
    _, log = succeed("train", "--workdir=run", "--config.dataset=folder:moved")
    assert "2 epochs are done" in log
    shutil.rmtree("moved/ant")
    moved = ("--workdir=run", "--dataset=folder:moved")
    assert "`split` must be all" in fail("evaluate", *moved, "--split=test")
    result, _ = succeed("evaluate", *moved)
    assert (result["data"], result["examples"]) == ("other", 23)
    for field, path in (("init_from=../w.npz", tmp_path.parent / "w.npz"), ("seed=1", tmp_path)):
        flags = train_flags("photos", "new", f"--config.{field}")
        assert f"{path}" in fail("train", *flags)  # neither file nor folder exists


def test_the_config_of_a_run_must_be_of_this_version(run, tmp_path):
    for text in ("{", '{"old_field": 1}', '{"epochs": "many"}', "[1]"):
        (tmp_path / "config.json").write_text(text)
        error = fail("train", f"--workdir={tmp_path}")
        assert "must have the fields of this version" in error and "config.json" in error
    assert "`--config` is required" in fail("train", f"--workdir={tmp_path}/new")


def test_predictions_of_a_folder_are_written_to_a_file(run, exported, photos, tmp_path):
    files = sorted(map(str, photos.rglob("*.*")))
    results = {}
    for name, model in (("run", f"--workdir={run[0]}"), ("export", f"--saved_model={exported[0]}")):
        for suffix in ("csv", "jsonl"):
            output = tmp_path / f"{name}.{suffix}"
            summary, error = succeed(
                "predict", model, f"--output={output}", "--top=2", "--batch_size=5", photos
            )
            assert summary["images"] == len(files) == 36 and summary["invalid"] == 1
            assert summary["images_per_second"] > 0 and "01.jpg" not in error
            text = output.read_text()
            if suffix == "jsonl":
                rows = results[name] = [json.loads(line) for line in text.splitlines()]
                assert [len(row["top"]) for row in rows if row["valid"]] == [2] * 35
            else:
                assert text.splitlines()[0] == (
                    "path,valid,reason,class_1,probability_1,class_2,probability_2"
                )
                rows = list(csv.DictReader(text.splitlines()))
                assert [row["valid"] for row in rows].count("false") == 1
            assert [row["path"] for row in rows] == files
    for row, other in zip(results["run"], results["export"], strict=True):
        assert (row["path"], row["valid"], row["reason"]) == (
            other["path"], other["valid"], other["reason"],
        )  # fmt: skip
        assert row["valid"] or row["reason"].startswith("Invalid JPEG data")
        for entry, served in zip(row["top"], other["top"], strict=True):
            assert abs(entry["probability"] - served["probability"]) < 1e-5


def test_predict_refuses_an_output_that_exists_or_cannot_be_written(tmp_path):
    digits, image = "--saved_model=saved_models/digits", "docs/digit.png"
    existing = tmp_path / "rows.csv"
    existing.write_text("kept")
    error = fail("predict", digits, f"--output={existing}", image)
    assert "must be a new file" in error and "File exists" in error
    assert existing.read_text() == "kept"
    for output in (tmp_path / "rows.txt", "gs://bucket/rows.csv"):
        error = fail("predict", digits, f"--output={output}", image)
        assert "must be a local file, .csv or .jsonl" in error
    error = fail("predict", digits, f"--output={tmp_path}/missing/rows.csv", image)
    assert "No such file or directory" in error
    assert "glob pattern with a match. Received: no*.png" in fail("predict", digits, "no*.png")
    assert "must have .jpg" in fail("predict", digits, "vitkeras/io")


def test_run_export_and_a_process_without_keras_predict_the_same(run, exported, photos):
    files = [path for path in sorted(photos.rglob("*.*")) if path.name != "01.jpg"][:14]
    from_run, _ = succeed("predict", f"--workdir={run[0]}", *files)
    served, _ = succeed("predict", f"--saved_model={exported[0]}", *files)
    assert [p["path"] for p in from_run["predictions"]] == [str(f) for f in files]
    code = (
        "import json, sys\n"
        "sys.modules['keras'] = sys.modules['vitkeras'] = None  # importing them raises\n"
        "import tensorflow as tf\n"
        "loaded = tf.saved_model.load(sys.argv[1])\n"
        "files = [open(path, 'rb').read() for path in sys.argv[2:]]\n"
        "out = loaded.signatures['serving_default'](image_bytes=tf.constant(files))\n"
        "print(json.dumps({k: v.numpy().astype(str if k == 'classes' else float).tolist()"
        " for k, v in out.items()}))"
    )
    process = python("-c", code, exported[0] / "1", *files)
    assert process.returncode == 0, process.stderr
    batch = json.loads(process.stdout.splitlines()[-1])
    assert set(batch) == {"classes", "scores", "label_ids", "probabilities", "valid"}
    assert all(batch["valid"])
    pairs = zip(from_run["predictions"], served["predictions"], strict=True)
    for i, (a, b) in enumerate(pairs):
        names = [entry["class"] for entry in a["top"]]
        assert names == [entry["class"] for entry in b["top"]] == batch["classes"][i]
        for other in ([e["probability"] for e in b["top"]], batch["scores"][i]):
            np.testing.assert_allclose([e["probability"] for e in a["top"]], other, atol=1e-5)
        assert abs(sum(batch["probabilities"][i]) - 1) < 1e-5
        ids = map(int, batch["label_ids"][i])
        assert [batch["probabilities"][i][j] for j in ids] == batch["scores"][i]


def test_the_model_card_describes_the_run(exported, run):
    card = (exported[0] / "1/model_card.md").read_text()
    rows = (run[0] / "metrics.csv").read_text().splitlines()[1:]
    accuracies = [float(row.split(",")[5]) for row in rows]
    assert f"| accuracy | {max(accuracies):.1%} of 3 validation images, epoch " in card
    assert "| data | folder:" in card and "files_sha256 " in card
    assert "a moving average (momentum 0.9); trained from random initialization" in card
    assert f"`vitkeras export --workdir={run[0]} --output={exported[0]}`" in card
    assert "license of the weights | not stated (--license)" in card and "ant, bee, cow" in card
    names = {path.name for path in exported[0].iterdir()}
    assert names >= {"1", "models.config", "batching_parameters.txt", "monitoring.config"}


@pytest.mark.slow
def test_export_flags(run, photos, tmp_path):
    base = tmp_path / "chosen"
    succeed(
        "export", f"--workdir={run[0]}", f"--output={base}", "--top=2", "--xla", "--weights=last",
        "--compute_dtype=mixed_bfloat16", "--license=CC0",
    )  # fmt: skip
    card = (base / "1/model_card.md").read_text()
    for text in ("`xla`", "bfloat16", "license of the weights | CC0", "last.keras of the run"):
        assert text in card
    image = sorted((photos / "ant").iterdir())[0]
    (tmp_path / "no.jpg").write_text("no image")
    result, log = succeed("predict", f"--saved_model={base}", image, tmp_path / "no.jpg")
    good, bad = result["predictions"]
    assert good["valid"] and len(good["top"]) == 2
    assert not bad["valid"] and bad["top"] == []
    assert re.search("no.jpg +invalid: not a JPEG, PNG or WebP image$", log, re.M)


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--output=out", "--features=2,x"], "`features` must be integers"),
        (["--output=out", "--format=hugging_face", "--xla"], "--xla must not be given for weights"),
        (["--output=out.npz", "--features=1"], "--features must not be given for weights"),
    ],
)
def test_flags_of_an_export_are_checked_before_the_model_is_loaded(flags, text):
    code, _, error = command("export", "--workdir=runs/none", *flags)
    assert code == 2 and text in error


def test_errors_have_no_control_characters():
    error = fail("evaluate", "--workdir=runs/a\nb\x1b[31m\u732b")
    assert "Received: runs/a b\\x1b[31m\u732b, which has no config.json" in error


def test_a_run_is_exported_as_a_hugging_face_folder(run, tmp_path):
    flags = (f"--workdir={run[0]}", f"--output={tmp_path}/out", "--format=hugging_face")
    succeed("export", *flags)
    model = RunDirectory(run[0]).load_model()
    loaded = vk.from_pretrained(tmp_path / "out")
    images = np.random.default_rng(0).integers(0, 256, (2, *model.input_shape[1:]))
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-5)
    flags = (f"--workdir={run[0]}", f"--output={tmp_path}/a", "--format=google")
    assert "`output` must end in .npz" in fail("export", *flags)


@pytest.mark.slow
def test_versions_are_counted_and_never_overwritten(run, exported):
    base, first = exported
    assert first["version"] == 1
    flags = (f"--workdir={run[0]}", f"--output={base}")
    error = fail("export", *flags, "--version=1")
    assert "version=1" in error and "Next free: 2" in error
    second, _ = succeed("export", *flags)
    assert second["version"] == 2
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == ["1", "2"]


@pytest.mark.slow
def test_fine_tuning_from_a_run_at_another_image_size(run, photos, tmp_path):
    workdir, flag = tmp_path / "finetuned", f"--config.init_from={run[0]}"
    _, log = train(photos, workdir, flag, image_size=(40, 56))
    assert "patch_encoder/positions" in log and "head/" in log
    assert json.loads((workdir / "preprocessing.json").read_text())["image_size"] == [40, 56]


@pytest.mark.slow
def test_the_head_is_kept_where_class_names_agree(run, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "bee").rename(folder / "dog")
    flags = [
        *train_flags(folder, tmp_path / "kept"), f"--config.init_from={run[0]}",
        "--config.keep_head", "--config.learning_rate=1e-20", "--config.epochs=1",
    ]  # fmt: skip
    _, log = succeed("train", *flags)
    assert "The head is kept for 2 of 3 classes: ant, cow" in log
    kernels, biases = (
        [
            RunDirectory(path).load_model().get_layer("head").get_weights()[i]
            for path in (run[0], tmp_path / "kept")
        ]
        for i in (0, 1)
    )
    for old, new in (kernels, biases):
        np.testing.assert_allclose(new[..., [0, 1]], old[..., [0, 2]], atol=1e-9)
        np.testing.assert_allclose(new[..., 2], 0, atol=1e-9)
    (folder / "ant").rename(folder / "eel")
    (folder / "cow").rename(folder / "fox")
    flags[flags.index(next(f for f in flags if "--workdir" in f))] = f"--workdir={tmp_path / 'no'}"
    assert "A head can only be kept if a class name is the same" in fail("train", *flags)
    flags += [f"--config.init_from={tmp_path / 'w.npz'}"]
    assert "`init_from` must be a run directory" in fail("train", *flags)


def test_fine_tuning_with_the_architecture_of_a_file(run, photos, tmp_path):
    folder = tmp_path / "out"
    succeed("export", f"--workdir={run[0]}", f"--output={folder}", "--format=hugging_face")
    flags = (
        "--config=folder", f"--workdir={tmp_path / 'finetuned'}",
        f"--config.dataset=folder:{photos}", f"--config.init_from={folder}",
        "--config.variant=auto", "--config.freeze=blocks:1", "--config.layer_decay=0.5",
        "--config.image_size=(40, 40)", "--config.batch_size=8", "--config.epochs=2",
        "--config.warmup_steps=2",
    )  # fmt: skip
    first, log = succeed("train", *flags)
    assert f"architecture is that of {folder}" in log and "trainable" in log
    shutil.rmtree(folder)  # a run that has started does not need it
    again, log = succeed("train", *flags)
    assert again == first and "epochs are done" in log


@pytest.mark.slow
def test_smoke_with_mirrored_strategy(data_dir, tmp_path):
    result, log = succeed(
        "train", "--config=digits", f"--workdir={tmp_path / 'run'}",
        f"--config.data_dir={data_dir}", "--config.strategy=mirrored", "--smoke",
        "--config.accumulation_steps=2", "--config.steps_per_execution=2",
    )  # fmt: skip
    assert result["examples"] == 179
    assert "MirroredStrategy, 1 replica, 8 images per replica" in log


def test_a_changed_config_cannot_resume(photos, run):
    def resume(*fields):
        return fail("train", *train_flags(photos, run[0], *(f"--config.{f}" for f in fields)))

    error = resume("learning_rate=0.5")
    assert "learning_rate was 0.0003 and is now 0.5" in error
    error = resume("dataset=digits", "ema_momentum=0.5", "num_layers=1", "optimizer=sgd")
    for name in ("ema_momentum was 0.9", "num_layers was 2", "optimizer was", "dataset was"):
        assert name in error
    assert "batch_size was 8 and is now 4" in resume("batch_size=4")


def test_bad_paths_are_refused(photos, run, tmp_path):
    new = tmp_path / "new"
    error = fail("train", *train_flags(photos, f"{ROOT}/README.md/x"))
    assert "README.md/x (Not a directory)" in error
    assert "README.md" in fail("export", f"--workdir={run[0]}", f"--output={ROOT}/README.md")
    (tmp_path / "classes" / "a").mkdir(parents=True)
    assert "classes/a" in fail("train", *train_flags(tmp_path / "classes", new))
    (tmp_path / "no.jpg").write_text("no image")
    workdir = f"--workdir={run[0]}"
    (row,) = succeed("predict", workdir, tmp_path / "no.jpg")[0]["predictions"]
    assert not row["valid"] and row["reason"] == "not a JPEG, PNG or WebP image"
    assert "glob pattern with a match. Received: none.png" in fail("predict", workdir, "none.png")
    assert "image or folder must follow" in fail("predict", workdir)
    assert "--workdir" in fail("predict", "none.png")
    assert "config.json" in fail("evaluate", f"--workdir={tmp_path}")
    assert f"saved_model={new}" in fail("predict", f"--saved_model={new}", "docs/digit.png")
    assert not new.exists()


def test_the_committed_digits_model_predicts():
    folder = ROOT / "saved_models/digits"
    result, _ = succeed("predict", f"--saved_model={folder}", ROOT / "docs/digit.png")
    top = result["predictions"][0]["top"][0]
    assert top["class"] == "4" and top["probability"] > 0.8
    size = sum(path.stat().st_size for path in (folder / "1").rglob("*") if path.is_file())
    assert size < 3e6
