"""The arrays of `vitkeras.interpret`, against a ViT encoder in NumPy."""

import itertools

import keras
import numpy as np
import pytest
from helpers.models import PATCH, SIZE, TINY, make
from helpers.processes import python

from vitkeras import interpret
from vitkeras.errors import InputError
from vitkeras.interpret import block_runner
from vitkeras.models.config import ResNetConfig
from vitkeras.models.resnet import build_resnet

GRID = (2, 3)
KINDS = [
    {},
    {"classifier": "gap", "num_registers": 2, "layer_scale": 0.7},
    {"classifier": "token_gap", "num_registers": 1, "positions": "learned_2d"},
    {"classifier": "gap_norm", "positions": "relative", "gelu": "exact"},
    {"classifier": "map", "positions": "sincos_2d", "positions_at": "every_block_shared"},
    {"positions_at": "every_block", "pre_logits": True},
    {"dropout_rate": 0.5, "stochastic_depth_rate": 0.5},
]


def random_images(count=3, size=SIZE):
    return np.random.default_rng(2).integers(0, 256, (count, *size, 3), np.uint8)


class ReferenceViT:
    """The encoder of a model in float64 NumPy, from pixels to the output of the last block."""

    def __init__(self, model):
        self.model, self.num_layers = model, TINY["num_layers"]
        self.names = {layer.name for layer in model.layers}
        self.encoder = model.get_layer("patch_encoder")

    @staticmethod
    def array(weight):
        return keras.ops.convert_to_numpy(weight).astype("float64")

    def dense(self, x, layer):
        return x @ self.array(layer.kernel) + self.array(layer.bias)

    def norm(self, x, layer):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.epsilon)
        return x * self.array(layer.gamma) + self.array(layer.beta)

    def positions(self, layer):
        zeros = np.zeros((1, layer.num_prefix_tokens + 6, TINY["hidden_dim"]), "float32")
        return self.array(layer(zeros))

    def tokens(self, images):
        x = (images.astype("float64") - 127.5) / 127.5
        patches = [
            [x[:, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH] for j in range(GRID[1])]
            for i in range(GRID[0])
        ]
        x = np.stack([patch.reshape(len(x), -1) for row in patches for patch in row], 1)
        x = self.dense(x, self.encoder.projection)
        prefix = [self.encoder.token] if self.encoder.class_token else []
        prefix += [self.encoder.registers] if self.encoder.num_registers else []
        prefix = [np.repeat(self.array(weight), len(x), 0) for weight in prefix]
        return np.concatenate([*prefix, x], 1) + self.positions(self.encoder.positions)

    def attention(self, x, layer, offset):
        head_dim = x.shape[-1] // layer.num_heads
        query, key, value = (
            np.stack(np.split(part, layer.num_heads, -1), 1)
            for part in np.split(self.dense(x, layer.qkv), 3, -1)
        )
        scores = query @ key.swapaxes(-1, -2)  # (b, k, t, t)
        if layer.relative_positions:
            table = self.array(layer.relative)
            for i, j in np.ndindex(scores.shape[2:]):
                vector = np.stack(np.split(table[j - i + x.shape[1] - 1], layer.num_heads))
                scores[:, :, i, j] += (query[:, :, i] * vector).sum(-1)
        scores = np.exp(scores / np.sqrt(head_dim))
        scores = scores / scores.sum(-1, keepdims=True)
        y = (scores + offset) @ value
        return self.dense(np.concatenate(list(y.swapaxes(0, 1)), -1), layer.out), scores

    def gelu(self, x, kind):
        from scipy.special import erf

        inner = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
        return 0.5 * x * (1 + (inner if kind == "tanh" else erf(x / np.sqrt(2))))

    def run(self, images, offsets=None):
        """Returns the input of the first block and the output of each, and the scores of each."""
        x, all_scores, outputs = self.tokens(images), [], []
        offsets = offsets or [0.0] * self.num_layers
        for i in range(self.num_layers):
            block = self.model.get_layer(f"block_{i:02d}")
            for name in ("positions", f"positions_{i:02d}"):
                if name in self.names:
                    x = x + self.positions(self.model.get_layer(name))
            outputs += [] if outputs else [x]
            y, scores = self.attention(
                self.norm(x, block.attention_norm), block.attention, offsets[i]
            )
            has_scale = block.layer_scale is not None
            x = x + y * (self.array(block.attention_scale.gamma) if has_scale else 1)
            y = self.gelu(self.dense(self.norm(x, block.mlp_norm), block.mlp_in), block.gelu)
            y = self.dense(y, block.mlp_out)
            x = x + y * (self.array(block.mlp_scale.gamma) if has_scale else 1)
            all_scores.append(scores)
            outputs.append(x)
        return outputs, all_scores


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())) or "token")
def model(request):
    return make(**request.param)


def pooling_weights(model):
    encoder = model.get_layer("patch_encoder")
    rows = np.eye(encoder.num_tokens)
    return rows[0] if encoder.class_token else rows[encoder.num_prefix_tokens :].mean(0)


def test_scores_norms_rollout_and_distances_equal_the_reference(model):
    images, prefix = random_images(), model.get_layer("patch_encoder").num_prefix_tokens
    outputs, all_scores = ReferenceViT(model).run(images)
    tokens = all_scores[0].shape[-1]
    for block, expected in enumerate(all_scores):
        scores = interpret.attention_scores(model, images, block)
        assert scores.dtype == "float32"
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    norms = np.sqrt((np.stack(outputs, 1) ** 2).sum(-1))
    np.testing.assert_allclose(interpret.token_norms(model, images), norms, rtol=1e-5)

    heads = np.einsum("q,bkqt->bkt", pooling_weights(model), all_scores[-1])[..., prefix:]
    np.testing.assert_allclose(
        interpret.head_maps(model, images), heads.reshape(3, 3, *GRID), atol=1e-5
    )
    expected = np.eye(tokens)
    for scores in all_scores:
        expected = (0.5 * scores.mean(1) + 0.5 * np.eye(tokens)) @ expected
    expected = (pooling_weights(model) @ expected)[:, prefix:].reshape(3, *GRID)
    rollout = interpret.attention_rollout(model, images)
    assert rollout.dtype == "float32"
    np.testing.assert_allclose(rollout, expected, atol=1e-5)

    cells = list(itertools.product(range(GRID[0]), range(GRID[1])))
    lengths = np.array([[PATCH * np.hypot(a - c, b - d) for c, d in cells] for a, b in cells])
    patches = np.stack(all_scores, 1)[..., prefix:, prefix:]  # (b, blocks, k, n, n)
    expected = ((patches * lengths).sum(-1) / patches.sum(-1)).mean(-1)
    distances = interpret.attention_distances(model, images)
    assert distances.shape == (3, 2, 3) and distances.dtype == "float32"
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def test_class_evidence_equals_the_reference_with_finite_differences(model):
    images, prefix = random_images(2), model.get_layer("patch_encoder").num_prefix_tokens
    reference, classes, step = ReferenceViT(model), [2, 0], 1e-2
    output_fn = keras.Function(model.get_layer("block_01").output, model.output)
    _, all_scores = reference.run(images)
    tokens, shape = all_scores[0].shape[-1], all_scores[0].shape[1:]
    total = np.tile(np.eye(tokens), (2, 1, 1))
    size = all_scores[0][0].size  # number of scores of one image, each with two differences
    differences = step * np.concatenate([np.eye(size), -np.eye(size)]).reshape(-1, *shape)
    repeated = np.repeat(images, len(differences), axis=0)
    for block, scores in enumerate(all_scores):
        offsets = [0.0] * len(all_scores)
        offsets[block] = np.tile(differences, (2, 1, 1, 1))
        last = reference.run(repeated, offsets)[0][-1].astype("float32")
        logits = keras.ops.convert_to_numpy(output_fn(last)).reshape(2, 2, size, 3)
        logits = np.stack([logits[i, ..., c] for i, c in enumerate(classes)])  # (b, 2, size)
        gradient = ((logits[:, 0] - logits[:, 1]) / (2 * step)).reshape(scores.shape)
        total = total + np.maximum(gradient * scores, 0).mean(1) @ total
    weights = pooling_weights(model)
    expected = (weights @ total - weights)[:, prefix:].reshape(2, *GRID)
    evidence = interpret.class_evidence(model, images, classes)
    assert evidence.dtype == "float32" and (evidence >= 0).all() and evidence.max() > 0
    np.testing.assert_allclose(evidence, expected, atol=3e-3 * expected.max())
    other = interpret.class_evidence(model, images, [1, 1])
    assert np.abs(other - evidence).max() > 0.05 * evidence.max()


def test_first_filters_are_the_columns_of_the_patch_projection():
    model = make()
    filters = interpret.first_filters(model)
    kernel = keras.ops.convert_to_numpy(model.get_layer("patch_encoder").projection.kernel)
    assert filters.shape == (24, PATCH, PATCH, 3)
    np.testing.assert_array_equal(filters.reshape(24, -1).T, kernel)
    assert interpret.first_filters(make(channels=1)).shape == (24, PATCH, PATCH, 1)


def test_first_filters_of_a_hybrid_are_the_standardized_kernel_of_its_stem():
    model = make("R+Ti/16", image_size=(32, 64))
    filters, stem = interpret.first_filters(model), model.get_layer("stem")
    assert filters.shape == (64, 7, 7, 3)
    image = np.zeros((1, 33, 33, 3), "float32")
    image[0, 16, 16, 1] = 1  # the response to a unit impulse is the flipped filter
    output = keras.ops.convert_to_numpy(stem.root.convolve(image, filters.transpose(1, 2, 3, 0)))
    np.testing.assert_allclose(stem.root(image), output, atol=1e-5)
    assert np.abs(output).max() > 0.1


@pytest.mark.parametrize(
    "kind, name",
    [
        ({}, "patch_encoder"),
        ({"num_registers": 2}, "patch_encoder"),
        ({"classifier": "gap", "positions": "learned_2d"}, "patch_encoder"),
        ({"positions": "sincos_2d"}, "patch_encoder"),
        ({"positions_at": "every_block"}, "positions_00"),
        ({"positions_at": "every_block_shared"}, "positions"),
    ],
)
def test_position_similarity_is_the_cosine_of_position_embeddings(kind, name):
    model = make(**kind)
    layer = model.get_layer(name)
    layer = layer.positions if name == "patch_encoder" else layer
    similarity = interpret.position_similarity(model)
    assert similarity.shape == (*GRID, *GRID) and similarity.dtype == "float32"
    similarity = similarity.reshape(6, 6)
    if layer.positions == "learned":
        table = keras.ops.convert_to_numpy(layer.embedding)[0, int(layer.class_token) :]
    elif layer.positions == "learned_2d":
        rows, columns = (keras.ops.convert_to_numpy(w) for w in (layer.rows, layer.columns))
        table = np.array([[*row, *column] for row in rows for column in columns])
    else:
        table = layer.table[0]
    for i, j in np.ndindex(6, 6):
        cosine = table[i] @ table[j] / np.linalg.norm(table[i]) / np.linalg.norm(table[j])
        np.testing.assert_allclose(similarity[i, j], cosine, atol=1e-5)
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-6)


def test_bfloat16_is_close_to_float32_and_scores_sum_to_1():
    model, mixed = make(), make(dtype="mixed_bfloat16")
    mixed.set_weights(model.get_weights())
    images = random_images()
    scores = interpret.attention_scores(mixed, images)
    assert scores.dtype == "float32"
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-6)
    for measure in (
        interpret.attention_rollout, interpret.attention_distances, interpret.token_norms
    ):  # fmt: skip
        actual, expected = measure(mixed, images), measure(model, images)
        np.testing.assert_allclose(actual, expected, rtol=0.05, atol=0.01)
    actual, expected = (interpret.class_evidence(m, images, [0, 1, 2]) for m in (mixed, model))
    assert actual.dtype == "float32"
    np.testing.assert_allclose(actual, expected, atol=0.1 * expected.max())


def test_images_are_processed_in_batches_of_limited_memory(monkeypatch):
    model, images = make(), random_images(5)
    expected = {
        measure: measure(model, images)
        for measure in (
            interpret.attention_rollout, interpret.attention_distances, interpret.token_norms,
            interpret.head_maps, interpret.attention_scores,
            lambda m, x: interpret.class_evidence(m, x, [0, 1, 2, 1, 0]),
        )
    }  # fmt: skip
    monkeypatch.setattr(block_runner, "SCORE_BYTES", 2 * 4 * 3 * 7 * 7)
    sizes, embed = [], block_runner.BlockRunner.embed

    def counting_embed(self, batch):
        sizes.append(len(batch))
        return embed(self, batch)

    monkeypatch.setattr(block_runner.BlockRunner, "embed", counting_embed)
    for measure, result in expected.items():
        np.testing.assert_allclose(measure(model, images), result, rtol=1e-5, atol=1e-6)
        assert sizes == [2, 2, 1]
        sizes.clear()
    monkeypatch.setattr(block_runner, "SCORE_BYTES", 1)
    norms = interpret.token_norms(model, images)
    np.testing.assert_allclose(norms, expected[interpret.token_norms], rtol=1e-5)
    assert sizes == [1] * 5


def test_the_model_is_not_changed():
    model, images = make(classifier="map"), random_images()
    before, weights = np.asarray(model(images)), model.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    interpret.class_evidence(model, images, [0, 1, 2])
    interpret.attention_rollout(model, images)
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
    np.testing.assert_array_equal(model(images), before)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_saved_and_plain_models_and_all_dtypes_give_the_same(tmp_path):
    model, images = make(classifier="map"), random_images()
    rollout = interpret.attention_rollout(model, images)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(interpret.attention_rollout(loaded, images), rollout)
    for dtype in ("float32", "int32"):
        same = interpret.attention_rollout(model, images.astype(dtype))
        np.testing.assert_allclose(same, rollout, atol=1e-6)
    plain = keras.Model(model.input, model.output)
    np.testing.assert_allclose(interpret.attention_rollout(plain, images), rollout, atol=1e-6)
    unscaled = make(classifier="map", include_rescaling=False)
    unscaled.set_weights(model.get_weights())
    values = images.astype("float32") / 127.5 - 1
    np.testing.assert_allclose(interpret.attention_rollout(unscaled, values), rollout, atol=1e-6)


def test_a_hybrid_with_an_odd_grid():
    model = make("R26+S/32", image_size=(96, 32), num_registers=1)
    images = random_images(2, (96, 32))
    assert interpret.token_layout(model) == ((3, 1), 32, True, 1, 3, 2)
    assert interpret.attention_rollout(model, images).shape == (2, 3, 1)
    assert interpret.class_evidence(model, images, [0, 1]).shape == (2, 3, 1)
    assert interpret.attention_distances(model, images).max() < 64


def test_invalid_arguments():
    model, images = make(), random_images()
    resnet = build_resnet(ResNetConfig((1,), image_size=32), name="a_resnet")
    for function in (
        interpret.token_layout, interpret.first_filters, interpret.position_similarity
    ):  # fmt: skip
        with pytest.raises(InputError, match="`model`.*a_resnet"):
            function(resnet)
    with pytest.raises(InputError, match="`model`.*a_resnet"):
        interpret.attention_rollout(resnet, images)
    for positions in ("none", "relative"):
        with pytest.raises(InputError, match=f"positions={positions}"):
            interpret.position_similarity(make(positions=positions))
    for wrong in (images[0], images[:0], images[:, :8]):
        with pytest.raises(InputError, match=r"`images`.*\(16, 24, 3\)"):
            interpret.attention_rollout(model, wrong)
    for block in (2, -3, 1.0):
        with pytest.raises(InputError, match=f"`block`.*from -2 to 1.*block={block}"):
            interpret.attention_scores(model, images, block)
    for classes in ([0, 1], [0, 1, 3], [0, 1, -1], [0.0, 1.0, 2.0]):
        with pytest.raises(InputError, match="`classes`.*from 0 to 2"):
            interpret.class_evidence(model, images, classes)
    with pytest.raises(InputError, match="`model`.*head"):
        interpret.class_evidence(make(include_top=False), images, [0, 0, 0])


@pytest.mark.slow
def test_jax_gives_the_same_without_importing_tensorflow(tmp_path):
    model, images = make(num_registers=1, positions_at="every_block"), random_images()
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, numpy as np; from vitkeras import interpret; folder = sys.argv[1]\n"
        "model = keras.saving.load_model(folder + '/model.keras')\n"
        "images = np.load(folder + '/images.npy')\n"
        "np.savez(folder + '/jax.npz', rollout=interpret.attention_rollout(model, images),\n"
        "  distances=interpret.attention_distances(model, images),\n"
        "  evidence=interpret.class_evidence(model, images, [0, 1, 2]))\n"
        "assert keras.backend.backend() == 'jax' and 'tensorflow' not in sys.modules\n"
    )
    fast_compilation = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = python("-c", code, tmp_path, KERAS_BACKEND="jax", **fast_compilation)
    assert process.returncode == 0, process.stderr
    with np.load(tmp_path / "jax.npz") as arrays:
        evidence = interpret.class_evidence(model, images, [0, 1, 2])
        np.testing.assert_allclose(arrays["evidence"], evidence, rtol=1e-3, atol=1e-6)
        for name, measure in (
            ("rollout", interpret.attention_rollout), ("distances", interpret.attention_distances)
        ):  # fmt: skip
            np.testing.assert_allclose(arrays[name], measure(model, images), rtol=1e-5, atol=1e-6)
