"""One's own images: a folder with one sub-folder per class.

Command: python -m experiments.train --config=experiments/configs/folder.py \
    --config.dataset=folder:photos --workdir=runs/photos
Start from an earlier run with --config.init_from=runs/EARLIER.
"""

from experiments.configs import common


def get_config():
    """Returns the config: a Ti/16 at 224, with the mild settings of a small data set."""
    config = common.get_config()
    config.dataset = "folder:photos"
    config.variant = "Ti/16"
    config.batch_size = 32
    config.epochs = 30
    config.learning_rate = 3e-4
    config.warmup_steps = 20
    config.clip_norm = 1.0
    return config
