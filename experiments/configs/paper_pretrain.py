"""Pretraining as in the ViT paper, table 3. Argument: MODEL,DATA.

DATA is imagenet, imagenet21k or jft.

Command: python -m experiments.train \
    --config=experiments/configs/paper_pretrain.py:B/16,imagenet --workdir=runs/pretrain
Hardware, duration, result: not run here. The paper (table 2) reports TPUv3 core-days: 2,500 for
H/14 and 680 for L/16 on JFT-300M, 230 for L/16 on ImageNet-21k. Fine-tuned on ImageNet at 518 and
512, these models reach 88.55, 87.76 and 85.30 % accuracy.

ImageNet is imagenet2012 of TensorFlow Datasets, downloaded by hand. TensorFlow Datasets does not
have ImageNet-21k, and JFT-300M is not public: set --config.dataset=folder:PATH or a data set that
is prepared in --config.data_dir. Table 3 has two lengths for L/16 on JFT (7 and 14 epochs) and for
L/* on ImageNet-21k (30 and 90); the recipe has the first one. Set --config.epochs for the other.

As in the authors' code, the loss on ImageNet-21k and JFT-300M is the sigmoid cross-entropy.
Differences from it: one label per image, where those of these two data sets have several; linear
decay to 0 instead of 1e-5.
Sources: Dosovitskiy et al. 2021, section 4.1 and appendix B.1.1; for pre_logits, decay and loss,
issues 2 and 34 of https://github.com/google-research/vision_transformer.
"""

from vitkeras.configs import base

DATASETS = {"imagenet": "imagenet2012", "imagenet21k": "imagenet21k", "jft": "jft"}

# Models; data, epochs, learning rate, schedule, weight decay, dropout.
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
    model, data = base.split_argument(argument, model=MODELS, data=DATASETS)
    base.split_argument(argument, model=[model], data=[d for m, d in ROWS if m == model])
    config = base.get_config()
    config.dataset = DATASETS[data]
    config.variant = model
    config.pre_logits = "/" in model
    config.loss = "softmax" if data == "imagenet" else "sigmoid"
    config.batch_size = 4096
    config.warmup_steps = 10_000
    (
        config.epochs, config.learning_rate, config.lr_schedule, config.weight_decay,
        config.dropout_rate,
    ) = ROWS[model, data]  # fmt: skip
    if data == "imagenet":
        config.clip_norm = 1.0
    return config
