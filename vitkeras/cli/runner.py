"""Runs a command: parses flags, prints the result as JSON, reports errors in one sentence.

Exit codes: 0; 2 if the input is invalid; 1 if a run cannot continue; 75 (EX_TEMPFAIL) if a signal
stopped a run after its state was saved; 130 after Ctrl-C at another time.
"""

import json
import logging as python_logging
import os
import re
import shutil
import sys
import textwrap

from absl import flags as absl_flags
from absl import logging
from etils import epath

from vitkeras import configs
from vitkeras.arguments import did_you_mean
from vitkeras.errors import InputError, Interrupted, RunError

EXIT_INTERRUPTED = 75
#: Names that other tools give to config fields.
ALIASES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "num_epochs": "epochs",
    "model": "variant",
    "pretrained": "init_from",
    "weights": "init_from",
    "data": "dataset",
    "img_size": "image_size",
    "augmentation": "crop",
    "decay": "lr_schedule",
}


def run(command, name: str, argv: list[str]) -> int:
    """Runs a command module and returns the exit code.

    Args:
        command: The module, see `vitkeras.cli`.
        name: What the user typed, for the help text.
        argv: Flags and arguments.
    """
    _set_up_logging()
    if "--help" in argv or "-h" in argv:
        print(help_text(command, name))
        return 0
    debug = "--debug" in argv
    try:
        flags, arguments = parse(command, name, [each for each in argv if each != "--debug"])
        result = command.main(flags, arguments)
    except (InputError, RunError, Interrupted, KeyboardInterrupt) as error:
        if debug:
            raise
        return _report(error)
    print(json.dumps(result), flush=True)
    return 0


def _report(error):
    """Prints an error in one line and returns its exit code."""
    if isinstance(error, KeyboardInterrupt):
        text, code = "interrupted", 130
    elif isinstance(error, Interrupted):
        text, code = str(error), EXIT_INTERRUPTED
    else:
        text = f"error: {' '.join(str(error).split())}"
        if not text.isprintable():  # rare, and the import takes seconds
            from vitkeras.data.folder_listing import printable

            text = printable(text)
        code = 2 if isinstance(error, InputError) else 1
    print(text, file=sys.stderr, flush=True)
    return code


def _set_up_logging():
    """Logs plain lines to standard error, and silences the start-up messages of TensorFlow."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL") or "3"
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)
    absl_flags.FLAGS.mark_as_parsed()  # absl warns of messages before that
    handler = logging.get_absl_handler()
    handler.setFormatter(_Formatter())
    handler.addFilter(_is_own_or_error)
    handler.python_handler.setStream(sys.stderr)


def _is_own_or_error(record):
    """Returns whether a message is of this project, not progress of TensorFlow or its data sets."""
    if "site-packages/tensorflow_datasets/" in record.pathname:
        return record.levelno >= python_logging.ERROR
    return record.levelno >= python_logging.WARNING or "packages/tensorflow/" not in record.pathname


class _Formatter(python_logging.Formatter):
    def format(self, record):
        text = record.getMessage()
        return text if record.levelno < python_logging.WARNING else f"warning: {text}"


def parse(command, name: str, argv: list[str]):
    """Returns the parsed flags and the remaining arguments of a command.

    Raises:
        InputError: If a flag is unknown, missing or has an invalid value, or arguments are missing
            or not expected.
    """
    argv = _resolve_recipe(_with_default_config(command, argv))
    flags = _define_flags(command, [name, *argv])
    flags.set_gnu_getopt(True)  # flags may follow arguments
    if "config" in flags:
        _check_fields(argv)
    try:
        arguments = flags([name, *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise InputError(_unknown_flag(error.flagname, flags)) from error
    except absl_flags.Error as error:
        raise InputError(_first_input_error(error)) from error
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(_first_input_error(error)) from error
    for required in command.REQUIRED:
        if not flags[required].present:
            raise InputError(
                f"`--{required}` is required. See {name} --help. Received: "
                f"{' '.join(argv) or 'no flags'}."
            )
    if arguments and command.ARGUMENTS is None:
        raise InputError(f"{name} takes flags only. Received: {' '.join(arguments)}.")
    return flags, arguments


def _with_default_config(command, argv):
    """Adds --config if it is missing: the config of the run in --workdir, or the default recipe."""
    text = "\n".join(argv)
    if re.search(r"^--?config([=\n]|$)", text, re.M):
        return argv
    workdir = re.search(r"^--?workdir[=\n](.+)$", text, re.M)
    if getattr(command, "RESUMES", False) and workdir:
        if (epath.Path(workdir[1]) / "config.json").exists():
            return [*argv, f"--config={configs.recipe_path('of_run')}:{workdir[1]}"]
    default = getattr(command, "DEFAULT_CONFIG", None)
    return [*argv, f"--config={default}"] if default else argv


def _resolve_recipe(argv):
    """Puts `--config` first, as ml_collections requires, with the file of the recipe."""
    rest, config = [], None
    arguments = iter(argv)
    for argument in arguments:
        match = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if match:
            config = match[1] if match[1] is not None else next(arguments, "")
        else:
            rest.append(argument)
    return rest if config is None else [f"--config={_recipe_file(config)}", *rest]


def _recipe_file(value):
    name, colon, argument = value.partition(":")
    if name in configs.recipes():
        return str(configs.recipe_path(name)) + colon + argument
    if not os.path.isfile(name):
        names = configs.recipes()
        raise InputError(
            f"`--config` must be {' or '.join(names)}, or a file with `get_config()`. "
            f"Received: config={name}.{did_you_mean(name, names)}"
        )
    sys.path.append(os.getcwd())  # the file may import its neighbors, as with `python -m`
    return value


def _check_fields(argv):
    """Checks the names in --config.NAME=VALUE."""
    names = [field.name for field in configs.fields()]
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in names:
            suggestion = ALIASES.get(match[1])
            hint = f' Did you mean "{suggestion}"?' if suggestion else did_you_mean(match[1], names)
            raise InputError(
                "The name after `--config.` must be a field of the config; --help lists them. "
                f"Received: {match[1]}.{hint}"
            )


def _unknown_flag(flag, flags):
    names = [field.name for field in configs.fields()]
    field = ALIASES.get(flag, flag if flag in names else None)
    if "config" in flags and field:
        hint = f" Did you mean --config.{field}?"
    else:
        known = [f"--{name}" for name in flags]
        known += [f"--config.{name}" for name in names] if "config" in flags else []
        hint = did_you_mean(f"--{flag}", known)
    return f"Flags must be those that --help lists. Received: --{flag}.{hint}"


def _first_input_error(error):
    """Returns the text of an `InputError` that absl or ml_collections wrapped, or of the error."""
    text = str(error)
    while error is not None:
        if isinstance(error, InputError):
            text = str(error)
        error = error.__cause__ or error.__context__
    return text


def help_text(command, name: str) -> str:
    """Returns usage, description, flags and config fields of a command."""
    flags = _define_flags(command, [name])
    width = min(shutil.get_terminal_size().columns, 100)
    usage = " ".join(f"--{each}=..." for each in command.REQUIRED)
    lines = [
        f"Usage: {name} {usage} [--FLAG=VALUE ...] {command.ARGUMENTS or ''}".strip(),
        "",
        command.__doc__.strip(),
        "",
        "Flags:",
    ]

    def entry(title, text):
        lines.append(f"  {title}")
        lines.extend(textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))

    for flag_name in flags:
        flag = flags[flag_name]
        default = "" if flag.default is None else f" (default: {flag.default})"
        entry(f"--{flag_name}", f"{flag.help}{default}")
    entry("--debug", "Show the traceback of an error.")
    entry("--help", "Show this text.")
    if "config" in flags:
        lines += ["", "Config fields, with the defaults of the base config:"]
        for field in configs.fields():
            entry(f"--config.{field.name}", f"{field.description} (default: {field.default})")
    return "\n".join(lines)


def _define_flags(command, argv):
    """Returns the flags of a command, with --config if it requires or has a config."""
    flags = absl_flags.FlagValues()
    if "config" in command.REQUIRED or hasattr(command, "DEFAULT_CONFIG"):
        from ml_collections import config_flags

        config_flags.DEFINE_config_file(
            "config",
            None,
            f"The recipe: {' or '.join(configs.recipes())}, or a file with `get_config()`.",
            flag_values=flags,
            sys_argv=argv,  # where it looks for --config.FIELD
        )
    command.define_flags(flags)
    return flags


def run_script(command, name: str) -> None:
    """Runs a module outside of this package as a command, and ends the process."""
    code = run(command, name, sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
