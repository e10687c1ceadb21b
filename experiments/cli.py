"""What every script shares: one sentence for bad input, one line of JSON for the result."""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what matters arrives as an exception

from absl import app, flags, logging  # noqa: E402

from vitkeras.errors import InputError, Interrupted, RunError  # noqa: E402

STOPPED = 75  # EX_TEMPFAIL: nothing is wrong, the same command goes on


def run(main, takes_arguments=False):
    """Runs `main(arguments) -> dict` under absl; the dict is the last line on standard output.

    Without `takes_arguments`, anything on the command line that is no flag is refused.

    Exit codes: 0; 2 where the user's input is wrong and 1 where a run cannot go on, each with one
    sentence on standard error; 75 where a signal stopped a run, which is saved; 130 where Ctrl-C
    came at another time.
    """
    logging.set_verbosity(logging.ERROR)

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        # What ml_collections raises for an unknown field, a wrong type or a missing file.
        except (AttributeError, KeyError) as error:
            text = str(error.args[0] if error.args else error).replace("\n", ". ")
            _refuse(f"unknown field of the config: {text}")
        except (flags.Error, TypeError, ValueError, OSError) as error:
            _refuse(_said(error))

    def checked(argv):
        try:
            if argv[1:] and not takes_arguments:
                raise InputError(f"Flags only, please. Received: {' '.join(argv[1:])}.")
            result = main(argv[1:])
        except InputError as error:
            _refuse(error)
        except RunError as error:
            _refuse(error, code=1)
        except Interrupted as error:
            _end(error, STOPPED)
        except KeyboardInterrupt:
            _end("interrupted", 130)
        print(json.dumps(result), flush=True)

    app.run(checked, flags_parser=parse)


def _said(error):
    """Returns the InputError of a config, out of what ml_collections and absl wrap around it."""
    innermost = error
    while error is not None:
        innermost = error if isinstance(error, InputError) else innermost
        error = error.__context__
    return innermost


def _refuse(error, code=2):
    _end(f"error: {' '.join(str(error).split())}", code)


def _end(text, code):
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)  # not sys.exit: TensorFlow would wait at exit for a host that is lost
