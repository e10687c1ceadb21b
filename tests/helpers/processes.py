"""Fresh Python processes: a command, a script, several hosts."""

import concurrent.futures
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def python(*arguments, timeout=300, directory=ROOT, **environment):
    """Runs Python in a fresh process and returns it, finished."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=directory, capture_output=True, text=True,
        timeout=timeout, env={**os.environ, **ENVIRONMENT, **environment},
    )  # fmt: skip


def start_hosts(count, *arguments, **environment):
    """Starts a Python process for each of several hosts on 127.0.0.1, with their TF_CONFIG."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(count):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        variables = {**ENVIRONMENT, "TF_CONFIG": json.dumps(task), **environment}
        processes.append(
            subprocess.Popen(
                [sys.executable, *(str(a).replace("{host}", str(index)) for a in arguments)],
                cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, **variables},
            )
        )  # fmt: skip
    return processes


def finish_hosts(processes, timeout):
    """Returns (exit code, standard output, standard error) of each; leaves no process behind."""
    try:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            waits = [threads.submit(p.communicate, timeout=timeout) for p in processes]
            outputs = [wait.result() for wait in waits]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(p.returncode, *out) for p, out in zip(processes, outputs, strict=True)]


def command(name, *arguments):
    """Runs a command in this process; returns (exit code, standard output, standard error)."""
    from vitkeras.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main([name, *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def succeed(name, *arguments):
    """Runs a command in this process and returns its result and its log."""
    code, out, log = command(name, *arguments)
    assert code == 0, log
    return json.loads(out.splitlines()[-1]), log


def fail(name, *arguments):
    """Runs a command that must fail and returns its error, which must be one line."""
    code, out, log = command(name, *arguments)
    assert code == 2 and not out, log
    lines = [line for line in log.splitlines() if line.startswith("error: ")]
    assert log.splitlines()[-1:] == lines, log
    assert "\\'" not in lines[0] and '\\"' not in lines[0]
    return lines[0]
