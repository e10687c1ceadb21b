"""What is raised when something that the user gave is wrong."""

import difflib


class InputError(ValueError):
    """Something the user gave is wrong; the message is one sentence that says what to do."""


def nearest(word, choices):
    """Returns ' Did you mean "x"?' for the choice most like `word`, or nothing."""
    found = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f' Did you mean "{found[0]}"?' if found else ""
