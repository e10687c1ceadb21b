"""`pull_back`: the one thing that Keras does not do on every backend by itself."""

import keras

from vitkeras.errors import InputError


def pull_back(function, inputs, cotangent):
    """Returns the gradients of the sum of `cotangent` times what a function returns.

    Only the backend that is in use is imported.

    Args:
        function: Of the inputs; returns a tensor, and whatever else is wanted of it.
        inputs: A list of tensors.
        cotangent: Of the shape and type of that tensor.
    Returns:
        A list with the gradient for each input, and the rest of what the function returned.
    Raises:
        InputError: If the backend is neither TensorFlow nor JAX.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output, rest = function(*inputs)
        return tape.gradient(output, inputs, output_gradients=cotangent), rest
    if backend == "jax":
        import jax

        _, pull, rest = jax.vjp(function, *inputs, has_aux=True)
        return list(pull(cotangent)), rest
    raise InputError(
        f"Gradients need Keras's TensorFlow or JAX backend. Received: KERAS_BACKEND={backend}."
    )
