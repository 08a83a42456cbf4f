"""URLs: fetched once, checked against the hash in the name, and never left half-written."""

import hashlib
import http.server
import threading

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.download import cached_path, local_path
from grounding_dino.checkpoint.files import CheckpointError

import pytest

DATA = b"weights" * 1000
HASH = hashlib.sha256(DATA).hexdigest()[:8]


class Handler(http.server.BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        type(self).requests += 1
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA[:100] if "cut" in self.path else DATA)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Handler.requests = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def leftovers(tmp_path):
    return [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_fetched_once(server, tmp_path):
    url = f"{server}/releases/v1/model-{HASH}.pth"
    path = local_path(url)
    assert open(path, "rb").read() == DATA
    assert local_path(url) == path and Handler.requests == 1
    assert leftovers(tmp_path) == [f"model-{HASH}.pth"]


def test_equal_names_of_different_places_do_not_collide(server):
    assert cached_path(f"{server}/a/model.pth") != cached_path(f"{server}/b/model.pth")


def test_a_cached_path_stays_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path))
    assert tmp_path in cached_path("https://host/..%2f..%2fetc/passwd").resolve().parents


@pytest.mark.parametrize("name", ["model-00000000.pth", "cut.pth", "missing.pth"])
def test_failures_leave_nothing(server, tmp_path, name):
    with pytest.raises(CheckpointError, match=name):
        local_path(f"{server}/{name}")
    assert leftovers(tmp_path) == []


def test_offline_says_how_to_fetch_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"cannot download http://127.0.0.1:9/m.pth.*by hand.*MODEL.WEIGHTS"
    ) as error:
        local_path("http://127.0.0.1:9/m.pth")
    assert str(cached_path("http://127.0.0.1:9/m.pth")) in str(error.value)


def test_local_paths_are_themselves(tmp_path):
    assert local_path(tmp_path / "a.pth") == str(tmp_path / "a.pth")
