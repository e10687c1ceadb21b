"""What every script shares: one sentence for bad input, one line of JSON for the result."""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what matters arrives as an exception

from absl import app, flags, logging  # noqa: E402

from vitkeras.errors import InputError  # noqa: E402


def run(main):
    """Runs `main(arguments) -> dict` under absl; the dict is the last line on standard output.

    Exit codes: 0; 2 where the user's input is wrong, with one sentence on standard error.
    """
    logging.set_verbosity(logging.ERROR)

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        # What ml_collections raises for an unknown field, a wrong type or a missing file.
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            _refuse(error)

    def checked(argv):
        try:
            result = main(argv[1:])
        except InputError as error:
            _refuse(error)
        print(json.dumps(result), flush=True)

    app.run(checked, flags_parser=parse)


def _refuse(error):
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"error: {' '.join(str(text).split())}", file=sys.stderr, flush=True)
    sys.exit(2)
