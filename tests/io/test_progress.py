import io
import logging
import sys

from vitkeras.io.progress import Progress


def test_progress_logs_a_line_every_30_seconds_without_a_terminal(caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, "absl"), Progress(100, "reading") as progress:
        start = progress.start_t
        for seconds in (10, 29, 40, 69, 71):
            progress._time = lambda seconds=seconds: start + seconds
            progress.update(20)
    first, second = caplog.messages
    assert first == "reading: 60 of 100, 1.50 images/s, 00:26 left"
    assert second.startswith("reading: 100 of 100, ") and "\r" not in sys.stderr.getvalue()


def test_the_rate_of_slow_work_is_per_second(caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, "absl"), Progress(4, "reading") as progress:
        start = progress.start_t
        progress._time = lambda: start + 40
        progress.update(2)
    assert caplog.messages == ["reading: 2 of 4, 0.05 images/s, 00:40 left"]


def test_short_work_logs_nothing_unless_its_end_is_wanted(caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, "absl"):
        with Progress(2, "reading") as progress:
            progress.update(2)
        assert not caplog.messages
        with Progress(2, "reading", line="{desc} {n_fmt}", leave=True) as progress:
            progress.update(2)
    assert caplog.messages == ["reading 2"]
