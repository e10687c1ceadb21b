"""`ReplicaConsistentModel`: training and evaluation that do not depend on the number of replicas.

Keras 3 differs under tf.distribute:

- It clips the gradient of each replica before the all-reduce. Here the reduced gradient is clipped.
- It cannot accumulate gradients. Here the train step splits its batch into microbatches.
- It fails with `steps_per_execution` > 1. Here a loop runs the steps of an execution.
- It weights shards of different sizes equally, and the loss of an empty shard is NaN. Here every
  example has the same weight. A loss that is not a mean over examples is refused.
- Its `fit` fails on several hosts. Here metrics are read from their variables, not from the step.

Results agree up to rounding. `keras_internals.NAMES` lists the non-public Keras API that is used.
"""

import contextlib
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vitkeras.arguments import check_int
from vitkeras.errors import InputError
from vitkeras.keras_internals import (
    check_loss_values,
    check_reduction,
    exact_step,
    in_exact_step,
    skip_gradient_all_reduce,
)
from vitkeras.trainers.shards import (
    check_tpu_batches,
    first_leaf,
    has_equal_shards,
    hide_empty,
    is_distributed,
    is_tpu,
    num_examples,
)


class ReplicaConsistentModel(keras.Model):
    """Base class of functional models that train to the same weights on any number of replicas.

    It has no constructor, so that Keras makes its instances functional models. `fit` and `evaluate`
    are those of Keras; `compile` and `fit` take one more argument.
    """

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *args,
        accumulation_steps: int = 1,
        auto_scale_loss: bool = True,
        **kwargs,
    ):
        """Compiles the model as `keras.Model.compile` does.

        Args:
            optimizer: As in Keras.
            loss: As in Keras. On several replicas or with microbatches it must return one value per
                example and average them.
            accumulation_steps: Number of microbatches that each batch is split into. Their
                gradients are averaged for one update, which equals that of the full batch up to
                rounding and needs the memory of a microbatch. Schedule, weight decay and EMA count
                updates.
            auto_scale_loss: Whether to scale the loss if a layer computes in float16. Keras looks
                at the policy of the model, which does not have that of its layers.
        Raises:
            InputError: If `accumulation_steps` is not a positive integer, the optimizer accumulates
                gradients itself, the optimizer scales the loss for several replicas, the model
                was made outside the strategy's scope, or the batch cannot be split because of
                the reduction of a loss.
        """
        accumulation_steps = check_int("accumulation_steps", accumulation_steps)
        strategy = self.distribute_strategy
        distributed = is_distributed(strategy)
        if distributed:
            self._check_scope(strategy, "A model", self.weights)
        if distributed and kwargs.get("jit_compile", "auto") == "auto":
            kwargs["jit_compile"] = False
        self._splits_batches = distributed or accumulation_steps > 1
        if self._splits_batches:
            for each in tf.nest.flatten(loss):
                check_reduction(getattr(each, "name", each), getattr(each, "reduction", "mean"))
        with strategy.scope() if distributed else contextlib.nullcontext():
            optimizer = keras.optimizers.get(optimizer)
            if auto_scale_loss and self._computes_in_float16() and not _scales_loss(optimizer):
                optimizer = keras.optimizers.LossScaleOptimizer(
                    optimizer, name="loss_scale_optimizer"
                )
            super().compile(optimizer, loss, *args, auto_scale_loss=auto_scale_loss, **kwargs)
        if distributed and self.optimizer is not None:
            self._check_scope(strategy, "An optimizer", self.optimizer.variables)
        self.accumulation_steps = accumulation_steps
        self._added_losses_checked = False
        steps = getattr(self.optimizer, "gradient_accumulation_steps", None)
        if steps:
            raise InputError(
                "`gradient_accumulation_steps` of the optimizer must be None, because the model "
                f"accumulates gradients itself. Received: gradient_accumulation_steps={steps}. Use "
                f"compile(..., accumulation_steps={steps}), which splits each batch."
            )
        if distributed and _scales_loss(self.optimizer):
            raise InputError(
                "`dtype` must not be mixed_float16 on several replicas, where Keras cannot scale "
                f"losses. Received: {strategy.num_replicas_in_sync} replicas. Use mixed_bfloat16."
            )
        if distributed and self.optimizer is not None and self.optimizer.ema_overwrite_frequency:
            raise InputError(
                "`ema_overwrite_frequency` must be None on several replicas, where Keras cannot "
                f"overwrite weights. Received: {self.optimizer.ema_overwrite_frequency}. Use the "
                "callback keras.callbacks.SwapEMAWeights."
            )
        if distributed and self._has_local_batch_norm():
            warnings.warn(
                "BatchNormalization uses the statistics of each replica's shard, so that results "
                "depend on the number of replicas. Use BatchNormalization(synchronized=True) and a "
                "batch size that is divisible by the number of replicas.",
                stacklevel=2,
            )

    def _computes_in_float16(self):
        return any(
            layer.compute_dtype == "float16" and layer.variable_dtype == "float32"
            for layer in self._flatten_layers()
        )

    def _has_local_batch_norm(self):
        return any(
            isinstance(layer, keras.layers.BatchNormalization)
            and layer.trainable
            and not layer.synchronized
            for layer in self._flatten_layers()
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
        """Runs one update from the shard of this replica; returns metrics by name."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables = [v.value for v in self.trainable_variables]
        if self.accumulation_steps == 1:
            gradients, results = self._gradients(x, y, sample_weight, variables)
        else:
            gradients = self._accumulated_gradients((x, y, sample_weight), variables)
            results = self.get_metrics_result()
        if not variables:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
            return results
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            gradients = self._reduce_gradients(gradients, x, context)
        gradients = _with_one_dtype(gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return results

    def test_step(self, data):
        """Updates the metrics from the shard of this replica, which may be empty."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return self._forward(x, y, sample_weight, training=False)[1]

    def get_metrics_result(self):
        """Returns the metrics by name; in a step, those of one replica."""
        results = super().get_metrics_result()
        if in_exact_step():
            # `run_step` replaces these values by those of all replicas.
            self._local_results.extend(tf.nest.flatten(results))
        return results

    def _forward(self, x, y, sample_weight, training):
        """Updates the metrics; returns the loss divided by the number of replicas, and metrics."""
        outputs = self(x, training=training)
        if self._splits_batches:
            with check_loss_values():
                loss = self._compute_loss(x, y, outputs, sample_weight, training=training)
        else:
            loss = self._compute_loss(x, y, outputs, sample_weight, training=training)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        examples = num_examples(x)
        # Other losses than those of `check_loss_values` may be NaN for an empty shard.
        mean = tf.where(examples > 0, tf.stop_gradient(loss) * replicas, 0.0)
        self._loss_tracker.update_state(mean, sample_weight=examples)
        return loss, self.compute_metrics(x, y, outputs, sample_weight)

    def _gradients(self, x, y, sample_weight, variables):
        with tf.GradientTape() as tape:
            loss, results = self._forward(x, y, sample_weight, training=True)
            if self.optimizer is not None:
                loss = self.optimizer.scale_loss(loss)
        return tape.gradient(loss, variables), results

    def _accumulated_gradients(self, data, variables):
        """Returns the mean gradient of all microbatches, weighted by the number of examples."""
        microbatches, examples = self.accumulation_steps, num_examples(data[0])
        size = first_leaf(data[0]).shape[0]
        static = size is not None and size % microbatches == 0  # a static shape, as TPUs need it
        if is_tpu(tf.distribute.get_strategy()) and not static:
            raise InputError(
                "`accumulation_steps` must divide the batch size of each replica. "
                f"Received: accumulation_steps={microbatches}, {size} images per replica."
            )
        has_gradient = []

        def body(i, sums):
            begin, end = examples * i // microbatches, examples * (i + 1) // microbatches

            def microbatch(tensor):
                if not static:
                    return tensor[begin:end]
                start = [begin, *[0] * (tensor.shape.rank - 1)]
                return tf.slice(tensor, start, [size // microbatches, *tensor.shape[1:]])

            x, y, sample_weight = (
                None if d is None else tf.nest.map_structure(microbatch, d) for d in data
            )
            gradients, _ = self._gradients(x, y, sample_weight, variables)
            has_gradient[:] = [gradient is not None for gradient in gradients]
            weight = tf.cast((end - begin) / tf.maximum(examples, 1), tf.float32)
            return i + 1, [
                total
                if gradient is None
                else total + tf.math.multiply_no_nan(gradient, tf.cast(weight, gradient.dtype))
                for total, gradient in zip(sums, gradients, strict=True)
            ]

        start = (tf.constant(0), [tf.zeros(v.shape, v.dtype) for v in variables])
        sums = tf.while_loop(
            lambda i, _: i < microbatches,
            body,
            start,
            parallel_iterations=1,
            maximum_iterations=microbatches,
        )[1]
        return [s if has else None for s, has in zip(sums, has_gradient, strict=True)]

    def _reduce_gradients(self, gradients, x, context):
        """Returns the gradient of the batch, from those of the means over each shard."""
        indices = [i for i, gradient in enumerate(gradients) if gradient is not None]
        present = [gradients[i] for i in indices]
        if not present:
            return gradients
        if not self._equal_shards:
            examples = tf.cast(num_examples(x), tf.float32)
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, examples)
            weight = examples * context.num_replicas_in_sync / total
            # The gradient of an empty shard may be NaN.
            present = [tf.math.multiply_no_nan(g, tf.cast(weight, g.dtype)) for g in present]
        present = context.all_reduce(tf.distribute.ReduceOp.SUM, present)
        reduced = dict(zip(indices, present, strict=True))
        return [reduced.get(i) for i in range(len(gradients))]

    def predict(self, x: Any, batch_size: int | None = None, *args, **kwargs):
        """Returns the outputs for all examples as `keras.Model.predict` does.

        On TPUs, the last batch of arrays is padded; a dataset must have full batches.
        """
        strategy = self.distribute_strategy
        if is_tpu(strategy) and isinstance(x, (tf.data.Dataset, tf.distribute.DistributedDataset)):
            check_tpu_batches(x.element_spec)
        if not is_tpu(strategy) or not isinstance(first_leaf(x), (np.ndarray, tf.Tensor)):
            return super().predict(x, batch_size, *args, **kwargs)
        examples, replicas = len(first_leaf(x)), strategy.num_replicas_in_sync
        batch_size = -(-max(min(batch_size or 32, examples), 1) // replicas) * replicas

        def padded(array):
            return np.concatenate([array, np.repeat(array[-1:], -examples % batch_size, 0)])

        x = keras.tree.map_structure(padded, x)
        outputs = super().predict(x, batch_size, *args, **kwargs)
        return keras.tree.map_structure(lambda output: output[:examples], outputs)

    def predict_on_batch(self, x):
        """Returns the outputs for a batch as `keras.Model.predict_on_batch` does."""
        if not is_distributed(self.distribute_strategy):
            return super().predict_on_batch(x)
        # Keras gives the batch to every replica, and concatenates the outputs of all.
        return self.predict(x, batch_size=len(first_leaf(x)), verbose=0)

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

    def make_predict_function(self, force=False):
        """Returns the function that `predict` calls for each execution."""
        if not is_tpu(self.distribute_strategy):
            return super().make_predict_function(force)
        make, functions = super().make_predict_function, {}

        def function(batches):
            # Keras's function would have dynamic shapes after batches of two sizes.
            shapes = tuple(tuple(tensor.shape) for tensor in _tensors(batches))
            if shapes not in functions:
                make(force=True)
                functions[shapes], self.predict_function = self.predict_function, function
            return functions[shapes](batches)

        if self.predict_function is None or force:
            self.predict_function = function
        return self.predict_function

    def _make_loop(self, step, training):
        strategy, graph = self.distribute_strategy, not self.run_eagerly
        has_own_results = self._overrides(step.__name__) or self._overrides("compute_metrics")
        names = []  # of the results of the step, known once it is traced

        def replica_step(batch):
            if graph:
                batch = tf.nest.map_structure(hide_empty, batch)
            with exact_step():
                results = step(batch) or {}
            names[:] = results
            local = {id(value) for value in self._local_results}
            return {
                name: tf.convert_to_tensor(value)
                for name, value in results.items()
                if id(value) not in local
            }

        if graph and self.jit_compile:
            replica_step = tf.function(replica_step, jit_compile=True, reduce_retracing=True)

        def waiting_step(batch):
            # In a loop, ops without the batch as input, such as weight decay and counts, would
            # otherwise run once more after the end of the data.
            with tf.control_dependencies(_tensors(batch)):
                return replica_step(batch)

        def run_step(batch, step=replica_step):
            self._equal_shards = is_tpu(strategy) or has_equal_shards(strategy, batch)
            self._local_results = []
            # Not in the step: there the threads of the replicas would interleave.
            with skip_gradient_all_reduce(self.optimizer):
                results = strategy.run(step, args=(batch,))
            self._local_results = []  # it would keep the traced graph alive
            return results

        def results_of(per_replica):
            """Returns the metrics of all replicas, and means of other results of a step."""
            own = {
                name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
                for name, value in per_replica.items()
            }
            metrics = {} if own.keys() >= set(names) else self.get_metrics_result()
            return {name: own[name] if name in own else metrics[name] for name in names}

        def run_batch(batch):
            return results_of(run_step(batch))

        done = tf.Variable(0, trainable=False, dtype="int64")

        def run_next(iterator):
            batch = next(iterator)
            # The threads of the replicas do not inherit control dependencies.
            per_replica = run_step(batch, waiting_step)
            with tf.control_dependencies(_tensors(batch)):
                done.assign_add(1)
            return per_replica

        def run_batches(iterator, steps):
            if not has_own_results:
                for _ in tf.range(steps):
                    run_next(iterator)
                return self.get_metrics_result()
            results = results_of(run_next(iterator))
            for _ in tf.range(steps - 1):
                results = results_of(run_next(iterator))
            return results

        if graph:
            # With it, shapes would be dynamic after batches of two sizes.
            reduce_retracing = not is_tpu(strategy)
            run_batch = tf.function(run_batch, reduce_retracing=reduce_retracing, autograph=False)
            run_batches = tf.function(run_batches, reduce_retracing=reduce_retracing)

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
            before = int(tf.convert_to_tensor(done))
            try:
                return run_batches(iterator, tf.constant(steps))
            except (tf.errors.OutOfRangeError, StopIteration):  # in a graph, or run eagerly
                if int(tf.convert_to_tensor(done)) == before:
                    raise
                return self.get_metrics_result()  # the data ended within the execution

        return function

    def _overrides(self, method):
        """Returns whether a subclass in the user's code overrides a method."""
        base = ReplicaConsistentModel if method in vars(ReplicaConsistentModel) else keras.Model
        return getattr(type(self), method) is not getattr(base, method)

    def _has_own_methods(self):
        """Returns whether a subclass in the user's code overrides how a step is computed."""
        methods = ("train_step", "test_step", "compute_loss", "compute_metrics")
        return any(self._overrides(method) for method in methods)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Creates metrics and optimizer variables in the scope, from the shard of one replica."""
        strategy = self.distribute_strategy
        check = self._splits_batches and not self._added_losses_checked and self._has_own_layers()
        if iterator is not None and (check or is_distributed(strategy)):
            if is_tpu(strategy):
                check_tpu_batches(iterator.data_adapter.get_tf_dataset().element_spec)
            for _, _, batches in iterator:
                data_batch = tf.nest.map_structure(
                    lambda value: strategy.experimental_local_results(value)[0], next(batches)
                )
                break
        if is_distributed(strategy):
            with strategy.scope():
                self._symbolic_build(data_batch=data_batch)
        elif iterator is not None and not self._has_own_methods():
            # Keras creates the variables in the first trace of a step, and traces it again.
            spec = iterator._distributed_dataset.element_spec
            if all(isinstance(s, tf.TensorSpec) and s.shape.rank for s in tf.nest.flatten(spec)):
                with strategy.scope():
                    self._symbolic_build(data_batch=spec)
        else:
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        if check:
            self._check_added_losses(keras.utils.unpack_x_y_sample_weight(data_batch)[0])

    def _has_own_layers(self):
        """Returns whether there are layers of the user, which may call `add_loss`."""
        packages = {type(layer).__module__.partition(".")[0] for layer in self._flatten_layers()}
        return not packages <= {"keras", "vitkeras"}

    def _check_added_losses(self, x):
        """Checks that losses of `add_loss` are means over the batch."""
        if first_leaf(x).shape[0] == 0:
            return
        losses = []
        for copies in (1, 2):
            self(keras.tree.map_structure(lambda t: np.repeat(t[:1], copies, 0), x), training=False)  # noqa: B023
            losses.append(float(sum(float(loss) for loss in self.losses)))
        if not np.isclose(*losses, rtol=1e-3):
            raise InputError(
                "A loss of `add_loss` must be a mean over the batch on several replicas or with "
                "`accumulation_steps`. "
                f"Received: {losses[0]:.4g} for an example, {losses[1]:.4g} for two copies of it."
            )
        self._added_losses_checked = True


def _with_one_dtype(gradients):
    """Returns gradients in the widest of their dtypes, for the norm that Keras clips by.

    The optimizer casts each to the dtype of its weight.
    """
    dtypes = {gradient.dtype for gradient in gradients if gradient is not None}
    if len(dtypes) < 2:
        return gradients
    widest = max(dtypes, key=lambda dtype: dtype.size)
    return [None if each is None else tf.cast(each, widest) for each in gradients]


def _scales_loss(optimizer):
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _tensors(batch):
    leaves = tf.nest.flatten(batch, expand_composites=True)
    return [leaf for leaf in leaves if leaf is not None]
