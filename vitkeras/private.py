"""What this package needs beyond the public API of Keras and TensorFlow, all in one place.

`exact.py` overrides and calls the names of the model and of fit's iterator; what stands here is all
that touches the optimizer's. A test goes through `PRIVATE` and says which name is gone
when Keras changes.
"""

import contextlib

#: Names by what has them: a compiled model, its optimizer, the iterator that `fit` makes.
PRIVATE = {
    "model": (
        "_compute_loss",
        "_loss_tracker",
        "_maybe_symbolic_build",
        "_symbolic_build",
        "distribute_strategy",
        "make_test_function",
        "make_train_function",
        "test_function",
        "train_function",
    ),
    "optimizer": (
        "_all_reduce_sum_gradients",
        "_apply_weight_decay",
        "_distribution_strategy",
        "_get_variable_index",
        "_model_variables_moving_average",
        "_use_weight_decay",
    ),
    "iterator": ("data_adapter",),
}


def decays(optimizer, variable):
    """Whether the optimizer decays this weight."""
    return optimizer._use_weight_decay(variable)


def index_of(optimizer, variable):
    """Returns the place of a weight among those that the optimizer was built with."""
    return optimizer._get_variable_index(variable)


class DecaysInStep:
    """Stands before a Keras optimizer among the bases of one whose `update_step` decays."""

    def _apply_weight_decay(self, variables):
        """Does nothing: Keras would decay all weights by one rate, before any step."""


def moving_averages(optimizer):
    """Returns the averages of the trainable variables that an optimizer with EMA keeps."""
    return optimizer._model_variables_moving_average


@contextlib.contextmanager
def sum_is_taken(optimizer):
    """Keeps a Keras optimizer from summing over replicas what is summed already.

    So its clipping, which comes before its sum, sees the gradient of the whole batch.
    """
    if optimizer is None or optimizer._distribution_strategy.num_replicas_in_sync == 1:
        yield
        return
    optimizer._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        del optimizer._all_reduce_sum_gradients


def barrier(tensors):
    """Returns the same tensors, over which XLA moves nothing: all are there before any is used."""
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return gen_xla_ops.xla_optimization_barrier(tensors)


def operations(graph):
    """Returns the operations of a graph and of the functions, branches and loops in it."""
    found = list(graph.get_operations())
    for function in graph._functions.values():
        found += operations(function.graph)
    return found


def in_xla():
    """Whether XLA will compile what is traced now, for a TPU or by `jit_compile`."""
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)
