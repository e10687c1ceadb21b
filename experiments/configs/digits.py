"""The embedded default: a small ViT on 1,797 real scanned digits, in minutes on two CPU cores.

Command: python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits
"""

from experiments.configs import common


def get_config():
    """Returns the config."""
    config = common.get_config()
    config.dataset = "digits"
    config.augmentation = "affine"
    config.variant = "Ti/2"
    config.hidden_dim = 96
    config.mlp_dim = 384
    config.num_heads = 3
    config.num_layers = 4
    config.image_size = (8, 8)
    config.batch_size = 64
    config.epochs = 100
    config.evaluate_every = 10
    config.warmup_steps = 100
    config.clip_norm = 1.0
    return config
