"""Argument checks of the entire package. Every failure is an `InputError`."""

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

from vitkeras.errors import InputError


def check_range(name: str, value: Any, valid: bool, rule: str) -> None:
    """Raises an `InputError` with the text "`name` must be `rule`" unless `valid` is true."""
    if not valid:
        raise InputError(f"`{name}` must be {rule}. Received: {name}={value!r}.")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises an `InputError` that lists the choices unless `value` is one of them."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(
            f"`{name}` must be one of {', '.join(choices)}. "
            f"Received: {name}={value!r}.{did_you_mean(value, choices)}"
        )


def check_int(name: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as a Python integer.

    Raises:
        InputError: If it is not an integer (NumPy integers are) or less than `minimum`.
    """
    rule = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
    try:
        number = minimum - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = minimum - 1
    check_range(name, value, number >= minimum, rule)
    return number


def check_float(name: str, value: Any, low: float, high: float, rule: str) -> float:
    """Returns `value` as a Python float.

    Raises:
        InputError: If it is not a real number with `low <= value < high`.
    """
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    check_range(name, value, low <= number < high, rule)
    return number


def did_you_mean(word: Any, choices: Iterable[Any]) -> str:
    """Returns ' Did you mean "x"?' for the choice closest to `word`, or an empty string."""
    found = difflib.get_close_matches(
        str(word), [str(choice) for choice in choices], n=1, cutoff=0.7
    )
    return f' Did you mean "{found[0]}"?' if found else ""


def parse_image_size(image_size: Any, multiple_of: int = 1) -> tuple[int, int]:
    """Returns `(height, width)` in pixels.

    Args:
        image_size: Side of a square, or `(height, width)`.
        multiple_of: Both sides must be divisible by it: the stride between two patches.
    Raises:
        InputError: If a side is not a positive integer divisible by `multiple_of`.
    """
    try:
        pair = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size,) * 2
        height, width = (check_int("image_size", side) for side in pair)
    except ValueError as error:
        raise InputError(
            "`image_size` must be a positive integer or a pair (height, width) of them. "
            f"Received: image_size={image_size!r}."
        ) from error
    if height % multiple_of or width % multiple_of:
        down = [max(side // multiple_of, 1) * multiple_of for side in (height, width)]
        up = [-(-side // multiple_of) * multiple_of for side in (height, width)]
        raise InputError(
            f"`image_size` must be divisible by the patch size. Received: image_size={image_size}, "
            f"patch size {multiple_of}. Nearest sizes: {down[0]}x{down[1]}, {up[0]}x{up[1]}."
        )
    return height, width
