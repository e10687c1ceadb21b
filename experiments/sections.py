"""The sections of the page that `explain` writes: what is computed, drawn and said for each."""

import numpy as np

from experiments import figures
from experiments.page import Section
from vitkeras import analysis
from vitkeras.errors import InputError

#: Images that get pictures of their own; what is averaged is so over all.
SHOWN = 8
PAPER = "Dosovitskiy et al. 2021"
SCALE = "Where colours end in an arrow, the highest 1 % of the patches lie beyond."


def plural(count, word):
    """Returns "1 head" or "2 heads"."""
    return f"{count} {word}{'s' * (count != 1)}"


class Sections:
    """The page's sections, its pictures as files, and the arrays behind them.

    Args:
        name: Of the model.
        files: Names of the images.
        photos: Those that are shown, uint8 `(h, w, 3)` each.
    """

    def __init__(self, name, files, photos):
        self.name, self.photo_names, self.photos = name, files, photos
        self.made, self.files, self.arrays = [], {}, {}

    def add(self, title, text, drawn):
        """Adds a section; `drawn` has (file name, caption, figure) of each picture."""
        pictures = []
        for file, caption, figure in drawn:
            self.files[file] = figures.to_png(figure)
            pictures.append((f"{caption} Model: {self.name}.", self.files[file]))
        self.made.append(Section(title, text, pictures))

    def filters(self, model):
        """Adds (a)."""
        filters = analysis.first_filters(model)
        found = analysis.principal_components(filters)
        self.arrays |= {"filters": filters}
        self.arrays |= {f"filters_{key}": value for key, value in found._asdict().items()}
        hybrid = any(layer.name == "stem" for layer in model.layers)
        what = "the first convolution of the stem" if hybrid else "the patch projection"
        text = f"What the model looks for first: directions in which the filters of {what} differ."
        if hybrid:
            text += " (The patch projection of a hybrid sees the stem's channels, not colours.)"
        count, side = min(figures.NUM_COMPONENTS, len(found.components)), filters.shape[1]
        caption = (
            f"The first {count} principal components of the {len(filters)} filters of {what}, "
            f"{side}x{side} pixels each, with their share of the variance; grey is 0, and each "
            f"tile has its own scale. As {PAPER}, figure 7, left."
        )
        figure = figures.components(found, self.name)
        self.add("(a) First filters", text, [("components.png", caption, figure)])

    def positions(self, model):
        """Adds (b), or why there is nothing to draw."""
        title = "(b) Position embeddings"
        try:
            similarity = analysis.position_similarity(model)
        except InputError:
            text = "This model adds no positions to its tokens (it has relative ones, or none)."
            self.add(title, text, [])
            return
        self.arrays["position_similarity"] = similarity
        rows, columns = (figures.spread(side) for side in similarity.shape[:2])
        every = (len(rows), len(columns)) == similarity.shape[:2]
        caption = (
            f"Cosine similarity (no unit, -1 to 1) of the position embeddings of "
            f"{'all' if every else 'some'} patches with those of all patches: one map for each, "
            f"which stands where the patch does. As {PAPER}, figure 7, centre."
        )
        text = "What the model knows of the places of patches: in the paper near ones are alike."
        figure = figures.positions(similarity, self.name)
        self.add(title, text, [("positions.png", caption, figure)])

    def distances(self, model, images, layout):
        """Adds (c)."""
        values = analysis.attention_distances(model, images)
        uniform = analysis.uniform_distance(layout.grid, layout.stride)
        self.arrays |= {"attention_distances": values, "uniform_distance": uniform}
        spread = (
            "bars are one standard deviation over them"
            if len(images) > 1
            else "of one image there is no spread"
        )
        caption = (
            "Mean distance, in pixels of the model's image, between a patch and the patches that a "
            f"head attends to, against depth; {plural(len(images), 'image')}, {spread}. "
            f"A dot is a head, sorted inside a block. As {PAPER}, figure 7, right."
        )
        text = "How far heads look: in the paper some see the whole image from the first block on."
        figure = figures.distances(values, uniform, images.shape[1:3], self.name)
        self.add("(c) Attention distance", text, [("distances.png", caption, figure)])

    def rollout(self, model, images, layout):
        """Adds (d)."""
        maps = analysis.attention_rollout(model, images)
        self.arrays["rollout"] = maps
        target = "the class token" if layout.class_token else "the mean over the patches"
        caption = (
            "{}: share of each patch in {}, in percent of all tokens, by attention rollout; "
            "white, yellow and red lines go around the highest 25, 10 and 3 % of the patches. "
            f"{SCALE} As {{}}, figure 6."
        )
        drawn = [
            (
                f"rollout_{i + 1:02d}.png",
                caption.format(file, target, PAPER),
                figures.over_image(
                    photo, 100 * values, f"Attention rollout, {file}", "% of all tokens", self.name
                ),
            )
            for i, (file, photo, values) in self._shown(maps)
        ]
        text = "Attention of all blocks, followed through the residual connections to the image."
        self.add("(d) Attention rollout", text, drawn)

    def heads(self, model, images, layout, block):
        """Adds (e)."""
        maps = analysis.head_maps(model, images, block)
        self.arrays |= {"head_maps": maps, "head_maps_block": np.int32(block + 1)}
        query = "class token" if layout.class_token else "mean patch (no class token)"
        caption = (
            f"{{}}: attention of the {query} in block {block + 1} of {layout.num_layers} to each "
            f"patch, in percent, a map for each head with its own scale. {SCALE} As Caron et al. "
            "2021 draw it; the paper has it only rolled out."
        )
        drawn = [
            (
                f"heads_{i + 1:02d}.png",
                caption.format(file),
                figures.heads(photo, values, f"Block {block + 1}, {query}, {file}", self.name),
            )
            for i, (file, photo, values) in self._shown(maps)
        ]
        self.add("(e) Heads", f"Where each head of block {block + 1} looks.", drawn)

    def evidence(self, model, images, names, asked):
        """Adds (f), or why there is nothing to draw.

        Args:
            model, images: As ever.
            names: Of the classes; None where only numbers are known.
            asked: Number of a class; None for the one predicted for each image.
        """
        title = "(f) Evidence for a class"
        if all(layer.name != "head" for layer in model.layers):
            self.add(title, "This model has no head and so no classes: there is none.", [])
            return
        logits = model.predict(images, batch_size=8, verbose=0)  # (b, classes)
        classes = logits.argmax(axis=1)
        if asked is not None:
            classes[:] = asked
        maps = analysis.class_evidence(model, images, classes)
        self.arrays |= {"class_evidence": maps, "classes": classes, "logits": logits}
        said = "as asked for" if asked is not None else "the predicted class"
        caption = (
            "{}: evidence for {} ({}) in each patch, by rollout of attention weighted with the "
            f"gradient of its logit (no unit). {SCALE} As Chefer et al. 2021; the paper has no "
            "such figure."
        )
        drawn = []
        for i, (file, photo, values) in self._shown(maps):
            label = names[classes[i]] if names is not None else f"class {classes[i]}"
            drawn.append(
                (
                    f"evidence_{i + 1:02d}.png",
                    caption.format(file, label, said),
                    figures.over_image(
                        photo, values, f"Evidence for {label}, {file}", "evidence (no unit)",
                        self.name,
                    ),
                )
            )  # fmt: skip
        text = "Which patches speak for the class, not only which are looked at."
        if not maps.any():
            text += " All is 0: no logit depends on any attention, as with a fresh head."
        self.add(title, text, drawn)

    def norms(self, model, images, layout):
        """Adds (g)."""
        values = analysis.token_norms(model, images)
        self.arrays["token_norms"] = values
        source = "Darcet et al. 2024, figures 3 and 4; the paper has no such figure."
        caption = (
            "Length of the tokens' vectors (L2 norm, no unit) before the first block (0) and after "
            f"each one, over all images. As {source}"
        )
        drawn = [("norms.png", caption, figures.norms(values, layout, self.name))]
        last = layout.on_grid(values[:, -1])
        drawn += [
            (
                f"norms_{i + 1:02d}.png",
                f"{file}: length of each patch's vector after the last block (no unit). {SCALE} "
                f"As {source}",
                figures.norm_map(photo, lengths, f"{file}, {self.name}"),
            )
            for i, (file, photo, lengths) in self._shown(last)
        ]
        text = "Single patches much longer than the others, if there are any, serve as registers."
        self.add("(g) Token norms", text, drawn)

    def _shown(self, values):
        return enumerate(zip(self.photo_names, self.photos, values, strict=False))
