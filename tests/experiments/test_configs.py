"""Every row of the recipes of the papers: its numbers, and a training step of a tiny version."""

import json

import numpy as np
import pytest
from helpers.processes import ROOT, command, python

from experiments.configs import augreg_pretrain, augreg_transfer, paper_finetune, paper_pretrain
from vitkeras import configs
from vitkeras.cli import from_config
from vitkeras.cli.config_validation import validate
from vitkeras.errors import InputError
from vitkeras.training.freezing import freeze

ROWS = (
    [(paper_pretrain, ",".join(row)) for row in paper_pretrain.ROWS]
    + [(paper_finetune, f"B/16,{data}") for data in paper_finetune.DATA]
    + [(paper_finetune, f"{model},cifar10") for model in paper_finetune.MODELS]
    + [(augreg_transfer, f"B/32,{data},224") for data in augreg_transfer.LEARNING_RATES]
    + [(augreg_transfer, f"{model},pets,384") for model in augreg_transfer.MODELS]
    + [(augreg_pretrain, "S/16,imagenet,strong2")]
)


def shrunk(module, argument):
    """Returns the config that `--smoke` makes of a row."""
    config = module.get_config(argument)
    from_config.shrink(config)
    return config


def key(module, argument):
    """Returns the shrunk config without fields that do not change the training step."""
    config = shrunk(module, argument).to_dict()
    return repr([config[name] for name in config if name not in ("learning_rate", "weight_decay")])


# Some rows are equal after shrinking. The stems of the hybrids are not shrunk.
SHRUNK = {
    key(*row): pytest.param(
        *row, marks=[pytest.mark.slow] * (row[1].startswith(("R50+", "R26+", "R101", "R152")))
    )
    for row in ROWS
}


def name(value):
    """Returns the test id of a parameter."""
    return value if isinstance(value, str) else value.__name__.rpartition(".")[2]


@pytest.mark.parametrize("module, argument", ROWS, ids=name)
def test_every_row_is_a_valid_config(module, argument):
    config = module.get_config(argument)
    assert set(config) == set(configs.base_config())
    assert config.variant == argument.split(",")[0]
    validate(config)


@pytest.mark.parametrize("module, argument, loss", [
    (paper_pretrain, "B/16,imagenet", "softmax"), (paper_pretrain, "B/16,imagenet21k", "sigmoid"),
    (paper_pretrain, "B/16,jft", "sigmoid"), (paper_finetune, "B/16,pets", "softmax"),
    (augreg_pretrain, "S/16,imagenet,none", "softmax"),
    (augreg_pretrain, "S/16,imagenet21k,none", "sigmoid"),
], ids=name)  # fmt: skip
def test_the_loss_is_that_of_the_authors_code(module, argument, loss):
    assert module.get_config(argument).loss == loss


def test_the_numbers_of_the_paper():
    def numbers(module, argument, *fields):
        config = module.get_config(argument)
        return tuple(config[field] for field in fields)

    fields = ("epochs", "learning_rate", "lr_schedule", "weight_decay", "dropout_rate", "clip_norm")
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
        rest = ("optimizer", "batch_size", "lr_schedule", "weight_decay", "clip_norm", "image_size")
        for config in (f"L/16,{data}", f"H/14,{data}"):
            side = 378 if "H" in config else 384
            assert numbers(paper_finetune, config, *rest) == (
                "sgd", 512, "cosine", 0.0, 1.0, (side, side)
            )  # fmt: skip
    assert numbers(augreg_transfer, "R+Ti/16,pets,224", "image_size") == ((224, 224),)


def test_the_numbers_of_augreg():
    assert augreg_pretrain.RECIPES == {  # RandAugment operations and magnitude, mixup
        "none": (0, 0, 0), "light1": (2, 0, 0), "light2": (2, 10, 0.2), "medium1": (2, 15, 0.2),
        "medium2": (2, 15, 0.5), "strong1": (2, 20, 0.5), "strong2": (2, 20, 0.8),
    }  # fmt: skip
    config = augreg_pretrain.get_config("B/32,imagenet21k,strong2")
    expected = {
        "dataset": "imagenet21k", "epochs": 30, "randaug_layers": 2, "randaug_magnitude": 20,
        "mixup_alpha": 0.8, "batch_size": 4096, "learning_rate": 1e-3, "lr_schedule": "cosine",
        "warmup_steps": 10_000, "weight_decay": 0.1, "clip_norm": 1.0,
    }  # fmt: skip
    assert {field: config[field] for field in expected} == expected


@pytest.mark.parametrize("module, argument, message", [
    (paper_pretrain, "B/16", "must be MODEL,DATA: .*data one of imagenet, .*Received: 'B/16'"),
    (paper_pretrain, "R50x1,imagenet", "model one of R50x1; data one of jft. Received"),
    (paper_finetune, "B/61,pets", "MODEL,DATA.*Received: 'B/61,pets'. Did you mean .B/16"),
    (paper_finetune, "B/16,cifar10,384", "data one of imagenet, cifar10, cifar100, pets, flowers"),
    (augreg_transfer, "B/16,pets,512", "MODEL,DATA,SIZE: .*size one of 224, 384. Received"),
    (augreg_transfer, "H/14,pets,384", "model one of Ti/16, .*Received: 'H/14,pets,384'"),
])  # fmt: skip
def test_an_unknown_argument_is_refused_with_the_valid_ones(module, argument, message):
    with pytest.raises(InputError, match=message):
        module.get_config(argument)


@pytest.mark.parametrize("module, argument", SHRUNK.values(), ids=name)
def test_every_shrunk_row_trains(module, argument):
    config = shrunk(module, argument)
    assert config.dataset == "digits" and config.batch_size == 8
    total_steps, epochs = from_config.run_length(config, steps_per_epoch=2)
    assert (total_steps, epochs) == (4, 2)
    model = from_config.build_model(config, 10)
    freeze(model, config.freeze)
    from_config.compile_model(model, config, total_steps)
    model.run_eagerly = True
    images = np.random.default_rng(0).integers(0, 256, (8, *config.image_size, 3))
    head = np.array(model.get_layer("head").kernel)
    loss, _ = model.train_on_batch(images.astype("float32"), np.arange(8))
    assert np.isfinite(loss) and not np.array_equal(model.get_layer("head").kernel, head)


@pytest.mark.parametrize("argument, flags", [
    ("paper_finetune.py:H/14,flowers", ("--config.layer_decay=0.75", "--config.shots=1")),
    ("paper_pretrain.py:B/32,jft", ()),
])  # fmt: skip
@pytest.mark.slow
def test_smoke_runs(argument, flags, data_dir, tmp_path):
    process = python(
        "-m", "experiments.train", f"--config=experiments/configs/{argument}",
        f"--workdir={tmp_path / 'run'}", "--smoke", f"--config.data_dir={data_dir}", *flags,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1])["examples"] == 179
    assert f"{80 if flags else 1439:,} train, 179 validation" in process.stderr


def test_an_unknown_argument_on_the_command_line(tmp_path):
    config = ROOT / "experiments/configs/paper_finetune.py"
    flags = (f"--config={config}:B/16,cifar", f"--workdir={tmp_path / 'run'}", "--smoke")
    code, _, error = command("train", *flags)
    assert code == 2 and "Received: 'B/16,cifar'. Did you mean \"cifar10\"?" in error


@pytest.mark.slow
def test_a_linear_probe_on_few_shots_stops_inside_an_epoch(photos, tmp_path):
    code, out, log = command(
        "train", "--config=folder", f"--config.dataset=folder:{photos}",
        "--config.variant=Ti/8", "--config.hidden_dim=24", "--config.mlp_dim=48",
        "--config.num_heads=3", "--config.num_layers=2", "--config.image_size=(32, 32)",
        "--config.batch_size=7", "--config.shots=7", "--config.validation_percent=25",
        "--config.freeze=backbone",
        "--config.optimizer=sgd", "--config.total_steps=4", "--config.warmup_steps=1",
        "--config.weight_decay=0.1", "--config.ema_momentum=0.9", "--config.save_steps=1",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, log
    result = json.loads(out.splitlines()[-1])
    assert result["epochs"] == 2 and result["examples"] == 3
    assert "75 trainable" in log and "21 train, 9 validation" in log
    states = sorted((tmp_path / "run" / "state").iterdir())
    assert [path.name for path in states] == ["step-000000005", "step-000000006"]
    before, after = (dict(np.load(path / "arrays.npz")) for path in states)
    weights = [key for key in before if key.startswith("model/")]
    assert all(np.array_equal(before[key], after[key]) for key in weights)  # learning rate 0
    assert any(before[key].any() for key in weights if key.endswith("head/kernel"))
