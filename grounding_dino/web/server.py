"""The page's server: Gradio behind a guard, with a folder of its own that goes when it ends."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grounding_dino.web.detection import Detector
from grounding_dino.web.guard import App, Guard


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for uploads and results, which Gradio uses instead of one that all its servers share."""
    with tempfile.TemporaryDirectory(prefix="grounding_dino_page_") as name:
        folder = Path(name).resolve()
        settings = {
            "GRADIO_TEMP_DIR": str(folder),
            "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_ALLOWED_PATHS": "",
            "GRADIO_RUN_HISTORY": "False",
            "GRADIO_MCP_SERVER": "False",
        }
        before = {key: os.environ.get(key) for key in settings}
        os.environ.update(settings)
        try:
            yield folder
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def build_app(detector: Detector, examples: Sequence[Any], folder: Path, root_path: str = "") -> App:
    """The ASGI application of a page.

    Args:
        examples: of :class:`grounding_dino.web.page.Page`.
        folder: of :func:`own_folder`, which has to be open.
        root_path: the path below which a proxy serves the page, such as "/detector".
    """
    from grounding_dino.web.layout import STYLE, theme
    from grounding_dino.web.page import Page

    import gradio as gr
    from fastapi import FastAPI

    page = Page(detector, examples, folder)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page.blocks,
        "/",
        root_path=root_path or None,
        allowed_paths=[],
        show_error=False,  # errors that are not for users stay in the log
        max_file_size=detector.limits.upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        footer_links=["api"],
        theme=theme(),
        css_paths=[STYLE],
    )
    return Guard(app, folder, detector.limits.upload_bytes)


def listen(host: str, port: int) -> socket.socket:
    """A socket that the server is to answer at; port 0 takes a free one.

    Raises:
        OSError: the port is taken or not allowed, or there is no such address; in a sentence.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"the page cannot listen at {host}, port {port} ({error.strerror or error}); name others with --host and "
            "--port"
        ) from error


def serve(app: App, listening: socket.socket, started: Callable[[], None]) -> None:
    """Answer until Ctrl-C or SIGTERM; `started` is called when the page can be opened."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="on")
    Server(config).run(sockets=[listening])
