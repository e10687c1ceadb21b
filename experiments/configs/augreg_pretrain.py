"""Pretraining as in "How to train your ViT?": MODEL,DATA,RECIPE.

DATA is imagenet or imagenet21k; RECIPE is none, light1, light2, medium1, medium2, strong1 or
strong2: RandAugment's layers and magnitude, and mixup's alpha.

Command: python -m experiments.train \
    --config=experiments/configs/augreg_pretrain.py:S/16,imagenet,medium1 --workdir=runs/augreg
Hardware, duration, result: not run here. The paper trains for 300 epochs on ImageNet, for 30 and
300 on ImageNet-21k, at 224, and varies besides: weight decay 0.1 (set) and 0.03; dropout and
stochastic depth both 0 (set) or both 0.1.

What the authors do otherwise: on ImageNet-21k a sigmoid cross-entropy. ImageNet-21k is not among
TensorFlow Datasets' own: name yours with --config.dataset.
Source: Steiner et al. 2021, sections 3.2 and 3.3.
"""

from experiments.configs import augreg_transfer, common

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
    config = common.get_config()
    config.variant, data, recipe = common.parts(
        argument, model=augreg_transfer.MODELS, data=DATA, recipe=RECIPES
    )
    config.dataset, config.epochs = DATA[data]
    config.randaug_layers, config.randaug_magnitude, config.mixup_alpha = RECIPES[recipe]
    config.batch_size = 4096
    config.learning_rate = 1e-3
    config.warmup_steps = 10_000
    config.clip_norm = 1.0
    return config
