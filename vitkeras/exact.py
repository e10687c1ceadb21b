"""`ExactModel`: a Keras model that trains and evaluates alike on any number of replicas.

What Keras 3 does otherwise under tf.distribute, and what happens here instead:

- it clips each replica's gradient before the sum; here the sum is clipped;
- it cannot accumulate gradients; here the step cuts its batch, in `compile(accumulation_steps=)`;
- it fails with `steps_per_execution` > 1; here a plain loop runs the steps of an execution;
- it weighs a short last batch wrongly; here every example weighs the same;
- its `fit` fails on several hosts; here metrics are read from their variables, not from the step.

`private.py` names the Keras API that this needs and that is not public. TensorFlow backend only.
"""

import contextlib

import keras
import tensorflow as tf

from vitkeras.errors import InputError
from vitkeras.private import sum_is_taken


class ExactModel(keras.Model):
    """Base of this package's models. Without a constructor of its own, Keras makes it functional.

    `fit` and `evaluate` are Keras's; `compile` takes one argument more.
    """

    def compile(self, *args, accumulation_steps=1, **kwargs):
        """As `keras.Model.compile`.

        Args:
            accumulation_steps: Each batch is cut in so many pieces, one after the other, whose
                gradients are averaged for one update: the memory of a piece, the numbers of the
                whole batch. Schedule, weight decay and EMA count updates.
        Raises:
            InputError: If the optimizer accumulates by itself, loss scaling meets replicas, or the
                model was made outside the strategy's scope.
        """
        if not isinstance(accumulation_steps, int) or accumulation_steps < 1:
            raise InputError(
                "`accumulation_steps` must be a positive integer. "
                f"Received: accumulation_steps={accumulation_steps!r}."
            )
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
                "This model accumulates gradients inside its step, which is exact on any number "
                f"of replicas: compile(..., accumulation_steps={steps}) cuts each batch in pieces. "
                f"Received: an optimizer with gradient_accumulation_steps={steps}."
            )
        if distributed and isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            raise InputError(
                "Loss scaling (mixed_float16) does not work on several replicas in Keras. "
                f"Received: {strategy.num_replicas_in_sync} replicas. Use mixed_bfloat16."
            )

    @staticmethod
    def _check_scope(strategy, what, variables):
        created = strategy.extended.variable_created_in_scope
        outside = [v.path for v in variables if not created(v.value)]
        if outside:
            raise InputError(
                f"{what} must be made in the scope of the strategy that it trains under: "
                "`with strategy.scope(): model = ...; model.compile(...)`. Received: "
                f"{type(strategy).__name__} and {len(outside)} variables made outside, "
                f"such as {outside[0]}."
            )

    def get_compile_config(self):
        """As Keras's, with the accumulation where there is one."""
        config = super().get_compile_config()
        if config and self.accumulation_steps > 1:
            config["accumulation_steps"] = self.accumulation_steps
        return config

    def fit(self, x=None, *args, first_step=0, **kwargs):
        """As `keras.Model.fit`; an epoch has exactly `steps_per_epoch` steps where given.

        Args:
            x: As in Keras.
            first_step: Steps of the first epoch that were done before, by another process. The
                data begins after them; callbacks are called for them too, nothing is run.
        """
        if first_step and isinstance(x, tf.data.Dataset) and int(x.cardinality()) >= 0:
            # Keras would take the steps that are not run from its length.
            whole = x
            x = tf.data.Dataset.range(1).flat_map(lambda _: whole).with_options(whole.options())
        self._epoch_steps, self._skipped = kwargs.get("steps_per_epoch"), first_step
        try:
            return super().fit(x, *args, **kwargs)
        finally:
            self._epoch_steps, self._skipped = None, 0

    def reset_metrics(self):
        """As Keras does at the beginning of each epoch, which is how the steps are counted."""
        super().reset_metrics()
        self._steps_done = 0

    def train_step(self, data):
        """One update from this replica's part of a batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables = [v.value for v in self.trainable_variables]
        if self.accumulation_steps == 1:
            gradients = self._gradients(x, y, sample_weight, variables)
        else:
            gradients = self._accumulated_gradients((x, y, sample_weight), variables)
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            gradients = self._weigh_by_examples(gradients, x, context)
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))

    def test_step(self, data):
        """Counts this replica's part of a batch, which may be empty."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._forward(x, y, sample_weight, training=False)

    def _forward(self, x, y, sample_weight, training):
        """Returns the loss, over the number of replicas, and counts it and the metrics."""
        outputs = self(x, training=training)
        loss = self._compute_loss(x, y, outputs, sample_weight, training=training)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        examples = _examples(x)
        # An empty part of a short batch has no mean.
        whole = tf.where(examples > 0, tf.stop_gradient(loss) * replicas, 0.0)
        self._loss_tracker.update_state(whole, sample_weight=examples)
        self.compute_metrics(x, y, outputs, sample_weight)
        return loss

    def _gradients(self, x, y, sample_weight, variables):
        with tf.GradientTape() as tape:
            loss = self._forward(x, y, sample_weight, training=True)
            loss = self.optimizer.scale_loss(loss)
        return tape.gradient(loss, variables)

    def _accumulated_gradients(self, data, variables):
        """Returns the mean over the examples of all pieces, which a loop takes one by one."""
        pieces, examples = self.accumulation_steps, _examples(data[0])
        size = data[0].shape[0]
        if size is not None and size % pieces:
            raise InputError(
                "The batch of each replica must be divisible by `accumulation_steps`. "
                f"Received: {size} images on each replica, accumulation_steps={pieces}."
            )

        def body(i, sums):
            begin, end = examples * i // pieces, examples * (i + 1) // pieces

            def part(tensor):
                if size is None:
                    return tensor[begin:end]
                # Of static length, as a TPU wants it.
                start = [begin, *[0] * (tensor.shape.rank - 1)]
                return tf.slice(tensor, start, [size // pieces, *tensor.shape[1:]])

            x, y, sample_weight = (
                None if d is None else tf.nest.map_structure(part, d) for d in data
            )
            gradients = self._gradients(x, y, sample_weight, variables)
            share = tf.cast((end - begin) / tf.maximum(examples, 1), tf.float32)
            return i + 1, [
                total + tf.math.multiply_no_nan(gradient, tf.cast(share, gradient.dtype))
                for total, gradient in zip(sums, gradients, strict=True)
            ]

        start = (tf.constant(0), [tf.zeros(v.shape, v.dtype) for v in variables])
        return tf.while_loop(
            lambda i, _: i < pieces, body, start, parallel_iterations=1, maximum_iterations=pieces
        )[1]

    @staticmethod
    def _weigh_by_examples(gradients, x, context):
        """Keras takes a replica's mean for 1/replicas of the whole; right only for equal parts."""
        if x.shape[0] is not None:
            return gradients
        examples = tf.cast(_examples(x), tf.float32)
        whole = context.all_reduce(tf.distribute.ReduceOp.SUM, examples)
        weight = examples * context.num_replicas_in_sync / whole
        return [
            g if g is None else tf.math.multiply_no_nan(g, tf.cast(weight, g.dtype))
            for g in gradients
        ]

    def make_train_function(self, force=False):
        """The loop that `fit` calls for each execution."""
        if self.train_function is None or force:
            self.train_function = self._make_loop(self.train_step, training=True)
        return self.train_function

    def make_test_function(self, force=False):
        """The loop that `evaluate` calls for each execution."""
        if self.test_function is None or force:
            self.test_function = self._make_loop(self.test_step, training=False)
        return self.test_function

    def _make_loop(self, step, training):
        strategy, graph = self.distribute_strategy, not self.run_eagerly
        if graph and self.jit_compile:
            step = tf.function(step, jit_compile=True, reduce_retracing=True)

        def run_step(batch):
            # Around all replicas: their threads take turns inside.
            with sum_is_taken(self.optimizer):
                strategy.run(step, args=(batch,))

        def run_batch(batch):
            run_step(batch)
            return self.get_metrics_result()

        done = tf.Variable(0, trainable=False, dtype="int64")

        def run_batches(iterator, steps):
            for _ in tf.range(steps):
                batch = next(iterator)
                # Else what needs no batch, such as weight decay, runs once more when data ends.
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
            if training and getattr(self, "_skipped", 0) > 0:
                skipped = min(steps, self._skipped)
                self._skipped -= skipped
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
                return self.get_metrics_result()  # the data ended inside the execution

        return function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Makes metrics and optimizer variables in the scope, from one replica's part."""
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


def check_tpu_batches(element_spec):
    """Checks that a TPU can take such batches.

    Args:
        element_spec: Of a tf.data.Dataset.
    Raises:
        InputError: If a shape is not fully known, or something is a string.
    """
    for spec in tf.nest.flatten(element_spec, expand_composites=True):  # of each replica
        if not spec.shape.is_fully_defined() or spec.dtype == tf.string:
            raise InputError(
                "A TPU takes batches of numbers whose shape is fully known: "
                "`.batch(n, drop_remainder=True)`, the last batch of an evaluation filled up with "
                "examples of weight 0, and no strings. "
                f"Received: shape {spec.shape}, {spec.dtype.name}."
            )


def _examples(x):
    """Returns the number of examples in a batch, static where it can be."""
    return tf.shape(x)[0] if x.shape[0] is None else tf.constant(x.shape[0])
