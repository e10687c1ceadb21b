"""Matplotlib figures as PNG files."""

import io
import warnings

from matplotlib.figure import Figure

DPI = 100


def plain_text(text: str) -> str:
    """Returns text for a figure that Matplotlib draws as it is, not as math between dollar signs.

    `parse_math=False` would not do: text that is wrapped is measured as math nevertheless.
    """
    return text.replace("$", r"\$")


def to_png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file.

    Characters that the font lacks are drawn as boxes.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support")  # some scripts
        figure.savefig(content, dpi=DPI, format="png")
    return content.getvalue()
