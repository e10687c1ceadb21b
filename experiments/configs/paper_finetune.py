"""Fine-tuning as in the ViT paper, table 4. Argument: MODEL,DATA.

DATA is imagenet, cifar10, cifar100, pets or flowers. The image size is 384, and 378 for H/14.

Command: python -m experiments.train \
    --config=experiments/configs/paper_finetune.py:B/16,cifar10 \
    --config.init_from=runs/pretrain --workdir=runs/finetune
Hardware, duration, result: not run here. For B/16 pretrained on ImageNet-21k, the authors'
repository reports on A100 GPUs: CIFAR-10 99.02 % in 2.2 h, CIFAR-100 92.06 % in 2.2 h, ImageNet
84.53 % in 6.5 h.

The paper selects the learning rate on the validation split (--config.learning_rate) from
    imagenet             0.003, 0.01, 0.03; hybrids and ResNets also 0.06
    all other data       0.001, 0.003, 0.01, 0.03
The recipe has the value of the authors' code: 0.01 for CIFAR-10, otherwise 0.03. Warm-up (500
steps, 100 in the short runs) and augmentation are also those of the code.

Differences from the paper: its last runs also train on the validation split; this recipe does not.
Flowers has a validation split in TensorFlow Datasets, so all of its 1,020 training images are used;
the authors hold out 10 % of them.
Sources: Dosovitskiy et al. 2021, appendix B.1.1; configs and README of
https://github.com/google-research/vision_transformer; for the runs of 500 steps, configs of
https://github.com/google-research/big_vision.
"""

from experiments.configs.paper_pretrain import MODELS
from vitkeras.configs import base

# Data set, percentage of the validation split, steps, warm-up steps, learning rate, epochs between
# evaluations (an epoch of Flowers is one step, of ImageNet 2,477).
DATA = {
    "imagenet": ("imagenet2012", 1, 20_000, 500, 0.03, 1),
    "cifar10": ("cifar10", 2, 10_000, 500, 0.01, 10),
    "cifar100": ("cifar100", 2, 10_000, 500, 0.03, 10),
    "pets": ("oxford_iiit_pet", 10, 500, 100, 0.03, 10),
    "flowers": ("oxford_flowers102", 10, 500, 100, 0.03, 50),
}


def get_config(argument="B/16,cifar10"):
    """Returns the config of a model on a data set."""
    config = base.get_config()
    config.variant, data = base.split_argument(argument, model=MODELS, data=DATA)
    patch_size = int(config.variant.partition("/")[2] or 1)
    config.image_size = (384 // patch_size * patch_size,) * 2
    config.batch_size = 512
    config.optimizer = "sgd"
    config.weight_decay = 0.0
    config.clip_norm = 1.0
    (
        config.dataset, config.validation_percent, config.total_steps, config.warmup_steps,
        config.learning_rate, config.evaluate_every,
    ) = DATA[data]  # fmt: skip
    return config
