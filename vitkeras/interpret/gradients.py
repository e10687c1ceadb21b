"""Vector-Jacobian products on the TensorFlow and JAX backends; Keras has no common API for them."""

from collections.abc import Callable
from typing import Any

import keras

from vitkeras.errors import InputError


def vector_jacobian_product(
    function: Callable, inputs: list[Any], cotangent: Any
) -> tuple[list[Any], Any]:
    """Returns the vector-Jacobian product of a function at `inputs`.

    Only the current backend is imported.

    Args:
        function: Function of the inputs that returns an output tensor and auxiliary results.
        inputs: List of tensors.
        cotangent: Tensor with the shape and dtype of the output.
    Returns:
        A list with the gradient of `sum(cotangent * output)` for each input, and the auxiliary
        results.
    Raises:
        InputError: If the backend is neither TensorFlow nor JAX.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output, auxiliary = function(*inputs)
        return tape.gradient(output, inputs, output_gradients=cotangent), auxiliary
    if backend == "jax":
        import jax

        _, pullback, auxiliary = jax.vjp(function, *inputs, has_aux=True)
        return list(pullback(cotangent)), auxiliary
    raise InputError(
        "`KERAS_BACKEND` must be tensorflow or jax to compute gradients. "
        f"Received: KERAS_BACKEND={backend}."
    )
