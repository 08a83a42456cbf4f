"""A page served by a process of its own, and a browser to look at it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "demo" / "pictures"
SCREENSHOTS = ROOT / "output" / "tests" / "web"
LIMITS = ("--max-megapixels", "2", "--max-megabytes", "3")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


class Served(NamedTuple):
    """A running page: its address, the folder that it keeps files in, and its process."""

    address: str
    folder: Path
    process: subprocess.Popen[str]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """`demo/app.py` on a free port, with temporary files below `folder`."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(ROOT / "demo" / "app.py"), "--port", "0", "--device", "cpu", *options]
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (folder / "log.txt").read_text()
        (own,) = folder.glob("grounding_dino_page_*")
        yield Served(found.group().replace("localhost", "127.0.0.1"), own, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with the small model, one that takes its time (the same, of larger pictures), and one of fixed classes."""
    pytest.importorskip("gradio", reason='the page needs gradio: pip install "grounding-dino-detectron2[web]"')
    folder = tmp_path_factory.mktemp("page")
    base = ROOT / "configs" / "grounding_dino" / "shapes_tiny.yaml"
    (folder / "slow.yaml").write_text(f"_BASE_: {base}\nINPUT:\n  MIN_SIZE_TEST: 2400\n  MAX_SIZE_TEST: 2400\n")
    weights = ROOT / "grounding_dino" / "assets" / "shapes_tiny.safetensors"
    models = ("shapes_tiny", f"{folder / 'slow.yaml'}={weights}", "shapes_tiny_panoptic")
    options = [option for model in models for option in ("--model", model)]
    with serving(folder, *options, "--models-in-memory", "3", *LIMITS) as running:
        yield running


@pytest.fixture
def start_page() -> Callable[..., Any]:
    """`start_page(folder, *options)`: a context in which another page is served."""
    return serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the distribution, driven by playwright, whose event loop no later module is to meet."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        reason = "there is no Chromium: apt-get install chromium"
        if os.environ.get("GROUNDING_DINO_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    with ExitStack() as stack:
        driver = stack.enter_context(playwright.sync_playwright())
        chromium = driver.chromium.launch(executable_path=program, args=FLAGS)
        stack.callback(chromium.close)
        yield chromium


class Visit(NamedTuple):
    """A page in the browser, and the addresses of all its requests."""

    page: Any
    requests: list[str]


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Visit]]:
    """`visit(width, height, dark=False)` opens the page in a profile of its own; all visits end with the test."""
    with ExitStack() as stack:

        def open_page(width: int = 1400, height: int = 900, dark: bool = False) -> Visit:
            scheme = "dark" if dark else "light"
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            stack.callback(context.close)
            page = context.new_page()
            requests: list[str] = []
            page.on("request", lambda request: requests.append(request.url))
            page.set_default_timeout(120_000)
            page.goto(served.address)
            page.wait_for_selector("#start")
            return Visit(page, requests)

        yield open_page


@pytest.fixture(scope="session")
def pictures() -> Path:
    """The folder of example pictures."""
    return PICTURES


@pytest.fixture(scope="session")
def stars() -> dict[str, tuple[int, int, int, int]]:
    """What demo/pictures/stars.jpg holds: x, y, width, height as rendered."""
    return {
        "blue star": (89, 51, 76, 76),
        "black star": (176, 138, 135, 122),
        "red cross": (78, 262, 86, 80),
        "brown ring": (16, 112, 85, 91),
        "purple circle": (201, 288, 55, 52),
    }


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """The folder that pictures of the page are left in, to be looked at: output/tests/web."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
