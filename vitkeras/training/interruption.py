"""Stops a run on a signal, on every host after the same step."""

import signal

from absl import logging

from vitkeras.errors import Interrupted
from vitkeras.training.checkpoints import StateWriter
from vitkeras.training.strategy import mean_over_hosts


class StopSignal:
    """Context manager in which the first SIGTERM or SIGINT only sets `received`.

    A second signal has its usual effect.

    Args:
        strategy: The strategy of the trained model.
        writer: The `StateWriter` to wait for before stopping; None on hosts that write nothing.
    """

    def __init__(self, strategy, writer: StateWriter | None):
        self.strategy, self.writer = strategy, writer
        self.received = False

    def __enter__(self):
        self._handlers = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.received = True
        signal.signal(number, self._handlers[number])
        name = signal.Signals(number).name
        logging.info("%s: stopping after this step, when its state is saved.", name)

    def any_host(self, *flags: bool) -> list[bool]:
        """Returns for each flag whether it is set on any host: all hosts save and stop together."""
        return [mean > 0 for mean in mean_over_hosts(self.strategy, flags)]

    def interrupt(self, step: int) -> None:
        """Waits for the save and raises `Interrupted`."""
        if self.writer is not None:
            self.writer.wait()
        raise Interrupted(f"Stopped after step {step}; the same command resumes the run.")
