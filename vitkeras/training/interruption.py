"""Stopping on a signal, on every host at the same step."""

import signal
import sys

from vitkeras.errors import Interrupted
from vitkeras.training.strategy import mean_over_hosts


class Interruption:
    """While active, SIGTERM and SIGINT only ask the run to stop; a second one ends the process.

    Args:
        strategy: Of the model that trains.
        writer: The `StateWriter` to wait for before stopping; None on hosts that write nothing.
    """

    def __init__(self, strategy, writer):
        self.strategy, self.writer = strategy, writer
        self.asked = False

    def __enter__(self):
        """Takes the signals."""
        self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        """Gives them back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self.asked = True
        signal.signal(number, self._old[number])
        name = signal.Signals(number).name
        print(f"{name}: stopping after this step, once saved.", file=sys.stderr, flush=True)

    def agree(self, *wishes):
        """Returns for each wish whether any host has it, since all hosts save and stop together."""
        return [wish > 0 for wish in mean_over_hosts(self.strategy, wishes)]

    def carry_out(self, step):
        """Ends the training loop.

        Raises:
            Interrupted: Always.
        """
        if self.writer is not None:
            self.writer.wait()
        raise Interrupted(f"stopped at step {step}; the same command goes on from there")
