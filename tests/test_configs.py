"""Every row of the recipes, as numbers and as models that train."""

import json

import numpy as np
import pytest
from conftest import ROOT, python

import vitkeras as vk
from experiments import plan
from experiments.configs import (
    augreg_pretrain,
    augreg_transfer,
    common,
    paper_finetune,
    paper_pretrain,
)
from vitkeras.errors import InputError
from vitkeras.finetuning import freeze

ROWS = (
    [(paper_pretrain, ",".join(row)) for row in paper_pretrain.ROWS]
    + [(paper_finetune, f"B/16,{data}") for data in paper_finetune.DATA]
    + [(paper_finetune, f"{model},cifar10") for model in paper_finetune.MODELS]
    + [(augreg_transfer, f"B/32,{data},224") for data in augreg_transfer.LEARNING_RATES]
    + [(augreg_transfer, f"{model},pets,384") for model in augreg_transfer.MODELS]
    + [(augreg_pretrain, "S/16,imagenet,strong2")]
)


def shrunk(module, argument):
    config = module.get_config(argument)
    plan.shrink(config)
    return config


# Once shrunk, some rows are the same. The stems of the hybrids stay large.
SHRUNK = {
    shrunk(*row).to_json(): pytest.param(*row, marks=[pytest.mark.slow] * ("R50+" in row[1]))
    for row in ROWS
}


def name(value):
    return value if isinstance(value, str) else value.__name__.rpartition(".")[2]


@pytest.mark.parametrize("module, argument", ROWS, ids=name)
def test_every_row_is_whole_and_fits_its_model(module, argument):
    config = module.get_config(argument)
    assert set(config) == set(common.get_config())
    assert config.variant == argument.split(",")[0]
    if config.variant not in vk.RESNETS:
        _, patch_size, num_units = vk.models.parse_variant(config.variant)
        stride = patch_size * (2 ** (max(len(num_units), 1) + 1) if num_units is not None else 1)
        vk.models.image_shape(config.image_size, stride)
    assert config.total_steps is None or config.total_steps > config.warmup_steps


def test_the_numbers_of_the_paper():
    def numbers(module, argument, *fields):
        config = module.get_config(argument)
        return tuple(config[field] for field in fields)

    fields = ("epochs", "learning_rate", "decay", "weight_decay", "dropout_rate", "clip_norm")
    expected = {
        "B/16,jft": (7, 8e-4, "linear", 0.1, 0.0, None),
        "L/32,jft": (7, 6e-4, "linear", 0.1, 0.0, None),
        "H/14,jft": (14, 3e-4, "linear", 0.1, 0.0, None),
        "R152x2,jft": (7, 6e-4, "linear", 0.1, 0.0, None),
        "R50+L/32,jft": (7, 2e-4, "linear", 0.1, 0.0, None),
        "B/32,imagenet21k": (90, 1e-3, "linear", 0.03, 0.1, None),
        "L/16,imagenet21k": (30, 1e-3, "linear", 0.03, 0.1, None),
        "L/32,imagenet": (300, 3e-3, "cosine", 0.3, 0.1, 1.0),
    }
    for argument, row in expected.items():
        assert numbers(paper_pretrain, argument, *fields) == row, argument
        rest = numbers(paper_pretrain, argument, "batch_size", "warmup_steps", "optimizer")
        assert rest == (4096, 10_000, "adamw")
    assert len(paper_pretrain.ROWS) == 14 + 4 + 5
    fields = ("dataset", "total_steps", "warmup_steps", "validation_percent")
    expected = {
        "imagenet": ("imagenet2012", 20_000, 500, 1),
        "cifar10": ("cifar10", 10_000, 500, 2),
        "cifar100": ("cifar100", 10_000, 500, 2),
        "pets": ("oxford_iiit_pet", 500, 100, 10),
        "flowers": ("oxford_flowers102", 500, 100, 10),
    }
    for data, row in expected.items():
        assert numbers(paper_finetune, f"L/16,{data}", *fields) == row
        assert numbers(augreg_transfer, f"L/16,{data},224", *fields) == row
        rest = ("optimizer", "batch_size", "decay", "weight_decay", "clip_norm", "image_size")
        for config in (f"L/16,{data}", f"H/14,{data}"):
            side = 378 if "H" in config else 384
            assert numbers(paper_finetune, config, *rest) == (
                "sgd", 512, "cosine", 0.0, 1.0, (side, side)
            )  # fmt: skip
    assert numbers(augreg_transfer, "R+Ti/16,pets,224", "image_size") == ((224, 224),)


@pytest.mark.parametrize("module, argument, message", [
    (paper_pretrain, "B/16", "must be MODEL,DATA: .*data one of imagenet, .*Received: 'B/16'"),
    (paper_pretrain, "R50x1,imagenet", "model one of R50x1; data one of jft. Received"),
    (paper_finetune, "B/61,pets", "MODEL,DATA.*Received: 'B/61,pets'. Did you mean .B/16"),
    (paper_finetune, "B/16,cifar10,384", "data one of imagenet, cifar10, cifar100, pets, flowers"),
    (augreg_transfer, "B/16,pets,512", "MODEL,DATA,SIZE: .*size one of 224, 384. Received"),
    (augreg_transfer, "H/14,pets,384", "model one of Ti/16, .*Received: 'H/14,pets,384'"),
])  # fmt: skip
def test_an_unknown_argument_is_refused_with_what_there_is(module, argument, message):
    with pytest.raises(InputError, match=message):
        module.get_config(argument)


@pytest.mark.parametrize("module, argument", SHRUNK.values(), ids=name)
def test_every_row_trains_once_shrunk(module, argument):
    config = shrunk(module, argument)
    assert config.dataset == "digits" and config.batch_size == 8
    total_steps, epochs = plan.run_length(config, steps_per_epoch=2)
    assert (total_steps, epochs) == (4, 2)
    model = plan.build_model(config, 10, tell=print)
    freeze(model, config.freeze)
    plan.compile_model(model, config, total_steps)
    model.run_eagerly = True
    images = np.random.default_rng(0).uniform(-1, 1, (8, *config.image_size, 3))
    head = np.array(model.get_layer("head").kernel)
    loss, _ = model.train_on_batch(images.astype("float32"), np.arange(8))
    assert np.isfinite(loss) and not np.array_equal(model.get_layer("head").kernel, head)


def test_a_run_ends_with_its_last_step_and_its_epochs_are_whole():
    config = common.get_config()
    assert plan.run_length(config, 7) == (700, 100)
    config.total_steps = 15
    assert plan.run_length(config, 7) == (15, 3)
    config.total_steps = 14
    assert plan.run_length(config, 7) == (14, 2)


def test_the_recipes_of_augreg():
    assert augreg_pretrain.RECIPES == {  # RandAugment layers and magnitude, mixup
        "none": (0, 0, 0), "light1": (2, 0, 0), "light2": (2, 10, 0.2), "medium1": (2, 15, 0.2),
        "medium2": (2, 15, 0.5), "strong1": (2, 20, 0.5), "strong2": (2, 20, 0.8),
    }  # fmt: skip
    config = augreg_pretrain.get_config("B/32,imagenet21k,strong2")
    fields = (
        "dataset",
        "epochs",
        "randaug_layers",
        "randaug_magnitude",
        "mixup_alpha",
        "batch_size",
        "learning_rate",
        "decay",
        "warmup_steps",
        "weight_decay",
        "clip_norm",
    )
    assert [config[field] for field in fields] == [
        "imagenet21k", 30, 2, 20, 0.8, 4096, 1e-3, "cosine", 10_000, 0.1, 1.0
    ]  # fmt: skip


def test_a_broken_data_set_stops_before_it_begins():
    bad = [(f"bee/{i}.jpg", "the file is empty") for i in range(12)]
    plan.check_bad_images(bad, 1188, 1.0)  # 1 % of 1,200
    plan.check_bad_images(bad[:10], 5, 1.0)
    plan.check_bad_images(bad, 5, 100.0)
    plan.check_bad_images([], 5, 1.0)
    with pytest.raises(InputError, match=r"Received: 12 of 1199 \(1.0 %, max_bad_percent=1.0\), s"
                       "uch as bee/0.jpg: the file is empty; bee/1.jpg"):  # fmt: skip
        plan.check_bad_images(bad, 1187, 1.0)


def test_smoke_keeps_what_a_config_chooses():
    config = common.get_config()
    config.update(shots=1, freeze="blocks:7", total_steps=9_999, layer_decay=0.75)
    plan.shrink(config)
    assert (config.shots, config.freeze, config.total_steps) == (8, "blocks:1", 4)
    config = common.get_config()
    config.freeze = "backbone"
    plan.shrink(config)
    assert (config.shots, config.freeze, config.total_steps) == (None, "backbone", None)


def test_layer_decay_reaches_the_optimizer():
    config = shrunk(paper_finetune, "B/16,pets")
    for layer_decay, kind in ((1.0, "Momentum"), (0.75, "LayerwiseMomentum")):
        config.layer_decay = layer_decay
        model = plan.build_model(config, 10, tell=print)
        plan.compile_model(model, config, 4)
        assert type(model.optimizer).__name__ == kind
        assert getattr(model.optimizer, "layer_decay", 1.0) == layer_decay


def script(*arguments):
    return python("-m", "experiments.train", *arguments)


@pytest.mark.parametrize("argument, flags", [
    ("paper_finetune.py:H/14,flowers", ("--config.layer_decay=0.75", "--config.shots=1")),
    pytest.param("paper_pretrain.py:R50+B/16,jft", (), marks=pytest.mark.slow),
])  # fmt: skip
def test_smoke_runs_of_the_recipes(argument, flags, data_dir, tmp_path):
    process = script(
        f"--config={ROOT}/experiments/configs/{argument}", f"--workdir={tmp_path / 'run'}",
        "--smoke", f"--config.data_dir={data_dir}", *flags,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1])["examples"] == 179
    assert f"{80 if flags else 1439:,} train, 179 validation" in process.stderr


def test_an_unknown_argument_on_the_command_line(tmp_path):
    config = ROOT / "experiments/configs/paper_finetune.py"
    process = script(f"--config={config}:B/16,cifar", f"--workdir={tmp_path / 'run'}", "--smoke")
    assert process.returncode == 2
    assert "Received: 'B/16,cifar'. Did you mean \"cifar10\"?" in process.stderr


def test_a_linear_probe_over_few_shots_stops_inside_an_epoch(photos, tmp_path):
    process = script(
        f"--config={ROOT}/experiments/configs/folder.py", f"--config.dataset=folder:{photos}",
        "--config.variant=Ti/8", "--config.hidden_dim=24", "--config.mlp_dim=48",
        "--config.num_heads=3", "--config.num_layers=2", "--config.image_size=(32, 32)",
        "--config.batch_size=7", "--config.shots=7", "--config.validation_percent=25",
        "--config.freeze=backbone",
        "--config.optimizer=sgd", "--config.total_steps=4", "--config.warmup_steps=1",
        "--config.weight_decay=0.1", "--config.ema_momentum=0.9", "--config.save_steps=1",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["epochs"] == 2 and result["examples"] == 3
    assert ", of which 75 train; " in process.stderr and "21 train, 9 validation" in process.stderr
    assert "epoch 2/2 step 3/3" in process.stderr
    states = sorted((tmp_path / "run" / "state").iterdir())
    assert [path.name for path in states] == ["step-000000005", "step-000000006"]
    one, two = (dict(np.load(path / "arrays.npz")) for path in states)
    weights = [key for key in one if key.startswith("model/")]
    assert all(np.array_equal(one[key], two[key]) for key in weights)
    assert any(one[key].any() for key in weights if key.endswith("head/kernel"))
