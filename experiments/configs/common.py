"""Every field of a run, once. Other configs start from here and set only what they choose.

Free choices only: steps, warm-up in steps of an epoch and the like are computed by the scripts.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config():
    """Returns the base: a ViT-B/16 at 224, AdamW, cosine."""
    config = ml_collections.ConfigDict()

    # Seed of initialisation, order of the data and augmentation.
    config.seed = 0
    # auto, one_device, mirrored, multi_worker, tpu or tpu:NAME.
    config.strategy = "auto"

    # "digits", a name of TensorFlow Datasets, or "folder:PATH".
    config.dataset = "digits"
    # Where TensorFlow Datasets keeps its files; its own default when not given.
    config.data_dir = placeholder(str)
    # none, inception, inception_flip or affine.
    config.augmentation = "inception_flip"

    # Letter/patch, such as "B/16", or a hybrid, such as "R50+B/16".
    config.variant = "B/16"
    # Sizes that replace those of the letter.
    config.hidden_dim = placeholder(int)
    config.mlp_dim = placeholder(int)
    config.num_heads = placeholder(int)
    config.num_layers = placeholder(int)
    # (height, width) in pixels.
    config.image_size = (224, 224)
    # token, gap or map.
    config.classifier = "token"
    # learned, learned_2d, sincos_2d or none.
    config.positions = "learned"
    # Tokens that stand for nothing.
    config.num_registers = 0
    # A tanh layer before the head.
    config.pre_logits = False
    # Dropout, and stochastic depth of the last block.
    config.dropout_rate = 0.0
    config.stochastic_depth_rate = 0.0
    # Initial LayerScale value; none when not given.
    config.layer_scale = placeholder(float)
    # tanh or exact.
    config.gelu = "tanh"
    # float32 or mixed_bfloat16.
    config.dtype = "float32"
    # A run directory or a .keras file to start from; all but the head is taken.
    config.init_from = placeholder(str)

    # Images per step, over all replicas.
    config.batch_size = 512
    # Pieces that each replica cuts its batch into, one after the other: less memory, same numbers.
    config.accumulation_steps = 1
    # Steps between two returns to Python; a TPU wants 50 or more.
    config.steps_per_execution = 1
    config.epochs = 100
    # Epochs between two evaluations; each is followed by a save.
    config.evaluate_every = 1
    # Steps and minutes between saves of the state in between; none when not given.
    config.save_steps = placeholder(int)
    config.save_minutes = 10.0
    # adamw or sgd (momentum 0.9).
    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    # cosine or linear.
    config.decay = "cosine"
    config.warmup_steps = 500
    # Decoupled, times the learning rate, on kernels only.
    config.weight_decay = 0.1
    # Global norm of the gradient; no clipping when not given.
    config.clip_norm = placeholder(float)
    # Momentum of a moving average of the weights, which is then what is kept; none when not given.
    config.ema_momentum = placeholder(float)
    config.label_smoothing = 0.0

    return config
