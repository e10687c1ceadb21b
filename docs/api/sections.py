"""Griffe extension: separates the sections of a docstring, which follow without empty lines."""

import re

import griffe

SECTIONS = "Args|Attributes|Call arguments|Input shape|Output shape|Raises|Returns|Source|Warns"


class SeparateSections(griffe.Extension):
    """Inserts an empty line before each section."""

    def on_instance(self, *, obj, **options):
        """Changes the docstring of a module, class or function before it is parsed."""
        if obj.docstring:
            text = obj.docstring.value
            text = re.sub(rf"\n(?=(?:{SECTIONS}):)", "\n\n", text)
            obj.docstring.value = re.sub(
                r"(?m)^(Input shape|Output shape|Source):", r"**\1**:", text
            )
