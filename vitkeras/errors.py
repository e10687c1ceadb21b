"""Exceptions for invalid input, for a run that cannot continue and for an interrupted run."""


class InputError(ValueError):
    """The user's input is invalid. The message states the rule, the value received and a fix."""


class RunError(RuntimeError):
    """A run cannot continue. The message states what happened and which files are intact."""


class Interrupted(Exception):
    """A signal stopped the run after its state was saved."""
