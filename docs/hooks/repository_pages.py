"""Takes pages of the repository's root into the site. Links out of docs/ lead to the site's page or to the code host."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# The site's page, and the file that it is made of.
PAGES = {"index.md": "README.md", "examples.md": "examples/README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_SITE_PAGE = {file: page for page, file in PAGES.items()}
# Code passes as it is: an index before a call looks like a link.
_LINK = re.compile(r"(?P<code>^```.*?^```$|`[^`\n]+`)|\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL)

log = logging.getLogger("mkdocs.hooks.repository_pages")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that are not in docs/."""
    for page, file in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: Any, files: Files) -> str:
    """Returns the page with links that hold in the site, where it had those that hold in the repository."""
    name = page.file.src_uri
    origin = PAGES.get(name, f"docs/{name}")

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if match["code"] or re.match(r"#|[a-z]+:", target):
            return match[0]
        path, hash_sign, heading = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        in_site = _SITE_PAGE.get(path) or path.removeprefix("docs/") * path.startswith("docs/")
        if in_site:
            return f"]({posixpath.relpath(in_site, posixpath.dirname(name) or '.')}{hash_sign}{heading})"
        if not (ROOT / path).exists():
            log.warning("%s: the link to %s leads nowhere.", origin, target)
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({config.extra['repository'].rstrip('/')}/{kind}/main/{path}{hash_sign}{heading})"

    return _LINK.sub(link, markdown)
