"""The documents as a site: links are written anew, and it builds without a warning and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from documents.commands import ROOT


@pytest.fixture(scope="module")
def hooks():
    """docs/site_hooks.py, as mkdocs imports it."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "docs/migration.md", "migration.md"),
        ("README.md", "MODEL_ZOO.md#speed", "MODEL_ZOO.md#speed"),
        ("migration.md", "../MODEL_ZOO.md", "MODEL_ZOO.md"),
        ("api/index.md", "../../grounding_dino/config.py", "../grounding_dino/config.py"),
        ("datasets/README.md", "../docs/training.md", "../training.md"),
        ("README.md", "https://example.org/docs/migration.md", "https://example.org/docs/migration.md"),
    ],
)
def test_links_are_written_for_the_site(hooks, page, link, expected):
    places = {"migration.md", "MODEL_ZOO.md", "grounding_dino/config.py", "training.md"}
    files = SimpleNamespace(get_file_from_path=lambda path: path if path in places else None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    code = f"```text\n[in code]({link})\n```\n"
    written = hooks.on_page_markdown(f"[name]({link})\n\n{code}", page, files)
    assert written == f"[name]({expected})\n\n{code}"


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    proxy = "http://127.0.0.1:9"  # nothing listens there: who asks a server fails
    environment = {**os.environ, "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "predictor.html").read_text(encoding="utf-8")
    assert "load_predictor" in page and "box_threshold" in page
    assert (tmp_path / "site" / "inference.ipynb").is_file() and (tmp_path / "site" / "INSTALL.html").is_file()
