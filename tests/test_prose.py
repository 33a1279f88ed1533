"""Docstrings and comments keep to plain prose, in Python and C++: a verb first, and short sentences."""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator

import pytest

from support.venvs import ROOT

MOST_WORDS = 20
# Plural nouns look like verbs in the third person.
_NOUNS = set(
    "Arguments Bits Bytes Chunks Clips Codes Columns Devices Embeddings Entries Files Frames Indices Its Lengths Members Numbers Outputs "
    "Pairs Paths Pieces Rows Samples Seconds Shapes Stages Steps Tables Tensors Tiles Values Weights".split()
)
_VERB = re.compile(r"[A-Z][a-z]+s")
_ONE_WORD = re.compile(r"`[^`]*`|\[[^]]*\]")
_SENTENCE_END = re.compile(r"(?<=[.;:])\s+")
# In a docstring an indented block is code or a formula.
_INDENTED = re.compile(r"^ {4}.*$", re.MULTILINE)
_DIRECTIVE = re.compile(r"# (fmt|type|noqa|mypy)\b")


def _sources() -> list[str]:
    files = [path for folder in ("encodec_fast", "kernels", "examples", "docs") for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def _native_sources() -> list[str]:
    files = [path for path in (ROOT / "kernels" / "cpu").rglob("*") if path.suffix in (".h", ".cpp", ".inl")]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def _docstrings(source: str) -> Iterator[tuple[int, ast.AST, str]]:
    """Yields line, node and text of every docstring of a module, class or function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, node, text


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields the first line and the text of every comment; lines below each other are one comment."""
    found: list[tuple[int, int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not _DIRECTIVE.match(token.string):
            line, text, alone = token.start[0], token.string.lstrip("# "), token.line.lstrip().startswith("#")
            if alone and found and found[-1][1] == line - 1:
                start, _, before = found.pop()
                found.append((start, line, f"{before}\n{text}"))
            else:
                found.append((line, line if alone else -1, text))
    yield from ((start, text) for start, _, text in found)


def _native_comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields the first line and the text of every comment of C++; lines below each other are one comment."""
    block: list[str] = []
    for number, line in enumerate([*source.splitlines(), ""], 1):
        code, slashes, text = line.partition("//")
        if slashes and not code.strip():
            block.append(text)
            continue
        if block:
            yield number - len(block), "\n".join(block)
            block = []
        if slashes:
            yield number, text


def _long_sentences(text: str) -> Iterator[str]:
    """Yields sentences of more than MOST_WORDS words. Code in backquotes and a shape in brackets are one word each."""
    for paragraph in re.split(r"\n\s*\n", _INDENTED.sub("", text)):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if len(_ONE_WORD.sub("x", sentence).split()) > MOST_WORDS:
                yield sentence


def _begins_with_verb(text: str) -> bool:
    word = text.split()[0].rstrip(".,:;")
    return _VERB.fullmatch(word) is not None and word not in _NOUNS


def _may_begin_otherwise(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tells whether it is a property, which is a noun, or a command, whose docstring is its help."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any("property" in text or text.startswith(("command(", "app.")) for text in decorators)


@pytest.mark.parametrize("name", _sources())
def test_a_functions_docstring_begins_with_a_verb(name):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{name}:{line}: {node.name}: {text.splitlines()[0]!r}"
        for line, node, text in _docstrings((ROOT / name).read_text(encoding="utf-8"))
        if isinstance(node, functions) and not _may_begin_otherwise(node) and not _begins_with_verb(text)
    ]
    assert not found, "begin with a verb in the third person, as Returns, Runs or Reads:\n" + "\n".join(found)


@pytest.mark.parametrize("name", _sources())
def test_no_sentence_is_long(name):
    source = (ROOT / name).read_text(encoding="utf-8")
    _check_sentences(name, [*((line, text) for line, _, text in _docstrings(source)), *_comments(source)])


@pytest.mark.parametrize("name", _native_sources())
def test_no_sentence_of_the_engine_is_long(name):
    _check_sentences(name, _native_comments((ROOT / name).read_text(encoding="utf-8")))


def _check_sentences(name: str, prose: Iterable[tuple[int, str]]) -> None:
    found = [
        f"{name}:{line}: {len(_ONE_WORD.sub('x', sentence).split())} words: {sentence!r}"
        for line, text in sorted(prose)
        for sentence in _long_sentences(text)
    ]
    assert not found, f"split sentences of more than {MOST_WORDS} words:\n" + "\n".join(found)
