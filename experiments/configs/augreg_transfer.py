"""Fine-tuning as in AugReg ("How to train your ViT?"). Argument: MODEL,DATA,SIZE.

DATA is imagenet, cifar10, cifar100, pets or flowers; SIZE is 224 or 384.

Command: python -m experiments.train \
    --config=experiments/configs/augreg_transfer.py:B/32,cifar10,384 \
    --config.init_from=runs/pretrain --workdir=runs/transfer
Hardware, duration, result: not run here. The authors report for B/32 at 384, pretrained on
ImageNet-21k, with these learning rates, the mean of five runs: ImageNet 83.27 %, CIFAR-10 98.55 %,
CIFAR-100 91.35 %, Pets 93.78 %, Flowers 99.43 %. For the released models on ImageNet at 384: L/16
85.59 %, B/16 85.49 %, S/16 83.73 %, B/32 83.59 %, S/32 79.58 %, Ti/16 78.22 %, R50+L/32 85.99 %,
R26+S/32 83.85 %, R+Ti/16 75.40 %.

Everything except model, size and learning rate is as in paper_finetune.py. The learning rate is
selected on the validation split (--config.learning_rate) from 0.001, 0.003, 0.01 and 0.03. The
names of the released models state 0.01 or 0.03 for ImageNet and 0.001 to 0.01 for CIFAR-100 and
Pets; CIFAR-100 also has runs with --config.total_steps=2500. There is no dropout, mixup or
RandAugment: these belong to pretraining.

Differences from the authors' code: it evaluates on the central 384 of images resized to 448, and on
CIFAR it also trains on random crops of 384 from 448.
Sources: Steiner et al. 2021; issue 60 of https://github.com/google-research/big_vision, and its
configs/transfer.py; the index of the released models, gs://vit_models/augreg/index.csv.
"""

from experiments.configs import paper_finetune
from vitkeras.configs import base

MODELS = (
    "Ti/16", "S/32", "S/16", "B/32", "B/16", "L/16", "R+Ti/16", "R26+S/32", "R50+L/32",
)  # fmt: skip
SIZES = ("224", "384")
LEARNING_RATES = {
    "imagenet": 0.03,
    "cifar10": 0.003,
    "cifar100": 0.01,
    "pets": 0.003,
    "flowers": 0.003,
}


def get_config(argument="B/32,cifar10,384"):
    """Returns the config of a model on a data set at an image size."""
    model, data, size = base.split_argument(argument, model=MODELS, data=LEARNING_RATES, size=SIZES)
    config = paper_finetune.get_config(f"B/16,{data}")
    config.variant = model
    config.image_size = (int(size), int(size))
    config.learning_rate = LEARNING_RATES[data]
    return config
