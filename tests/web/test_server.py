"""The page's server over HTTP: its endpoint for programs, and what nobody gets out of it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
API = "/gradio_api"
REFUSED = (400, 403, 404, 405, 411, 413)


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    """Plain HTTP, without following anybody anywhere."""
    import httpx

    with httpx.Client(base_url=served.address, timeout=120, trust_env=False) as plain:
        yield plain


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Another server on this machine: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_program_detects_through_the_named_endpoint(served: Any, pictures: Path, stars: dict[str, Any]) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(served.address, verbose=False, analytics_enabled=False)
    assert list(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == ["/detect"]
    picture = handle_file(str(pictures / "stars.jpg"))
    found = client.predict(picture=picture, text=", ".join(stars), api_name="/detect")
    assert (found["file_name"], found["width"], found["height"]) == ("stars.jpg", 384, 384)
    assert {each["label"] for each in found["detections"]} == stars.keys()
    assert all(each["score"] > 0.35 and len(each["box"]) == 4 for each in found["detections"])
    fixed = client.predict(picture=picture, model="shapes_tiny_panoptic", api_name="/detect")
    assert fixed["segments_info"] and fixed["detections"][0]["mask"]["size"] == [384, 384]
    with pytest.raises(AppError, match="There is nothing to look for"):
        client.predict(picture=picture, api_name="/detect")


def test_files_of_the_server_stay_there(served: Any, client: Any, pictures: Path) -> None:
    secret = served.folder.parent / "slow.yaml"  # in the server's working folder
    assert secret.is_file()
    for path in ("/etc/passwd", str(secret), secret.name, str(pictures / "stars.jpg"), "../" * 9 + "etc/passwd"):
        for route in (f"{API}/file=", f"{API}/file/", "/file=", "/static/", "/assets/", f"{API}/proxy=", "/svelte/"):
            response = client.get(route + path)
            assert response.status_code in REFUSED, (route, path)
        assert _call(client, {"path": path, "meta": {"_type": "gradio.FileData"}}).status_code == 400, path
        assert _call(client, {"path": path}).status_code == 400
    for folder in (served.folder, served.folder.parent):
        assert client.get(f"{API}/file={folder}").status_code in REFUSED


def test_the_server_fetches_nothing_for_anybody(client: Any, elsewhere: tuple[str, list[str]]) -> None:
    address, asked = elsewhere
    for url in (f"{address}/a.png", "http://[::1]/a.png", "file:///etc/passwd", "ftp://127.0.0.1/a.png"):
        for route in (f"{API}/file=", f"{API}/proxy=", f"{API}/file/"):
            assert client.get(route + url).status_code in REFUSED, (route, url)
        assert _call(client, {"path": url, "meta": {"_type": "gradio.FileData"}}).status_code == 400
        by_url = _call(client, {"url": url, "path": None, "meta": {"_type": "gradio.FileData"}})
        assert by_url.status_code in REFUSED or "no picture yet" in _result(client, by_url)
        assert _call(client, url).status_code in REFUSED or "no picture yet" in _result(client, _call(client, url))
    assert not asked


def test_what_the_page_does_not_use_is_shut(client: Any) -> None:
    for method, path in (
        ("POST", "/component_server"),
        ("POST", "/process_recording"),
        ("POST", "/stream/1"),
        ("POST", "/run-history/connect"),
        ("GET", "/run-history/buckets"),
        ("GET", "/deep_link?session_hash=1"),
        ("GET", "/custom_component/1/client/component/index.js"),
        ("POST", "/vibe-edit"),
        ("PUT", "/upload"),
    ):
        assert client.request(method, API + path).status_code == 404, path
    assert client.get("/monitoring").status_code == client.get("/docs").status_code == 404
    queued = next(each["id"] for each in client.get("/config").json()["dependencies"] if each["api_name"] == "detect")
    direct = client.post(f"{API}/run/detect", json={"data": [None] * 7, "fn_index": queued})
    assert direct.status_code == 404  # past the queue


def test_limits_on_what_is_sent(client: Any) -> None:
    large = client.post(f"{API}/upload", files={"files": ("large.png", b"0" * (4 << 20), "image/png")})
    assert large.status_code == 413 and "at most" in large.json()["detail"]
    assert client.post(f"{API}/call/detect", content=b" " * (1 << 20)).status_code == 413
    assert client.post(f"{API}/call/detect", content=iter([b"{}"])).status_code == 411  # a body of unsaid length
    assert client.post(f"{API}/call/detect", content=b"{" * 1000).status_code == 400
    small = client.post(f"{API}/upload", files={"files": ("../../../small.png", b"0", "image/png")})
    assert small.status_code == 200 and "../" not in small.json()[0]


def test_the_page_may_ask_nobody_else(client: Any) -> None:
    headers = client.get("/").headers
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_below_a_proxy_s_path_and_nothing_is_left_at_the_end(tmp_path: Path, start_page: Any) -> None:
    import httpx

    with start_page(tmp_path, "--root-path", "/detector") as running:
        address = running.address.removesuffix("/detector")
        uploaded = httpx.post(f"{address}{API}/upload", files={"files": ("a.png", b"0", "image/png")}, trust_env=False)
        assert Path(uploaded.json()[0]).is_relative_to(running.folder)
        assert httpx.get(f"{address}/config", trust_env=False).json()["root"].endswith("/detector")
    assert running.process.returncode == 0
    assert not running.folder.exists()


def _call(client: Any, picture: Any) -> Any:
    """Ask the endpoint to look into `picture`."""
    return client.post(f"{API}/call/detect", json={"data": [picture, "blue star", "Categories", "", 0.35, 0.25, ""]})


def _result(client: Any, called: Any) -> str:
    """What the endpoint answers to a call that was taken."""
    return str(client.get(f"{API}/call/detect/{called.json()['event_id']}").text)
