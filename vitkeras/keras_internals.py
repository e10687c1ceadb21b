"""The non-public API of Keras and TensorFlow that this package uses.

`trainers/tensorflow.py` overrides and calls the names of the model and of the epoch iterator; all
access to non-public attributes of the optimizer is here. A test checks every name of `NAMES`
against the installed Keras, which is why setup.cfg has an upper bound on Keras.
"""

import contextlib

#: By owner: a compiled model, its optimizer, and the epoch iterator of `fit`.
NAMES = {
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


def uses_weight_decay(optimizer, variable):
    """Returns whether the optimizer applies weight decay to a variable."""
    return optimizer._use_weight_decay(variable)


def variable_index(optimizer, variable):
    """Returns the index of a variable among those that the optimizer was built with."""
    return optimizer._get_variable_index(variable)


class DecayInUpdateStep:
    """Mixin for optimizers whose `update_step` applies weight decay with a rate per variable."""

    def _apply_weight_decay(self, variables):
        """Disables Keras's weight decay, which uses one rate for all variables."""


def moving_averages(optimizer):
    """Returns the moving averages of the trainable variables of an optimizer with EMA."""
    return optimizer._model_variables_moving_average


@contextlib.contextmanager
def skip_gradient_all_reduce(optimizer):
    """Disables the optimizer's gradient all-reduce; gradients are already reduced.

    The optimizer clips before its all-reduce, so that it then clips the reduced gradient.
    """
    if optimizer is None or optimizer._distribution_strategy.num_replicas_in_sync == 1:
        yield
        return
    optimizer._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        del optimizer._all_reduce_sum_gradients


def xla_optimization_barrier(tensors):
    """Returns the same tensors; XLA moves no operation across."""
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return gen_xla_ops.xla_optimization_barrier(tensors)


def all_operations(graph):
    """Returns the operations of a graph and of the functions, branches and loops in it."""
    found = list(graph.get_operations())
    for function in graph._functions.values():
        found += all_operations(function.graph)
    return found


def in_xla_context():
    """Returns whether XLA will compile the function that is being traced."""
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)
