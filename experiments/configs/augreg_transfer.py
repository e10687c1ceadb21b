"""Fine-tuning as in "How to train your ViT?": MODEL,DATA,SIZE.

DATA is imagenet, cifar10, cifar100, pets or flowers; SIZE is 224 or 384.

Command: python -m experiments.train \
    --config=experiments/configs/augreg_transfer.py:B/32,cifar10,384 \
    --config.init_from=runs/pretrain --workdir=runs/transfer
Hardware, duration, result: not run here. The authors' code reports for B/32, pretrained on
ImageNet-21k, at 384 with the learning rates set here, the mean of five runs: ImageNet 83.27 %,
CIFAR-10 98.55 %, CIFAR-100 91.35 %, Pets 93.78 %, Flowers 99.43 %; and for its released models on
ImageNet at 384: L/16 85.59 %, B/16 85.49 %, S/16 83.73 %, B/32 83.59 %, S/32 79.58 %, Ti/16
78.22 %, R50+L/32 85.99 %, R26+S/32 83.85 %, R+Ti/16 75.40 %.

All but model, size and learning rate is as in paper_finetune.py. The rate is picked on the
validation split, by --config.learning_rate, among 0.001, 0.003, 0.01 and 0.03 (the names of the
released models say 0.01 or 0.03 for ImageNet, 0.001 to 0.01 for CIFAR-100 and Pets; for CIFAR-100
also --config.total_steps=2500). No dropout, mixup or RandAugment: they belong to the pretraining.

What the authors do otherwise: they evaluate on the middle 384 of an image whose short side was made
448, and on CIFAR crop 384 of 448 for training too.
Sources: Steiner et al. 2021; the authors' word in issue 60 of
https://github.com/google-research/big_vision, and configs/transfer.py there; the released models
at gs://vit_models/augreg.
"""

from experiments.configs import common, paper_finetune

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
    model, data, size = common.parts(argument, model=MODELS, data=LEARNING_RATES, size=SIZES)
    config = paper_finetune.get_config(f"B/16,{data}")
    config.variant = model
    config.image_size = (int(size), int(size))
    config.learning_rate = LEARNING_RATES[data]
    return config
