import re

import pytest

from vitkeras.errors import InputError
from vitkeras.preflight.tpu_slices import CHIPS, Slice, parse_slice, step_seconds


@pytest.mark.parametrize(
    "name", ["", "v5e", "v9:2x2", "v5e:2", "v5e:2x4x", "2x4", "v5e:0x4", "v5e:3x5", "v5e:16x32",
             "v5e:2x2x1", "v4:2x4", "v4:2x0x2", "v4:1x2x2", "v5p:32x32x32"],
)  # fmt: skip
def test_unknown_slices_are_refused(name):
    with pytest.raises(InputError, match=rf"`tpu`.*tpu={re.escape(name)}\."):
        parse_slice(name)


def test_slices():
    assert parse_slice("V5E:2x4") == Slice("v5e", "v5e:2x4", 8)
    assert parse_slice("v4:2x2x1") == Slice("v4", "v4:2x2x1", 8)
    assert parse_slice("v5p:2x2x4").replicas == 16


def test_step_times_on_many_chips():
    chip = CHIPS["v5e"]
    few, many = (step_seconds(chip, n, 64 * n, 64, 6.8, 20.0, 86e6) for n in (8, 256))
    assert few[0] == many[0] == pytest.approx(6.8e12 / 197e12 + 28 * 86e6 / 819e9)
    assert few[1] == pytest.approx(2 * 7 / 8 * 4 * 86e6 / 200e9) and many[1] < 2 * few[1]
    half = step_seconds(chip, 16, 64 * 8, 64, 6.8, 20.0, 86e6)
    assert half[0] == pytest.approx(6.8e12 / 197e12 / 2 + 28 * 86e6 / 819e9)
