"""A linear probe of pretrained weights on your own images.

Command: vitkeras probe --weights=FILE --config.dataset=folder:photos --workdir=runs/probe
Hardware, duration, result: depend on the images; an example is in docs/probe.md.
"""

from vitkeras.configs import base


def get_config():
    """Returns the config: the architecture of the weights, frozen, images without augmentation."""
    config = base.get_config()
    config.dataset = "folder:photos"
    config.variant = "auto"
    config.freeze = "backbone"
    config.crop = "none"
    config.batch_size = 64
    config.warmup_steps = 20
    return config
