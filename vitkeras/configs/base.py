"""Every field of a config, once. Recipes start from here and set what they choose.

Only free choices: what follows from them, such as the number of steps, is computed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vitkeras.arguments import did_you_mean
from vitkeras.errors import InputError


def get_config() -> ml_collections.ConfigDict:
    """Returns the base config: ViT-B/16 at 224, AdamW, cosine schedule."""
    config = ml_collections.ConfigDict()

    # Seed of initialization, shuffling, augmentation and dropout.
    config.seed = 0
    # auto, one_device, mirrored, multi_worker, tpu or tpu:NAME.
    config.strategy = "auto"

    # digits, a name of TensorFlow Datasets, or folder:PATH.
    config.dataset = "digits"
    # Directory of TensorFlow Datasets; its own default if not set.
    config.data_dir = placeholder(str)
    # Percentage of the training split that becomes the validation split, if the data set has none.
    # If not set: 10, or 1 for data sets of TensorFlow Datasets with 100,000 images or more.
    config.validation_percent = placeholder(int)
    # Training images per class, chosen by the seed; all if not set.
    config.shots = placeholder(int)
    # Where encoded images are cached: none, memory, disk:FOLDER (local TFRecord files), or auto: in
    # memory for small data sets of TensorFlow Datasets.
    config.cache = "auto"
    # The run does not start if a larger percentage of the images cannot be decoded. Up to ten bad
    # images are always accepted.
    config.max_bad_percent = 1.0
    # Geometric augmentation: none, flip_only (horizontal), resize_and_flip (resized to 8/7 of
    # image_size, random crop, flip), inception (random crop of 5 to 100 % of the area),
    # inception_flip, or affine (small rotation, shear, scale and shift).
    config.crop = "inception_flip"
    # Color under transparent pixels, RGB from 0 to 255. Recorded in the run and used in evaluation
    # and serving too.
    config.background = (255, 255, 255)
    # Whether the EXIF orientation is applied. Recorded likewise.
    config.exif_orientation = True
    # squash: images are resized without regard to their aspect ratio. crop: the aspect ratio is
    # kept, and evaluation and serving take the central crop. Recorded likewise.
    config.resize = "squash"
    # With resize=crop, the ratio of the sides of the central crop and of the resized image; if not
    # set, 0.875 (224 of 256 pixels).
    config.crop_fraction = placeholder(float)
    # Whether resizing uses antialias. Recorded in the run and used in evaluation and serving too.
    config.antialias = False
    # Brightness, contrast and saturation are multiplied by a factor in 1 +- this value.
    config.color_jitter = 0.0
    # RandAugment: number of operations per image, and magnitude (10 is the end of each range).
    config.randaug_layers = 0
    config.randaug_magnitude = 10
    # Probability of random erasing.
    config.erasing_rate = 0.0
    # Alpha of mixup and CutMix, 0 for none. With both, each batch uses one of them.
    config.mixup_alpha = 0.0
    config.cutmix_alpha = 0.0
    # Whether mixup draws one coefficient per example instead of one per batch.
    config.mixup_per_example = False

    # Letter/patch size, such as B/16; a hybrid, such as R50+B/16; a BiT ResNet, such as R50x1
    # (which takes only image_size and dtype of the fields below); or auto, the architecture of
    # init_from.
    config.variant = "B/16"
    # Sizes that replace those of the letter.
    config.hidden_dim = placeholder(int)
    config.mlp_dim = placeholder(int)
    config.num_heads = placeholder(int)
    config.num_layers = placeholder(int)
    # (height, width) in pixels.
    config.image_size = (224, 224)
    # What represents the image: token, gap, gap_norm, map or token_gap.
    config.classifier = "token"
    # Position embeddings: learned, learned_2d, sincos_2d, relative or none.
    config.positions = "learned"
    # Where positions are added: input, every_block or every_block_shared.
    config.positions_at = "input"
    # Number of register tokens.
    config.num_registers = 0
    # Whether a tanh layer precedes the head.
    config.pre_logits = False
    # Dropout rate.
    config.dropout_rate = 0.0
    # Stochastic depth rate of the last block.
    config.stochastic_depth_rate = 0.0
    # Whether the backward pass recomputes each block: less memory, a third more arithmetic.
    config.remat = False
    # Initial value of LayerScale; no LayerScale if not set.
    config.layer_scale = placeholder(float)
    # tanh or exact.
    config.gelu = "tanh"
    # Added to the variance in every LayerNorm.
    config.epsilon = 1e-6
    # float32 or mixed_bfloat16.
    config.dtype = "float32"
    # Weights to start from, without the head: a weight file of a supported format or its folder, a
    # run directory, or a .keras file.
    config.init_from = placeholder(str)
    # Whether the head of init_from, a run directory, is kept for the classes that have a name of
    # that run.
    config.keep_head = False
    # What is not trained: backbone (all but the head) or blocks:K (stem, patch encoder and the
    # first K blocks); nothing if not set.
    config.freeze = placeholder(str)

    # Global batch size.
    config.batch_size = 512
    # Microbatches per replica and step: less memory, the same gradient up to rounding.
    config.accumulation_steps = 1
    # Steps per call of the compiled training loop; TPUs need 50 or more.
    config.steps_per_execution = 1
    # Number of epochs.
    config.epochs = 100
    # Number of steps, instead of epochs. Later steps of the last epoch have learning rate 0.
    config.total_steps = placeholder(int)
    # Epochs between evaluations; the training state is saved after each.
    config.evaluate_every = 1
    # The run ends after so many evaluations in a row without a better value than before of
    # early_stopping_metric, loss or accuracy of the validation split; never early if not set.
    config.early_stopping = placeholder(int)
    config.early_stopping_metric = "loss"
    # Epochs between attention figures for TensorBoard; none if not set.
    config.pictures_every = placeholder(int)
    # Steps between saves of the training state; none if not set.
    config.save_steps = placeholder(int)
    # Minutes between saves of the training state; none if not set.
    config.save_minutes = 10.0
    # adamw, or sgd with momentum 0.9 (with the momentum convention of the paper's authors).
    config.optimizer = "adamw"
    # Peak learning rate.
    config.learning_rate = 1e-3
    # Ratio of the learning rates of a block and the next one; 1 for one rate.
    config.layer_decay = 1.0
    # Decay of the learning rate after the warm-up: cosine or linear.
    config.lr_schedule = "cosine"
    # Steps of linear warm-up.
    config.warmup_steps = 500
    # Decoupled weight decay of the kernels, multiplied by the learning rate.
    config.weight_decay = 0.1
    # Global norm that gradients are clipped to; no clipping if not set.
    config.clip_norm = placeholder(float)
    # Momentum of the moving average of the weights that is evaluated and saved; none if not set.
    config.ema_momentum = placeholder(float)
    # Loss: softmax or sigmoid cross-entropy, of which sigmoid is summed over the classes.
    # Evaluation has the same loss, and predictions are softmax probabilities or sigmoid scores.
    config.loss = "softmax"
    # Weights of the classes in the loss: balanced, inversely proportional to their numbers of
    # training images; equal weights if not set.
    config.class_weights = placeholder(str)
    # Label smoothing.
    config.label_smoothing = 0.0

    return config


def split_argument(argument: str, **choices) -> list[str]:
    """Splits the argument of a recipe, such as "B/16,cifar10", at its commas.

    Args:
        argument: The text after the colon in `--config=FILE:ARGUMENT`, or its default.
        **choices: For each part, its name and its valid values.
    Raises:
        InputError: If the number of parts is wrong or a part is not a valid value.
    """
    parts, valid = argument.split(","), list(choices.values())
    if len(parts) == len(valid):
        wrong = next((i for i, part in enumerate(parts) if part not in valid[i]), None)
        if wrong is None:
            return parts
        suggestion = did_you_mean(parts[wrong], valid[wrong])
    else:
        suggestion = ""
    lists = "; ".join(f"{name} one of {', '.join(values)}" for name, values in choices.items())
    raise InputError(
        f"The argument of the config must be {','.join(choices).upper()}: {lists}. "
        f"Received: {argument!r}.{suggestion}"
    )
