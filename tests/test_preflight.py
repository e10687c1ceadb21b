"""The look at data, pipeline and model before a run."""

import json
import re

import pytest
from conftest import ROOT, TINY, odd_files, photo, python

import vitkeras as vk
from vitkeras import training
from vitkeras.training.memory import state_bytes, step_bytes

MODEL = [f"--config.{name}={value}" for name, value in TINY.items()]


def preflight(folder, page, *more):
    return python(
        "-m", "experiments.preflight", f"--config={ROOT / 'experiments/configs/folder.py'}",
        f"--config.dataset=folder:{folder}", f"--output={page}", "--seconds=1",
        "--config.variant=Ti/8", "--config.image_size=(32, 48)", "--config.batch_size=8",
        "--config.warmup_steps=2", *MODEL, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 good photos and one file of each kind that is odd or broken."""
    root = tmp_path_factory.mktemp("odd")
    for name in ("ant", "bee"):
        (root / name).mkdir()
        for i in range(10):
            photo(30 + i, 40, seed=i).save(root / name / f"{i}.png")
    for name, content in odd_files((root / "ant" / "0.png").read_bytes()).items():
        (root / "bee" / name).write_bytes(content)
    return root


def test_a_folder_of_every_fault_is_reported_and_trains(folder, tmp_path):
    page = tmp_path / "page.html"
    done = preflight(
        folder, page, "--images_per_second=0.1", "--config.augmentation=inception_flip",
        "--config.randaug_layers=2", "--config.mixup_alpha=0.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    bad = [name for name in odd_files(b"") if name.startswith("bad")]
    assert result["ready"] and result["data"]["bad_images"] == len(bad) == 5
    assert result["data"]["looked_at"] == 29 and sum(result["data"]["images"].values()) == 24
    assert sum(result["data"]["modes"].values()) == pytest.approx(100, abs=0.5)
    assert {"GIF P", "JPEG CMYK", "PNG RGB"} <= set(result["data"]["modes"])
    rates = result["pipeline"]["images_per_second"]
    assert set(rates) == {"read", "crop", "augmented", "batches"} and min(rates.values()) > 0
    assert result["model"]["hours"] == round(30 * 2 * 8 / 0.1 / 3600, 2)
    text = page.read_text()
    for name in bad:
        assert f"bee/{name}: " in text
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 3
    assert not re.findall(r"(src|href)=\"http", text)

    workdir = tmp_path / "run"
    trained = python(
        "-m", "experiments.train", f"--config={ROOT / 'experiments/configs/folder.py'}",
        f"--config.dataset=folder:{folder}", f"--workdir={workdir}", "--smoke",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    named = (workdir / "bad_images.txt").read_text().splitlines()
    assert sorted(line.partition("\t")[0] for line in named) == sorted(f"bee/{n}" for n in bad)


def test_what_is_in_the_way_is_said_and_the_exit_code_tells(folder, tmp_path):
    broken = tmp_path / "photos"
    for name in ("ant", "bee"):
        (broken / name).mkdir(parents=True)
        for i in range(12):
            photo(30, 40, seed=i).save(broken / name / f"{i}.png")
        for i in range(8):
            (broken / name / f"bad{i}.png").write_bytes(b"text")
    done = preflight(broken, tmp_path / "p.html", "--memory_gib=0.001", "--full")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert "16 of 40 (40.0 %, max_bad_percent=1.0)" in error
    assert "a step of 8 images needs about" in error and "accumulation_steps=" in error
    result = json.loads(done.stdout.splitlines()[-1])
    assert not result["ready"] and len(result["obstacles"]) == 2
    assert "should not begin" in (tmp_path / "p.html").read_text()
    sampled = preflight(broken, tmp_path / "q.html", "--sample=4")
    assert sampled.returncode == 2 and "Traceback" not in sampled.stderr
    assert "not among the sample" in sampled.stderr and "--full names all" in sampled.stderr
    assert json.loads(sampled.stdout.splitlines()[-1])["data"]["looked_at"] <= 24


def compiled(**options):
    model = vk.vit("Ti/8", image_size=64, num_classes=5, **(TINY | options))
    optimizer = training.make_optimizer("adamw", 0.1, variables=model.trainable_variables)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, training.SmoothedCrossEntropy())
    return model


def test_memory_grows_with_images_and_halves_in_bfloat16():
    model = compiled(hidden_dim=96, mlp_dim=384)
    assert state_bytes(model) == pytest.approx(3 * 4 * model.count_params(), rel=0.01)
    sizes = [step_bytes(model, images) for images in (64, 128, 256)]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.01)
    # Of each block at least the input, queries, keys and values, and the MLP's inside is kept.
    kept = 2 * 64 * 65 * (96 + 3 * 96 + 2 * 384) * 4
    assert kept < sizes[0] < 10 * kept
    half = compiled(hidden_dim=96, mlp_dim=384, dtype="mixed_bfloat16")
    assert step_bytes(half, 256) < 0.75 * sizes[2]


def test_memory_is_about_what_a_process_takes():
    code = """
import sys; sys.path.insert(0, "tests")
import tensorflow as tf
from test_preflight import compiled, state_bytes, step_bytes
model = compiled(hidden_dim=192, mlp_dim=768, num_layers=6)
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if name in line)
print(step_bytes(model, 64) // 1024)
for images in (2, 64):
    x, y = tf.zeros((images, 64, 64, 3), tf.uint8), tf.zeros((images,), tf.int32)
    for _ in range(3):
        model.train_on_batch(x, y)
    print(kilobytes("VmHWM"))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    estimate, before, after = map(int, done.stdout.split()[-3:])
    assert 0.6 < (after - before) / estimate < 1.6


def test_labels_of_no_class_are_in_the_way(data_dir):
    code = f"""
from absl import flags
from experiments import preflight
from experiments.configs import digits
from vitkeras import data
flags.FLAGS.mark_as_parsed()
source = data.open_source("digits", {str(data_dir)!r})
source.class_names.pop()
said = []
facts, _ = preflight.look_at_data(source, digits.get_config(), print, said.append)
assert len(said) == 1 and "labels are of no class, such as 9" in said[0], said
assert facts["classes"] == 9 and facts["per_class"]["least"] > 100, facts
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
