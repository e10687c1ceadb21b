"""Pretraining as in the ViT paper, table 3: MODEL,DATA, where DATA is imagenet, imagenet21k or jft.

Command: python -m experiments.train --config=experiments/configs/paper_pretrain.py:B/16,imagenet \
    --workdir=runs/pretrain
Hardware, duration, result: not run here. The paper (table 2) used TPUv3: 2,500 core-days for H/14
and 680 for L/16 on JFT-300M, 230 for L/16 on ImageNet-21k; fine-tuned on ImageNet, at 518 and 512,
these are 88.55, 87.76 and 85.30 % right.

ImageNet is TensorFlow Datasets' imagenet2012, downloaded by hand. ImageNet-21k is not among its
data sets and JFT-300M is not public: name your own with --config.dataset=folder:PATH, or a data set
that lies prepared in --config.data_dir. Where the table has two lengths, L/16 on JFT (7 and 14
epochs) and L/* on ImageNet-21k (30 and 90), the first is set; --config.epochs=14 takes the other.

What the authors do otherwise: on ImageNet-21k and JFT-300M, where an image has several labels, a
sigmoid cross-entropy, and a linear decay that ends at 1e-5; here it is softmax, and 0.
Sources: Dosovitskiy et al. 2021, section 4.1 and appendix B.1; issues 2 and 34 of
https://github.com/google-research/vision_transformer (pre_logits, decay, loss).
"""

from experiments.configs import common

DATASETS = {"imagenet": "imagenet2012", "imagenet21k": "imagenet21k", "jft": "jft"}

# Models; data, epochs, learning rate, decay, weight decay, dropout.
TABLE = (
    (("B/16", "B/32"), "jft", 7, 8e-4, "linear", 0.1, 0.0),
    (("L/32",), "jft", 7, 6e-4, "linear", 0.1, 0.0),
    (("L/16",), "jft", 7, 4e-4, "linear", 0.1, 0.0),
    (("H/14",), "jft", 14, 3e-4, "linear", 0.1, 0.0),
    (("R50x1", "R50x2"), "jft", 7, 1e-3, "linear", 0.1, 0.0),
    (("R101x1",), "jft", 7, 8e-4, "linear", 0.1, 0.0),
    (("R152x1", "R152x2"), "jft", 7, 6e-4, "linear", 0.1, 0.0),
    (("R50+B/16", "R50+B/32"), "jft", 7, 8e-4, "linear", 0.1, 0.0),
    (("R50+L/32",), "jft", 7, 2e-4, "linear", 0.1, 0.0),
    (("R50+L/16",), "jft", 7, 4e-4, "linear", 0.1, 0.0),
    (("B/16", "B/32"), "imagenet21k", 90, 1e-3, "linear", 0.03, 0.1),
    (("L/16", "L/32"), "imagenet21k", 30, 1e-3, "linear", 0.03, 0.1),
    (("B/16", "B/32", "L/16", "L/32", "H/14"), "imagenet", 300, 3e-3, "cosine", 0.3, 0.1),
)
ROWS = {(model, data): numbers for models, data, *numbers in TABLE for model in models}
MODELS = tuple(dict.fromkeys(model for model, _ in ROWS))


def get_config(argument="B/16,imagenet"):
    """Returns the config of a model on a data set."""
    model, data = common.parts(argument, model=MODELS, data=DATASETS)
    common.parts(argument, model=[model], data=[d for m, d in ROWS if m == model])
    config = common.get_config()
    config.dataset = DATASETS[data]
    config.variant = model
    config.pre_logits = "/" in model
    config.batch_size = 4096
    config.warmup_steps = 10_000
    (
        config.epochs, config.learning_rate, config.decay, config.weight_decay, config.dropout_rate
    ) = ROWS[model, data]  # fmt: skip
    if data == "imagenet":
        config.clip_norm = 1.0
    return config
