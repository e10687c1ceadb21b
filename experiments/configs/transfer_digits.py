"""The paper's point in small: real pretrained weights, fine-tuned on 10 images of each class."""

from experiments.configs import common


def get_config():
    """Returns the config: a DINOv2 ViT-S/14 at 56 on 100 digits."""
    config = common.get_config()
    config.dataset = "digits"
    config.shots = 10
    config.augmentation = "affine"
    config.variant = "S/14"
    config.layer_scale = 1.0
    config.gelu = "exact"
    config.image_size = (56, 56)
    config.init_from = "weights/dinov2_small"
    config.batch_size = 20
    config.epochs = 30
    config.evaluate_every = 30
    config.learning_rate = 3e-4
    config.layer_decay = 0.75
    config.warmup_steps = 20
    config.weight_decay = 0.05
    config.clip_norm = 1.0
    return config
