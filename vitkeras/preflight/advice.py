"""Advice on small and skewed data, with numbers and the flag to set."""

import numpy as np

from vitkeras.data.folder_listing import printable

#: Fewer training images of a class, a larger ratio of the largest and the smallest class, fewer
#: steps per epoch, and more parameters per training image are worth a sentence. ViT-B/16 on
#: ImageNet has 67 parameters per image.
MIN_IMAGES, MAX_RATIO, MIN_STEPS, MAX_PARAMETERS_PER_IMAGE = 20, 10, 10, 500
MAX_LISTED_CLASSES = 5


def advise_on_classes(
    counts: np.ndarray, class_names: list[str], is_weighted: bool, is_sample: bool = False
) -> list[str]:
    """Returns sentences on classes with few training images, and on classes of unequal size.

    Args:
        counts: Number of training images of each class; those of 0 are not considered.
        class_names: Names of the classes.
        is_weighted: Whether the loss weighs the classes.
        is_sample: Whether `counts` are those of a sample of the training images.
    """
    sentences: list[str] = []
    class_names = [printable(name) for name in class_names]
    order = [int(i) for i in np.argsort(counts, kind="stable") if counts[i]]
    few = [i for i in order if counts[i] < MIN_IMAGES]
    if few and not is_sample:
        listed = ", ".join(f"{class_names[i]} ({counts[i]})" for i in few[:MAX_LISTED_CLASSES])
        more = f" and {len(few) - MAX_LISTED_CLASSES} more" * (len(few) > MAX_LISTED_CLASSES)
        sentences.append(
            f"{len(few)} of {len(class_names)} classes have fewer than {MIN_IMAGES} training "
            f"images: {listed}{more}. Add images, if there are any."
        )
    if order and not is_weighted and counts[order[-1]] > MAX_RATIO * counts[order[0]]:
        smallest, largest = order[0], order[-1]
        sentences.append(
            f"The largest class has {counts[largest] / counts[smallest]:.0f} times as many "
            f"training images as the smallest ({class_names[largest]} {counts[largest]:,}, "
            f"{class_names[smallest]} {counts[smallest]:,}): --config.class_weights=balanced "
            "gives all classes the same weight."
        )
    return sentences


def advise_on_run(
    num_examples: int, batch_size: int, num_parameters: int, is_initialized: bool
) -> list[str]:
    """Returns sentences on short epochs, and on too few images for random weights.

    Args:
        num_examples: Number of training images.
        batch_size: Global batch size.
        num_parameters: Number of parameters of the model.
        is_initialized: Whether the run starts from weights.
    """
    sentences = []
    steps = num_examples // batch_size
    if steps < MIN_STEPS and num_examples >= MIN_STEPS:
        smaller = num_examples // MIN_STEPS
        sentences.append(
            f"An epoch has {steps} step{'s' * (steps != 1)}: a smaller batch, such as "
            f"--config.batch_size={smaller}, gives {num_examples // smaller}."
        )
    if not is_initialized and num_parameters > MAX_PARAMETERS_PER_IMAGE * num_examples:
        sentences.append(
            f"{num_parameters:,} parameters are trained from random values on {num_examples:,} "
            "images: start from weights with --config.init_from=FILE --config.variant=auto."
        )
    return sentences
