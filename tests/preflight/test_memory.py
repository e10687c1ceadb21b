import pytest
from helpers.models import compiled
from helpers.processes import python

from vitkeras.preflight.memory import state_bytes, step_bytes


def test_memory_grows_with_images_and_shrinks_in_bfloat16():
    model = compiled(hidden_dim=96, mlp_dim=384)
    assert state_bytes(model) == pytest.approx(3 * 4 * model.count_params(), rel=0.01)
    sizes = [step_bytes(model, images) for images in (64, 128, 256)]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.01)
    # Each block keeps at least its input, queries, keys and values, and both sides of the GELU.
    activations = 2 * 64 * 65 * (96 + 3 * 96 + 2 * 384) * 4
    assert activations < sizes[0] < 10 * activations
    mixed = compiled(hidden_dim=96, mlp_dim=384, dtype="mixed_bfloat16")
    assert step_bytes(mixed, 256) < 0.75 * sizes[2]


@pytest.mark.slow
def test_the_estimate_is_close_to_the_memory_of_a_process():
    code = """
import tensorflow as tf
from helpers.models import compiled
from vitkeras.preflight.memory import step_bytes

def peak_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

model = compiled(hidden_dim=192, mlp_dim=768, num_layers=3)
print(step_bytes(model, 64) // 1024)
for images in (2, 64):
    x, y = tf.zeros((images, 64, 64, 3), tf.uint8), tf.zeros((images,), tf.int32)
    for _ in range(3):
        model.train_on_batch(x, y)
    print(peak_kib())
"""
    process = python("-c", code)
    assert process.returncode == 0, process.stderr
    estimate, before, after = map(int, process.stdout.split()[-3:])
    assert 0.6 < (after - before) / estimate < 1.6
