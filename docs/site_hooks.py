"""Hooks of mkdocs: the documents of the root join the site as they are, and links work there as on a hosting page.

Documents link to each other, and to source files, by paths relative to themselves in the checkout. The site has
`docs/` as its root, so here a link is resolved in the checkout and written anew for the place of its target in the
site. Files that documents link to, such as `grounding_dino/config.py`, are put into the site with them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\(|^\[[^\]\n]+\]: )(?![a-z]+:|#|/)([^)\s#]+)", re.MULTILINE)


def place_in_site(path: str) -> str:
    """The place of a file of the checkout, relative to the site's root."""
    return path[len(DOCS) :] if path.startswith(DOCS) else path


def place_in_checkout(source: str) -> str:
    """The other way round."""
    return DOCS + source if (ROOT / DOCS / source).is_file() else source


def linked_files(path: str) -> Iterator[str]:
    """The files of the checkout that the document at `path` links to, as paths from the checkout's root."""
    text = FENCE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    for _, link in LINK.findall(text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if (ROOT / target).is_file():
            yield target


def on_files(files: Files, config: Any) -> Files:
    """Add the documents of the root, and whatever documents link to."""
    waiting = [DOCS + file.src_uri for file in files.documentation_pages()]
    waiting += [*(file.name for file in sorted(ROOT.glob("*.md"))), "datasets/README.md"]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if files.get_file_from_path(place_in_site(path)) is None:
            files.append(File.generated(config, place_in_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += linked_files(path)
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Write relative links outside of code for the site."""
    here = place_in_checkout(page.file.src_uri)

    def relink(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        if files.get_file_from_path(place_in_site(target)) is None:
            return match[0]
        return match[1] + posixpath.relpath(place_in_site(target), posixpath.dirname(page.file.src_uri) or ".")

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(relink, part) for part in parts)


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles before names in docstrings, such as `:class:`, which Markdown does not know."""
    return re.sub(r":(?:class|func|meth|mod|attr|data):(?=<code>)", "", html)
