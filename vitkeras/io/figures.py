"""Matplotlib figures as PNG files."""

import io

from matplotlib.figure import Figure

DPI = 100


def to_png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, format="png")
    return content.getvalue()
