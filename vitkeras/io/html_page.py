"""A self-contained HTML page: figures are embedded, nothing else is loaded."""

import base64
import html
from collections.abc import Iterable
from typing import NamedTuple

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; border-top: 1px solid #ccc; padding-top: 1em; }
figure { margin: 1em 0; } img { max-width: 100%; height: auto; }
figcaption, p { color: #444; } p { white-space: pre-line; }
"""


class Section(NamedTuple):
    """A section of a page.

    Args:
        title: The heading.
        text: The paragraph below it; line breaks are kept.
        figures: Pairs of a caption and the content of a PNG file.
    """

    title: str
    text: str
    figures: list[tuple[str, bytes]]


def render(title: str, introduction: Iterable[str], sections: Iterable[Section]) -> str:
    """Returns the HTML text of a page.

    Args:
        title: Title of the page. Like all other text it is plain text, which is escaped.
        introduction: Paragraphs below the title.
        sections: Sections of the page.
    """
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n",
        *(f"<p>{html.escape(paragraph)}</p>\n" for paragraph in introduction),
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.text)}</p>\n")
        for caption, png in section.figures:
            data, text = base64.b64encode(png).decode(), html.escape(caption)
            parts.append(
                f'<figure>\n<img alt="{text}" src="data:image/png;base64,{data}">\n'
                f"<figcaption>{text}</figcaption>\n</figure>\n"
            )
    return "".join([*parts, "</body>\n</html>\n"])
