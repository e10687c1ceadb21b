"""`ReplicaConsistentModel`: training and evaluation that do not depend on the number of replicas.

Keras 3 differs under tf.distribute:

- It clips the gradient of each replica before the all-reduce. Here the reduced gradient is clipped.
- It cannot accumulate gradients. Here the train step splits its batch into microbatches.
- It fails with `steps_per_execution` > 1. Here a loop runs the steps of an execution.
- It weights the replicas of a short last batch equally. Here every example has the same weight.
- Its `fit` fails on several hosts. Here metrics are read from their variables, not from the step.

Results agree up to rounding. `keras_internals.NAMES` lists the non-public Keras API that is used.
"""

import contextlib
from typing import Any

import keras
import tensorflow as tf

from vitkeras.arguments import check_int
from vitkeras.errors import InputError
from vitkeras.keras_internals import skip_gradient_all_reduce


class ReplicaConsistentModel(keras.Model):
    """Base class of functional models that train to the same weights on any number of replicas.

    It has no constructor, so that Keras makes its instances functional models. `fit` and `evaluate`
    are those of Keras; `compile` and `fit` take one more argument.
    """

    def compile(self, *args, accumulation_steps: int = 1, **kwargs):
        """Compiles the model as `keras.Model.compile` does.

        Args:
            accumulation_steps: Number of microbatches that each batch is split into. Their
                gradients are averaged for one update, which equals that of the whole batch up to
                rounding and needs the memory of a microbatch. Schedule, weight decay and EMA count
                updates.
        Raises:
            InputError: If `accumulation_steps` is not a positive integer, the optimizer accumulates
                gradients itself, the optimizer scales the loss for several replicas, or the model
                was made outside the strategy's scope.
        """
        accumulation_steps = check_int("accumulation_steps", accumulation_steps)
        strategy = self.distribute_strategy
        distributed = strategy.num_replicas_in_sync > 1 or _is_tpu(strategy)
        if distributed:
            self._check_scope(strategy, "A model", self.weights)
        if distributed and kwargs.get("jit_compile", "auto") == "auto":
            kwargs["jit_compile"] = False
        with strategy.scope() if distributed else contextlib.nullcontext():
            super().compile(*args, **kwargs)
        if distributed and self.optimizer is not None:
            self._check_scope(strategy, "An optimizer", self.optimizer.variables)
        self.accumulation_steps = accumulation_steps
        steps = getattr(self.optimizer, "gradient_accumulation_steps", None)
        if steps:
            raise InputError(
                "`gradient_accumulation_steps` of the optimizer must be None, because the model "
                f"accumulates gradients itself. Received: gradient_accumulation_steps={steps}. Use "
                f"compile(..., accumulation_steps={steps}), which splits each batch."
            )
        if distributed and isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            raise InputError(
                "`dtype` must not be mixed_float16 on several replicas, where Keras cannot scale "
                f"losses. Received: {strategy.num_replicas_in_sync} replicas. Use mixed_bfloat16."
            )

    @staticmethod
    def _check_scope(strategy, what, variables):
        created = strategy.extended.variable_created_in_scope
        outside = [v.path for v in variables if not created(v.value)]
        if outside:
            raise InputError(
                f"{what} must be made in the scope of its strategy. Received: "
                f"{type(strategy).__name__} and {len(outside)} variables made outside, such as "
                f"{outside[0]}. Use `with strategy.scope(): model = ...; model.compile(...)`."
            )

    def get_compile_config(self):
        """Adds `accumulation_steps` to the config of Keras."""
        config = super().get_compile_config()
        if config and self.accumulation_steps > 1:
            config["accumulation_steps"] = self.accumulation_steps
        return config

    def fit(self, x: Any = None, *args, first_step: int = 0, **kwargs):
        """Trains the model as `keras.Model.fit` does.

        If `steps_per_epoch` is given, an epoch has exactly that many steps.

        Args:
            x: Data, as in Keras.
            first_step: Number of steps of the first epoch that another process has done. The data
                starts after them. Callbacks are called for them, but no step runs.
        """
        if first_step and isinstance(x, tf.data.Dataset) and int(x.cardinality()) >= 0:
            # Hides the length, from which Keras would subtract the skipped steps.
            dataset = x
            x = tf.data.Dataset.range(1).flat_map(lambda _: dataset).with_options(dataset.options())
        self._epoch_steps, self._steps_to_skip = kwargs.get("steps_per_epoch"), first_step
        try:
            return super().fit(x, *args, **kwargs)
        finally:
            self._epoch_steps, self._steps_to_skip = None, 0

    def reset_metrics(self):
        """Resets metrics and step count; Keras calls it at the start of each epoch."""
        super().reset_metrics()
        self._steps_done = 0

    def train_step(self, data):
        """Runs one update from the shard of this replica."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables = [v.value for v in self.trainable_variables]
        if self.accumulation_steps == 1:
            gradients = self._gradients(x, y, sample_weight, variables)
        else:
            gradients = self._accumulated_gradients((x, y, sample_weight), variables)
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            gradients = self._weight_by_examples(gradients, x, context)
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))

    def test_step(self, data):
        """Updates the metrics from the shard of this replica, which may be empty."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._forward(x, y, sample_weight, training=False)

    def _forward(self, x, y, sample_weight, training):
        """Updates loss and metrics, and returns the loss divided by the number of replicas."""
        outputs = self(x, training=training)
        loss = self._compute_loss(x, y, outputs, sample_weight, training=training)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        examples = _num_examples(x)
        # The mean over an empty shard is NaN.
        mean = tf.where(examples > 0, tf.stop_gradient(loss) * replicas, 0.0)
        self._loss_tracker.update_state(mean, sample_weight=examples)
        self.compute_metrics(x, y, outputs, sample_weight)
        return loss

    def _gradients(self, x, y, sample_weight, variables):
        with tf.GradientTape() as tape:
            loss = self._forward(x, y, sample_weight, training=True)
            loss = self.optimizer.scale_loss(loss)
        return tape.gradient(loss, variables)

    def _accumulated_gradients(self, data, variables):
        """Returns the mean gradient of all microbatches, weighted by the number of examples."""
        microbatches, examples = self.accumulation_steps, _num_examples(data[0])
        size = data[0].shape[0]
        if size is not None and size % microbatches:
            raise InputError(
                "`accumulation_steps` must divide the batch size of each replica. "
                f"Received: accumulation_steps={microbatches}, {size} images per replica."
            )

        def body(i, sums):
            begin, end = examples * i // microbatches, examples * (i + 1) // microbatches

            def microbatch(tensor):
                if size is None:
                    return tensor[begin:end]
                # A static shape, as TPUs need it.
                start = [begin, *[0] * (tensor.shape.rank - 1)]
                return tf.slice(tensor, start, [size // microbatches, *tensor.shape[1:]])

            x, y, sample_weight = (
                None if d is None else tf.nest.map_structure(microbatch, d) for d in data
            )
            gradients = self._gradients(x, y, sample_weight, variables)
            weight = tf.cast((end - begin) / tf.maximum(examples, 1), tf.float32)
            return i + 1, [
                total + tf.math.multiply_no_nan(gradient, tf.cast(weight, gradient.dtype))
                for total, gradient in zip(sums, gradients, strict=True)
            ]

        start = (tf.constant(0), [tf.zeros(v.shape, v.dtype) for v in variables])
        return tf.while_loop(
            lambda i, _: i < microbatches,
            body,
            start,
            parallel_iterations=1,
            maximum_iterations=microbatches,
        )[1]

    @staticmethod
    def _weight_by_examples(gradients, x, context):
        """Weights the gradient of each replica, a mean over its shard, by the size of the shard."""
        if x.shape[0] is not None:
            return gradients  # all shards have the same size
        examples = tf.cast(_num_examples(x), tf.float32)
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, examples)
        weight = examples * context.num_replicas_in_sync / total
        return [
            g if g is None else tf.math.multiply_no_nan(g, tf.cast(weight, g.dtype))
            for g in gradients
        ]

    def make_train_function(self, force=False):
        """Returns the function that `fit` calls for each execution."""
        if self.train_function is None or force:
            self.train_function = self._make_loop(self.train_step, training=True)
        return self.train_function

    def make_test_function(self, force=False):
        """Returns the function that `evaluate` calls for each execution."""
        if self.test_function is None or force:
            self.test_function = self._make_loop(self.test_step, training=False)
        return self.test_function

    def _make_loop(self, step, training):
        strategy, graph = self.distribute_strategy, not self.run_eagerly
        if graph and self.jit_compile:
            step = tf.function(step, jit_compile=True, reduce_retracing=True)

        def run_step(batch):
            # Not in the step: there the threads of the replicas would interleave.
            with skip_gradient_all_reduce(self.optimizer):
                strategy.run(step, args=(batch,))

        def run_batch(batch):
            run_step(batch)
            return self.get_metrics_result()

        done = tf.Variable(0, trainable=False, dtype="int64")

        def run_batches(iterator, steps):
            for _ in tf.range(steps):
                batch = next(iterator)
                # Otherwise ops without the batch as input, such as weight decay, run once more
                # after the end of the data.
                with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                    run_step(batch)
                    done.assign_add(1)
            return self.get_metrics_result()

        if graph:
            run_batch = tf.function(run_batch, reduce_retracing=True, autograph=False)
            run_batches = tf.function(run_batches, reduce_retracing=True)

        def function(iterator):
            if not isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
                return run_batch(next(iterator))  # train_on_batch, test_on_batch
            steps = self.steps_per_execution
            if training and getattr(self, "_steps_to_skip", 0) > 0:
                skipped = min(steps, self._steps_to_skip)
                self._steps_to_skip -= skipped
                self._steps_done += skipped
                steps -= skipped
                if steps == 0:
                    return self.get_metrics_result()
            if self.steps_per_execution == 1:
                return run_batch(next(iterator))
            if training and getattr(self, "_epoch_steps", None):
                steps = min(steps, self._epoch_steps - self._steps_done)
                self._steps_done += steps
            before = int(done)
            try:
                return run_batches(iterator, tf.constant(steps))
            except tf.errors.OutOfRangeError:
                if int(done) == before:
                    raise
                return self.get_metrics_result()  # the data ended within the execution

        return function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Creates metrics and optimizer variables in the scope, from the shard of one replica."""
        if self.distribute_strategy.num_replicas_in_sync == 1 and not _is_tpu(
            self.distribute_strategy
        ):
            return super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        strategy = self.distribute_strategy
        if iterator is not None:
            if _is_tpu(strategy):
                check_tpu_batches(iterator.data_adapter.get_tf_dataset().element_spec)
            for _, _, batches in iterator:
                data_batch = tf.nest.map_structure(
                    lambda value: strategy.experimental_local_results(value)[0], next(batches)
                )
                break
        with strategy.scope():
            self._symbolic_build(data_batch=data_batch)


def _is_tpu(strategy):
    return isinstance(strategy, tf.distribute.TPUStrategy)


def check_tpu_batches(element_spec) -> None:
    """Checks that a TPU can process the batches of a dataset.

    Args:
        element_spec: `element_spec` of a tf.data.Dataset.
    Raises:
        InputError: If a shape is not fully defined, or an element is a string.
    """
    for spec in tf.nest.flatten(element_spec, expand_composites=True):  # of each replica
        if not spec.shape.is_fully_defined() or spec.dtype == tf.string:
            raise InputError(
                "Batches for a TPU must have a fully defined shape and no strings. "
                f"Received: shape {spec.shape}, {spec.dtype.name}. Use `.batch(n, "
                "drop_remainder=True)`; pad the last batch of an evaluation with examples of "
                "weight 0."
            )


def _num_examples(x):
    """Returns the number of examples in a batch, a constant if the shape is static."""
    return tf.shape(x)[0] if x.shape[0] is None else tf.constant(x.shape[0])
