"""Arrays behind the paper's figures: invariants, and a whole ViT in NumPy as an oracle."""

import itertools

import keras
import numpy as np
import pytest
from conftest import TINY, python

import vitkeras as vk
from vitkeras import analysis
from vitkeras.errors import InputError

GRID, SIZE, PATCH = (2, 3), (16, 24), 8
KINDS = [
    {},
    {"classifier": "gap", "num_registers": 2, "layer_scale": 0.7},
    {"classifier": "token_gap", "num_registers": 1, "positions": "learned_2d"},
    {"classifier": "gap_norm", "positions": "relative", "gelu": "exact"},
    {"classifier": "map", "positions": "sincos_2d", "positions_at": "every_block_shared"},
    {"positions_at": "every_block", "pre_logits": True},
    {"dropout_rate": 0.5, "stochastic_depth_rate": 0.5},
]


def make(variant=f"Ti/{PATCH}", image_size=SIZE, num_classes=3, **options):
    """A model none of whose weights is still zero or one."""
    model = vk.vit(variant, image_size=image_size, num_classes=num_classes, **TINY, **options)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(weight + 0.2 * rng.normal(size=weight.shape))
    return model


def pictures(count=3, size=SIZE):
    return np.random.default_rng(2).integers(0, 256, (count, *size, 3), np.uint8)


class ByHand:
    """The model in float64 NumPy, from its weights; only the tail behind the blocks is Keras's."""

    def __init__(self, model):
        self.model, self.depth = model, TINY["num_layers"]
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

    def place(self, layer):
        none = np.zeros((1, layer.num_prefix_tokens + 6, TINY["hidden_dim"]), "float32")
        return self.array(layer(none))

    def tokens(self, images):
        x = (images.astype("float64") - 127.5) / 127.5
        rows = [
            [x[:, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH] for j in range(GRID[1])]
            for i in range(GRID[0])
        ]
        x = np.stack([p.reshape(len(x), -1) for row in rows for p in row], 1)
        x = self.dense(x, self.encoder.projection)
        front = [self.encoder.token] if self.encoder.class_token else []
        front += [self.encoder.registers] if self.encoder.num_registers else []
        front = [np.repeat(self.array(f), len(x), 0) for f in front]
        return np.concatenate([*front, x], 1) + self.place(self.encoder.positions)

    def attention(self, x, layer, offset):
        side = x.shape[-1] // layer.num_heads
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
        scores = np.exp(scores / np.sqrt(side))
        scores = scores / scores.sum(-1, keepdims=True)
        y = (scores + offset) @ value
        return self.dense(np.concatenate(list(y.swapaxes(0, 1)), -1), layer.out), scores

    def gelu(self, x, kind):
        from scipy.special import erf

        inner = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
        return 0.5 * x * (1 + (inner if kind == "tanh" else erf(x / np.sqrt(2))))

    def run(self, images, offsets=None):
        """Returns what comes into the first block and out of each, and the attention of each."""
        x, maps, offsets = self.tokens(images), [], offsets or [0.0] * self.depth
        outputs = []
        for i in range(self.depth):
            block = self.model.get_layer(f"block_{i:02d}")
            for name in ("positions", f"positions_{i:02d}"):
                if name in self.names:
                    x = x + self.place(self.model.get_layer(name))
            outputs += [] if outputs else [x]
            y, scores = self.attention(
                self.norm(x, block.attention_norm), block.attention, offsets[i]
            )
            scaled = block.layer_scale is not None
            x = x + y * (self.array(block.attention_scale.gamma) if scaled else 1)
            y = self.gelu(self.dense(self.norm(x, block.mlp_norm), block.mlp_in), block.gelu)
            y = self.dense(y, block.mlp_out)
            x = x + y * (self.array(block.mlp_scale.gamma) if scaled else 1)
            maps.append(scores)
            outputs.append(x)
        return outputs, maps


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())) or "token")
def model(request):
    return make(**request.param)


def query(model):
    """The tokens that represent the image, weighted."""
    encoder = model.get_layer("patch_encoder")
    rows = np.eye(encoder.num_tokens)
    return rows[0] if encoder.class_token else rows[encoder.num_prefix_tokens :].mean(0)


def test_attention_tokens_rollout_and_distance_are_those_by_hand(model):
    images, front = pictures(), model.get_layer("patch_encoder").num_prefix_tokens
    outputs, maps = ByHand(model).run(images)
    tokens = maps[0].shape[-1]
    for block, scores in enumerate(maps):
        mine = analysis.attention_scores(model, images, block)
        assert mine.dtype == "float32"
        np.testing.assert_allclose(mine, scores, atol=1e-5)
    lengths = np.sqrt((np.stack(outputs, 1) ** 2).sum(-1))
    np.testing.assert_allclose(analysis.token_norms(model, images), lengths, rtol=1e-5)

    heads = np.einsum("q,bkqt->bkt", query(model), maps[-1])[..., front:]
    np.testing.assert_allclose(
        analysis.head_maps(model, images), heads.reshape(3, 3, *GRID), atol=1e-5
    )
    rolled = np.eye(tokens)
    for scores in maps:
        rolled = (0.5 * scores.mean(1) + 0.5 * np.eye(tokens)) @ rolled
    rolled = (query(model) @ rolled)[:, front:].reshape(3, *GRID)
    found = analysis.attention_rollout(model, images)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, rolled, atol=1e-5)

    places = list(itertools.product(range(GRID[0]), range(GRID[1])))
    apart = np.array([[PATCH * np.hypot(a - c, b - d) for c, d in places] for a, b in places])
    patches = np.stack(maps, 1)[..., front:, front:]  # (b, blocks, k, n, n)
    expected = ((patches * apart).sum(-1) / patches.sum(-1)).mean(-1)
    found = analysis.attention_distances(model, images)
    assert found.shape == (3, 2, 3) and found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_class_evidence_is_that_of_gradients_by_differences(model):
    images, front = pictures(2), model.get_layer("patch_encoder").num_prefix_tokens
    hand, classes, step = ByHand(model), [2, 0], 1e-2
    tail = keras.Function(model.get_layer("block_01").output, model.output)
    _, maps = hand.run(images)
    tokens = maps[0].shape[-1]
    total = np.tile(np.eye(tokens), (2, 1, 1))
    places = maps[0][0].size  # of one image's scores, each of which is moved up and down
    moved = step * np.concatenate([np.eye(places), -np.eye(places)]).reshape(-1, *maps[0].shape[1:])
    copies = np.repeat(images, len(moved), axis=0)
    for block, scores in enumerate(maps):
        offsets = [np.tile(moved, (2, 1, 1, 1)) if i == block else 0.0 for i in range(len(maps))]
        ends = hand.run(copies, offsets)[0][-1].astype("float32")
        logits = keras.ops.convert_to_numpy(tail(ends)).reshape(2, 2, places, 3)
        logits = np.stack([logits[i, ..., c] for i, c in enumerate(classes)])  # (b, 2, places)
        gradient = ((logits[:, 0] - logits[:, 1]) / (2 * step)).reshape(scores.shape)
        total = total + np.maximum(gradient * scores, 0).mean(1) @ total
    expected = (query(model) @ total - query(model))[:, front:].reshape(2, *GRID)
    found = analysis.class_evidence(model, images, classes)
    assert found.dtype == "float32" and (found >= 0).all() and found.max() > 0
    np.testing.assert_allclose(found, expected, atol=3e-3 * expected.max())
    other = analysis.class_evidence(model, images, [1, 1])
    assert np.abs(other - found).max() > 0.05 * found.max()


def test_rollout_rows_sum_to_1_and_what_is_uniform_stays_so():
    rng = np.random.default_rng(0)
    scores = rng.random((4, 2, 3, 7, 7))
    scores /= scores.sum(-1, keepdims=True)
    np.testing.assert_allclose(analysis.rollout(scores).sum(-1), 1, atol=1e-6)
    # Half of each token stays where it is, in each of 4 blocks; the rest is everywhere alike.
    uniform = analysis.rollout(np.full((4, 1, 3, 7, 7), 1 / 7))[0]
    expected = np.full((7, 7), (1 - 2**-4) / 7) + np.eye(7) * 2**-4
    np.testing.assert_allclose(uniform, expected, atol=1e-7)
    assert np.ptp(uniform[0, 1:]) < 1e-7
    identity = np.tile(np.eye(5), (3, 2, 2, 1, 1))
    np.testing.assert_array_equal(analysis.rollout(identity), np.tile(np.eye(5), (2, 1, 1)))
    with pytest.raises(InputError, match="at least one block"):
        analysis.rollout([])


@pytest.mark.parametrize("grid", [(1, 9), (9, 1), (3, 5), (6, 6)])
def test_distance_is_0_for_identity_and_the_closed_form_for_uniform_attention(grid):
    rows, columns = grid
    places = rows * columns
    assert (analysis.mean_distances(np.eye(places)[None, None], grid, 16) == 0).all()
    offsets = itertools.product(range(-rows + 1, rows), range(-columns + 1, columns))
    expected = 16 * sum(
        (rows - abs(i)) * (columns - abs(j)) * np.hypot(i, j) for i, j in offsets
    ) / places**2  # fmt: skip
    if min(grid) == 1:
        np.testing.assert_allclose(expected, 16 * (places**2 - 1) / (3 * places))
    found = analysis.uniform_distance(grid, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    scores = np.full((2, 3, places + 2, places + 2), 1 / (places + 2))  # with tokens in front
    np.testing.assert_allclose(analysis.mean_distances(scores, grid, 16), expected, rtol=1e-5)


def test_a_query_that_gives_patches_nothing_has_distance_0():
    scores = np.zeros((1, 1, 4, 4), "float32")
    scores[..., 0] = 1  # all to the class token
    assert analysis.mean_distances(scores, (1, 3), 8) == 0


def test_components_reconstruct_the_projection_and_stand_at_right_angles():
    model = make()
    filters = analysis.first_filters(model)
    kernel = keras.ops.convert_to_numpy(model.get_layer("patch_encoder").projection.kernel)
    assert filters.shape == (24, PATCH, PATCH, 3)
    np.testing.assert_array_equal(filters.reshape(24, -1).T, kernel)
    found = analysis.principal_components(filters)
    assert all(part.dtype == "float32" for part in found)
    again = found.mean + np.tensordot(found.coordinates, found.components, 1)
    np.testing.assert_allclose(again, filters, atol=1e-5)
    flat = found.components[:-1].reshape(23, -1)  # the mean is taken off: 23 directions are left
    np.testing.assert_allclose(flat @ flat.T, np.eye(23), atol=1e-5)
    assert (np.diff(found.explained) <= 0).all()
    np.testing.assert_allclose(found.explained.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(found.coordinates.var(0), found.explained * filters.var(0).sum(),
                               atol=1e-5)  # fmt: skip
    largest = np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1)
    assert (largest > 0).all()


def test_the_filters_of_a_hybrid_are_those_that_its_stem_convolves_with():
    model = make("R+Ti/16", image_size=(32, 64))
    filters, stem = analysis.first_filters(model), model.get_layer("stem")
    assert filters.shape == (64, 7, 7, 3)
    image = np.zeros((1, 33, 33, 3), "float32")
    image[0, 16, 16, 1] = 1  # what comes out of a single point of green is a filter, turned
    out = keras.ops.convert_to_numpy(stem.root.convolve(image, filters.transpose(1, 2, 3, 0)))
    np.testing.assert_allclose(stem.root(image), out, atol=1e-5)
    assert np.abs(out).max() > 0.1


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
def test_similarity_is_the_cosine_of_the_positions(kind, name):
    model = make(**kind)
    layer = model.get_layer(name)
    layer = layer.positions if name == "patch_encoder" else layer
    found = analysis.position_similarity(model)
    assert found.shape == (*GRID, *GRID) and found.dtype == "float32"
    if layer.positions == "learned":
        table = keras.ops.convert_to_numpy(layer.embedding)[0, int(layer.class_token) :]
    elif layer.positions == "learned_2d":
        rows, columns = (keras.ops.convert_to_numpy(w) for w in (layer.rows, layer.columns))
        table = np.array([[*r, *c] for r in rows for c in columns])
    else:
        table = layer.fixed[0]
    for i, j in np.ndindex(6, 6):
        cosine = table[i] @ table[j] / np.linalg.norm(table[i]) / np.linalg.norm(table[j])
        np.testing.assert_allclose(found.reshape(6, 6)[i, j], cosine, atol=1e-5)
    np.testing.assert_allclose(np.diag(found.reshape(6, 6)), 1, atol=1e-6)


def test_bfloat16_is_near_float32_and_its_rows_sum_to_1():
    model, mixed = make(), make(dtype="mixed_bfloat16")
    mixed.set_weights(model.get_weights())
    images = pictures()
    scores = analysis.attention_scores(mixed, images)
    assert scores.dtype == "float32"
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-6)
    for look in (analysis.attention_rollout, analysis.attention_distances, analysis.token_norms):
        np.testing.assert_allclose(look(mixed, images), look(model, images), rtol=0.05, atol=0.01)
    ours, theirs = (analysis.class_evidence(m, images, [0, 1, 2]) for m in (mixed, model))
    assert ours.dtype == "float32"
    np.testing.assert_allclose(ours, theirs, atol=0.1 * theirs.max())


def test_images_are_looked_at_a_few_at_a_time(monkeypatch):
    model, images = make(), pictures(5)
    looks = {
        look: look(model, images)
        for look in (
            analysis.attention_rollout, analysis.attention_distances, analysis.token_norms,
            analysis.head_maps, analysis.attention_scores,
            lambda m, x: analysis.class_evidence(m, x, [0, 1, 2, 1, 0]),
        )
    }  # fmt: skip
    monkeypatch.setattr(analysis.parts, "SCORE_BYTES", 2 * 4 * 3 * 7 * 7)
    sizes, call = [], type(model).call

    def counted(self, inputs, **kwargs):
        sizes.append(len(inputs))
        return call(self, inputs, **kwargs)

    monkeypatch.setattr(type(model), "call", counted)
    for look, whole in looks.items():
        np.testing.assert_allclose(look(model, images), whole, rtol=1e-5, atol=1e-6)
        assert sizes == [2, 2, 1]
        sizes.clear()
    monkeypatch.setattr(analysis.parts, "SCORE_BYTES", 1)
    np.testing.assert_allclose(
        analysis.token_norms(model, images), looks[analysis.token_norms], rtol=1e-5
    )
    assert sizes == [1] * 5


def test_looking_leaves_the_model_as_it_was(tmp_path):
    model, images = make(classifier="map"), pictures()
    before, weights = np.asarray(model(images)), model.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    analysis.class_evidence(model, images, [0, 1, 2])
    analysis.attention_rollout(model, images)
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
    np.testing.assert_array_equal(model(images), before)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    rolled = analysis.attention_rollout(model, images)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(analysis.attention_rollout(again, images), rolled)
    floats = images.astype("float32") / 127.5 - 1
    np.testing.assert_allclose(analysis.attention_rollout(model, floats), rolled, atol=1e-6)
    plain = keras.Model(model.input, model.output)
    np.testing.assert_allclose(analysis.attention_rollout(plain, images), rolled, atol=1e-6)


def test_a_hybrid_on_an_odd_grid_is_looked_into():
    model = make("R26+S/32", image_size=(96, 32), num_registers=1)
    images = pictures(2, (96, 32))
    assert analysis.layout(model) == ((3, 1), 32, True, 1, 3, 2)
    assert analysis.attention_rollout(model, images).shape == (2, 3, 1)
    assert analysis.class_evidence(model, images, [0, 1]).shape == (2, 3, 1)
    assert analysis.attention_distances(model, images).max() < 64


def test_what_cannot_be_looked_into_is_refused():
    model, images = make(), pictures()
    resnet = vk.resnet("R50x1", image_size=32, num_classes=2)
    for look in (analysis.layout, analysis.first_filters, analysis.position_similarity):
        with pytest.raises(InputError, match="made by `vit`.*resnet_r50x1"):
            look(resnet)
    with pytest.raises(InputError, match="made by `vit`.*resnet_r50x1"):
        analysis.attention_rollout(resnet, images)
    for positions, word in (("none", "none"), ("relative", "relative ones")):
        with pytest.raises(InputError, match=f"has {word}"):
            analysis.position_similarity(make(positions=positions))
    for wrong in (images[0], images[:0], images[:, :8]):
        with pytest.raises(InputError, match=r"model of \(16, 24, 3\)"):
            analysis.attention_rollout(model, wrong)
    for block in (2, -3, 1.0):
        with pytest.raises(InputError, match="`block` must be a number from 0 to 1"):
            analysis.attention_scores(model, images, block)
    for classes in ([0, 1], [0, 1, 3], [0, 1, -1], [0.0, 1.0, 2.0]):
        with pytest.raises(InputError, match="`classes` must be one whole number from 0 to 2"):
            analysis.class_evidence(model, images, classes)
    with pytest.raises(InputError, match="must have a head"):
        analysis.class_evidence(make(include_top=False), images, [0, 0, 0])


def test_jax_gives_the_same_and_tensorflow_stays_unloaded(tmp_path):
    model, images = make(num_registers=1, positions_at="every_block"), pictures()
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, numpy as np; from vitkeras import analysis; folder = sys.argv[1]\n"
        "model = keras.saving.load_model(folder + '/model.keras')\n"
        "images = np.load(folder + '/images.npy')\n"
        "np.savez(folder + '/jax.npz', rollout=analysis.attention_rollout(model, images),\n"
        "  distances=analysis.attention_distances(model, images),\n"
        "  evidence=analysis.class_evidence(model, images, [0, 1, 2]))\n"
        "assert keras.backend.backend() == 'jax' and 'tensorflow' not in sys.modules\n"
    )
    process = python("-c", code, tmp_path, KERAS_BACKEND="jax")
    assert process.returncode == 0, process.stderr
    with np.load(tmp_path / "jax.npz") as theirs:
        evidence = analysis.class_evidence(model, images, [0, 1, 2])
        np.testing.assert_allclose(theirs["evidence"], evidence, rtol=1e-3, atol=1e-6)
        for name, look in (
            ("rollout", analysis.attention_rollout), ("distances", analysis.attention_distances)
        ):  # fmt: skip
            np.testing.assert_allclose(theirs[name], look(model, images), rtol=1e-5, atol=1e-6)
