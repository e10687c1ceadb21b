"""Every field of a run, once. Other configs start from here and set only what they choose.

Free choices only: steps, warm-up in steps of an epoch and the like are computed by the scripts.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vitkeras.errors import InputError, nearest


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
    # How much of the training split is validation, where the data set has none; 10 when not given,
    # and 1 in a set of TensorFlow Datasets from 100,000 images on.
    config.validation_percent = placeholder(int)
    # Training images of each class, chosen by the seed; all when not given.
    config.shots = placeholder(int)
    # Where encoded images are kept once they were read: none, memory, disk:FOLDER (of this machine,
    # as TFRecord files), or auto, in memory where a split of TensorFlow Datasets has few.
    config.cache = "auto"
    # The run does not begin if more of the images than this cannot be decoded (and more than ten).
    config.max_bad_percent = 1.0
    # none, inception, inception_flip or affine.
    config.augmentation = "inception_flip"
    # Smooth an image before it is shrunk; recorded in the run, and done wherever it is used.
    config.antialias = False
    # Up to 1 plus or minus this times brightness, contrast and saturation.
    config.color_jitter = 0.0
    # RandAugment: operations for each image, and their strength (10: the end of each range).
    config.randaug_layers = 0
    config.randaug_magnitude = 10
    # Share of the images of which a rectangle becomes noise.
    config.erasing_rate = 0.0
    # Of the beta distributions of mixup and CutMix, 0 for none; with both, each batch gets one.
    config.mixup_alpha = 0.0
    config.cutmix_alpha = 0.0
    # A share for each example; else one for each batch.
    config.mixup_per_example = False

    # Letter/patch, such as "B/16"; a hybrid, such as "R50+B/16"; a BiT ResNet, such as "R50x1", of
    # which only size and dtype can be chosen; or "auto", whatever `init_from` is of.
    config.variant = "B/16"
    # Sizes that replace those of the letter.
    config.hidden_dim = placeholder(int)
    config.mlp_dim = placeholder(int)
    config.num_heads = placeholder(int)
    config.num_layers = placeholder(int)
    # (height, width) in pixels.
    config.image_size = (224, 224)
    # token, gap, gap_norm, map or token_gap.
    config.classifier = "token"
    # learned, learned_2d, sincos_2d, relative or none.
    config.positions = "learned"
    # input, every_block or every_block_shared.
    config.positions_at = "input"
    # Tokens that stand for nothing.
    config.num_registers = 0
    # A tanh layer before the head.
    config.pre_logits = False
    # Dropout, and stochastic depth of the last block.
    config.dropout_rate = 0.0
    config.stochastic_depth_rate = 0.0
    # Compute blocks again on the way back: larger batches, a third more arithmetic.
    config.remat = False
    # Initial LayerScale value; none when not given.
    config.layer_scale = placeholder(float)
    # tanh or exact.
    config.gelu = "tanh"
    # Added to the variance in every LayerNorm.
    config.epsilon = 1e-6
    # float32 or mixed_bfloat16.
    config.dtype = "float32"
    # What to start from, all but the head: a weight file of any known format, or the folder with
    # it, a run directory, or a .keras file.
    config.init_from = placeholder(str)
    # What does not train: backbone (all but the head) or blocks:K (stem, patch encoder, the first K
    # blocks); nothing when not given.
    config.freeze = placeholder(str)

    # Images per step, over all replicas.
    config.batch_size = 512
    # Pieces that each replica cuts its batch into, one after the other: less memory, same numbers.
    config.accumulation_steps = 1
    # Steps between two returns to Python; a TPU wants 50 or more.
    config.steps_per_execution = 1
    config.epochs = 100
    # Steps of the whole run, in place of epochs. In what is left of the last epoch the rate is 0,
    # and only a moving average still moves.
    config.total_steps = placeholder(int)
    # Epochs between two evaluations; each is followed by a save.
    config.evaluate_every = 1
    # Epochs between two sets of pictures for TensorBoard, of where a ViT looks (attention distance,
    # rollout); none when not given.
    config.pictures_every = placeholder(int)
    # Steps and minutes between saves of the state in between; none when not given.
    config.save_steps = placeholder(int)
    config.save_minutes = 10.0
    # adamw, or sgd with momentum 0.9 (as the paper's authors have it, not as Keras).
    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    # Rate of each block over that of the next one; 1 for one rate.
    config.layer_decay = 1.0
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


def parts(argument, **choices):
    """Returns the parts of a config's argument, such as "B/16,cifar10": what stands between commas.

    Args:
        argument: What follows a colon behind the config's file, or the default.
        **choices: Of each part, what it can be.
    Raises:
        InputError: If there are more or fewer, or one is no choice.
    """
    given, valid = argument.split(","), list(choices.values())
    fits = len(given) == len(valid)
    wrong = [i for i, word in enumerate(given) if fits and word not in valid[i]]
    if fits and not wrong:
        return given
    lists = "; ".join(f"{name} one of {', '.join(words)}" for name, words in choices.items())
    raise InputError(
        f"A config's argument must be {','.join(choices).upper()}: {lists}. "
        f"Received: {argument!r}.{nearest(given[wrong[0]], valid[wrong[0]]) if wrong else ''}"
    )
