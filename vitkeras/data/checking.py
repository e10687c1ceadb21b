"""Which files are whole images: each is decoded once, and what was good is not read again.

What was found good is remembered in ~/.cache/vitkeras (or $XDG_CACHE_HOME), by path, size and time
of change; removing that folder has everything read again.
"""

import hashlib
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from vitkeras.data.preprocessing import decode_image

#: Files after which what was found is remembered.
BLOCK = 100_000
#: Of what is remembered: another one, where another decoder may find other files bad.
VERSION = 1


def find_bad(folder, names, stamps, say=None):
    """Decodes the files that are not known to be good.

    Args:
        folder: Path that the names are below.
        names: Of the files.
        stamps: For each a string that changes when the file does.
        say: Takes a line to print, where it takes more than some seconds.
    Returns:
        Dict from the places in `names` of those that cannot be decoded to the reason.
    """
    remembered = _Remembered(folder)
    keys = [
        int.from_bytes(hashlib.blake2b(f"{name}\0{stamp}".encode(), digest_size=8).digest())
        for name, stamp in zip(names, stamps, strict=True)
    ]
    keys = np.array(keys, np.uint64)
    unknown = np.flatnonzero(~np.isin(keys, remembered.keys))
    progress, bad = _Progress(len(unknown), say), {}
    for begin in range(0, len(unknown), BLOCK):
        block = unknown[begin : begin + BLOCK]
        files = [f"{folder}/{names[i]}" for i in block]
        good = _decodable(files, lambda count, begin=begin: progress.done(begin + count))
        remembered.add(keys[block[good]])
        bad |= {int(block[i]): _reason(files[i]) for i in np.flatnonzero(~good)}
    return bad


class _Remembered:
    """The keys of files below a folder that were good."""

    def __init__(self, folder):
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        place = folder if "://" in str(folder) else os.path.realpath(folder)
        name = hashlib.sha256(f"{place}\0{VERSION}".encode()).hexdigest()[:32]
        self.path = Path(base) / "vitkeras" / "whole_images" / f"{name}.npy"
        try:
            self.keys = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # there is none, or it was cut short
            self.keys = np.zeros((0,), np.uint64)

    def add(self, keys):
        self.keys = np.union1d(self.keys, keys)
        aside = self.path.with_suffix(f".{os.getpid()}.npy")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.save(aside, self.keys)
            os.replace(aside, self.path)
        except OSError as error:
            print(f"What was checked is not remembered: {error}.", file=sys.stderr, flush=True)


class _Progress:
    """Says every five seconds how far the work is."""

    def __init__(self, total, say):
        self.total, self.say, self.count = total, say, 0
        self.start = self.said = time.monotonic()

    def done(self, count):
        self.count = count
        now = time.monotonic()
        if self.say and now - self.said > 5:
            self.said, rate = now, self.count / (now - self.start)
            left = (self.total - self.count) / rate
            self.say(
                f"reading images: {self.count:,} of {self.total:,}, {rate:,.0f} images/s, "
                f"{left:,.0f} s left (only the first time)"
            )


def _decodable(files, done):
    """Returns for each file whether TensorFlow decodes it; calls `done` with how many were read."""

    def size(number, file):
        return number, tf.size(decode_image(tf.io.read_file(file)))

    # An example that fails would vanish: numbered, those that are left tell which did.
    numbered = tf.data.Dataset.from_tensor_slices(files).enumerate()
    numbered = numbered.map(size, num_parallel_calls=tf.data.AUTOTUNE)
    good = np.zeros(len(files), bool)
    for numbers, _ in numbered.ignore_errors().batch(256).as_numpy_iterator():
        good[numbers] = True
        done(int(numbers[-1]) + 1)
    return good


def _reason(file):
    try:
        return why_bad(tf.io.read_file(file)) or "it failed once and was then decoded"
    except tf.errors.OpError as error:
        return _told(error)


def why_bad(image_bytes):
    """Returns in a line why a scalar string cannot be decoded, or None if it can."""
    if not tf.strings.length(image_bytes):
        return "the file is empty"
    try:
        decode_image(image_bytes)
    except tf.errors.OpError as error:
        return _told(error)
    return None


def _told(error):
    found = re.search(r"Summarized data: b'(.*?)'\s+(\d+)", error.message)  # of an Assert
    if found:
        return f"{found[1]} {int(found[2]):,}"
    text = re.sub(r"\{\{.*?\}\}", "", error.message).strip().splitlines()[0]
    return text.partition(" [Op:")[0].strip()[:120]
