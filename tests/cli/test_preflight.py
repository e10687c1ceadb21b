"""`vitkeras preflight`."""

import importlib.util
import json
import re

import pytest
from helpers.images import odd_files, photo
from helpers.models import TINY
from helpers.processes import command
from PIL import Image

MODEL = [f"--config.{name}={value}" for name, value in TINY.items()]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `aot` is not installed"
)


def preflight(folder, page, *more):
    return command(
        "preflight", "--config=folder", f"--config.dataset=folder:{folder}", f"--output={page}",
        "--seconds=1", "--config.variant=Ti/8", "--config.image_size=(32, 48)",
        "--config.batch_size=8", "--config.warmup_steps=2", *MODEL, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """22 good photos and one file of each kind that is unusual or broken."""
    root = tmp_path_factory.mktemp("odd")
    for name in ("ant", "bee"):
        (root / name).mkdir()
        for i in range(10):
            photo(30 + i, 40, seed=i).save(root / name / f"{i}.png")
    for name, content in odd_files((root / "ant" / "0.png").read_bytes()).items():
        (root / "bee" / name).write_bytes(content)
    photo(30, 40, "RGBA").save(root / "ant" / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(30, 40).save(root / "ant" / "rotated.jpg", exif=exif)
    return root


@pytest.mark.slow
def test_a_folder_with_bad_images_is_reported_and_trains(folder, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = preflight(
        folder, page, "--images_per_second=0.1", "--config.crop=inception_flip",
        "--config.randaug_layers=2", "--config.mixup_alpha=0.2",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    bad = [name for name in odd_files(b"") if name.startswith("bad")]
    assert result["ready"] and result["data"]["bad_images"] == len(bad) == 6
    assert result["data"]["images_checked"] == 31 and sum(result["data"]["images"].values()) == 25
    assert result["data"]["transparent_images"] == result["data"]["rotated_images"] == 1
    formats = result["data"]["formats_percent"]
    assert sum(formats.values()) == pytest.approx(100, abs=0.5)
    assert {"JPEG CMYK", "PNG RGB"} <= set(formats)
    rates = result["pipeline"]["images_per_second"]
    assert set(rates) == {"read", "crop", "augment", "batch"} and min(rates.values()) > 0
    assert result["run"]["hours"] == round(30 * 2 * 8 / 0.1 / 3600, 2)
    text = page.read_text()
    for name in bad:
        assert f"bee/{name}: " in text
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 3
    assert not re.findall(r"(src|href)=\"http", text)

    workdir = tmp_path / "run"
    code, _, err = command(
        "train", "--config=folder", f"--config.dataset=folder:{folder}", f"--workdir={workdir}",
        "--smoke",
    )  # fmt: skip
    assert code == 0, err
    lines = (workdir / "bad_images.txt").read_text().splitlines()
    assert sorted(line.partition("\t")[0] for line in lines) == sorted(
        f"bee/{name}" for name in bad
    )


@pytest.mark.slow
def test_problems_are_listed_and_exit_with_2(tmp_path):
    broken = tmp_path / "photos"
    for name in ("ant", "bee"):
        (broken / name).mkdir(parents=True)
        for i in range(12):
            photo(30, 40, seed=i).save(broken / name / f"{i}.png")
        for i in range(8):
            (broken / name / f"bad{i}.png").write_bytes(b"text")
    code, out, err = preflight(broken, tmp_path / "p.html", "--memory_gib=0.001", "--full")
    assert code == 2 and "Traceback" not in err
    error = err.strip().splitlines()[-1]
    assert "max_bad_percent=1.0" in error and "16 of 40" in error and "40.0 %" in error
    assert "A step of 8 images needs about" in error and "accumulation_steps=" in error
    result = json.loads(out.splitlines()[-1])
    assert not result["ready"] and len(result["problems"]) == 2
    assert "cannot start" in (tmp_path / "p.html").read_text()

    code, out, err = preflight(broken, tmp_path / "q.html", "--sample=4")
    assert code == 2 and "Traceback" not in err
    assert "outside of the sample" in err and "--full" in err
    assert json.loads(out.splitlines()[-1])["data"]["images_checked"] <= 24


def test_a_tpu_excludes_replicas_and_memory(tmp_path):
    for flag in ("--replicas=2", "--memory_gib=8"):
        code, _, err = command("preflight", "--config=digits", "--tpu=v5e:2x2", flag)
        assert code == 2 and "tpu=v5e:2x2" in err


@needs_libtpu
@pytest.mark.slow
def test_a_config_compiles_for_a_slice(data_dir, tmp_path):
    code, out, err = command(
        "preflight", "--config=digits", "--config.dtype=mixed_bfloat16", "--config.clip_norm=1.0",
        "--config.ema_momentum=0.99", "--config.accumulation_steps=2", "--config.num_layers=2",
        f"--config.data_dir={data_dir}", "--seconds=1", "--tpu=v5e:2x2",
        f"--output={tmp_path / 'p.html'}",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    found = result["tpu"]
    assert "memory" not in result and "at most" in found["summary"]
    assert any("will wait" in text for text in result["warnings"])
    train, evaluate = found["train"], found["evaluate"]
    assert found["replicas"] == 4 and train["images_per_replica"] == 16
    assert train["microbatches"] == 2 and evaluate["microbatches"] == 1
    assert train["device"] == "TPU v5 lite" and train["bfloat16_fraction"] > 0.99
    assert 2.5 < train["tflop"] / evaluate["tflop"] < 3.5
    # Small evaluation steps need no temporary buffers outside of the chip's own memory.
    assert 0 <= evaluate["temporary_gib"] <= train["temporary_gib"] < 1
    assert train["temporary_gib"] > 0
    assert 0 < train["hbm_gb"] <= train["accessed_gb"]
    assert found["train_remat"]["tflop"] > 1.2 * train["tflop"]
    assert re.search(r"GB, \d+ times: fusion", (tmp_path / "p.html").read_text())
