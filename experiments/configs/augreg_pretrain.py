"""Pretraining as in AugReg ("How to train your ViT?"). Argument: MODEL,DATA,RECIPE.

DATA is imagenet or imagenet21k. RECIPE is none, light1, light2, medium1, medium2, strong1 or
strong2: number of RandAugment operations, RandAugment magnitude, and alpha of mixup.

Command: python -m experiments.train \
    --config=experiments/configs/augreg_pretrain.py:S/16,imagenet,medium1 --workdir=runs/augreg
Hardware, duration, result: not run here. The paper trains at 224, for 300 epochs on ImageNet and
for 30 and 300 on ImageNet-21k. It also compares weight decay 0.1 (in the recipe) and 0.03, and
dropout and stochastic depth of 0 (in the recipe) and 0.1.

TensorFlow Datasets does not have ImageNet-21k: set --config.dataset.
As in the authors' code, the loss on ImageNet-21k is the sigmoid cross-entropy.
Source: Steiner et al. 2021, sections 3.2 and 3.3.
"""

from experiments.configs import augreg_transfer
from vitkeras.configs import base

RECIPES = {
    "none": (0, 0, 0.0),
    "light1": (2, 0, 0.0),
    "light2": (2, 10, 0.2),
    "medium1": (2, 15, 0.2),
    "medium2": (2, 15, 0.5),
    "strong1": (2, 20, 0.5),
    "strong2": (2, 20, 0.8),
}
DATA = {"imagenet": ("imagenet2012", 300), "imagenet21k": ("imagenet21k", 30)}


def get_config(argument="S/16,imagenet,medium1"):
    """Returns the config of a model on a data set with a recipe."""
    config = base.get_config()
    config.variant, data, recipe = base.split_argument(
        argument, model=augreg_transfer.MODELS, data=DATA, recipe=RECIPES
    )
    config.dataset, config.epochs = DATA[data]
    config.randaug_layers, config.randaug_magnitude, config.mixup_alpha = RECIPES[recipe]
    config.loss = "sigmoid" if data == "imagenet21k" else "softmax"
    config.batch_size = 4096
    config.learning_rate = 1e-3
    config.warmup_steps = 10_000
    config.clip_norm = 1.0
    return config
