"""Reads docstrings in the style of Transformers: types as Markdown, references in brackets."""

import re

import griffe


# `name (`str`, *optional*, defaults to `"x"`):`; the default is in the signature.
TYPE = re.compile(r"^(\s+[\w, ]+ )\((`.*)\):", re.MULTILINE)
DEFAULT = re.compile(r", defaults to .*$")
# [`load_audio`] and [`~metrics.error_rates`]
REFERENCE = re.compile(r"\[`~?([^`\]]+)`\](?![\[(])")
# `ValueError`: If ... and `str`, *optional*: The path ...
RESULT = re.compile(r"^(\s+)`([^`\n]+)`(?:, \*optional\*)?(?=:? )", re.MULTILINE)


def plain(docstring: str) -> str:
    """The same docstring in Google's style."""
    docstring = REFERENCE.sub(r"`\1`", docstring)
    docstring = TYPE.sub(lambda found: f"{found[1]}({_plain_type(found[2])}):", docstring)
    return RESULT.sub(r"\1\2", docstring)


def _plain_type(text: str) -> str:
    return DEFAULT.sub("", text).replace("`", "").replace("*", "")


class TransformersDocstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
