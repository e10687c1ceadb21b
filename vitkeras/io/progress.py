"""Progress of long work: a bar on a terminal, otherwise a log line every 30 seconds."""

import io
import sys
from typing import Any

import tqdm
from absl import logging

# Slow work has less than one item per second, for which `rate_fmt` is seconds per item.
LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left"
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Progress(tqdm.tqdm):
    """A `tqdm` progress bar that logs plain lines where standard error is not a terminal.

    Args:
        total: Number of items.
        description: What is being done.
        unit: Name of an item.
        line: Format of the log lines, with the fields of `bar_format` of `tqdm.tqdm`.
        **kwargs: Further arguments of `tqdm.tqdm`. With `leave=True`, the end is logged too.
    """

    def __init__(
        self, total: int, description: str, unit: str = "images", line: str = LINE, **kwargs
    ):
        self.on_terminal = sys.stderr.isatty()
        options: dict[str, Any] = {
            "leave": False,
            "delay": 5,
            "mininterval": 1,
            "dynamic_ncols": True,
        }
        options |= {"bar_format": BAR, **kwargs}
        if not self.on_terminal:
            options |= {"delay": 30, "mininterval": 30, "dynamic_ncols": False, "bar_format": line}
        super().__init__(
            total=total,
            desc=description,
            unit=f" {unit}",
            miniters=1,  # tqdm would choose a number that can delay a line
            file=sys.stderr if self.on_terminal else io.StringIO(),
            **options,
        )

    def display(self, msg=None, pos=None):
        """Draws the bar, or logs its text."""
        if self.on_terminal:
            return super().display(msg, pos)
        if msg is None:
            logging.info("%s", " ".join(str(self).split()))  # tqdm pads numbers
        return True

    def close(self):
        """Ends the bar."""
        if not self.on_terminal and self.leave and not self.disable:
            self.display()  # tqdm skips it if there was no line before
            self.leave = False
        super().close()
