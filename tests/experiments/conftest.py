import contextlib
import io

import pytest

from vitkeras.cli import runner


@pytest.fixture
def run_module():
    """A function that runs a module of experiments in this process, as `python -m` does.

    It returns exit code, standard output and standard error.
    """

    def run(module, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = runner.run(module, module.__name__, [str(each) for each in arguments])
        return code, out.getvalue(), err.getvalue()

    return run
