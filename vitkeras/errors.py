"""What is raised when the user's input is wrong, and when a run stops before its end."""

import difflib


class InputError(ValueError):
    """Something the user gave is wrong; the message is one sentence that says what to do."""


class RunError(RuntimeError):
    """A run cannot go on; the message is one sentence that says what happened and what is kept."""


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved."""


def check_range(name, value, holds, rule):
    """Raises an InputError, `name` must be `rule`, unless it holds (a NaN never does)."""
    if not holds:
        raise InputError(f"`{name}` must be {rule}. Received: {name}={value}.")


def nearest(word, choices):
    """Returns ' Did you mean "x"?' for the choice most like `word`, or nothing."""
    found = difflib.get_close_matches(
        str(word), [str(choice) for choice in choices], n=1, cutoff=0.7
    )
    return f' Did you mean "{found[0]}"?' if found else ""
