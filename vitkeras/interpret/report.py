"""The report of `vitkeras explain`: sections of an HTML page, figures and arrays."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from vitkeras import interpret
from vitkeras.errors import InputError
from vitkeras.interpret import figures
from vitkeras.io.figures import to_png
from vitkeras.io.html_page import Section

#: Number of images with figures of their own; statistics are over all images.
MAX_SHOWN = 8
PAPER = "Dosovitskiy et al. 2021"
SCALE = "A color bar that ends in an arrow clips the highest 1% of the patches."


def plural(count: int, word: str) -> str:
    """Returns "1 head" or "2 heads"."""
    return f"{count} {word}{'s' * (count != 1)}"


class Report:
    """Collects the sections of a page, the figures as PNG files, and the arrays behind them.

    Args:
        model: A model made by `vit`.
        model_name: Name of the model in titles and captions.
        file_names: File name of each image.
        originals: The first images in their original size, at most `MAX_SHOWN`, uint8 `(h, w, 3)`
            each; of cropped images, the part that the model sees. They get figures of their own.
        images: All images as the model takes them, `(b, h, w, 3)`.
    """

    def __init__(
        self,
        model: keras.Model,
        model_name: str,
        file_names: Sequence[str],
        originals: Sequence[np.ndarray],
        images: np.ndarray,
    ):
        self.model, self.model_name = model, model_name
        self.file_names, self.originals, self.images = file_names, originals, images
        self.layout = interpret.token_layout(model)
        #: Sections of the page, files by name, arrays by name.
        self.sections: list[Section] = []
        self.files: dict[str, bytes] = {}
        self.arrays: dict[str, Any] = {}

    def add_section(
        self, title: str, text: str, figures: Sequence[tuple[str, str, Figure]] = ()
    ) -> None:
        """Adds a section.

        Args:
            title: The heading.
            text: The text below it.
            figures: File name, caption and figure of each.
        """
        captioned = []
        for name, caption, figure in figures:
            self.files[name] = to_png(figure)
            captioned.append((f"{caption} Model: {self.model_name}.", self.files[name]))
        self.sections.append(Section(title, text, captioned))

    def add_filters(self) -> None:
        """Adds section (a), the principal components of the first-layer filters."""
        filters = interpret.first_filters(self.model)
        components = interpret.principal_components(filters)
        self.arrays["filters"] = filters
        self.arrays |= {f"filters_{key}": array for key, array in components._asdict().items()}
        is_hybrid = any(layer.name == "stem" for layer in self.model.layers)
        layer = "the first convolution of the ResNet stem" if is_hybrid else "the patch projection"
        text = f"Principal components of the filters of {layer}."
        if is_hybrid:
            text += " The patch projection of a hybrid takes features of the stem, not colors."
        count, side = min(figures.NUM_COMPONENTS, len(components.components)), filters.shape[1]
        caption = (
            f"The first {count} principal components of the {len(filters)} filters of {layer}, "
            f"{side}x{side} pixels each, with the percentage of variance that each explains. Each "
            f"tile has its own scale, with 0 in gray. See {PAPER}, figure 7, left."
        )
        figure = figures.plot_components(components, self.model_name)
        self.add_section(
            "(a) Filters of the first layer", text, [("components.png", caption, figure)]
        )

    def add_positions(self) -> None:
        """Adds section (b), the similarity of position embeddings."""
        title = "(b) Position embeddings"
        try:
            similarity = interpret.position_similarity(self.model)
        except InputError:
            text = "Not available: the model adds no position embeddings to its tokens."
            self.add_section(title, text)
            return
        self.arrays["position_similarity"] = similarity
        rows, columns = (figures.spaced_indices(side) for side in similarity.shape[:2])
        all_shown = (len(rows), len(columns)) == similarity.shape[:2]
        caption = (
            "Cosine similarity (no unit, -1 to 1) of position embeddings: a map of the similarity "
            f"to all patches for {'each patch' if all_shown else 'some patches'}, arranged by the "
            f"row and column of the patch. See {PAPER}, figure 7, center."
        )
        text = (
            "Similarity of position embeddings. In the paper, those of close patches are similar."
        )
        figure = figures.plot_position_similarity(similarity, self.model_name)
        self.add_section(title, text, [("positions.png", caption, figure)])

    def add_attention_distances(self) -> None:
        """Adds section (c), the mean attention distance by depth."""
        distances = interpret.attention_distances(self.model, self.images)
        uniform = interpret.uniform_distance(self.layout.grid, self.layout.stride)
        self.arrays |= {"attention_distances": distances, "uniform_distance": uniform}
        deviation = (
            "bars show one standard deviation over the images"
            if len(self.images) > 1
            else "no standard deviation for a single image"
        )
        caption = (
            "Mean distance between a query patch and the patches it attends to, in pixels of the "
            f"model's input, against depth. {plural(len(self.images), 'image')}; {deviation}. Each "
            f"dot is a head; heads are sorted within a block. See {PAPER}, figure 7, right."
        )
        text = (
            "Mean attention distance of each head. In the paper some heads attend to most of the "
            "image already in the first blocks."
        )
        figure = figures.plot_attention_distances(
            distances, float(uniform), self.images.shape[1:3], self.model_name
        )
        self.add_section("(c) Attention distance", text, [("distances.png", caption, figure)])

    def add_rollout(self) -> None:
        """Adds section (d), the attention rollout on each image."""
        maps = interpret.attention_rollout(self.model, self.images)
        self.arrays["rollout"] = maps
        target = "the class token" if self.layout.class_token else "the mean of the patch tokens"
        added = []
        for number, name, original, values in self._shown(maps):
            caption = (
                f"{name}: weight of each patch in {target} by attention rollout, in percent of all "
                "tokens. White, yellow and red contours enclose the patches with the highest 25%, "
                f"10% and 3% of the values. {SCALE} See {PAPER}, figure 6."
            )
            figure = figures.plot_heatmap(
                original, 100 * values, f"Attention rollout, {name}", "% of all tokens",
                self.model_name,
            )  # fmt: skip
            added.append((f"rollout_{number:02d}.png", caption, figure))
        text = "Attention through all blocks and their residual connections."
        self.add_section("(d) Attention rollout", text, added)

    def add_head_maps(self, block: int) -> None:
        """Adds section (e), the attention of each head of a block on each image.

        Args:
            block: Index of the block, from 0.
        """
        maps = interpret.head_maps(self.model, self.images, block)
        self.arrays |= {"head_maps": maps, "head_maps_block": np.int32(block + 1)}
        has_token = self.layout.class_token
        query = "class token" if has_token else "mean over all patches as queries (no class token)"
        added = []
        for number, name, original, values in self._shown(maps):
            caption = (
                f"{name}: attention to each patch in block {block + 1} of "
                f"{self.layout.num_layers}, in percent; query: {query}. Each head has its own "
                f"scale. {SCALE} See Caron et al. 2021; {PAPER} show only the rollout."
            )
            title = f"Attention heads of block {block + 1}, {name}"
            figure = figures.plot_head_maps(original, values, title, self.model_name)
            added.append((f"heads_{number:02d}.png", caption, figure))
        self.add_section(
            "(e) Attention heads", f"Attention of each head of block {block + 1}.", added
        )

    def add_class_evidence(
        self, class_names: Sequence[str] | None, class_index: int | None
    ) -> None:
        """Adds section (f), the evidence for a class on each image.

        Args:
            class_names: Names of the classes; None if unknown.
            class_index: Index of the class; None for the predicted class of each image.
        """
        title = "(f) Evidence for a class"
        if all(layer.name != "head" for layer in self.model.layers):
            self.add_section(title, "Not available: the model has no head and no classes.")
            return
        logits = self.model.predict(self.images, batch_size=8, verbose=0)  # (b, classes)
        classes = logits.argmax(axis=1)
        if class_index is not None:
            classes[:] = class_index
        maps = interpret.class_evidence(self.model, self.images, classes)
        self.arrays |= {"class_evidence": maps, "classes": classes, "logits": logits}
        origin = "the predicted class" if class_index is None else "the given class"
        added = []
        for number, name, original, values in self._shown(maps):
            label = classes[number - 1]
            label = f"class {label}" if class_names is None else class_names[label]
            caption = (
                f"{name}: evidence for {label} ({origin}) of each patch, by rollout of attention "
                f"weighted with the gradient of the class's logit (no unit). {SCALE} See Chefer et "
                f"al. 2021; {PAPER} have no such figure."
            )
            figure = figures.plot_heatmap(
                original, values, f"Evidence for {label}, {name}", "evidence (no unit)",
                self.model_name,
            )  # fmt: skip
            added.append((f"evidence_{number:02d}.png", caption, figure))
        text = "Patches whose attention increases the logit of the class."
        if not maps.any():
            text += (
                " All values are 0: the logits do not depend on the attention, as with a new head, "
                "which is initialized with zeros."
            )
        self.add_section(title, text, added)

    def add_token_norms(self) -> None:
        """Adds section (g), the norms of the tokens by depth and on each image."""
        norms = interpret.token_norms(self.model, self.images)
        self.arrays["token_norms"] = norms
        source = f"See Darcet et al. 2024, figures 3 and 4; {PAPER} have no such figure."
        caption = (
            "L2 norm (no unit) of the tokens before the first block (depth 0) and after each "
            f"block, over all images. {source}"
        )
        figure = figures.plot_token_norms(norms, self.layout, self.model_name)
        added = [("norms.png", caption, figure)]
        for number, name, original, values in self._shown(self.layout.to_grid(norms[:, -1])):
            caption = (
                f"{name}: L2 norm of each patch token after the last block (no unit). {SCALE} "
                f"{source}"
            )
            figure = figures.plot_norm_map(original, values, f"{name}, {self.model_name}")
            added.append((f"norms_{number:02d}.png", caption, figure))
        text = "Single patches with a much larger norm than the others act as registers."
        self.add_section("(g) Token norms", text, added)

    def _shown(self, values: np.ndarray) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
        """Yields the number from 1, file name, original and values of the images to show."""
        numbers = range(1, len(self.originals) + 1)
        return zip(numbers, self.file_names, self.originals, values, strict=False)
