"""Errors of an input pipeline, in a sentence."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from vitkeras.errors import RunError

#: What TensorFlow writes before the error of an operation in a `map`.
PREFIX = r"^Error in user-defined function passed to \S+ transformation with iterator: \S+: "


@contextlib.contextmanager
def read_errors(consequence: str = "") -> Iterator[None]:
    """Converts the error that TensorFlow raises if an example cannot be read or decoded.

    Args:
        consequence: A sentence that ends the message.
    Raises:
        RunError: Instead of that error.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        if "IteratorGetNext" not in str(error):  # not from the input pipeline
            raise
        reason = re.sub(r"\{\{.*?\}\}", "", error.message).strip().splitlines()[0]
        reason = re.sub(PREFIX, "", reason)
        text = (
            f"An example could not be read ({reason[:200].strip()}). `vitkeras preflight --full` "
            f"lists unreadable files. {consequence}"
        )
        raise RunError(text.strip()) from error
