"""Your own images: a folder with one subfolder per class.

Command: vitkeras train --config=folder --config.dataset=folder:photos --workdir=runs/photos
To start from other weights: --config.init_from=FILE, or a run directory.
Hardware, duration, result: depend on the images.
"""

from vitkeras.configs import base


def get_config():
    """Returns the config: Ti/16 at 224 with settings for small data sets."""
    config = base.get_config()
    config.dataset = "folder:photos"
    config.crop = "resize_and_flip"
    config.variant = "Ti/16"
    config.batch_size = 32
    config.epochs = 30
    config.learning_rate = 3e-4
    config.warmup_steps = 20
    config.clip_norm = 1.0
    return config
