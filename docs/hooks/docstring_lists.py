"""Makes Markdown of this project's docstrings: lines such as `rate: samples a second` become lists, indented blocks code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from typing import Any

import griffe

_NAMES = r"\w+(?:, \w+)*"
# Also inside a line: "out: the folder.  Raises ValueError for a file."
_OUTCOME = re.compile(r"(?<=[.;])\s+(?=(?:Raises|Returns)[ :])|\n(?=(?:Raises|Returns|Yields)[ :])")
_NESTED = re.compile(r"(?P<what>[\"\w][^:]*): (?P<text>.*)", re.DOTALL)


class DocstringLists(griffe.Extension):
    """Rewrites every docstring of a package, once all of it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites the docstrings."""
        self._rewrite(pkg)

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring is not None and not obj.is_module:
            obj.docstring.value = docstring_markdown(obj.docstring.value, _names_of(obj))
        for member in obj.members.values():
            if not member.is_alias:
                if obj.is_class and member.is_attribute and isinstance(member.value, griffe.ExprName):
                    _show_value(member)
                self._rewrite(member)


def _show_value(attribute: griffe.Attribute) -> None:
    """Puts the number in the place of a constant's name, which says nothing to the reader of a signature."""
    try:
        constant = attribute.modules_collection[attribute.value.canonical_path]
    except (KeyError, griffe.GriffeError):
        return
    if constant.is_attribute and constant.value is not None:
        attribute.value = constant.value


def _names_of(obj: griffe.Object) -> set[str]:
    """Returns what lines of the docstring can be about: parameters, and of a class its attributes too."""
    functions = [obj, obj.members.get("__init__")] if obj.is_class else [obj]
    parameters = [parameter for each in functions if each is not None and each.is_function for parameter in each.parameters]
    names = {parameter.name for parameter in parameters}
    # What goes by `**kwargs` is named in the docstring alone.
    if any(parameter.kind is griffe.ParameterKind.var_keyword for parameter in parameters):
        names |= set(re.findall(r"^(\w+): ", obj.docstring.value if obj.docstring else "", re.MULTILINE))
    return names | set(obj.members) if obj.is_class else names


def docstring_markdown(text: str, names: Collection[str]) -> str:
    """Returns the docstring as Markdown.  names: those that begin an entry of a list, with a colon behind."""
    first, *blocks = (block for paragraph in re.split(r"\n\s*\n", text) for block in _blocks(paragraph, names))
    return "\n\n".join([first, *(re.sub(r"^(Raises|Returns|Yields)\b", r"**\1**", block) for block in blocks)])


def _blocks(paragraph: str, names: Collection[str]) -> Iterator[str]:
    if paragraph.startswith("    "):
        yield "```python\n" + re.sub(r"^    ", "", paragraph, flags=re.MULTILINE) + "\n```"
        return
    for part in _OUTCOME.split(paragraph):
        begin = [found.start() for found in re.finditer(rf"(?:^|(?<=[.;]\s)|(?<=[.;]\s\s)){_NAMES}:\s", part, re.MULTILINE)]
        begin = [at for at in begin if set(part[at : part.index(":", at)].split(", ")) <= set(names)]
        cuts = [*begin, len(part)]
        before = part[: cuts[0]].strip()
        if before:
            yield "\n\n".join(_with_nested(before, ""))
        items = ["\n".join(_with_nested(_entry(part[at:end].strip()), "    ")) for at, end in itertools.pairwise(cuts)]
        if items:
            yield "\n".join(f"- {item}" for item in items)


def _entry(text: str) -> str:
    what, _, said = text.partition(":")
    return ", ".join(f"`{name}`" for name in what.split(", ")) + f":{said}"


def _with_nested(text: str, indent: str) -> Iterator[str]:
    """Yields the text, and the indented lines below it as a list of their own."""
    first, *lines = re.split(r"\n {4}(?=\S)", text)
    yield re.sub(r"\n\s*", " ", first)
    entries = [_NESTED.sub(lambda found: f"`{found['what']}`: {found['text']}", line, count=1) for line in lines]
    if entries:
        yield "\n".join(f"{indent}- " + re.sub(r"\n\s*", " ", entry) for entry in entries)
