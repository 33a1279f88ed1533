"""The site of docs/ builds without a warning, its links and anchors lead somewhere, and it has every public name and command."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import typer

import encodec_fast
from encodec_fast import cli
from support.venvs import ROOT

pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed, which needs Python 3.11")

ANCHORED = [name for name in encodec_fast.__all__ if getattr(getattr(encodec_fast, name), "__module__", "").startswith("encodec_fast")]
COMMANDS = typer.main.get_command(cli.app).commands
# What a page loads itself, where other links wait for a click.
LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src")}


class _Reader(HTMLParser):
    """Collects what a page links to, its anchors, and the names that entries of its lists are about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        entries = re.findall(r"<li>\s*(?:<p>)?((?:<code>\w+</code>(?:, )?)+):", text)
        self.entries = {name for entry in entries for name in re.findall(r"<code>(\w+)</code>", entry)}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)
                if (tag, name) in LOADED:
                    self.loaded.append(value)


class Site(NamedTuple):
    folder: Path
    said: str  # what the build printed
    pages: Mapping[Path, _Reader]

    def page(self, name: str) -> _Reader:
        return self.pages[self.folder / name]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name not in ("SITE_URL", "REPO_URL")}
    # material's notice about its own future is no warning of this build
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**environment, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: _Reader(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    return Site(folder, done.stdout + done.stderr, pages)


def test_the_site_is_built_without_a_warning(site):
    assert "WARNING" not in site.said and "ERROR" not in site.said
    # mkdocstrings leaves signatures in one line, and says so as a mere remark, where no formatter is installed
    assert "Formatting signatures requires" not in site.said


def test_every_link_leads_to_a_file_and_an_anchor_of_the_site(site):
    lost = []
    for path, page in site.pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            # the page of errors, which is shown for any address, begins at the site's root
            base = site.folder if parts.path.startswith("/") else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                lost.append((path.name, link))
            elif parts.fragment and target in site.pages and unquote(parts.fragment) not in site.pages[target].anchors:
                lost.append((path.name, link))
    assert not lost


def test_links_out_of_the_site_lead_to_files_of_the_repository(site):
    prefix = re.search(r"https://[^\"]+", (ROOT / "mkdocs.yml").read_text())[0]
    links = {link for page in site.pages.values() for link in page.links if link.startswith(f"{prefix}/")}
    paths = {re.sub(r"(blob|tree)/main/", "", urlsplit(link[len(prefix) + 1 :]).path) for link in links}
    assert "kernels/cpu/README.md" in paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_pages_load_nothing_from_the_network(site):
    assert not {link for page in site.pages.values() for link in page.loaded if urlsplit(link).netloc}


@pytest.mark.parametrize("name", encodec_fast.__all__)
def test_a_public_name_has_an_anchor(site, name):
    assert any(f"encodec_fast.{name}" in page.anchors for path, page in site.pages.items() if path.parent.name == "api")


@pytest.mark.parametrize("name", ANCHORED)
def test_arguments_of_a_docstring_are_entries_of_a_list(site, name):
    text = inspect.getdoc(getattr(encodec_fast, name)) or ""
    arguments = {each for line in re.findall(r"^(\w+(?:, \w+)*): ", text, re.MULTILINE) for each in line.split(", ")}
    (page,) = [page for path, page in site.pages.items() if path.parent.name == "api" and f"encodec_fast.{name}" in page.anchors]
    assert arguments <= page.entries


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_section_with_all_its_options(site, name):
    assert f"encodec-fast-{name}" in site.page("api/command-line.html").anchors
    text = (site.folder / "api" / "command-line.html").read_text(encoding="utf-8")
    section = text[text.index(f'id="encodec-fast-{name}"') :].partition("<h2")[0]
    options = [option for each in COMMANDS[name].params for option in each.opts if option.startswith("-")]
    assert not [option for option in options if f"<code>{option}</code>" not in section]


def test_the_pages_of_the_repository_s_root_are_in_the_site(site):
    for page, heading in (
        ("index", "the-same-codes-always"),
        ("examples", "examples"),
        ("contributing", "test-lanes"),
        ("changelog", "added"),
    ):
        assert heading in site.page(f"{page}.html").anchors


def test_nothing_is_left_unrendered(site):
    for path in site.pages:
        text = path.read_text(encoding="utf-8")
        assert "::: " not in text and "<!-- commands" not in text, path.name


def test_no_file_names_a_folder_of_this_machine(site):
    for path in site.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [each for each in (ROOT, site.folder, Path.home()) if str(each).encode() + b"/" in data], path.name


def _hook(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_docstring_becomes_lists_and_code():
    text = (
        'Opens it.\n\n    open(path)\n\npath: of the file,\nor none.  mode, size: how.\nkind:\n    "a": one.\n    "b": two.\n'
        "rest: stays\nother: words of no argument.  Raises ValueError for\nnothing.\nRaises:\n    OSError: never."
    )
    assert _hook("docstring_lists").docstring_markdown(text, {"path", "mode", "size", "kind", "rest"}) == (
        "Opens it.\n\n```python\nopen(path)\n```\n\n- `path`: of the file, or none.\n- `mode`, `size`: how.\n"
        '- `kind`:\n    - `"a"`: one.\n    - `"b"`: two.\n- `rest`: stays other: words of no argument.\n\n'
        "**Raises** ValueError for nothing.\n\n**Raises**:\n\n- `OSError`: never."
    )


@pytest.mark.parametrize(
    "page, link, expected",
    [
        ("index.md", "docs/streaming.md#live-audio", "streaming.md#live-audio"),
        ("contributing.md", "docs/api/errors.md", "api/errors.md"),
        ("api/errors.md", "../../README.md", "../index.md"),
        ("examples.md", "musicgen.py", "https://host/us/it/blob/main/examples/musicgen.py"),
        ("streaming.md", "../bench", "https://host/us/it/tree/main/bench"),
        ("streaming.md", "https://elsewhere/docs/x.md", "https://elsewhere/docs/x.md"),
    ],
)
def test_a_link_of_the_repository_is_led_to_where_it_holds(page, link, expected):
    config = SimpleNamespace(extra={"repository": "https://host/us/it/"})
    here = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    rewrite = _hook("repository_pages").on_page_markdown
    text = "[a]({0}), `[a](README.md)`\n\n```python\nrows[0](README.md)\n```\n"
    assert rewrite(text.format(link), page=here, config=config, files=None) == text.format(expected)
