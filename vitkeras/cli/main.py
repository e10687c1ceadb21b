"""Finds the command and runs it."""

import importlib
import os
import sys

import vitkeras
from vitkeras.arguments import did_you_mean
from vitkeras.cli import runner

COMMANDS = {
    "train": "Train a model into a run directory, or resume it",
    "evaluate": "Evaluate a run on a split of its data",
    "predict": "Classify image files with a run, an export or a server",
    "export": "Export a run as a SavedModel for TF Serving, or as a weight file",
    "explain": "Draw attention maps and other figures of a model as an HTML page",
    "probe": "Evaluate pretrained features, and write a run with a linear head",
    "preflight": "Check data, pipeline and memory of a config before training",
}


def usage() -> str:
    """Returns the list of commands."""
    lines = [f"  {name:10s} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"vitkeras {vitkeras.__version__}: Vision Transformers for TensorFlow and Keras",
            "",
            "Usage: vitkeras COMMAND [--FLAG=VALUE ...]",
            "",
            *lines,
            "",
            "vitkeras COMMAND --help lists the flags of a command.",
        ]
    )


def main(argv: list[str]) -> int:
    """Runs a command.

    Args:
        argv: Command and its arguments, without the name of the program.
    Returns:
        The exit code.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"vitkeras {vitkeras.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(
            f"error: The command must be one of {', '.join(COMMANDS)}. "
            f"Received: {argv[0]}.{did_you_mean(argv[0], COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    command = importlib.import_module(f"vitkeras.cli.{argv[0]}")
    return runner.run(command, f"vitkeras {argv[0]}", argv[1:])


def console_main() -> None:
    """Entry point of the `vitkeras` script."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # such as `vitkeras train --help | head`
        code = 1
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: TensorFlow would wait for a lost host
