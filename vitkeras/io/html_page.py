"""A self-contained HTML page: figures are embedded, nothing else is loaded."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; border-top: 1px solid #ccc; padding-top: 1em; }
figure { margin: 1em 0; } img { max-width: 100%; height: auto; }
figcaption, p { color: #444; } p { white-space: pre-line; }
.table { max-height: 30em; overflow: auto; margin: 1em 0; }
table { border-collapse: collapse; }
th, td { padding: 0.2em 1em 0.2em 0; border-bottom: 1px solid #ddd; text-align: left; }
th, td { vertical-align: top; overflow-wrap: anywhere; }
thead th { position: sticky; top: 0; background: #fff; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.thumbnails { display: grid; grid-template-columns: repeat(auto-fill, 10em); gap: 1em; }
.thumbnails figure { margin: 0; }
.thumbnails figcaption { font-size: 0.8em; overflow-wrap: anywhere; white-space: pre-line; }
"""


class Table(NamedTuple):
    """A table of a section.

    Args:
        columns: The heads of the columns.
        rows: The cells of each row: text, integers, fractions from 0 to 1, or None. NaN is as None.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


class Section(NamedTuple):
    """A section of a page.

    Args:
        title: The heading.
        text: The paragraph below it; line breaks are kept.
        figures: Pairs of a caption and the content of a PNG file.
        tables: Tables, below the figures.
        thumbnails: As figures, side by side below all; line breaks in captions are kept.
    """

    title: str
    text: str
    figures: Sequence[tuple[str, bytes]] = ()
    tables: Sequence[Table] = ()
    thumbnails: Sequence[tuple[str, bytes]] = ()


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
        parts += [_render_figure(*figure) for figure in section.figures]
        parts += map(_render_table, section.tables)
        if section.thumbnails:
            thumbnails = "".join(_render_figure(*figure) for figure in section.thumbnails)
            parts.append(f'<div class="thumbnails">\n{thumbnails}</div>\n')
    return "".join([*parts, "</body>\n</html>\n"])


def _render_figure(caption, png):
    data, text = base64.b64encode(png).decode(), html.escape(caption)
    return (
        f'<figure>\n<img alt="{text}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{text}</figcaption>\n</figure>\n"
    )


def _render_table(table):
    numeric = [
        not any(isinstance(cell, str) for cell in column)
        for column in (zip(*table.rows, strict=True) if table.rows else [() for _ in table.columns])
    ]

    def row(tag, cells):
        return "".join(
            f'<{tag} class="number">{html.escape(_format_cell(cell))}</{tag}>'
            if is_number
            else f"<{tag}>{html.escape(_format_cell(cell))}</{tag}>"
            for cell, is_number in zip(cells, numeric, strict=True)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>\n" for cells in table.rows)
    return (
        f'<div class="table">\n<table>\n<thead><tr>{row("th", table.columns)}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def _format_cell(cell):
    if isinstance(cell, str):
        return cell
    if cell is None or math.isnan(cell):
        return "\N{EN DASH}"
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.3f}"
