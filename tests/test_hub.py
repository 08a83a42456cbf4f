"""Models by name from a hub, and ours pushed to it: `huggingface_hub` talks to a server of this process."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from grounding_dino import load_predictor
from grounding_dino.checkpoint import hub as names
from grounding_dino.checkpoint.download import local_path
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.hub import HUB_CONFIGS, HubName, fetch, hub_name
from grounding_dino.checkpoint.saving import save_safetensors
from grounding_dino.cli.hub import main
from grounding_dino.hub import ModelCard, portable_config, push_to_hub, save_model
from grounding_dino.model_zoo import build_model, find_weights, get_config_file, list_configs, load_cfg, model_weights

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants, file_download

ROOT = Path(__file__).resolve().parents[1]
CARD = ModelCard("apache-2.0", "Drawn shapes.", {"shapes_val": 86.5}, "Finds shapes.", "someone/shapes")


class Hub(ThreadingHTTPServer):
    """As much of the hub's protocol as `huggingface_hub` needs to list, fetch, make and fill repositories."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, dict[str, bytes]] = {}  # repository -> file -> content
        self.asked: list[str] = []
        self.token = "hf_test"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str) -> str:
        parts = [name.encode() + content for name, content in sorted(self.files[repository].items())]
        return hashlib.sha1(b"".join(parts)).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: ...

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def missing(self, code: str) -> None:
        self.json({"error": code}, 404, X_Error_Code=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        match = re.match(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?$", path)
        files = self.server.files.get(match[1]) if match else None
        if match is None or files is None:
            return self.missing("RepoNotFound")
        repository, kind, revision, name = match.groups()
        commit = self.server.commit(repository)
        if revision not in (None, "main", "v1", commit):
            return self.missing("RevisionNotFound")
        if kind == "tree":
            return self.json([{"type": "file", "path": f, "size": len(b), "oid": _sha(b)} for f, b in files.items()])
        if kind != "resolve":
            return self.json({"id": repository, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
        if name not in files:
            return self.missing("EntryNotFound")
        return self.answer(200, files[name], ETag=f'"{_sha(files[name])}"', X_Repo_Commit=commit)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.json({"error": "who are you?"}, 401)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repository = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            self.server.files.setdefault(repository, {})
            return self.json({"url": f"{self.server.address}/{repository}", "name": repository})
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [{"path": file["path"]} for file in json.loads(body)["files"]]
            return self.json({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[repository][line["value"]["path"]] = content
        commit = self.server.commit(repository)
        return self.json({"commitOid": commit, "commitUrl": f"{self.server.address}/{repository}/commit/{commit}"})


def _sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of this process with an empty cache; `huggingface_hub` reads its variables when it is imported."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    point_at(monkeypatch, server.address, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()
    fetch.cache_clear()


def point_at(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetch.cache_clear()


def put(hub: Hub, repository: str, folder: Path) -> None:
    hub.files[repository] = {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def tiny_folder(tiny_cfg: Any, tiny_model: Any, tmp_path: Path) -> Path:
    """A folder as `save_model` writes it, of a model that answers in milliseconds."""
    weights = tmp_path / "tiny.safetensors"
    save_safetensors(str(weights), tiny_model.state_dict())
    folder = tmp_path / "tiny_model"
    save_model(folder, tiny_cfg, weights, ["INPUT.MIN_SIZE_TEST", 96], card=CARD)
    return folder


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "text, expected",
    [
        ("IDEA-Research/grounding-dino-tiny", HubName("IDEA-Research/grounding-dino-tiny")),
        ("a/b@v1.0", HubName("a/b", "v1.0")),
        ("hf://a/b@refs/pr/3", HubName("a/b", "refs/pr/3")),
        ("hf://here/model.pth", HubName("here/model.pth")),
        ("swin_t_ogc", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("./a", None),
        ("a/model_final.pth", None),
        ("a/own.yaml", None),
        ("here/is_one", None),
        ("here/misspelt", None),
    ],
)
def test_what_is_on_the_disk_or_looks_like_a_file_is_no_name_of_the_hub(
    text: str, expected: HubName | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "is_one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name(text) == expected


def test_a_name_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'hf://alone' is no name of a model on a hub; write hf://owner/name"):
        hub_name("hf://alone")


def test_known_repositories_have_configurations_that_are_there() -> None:
    assert set(HUB_CONFIGS.values()) <= set(list_configs())
    assert set(names._CONFIGS_OF_THEIRS.values()) <= set(list_configs())


def test_short_names_and_local_folders_never_ask_the_hub(hub: Hub, tiny_folder: Path) -> None:
    for name in ("shapes_tiny", "dino/r50_4scale_12ep", "coco/r50_panoptic", "./tiny_model"):
        load_cfg(name)
    for name in ("dino/r50_4scale_12eq", "ade20k/nothing", "tiny_model/nothing", "nothing"):
        with pytest.raises(FileNotFoundError, match="there is no configuration"):
            load_cfg(name)
    Path("shapes_tiny").mkdir()
    shutil.copy(tiny_folder / "config.yaml", "shapes_tiny")
    assert get_config_file("shapes_tiny").endswith("grounding_dino/shapes_tiny.yaml") and hub.asked == []


# ------------------------------------------------------------------------------------------------------- push, pull


def test_a_saved_folder_is_the_same_model(tiny_folder: Path, tiny_model: Any) -> None:
    assert sorted(file.name for file in tiny_folder.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    predictor = load_predictor(tiny_folder, device="cpu")
    state = predictor.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny_model.state_dict().items())
    assert load_cfg(tiny_folder).INPUT.MIN_SIZE_TEST == 96
    content = yaml.safe_load((tiny_folder / "config.yaml").read_text())
    assert content["MODEL"]["WEIGHTS"] == "" and content["OUTPUT_DIR"] == "./output"


def test_the_card_says_task_licence_data_and_results(tiny_folder: Path) -> None:
    text = (tiny_folder / "README.md").read_text()
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "zero-shot-object-detection"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("shapes_val", 86.5)
    lines = "# shapes", 'load_predictor("someone/shapes")', "Drawn shapes.", "| shapes_val | 86.5 |", "Finds shapes."
    assert [line for line in lines if line not in text] == []


def test_pushed_pulled_and_found_in_the_cache(
    hub: Hub, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "tiny_model", "someone/shapes"]) == 0
    assert capsys.readouterr().out == f"{hub.address}/someone/shapes\n"
    assert hub.files["someone/shapes"] == {file.name: file.read_bytes() for file in tiny_folder.iterdir()}
    hub.files["someone/shapes"]["training.log"] = b"a file that nobody needs"

    predictor = load_predictor("someone/shapes", device="cpu")
    assert predictor.weights == "hf://someone/shapes" and load_cfg("someone/shapes").INPUT.MIN_SIZE_TEST == 96
    assert not [line for line in hub.asked if "training.log" in line]
    assert main(["pull", "someone/shapes@v1", "--output", "copy"]) == 0
    assert (Path("copy") / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()

    fetch.cache_clear()
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_cfg("someone/shapes").INPUT.MIN_SIZE_TEST == 96 and hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetch.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    assert local_path("someone/shapes").endswith(hub.commit("someone/shapes"))


def test_a_push_without_a_right_to_it_or_of_something_else_is_a_sentence(
    hub: Hub, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.token = "another"
    assert main(["push", "tiny_model", "someone/shapes"]) == 1
    assert "tiny_model cannot be pushed as someone/shapes: " in (text := capsys.readouterr().err) and "HF_TOKEN" in text
    hub.asked.clear()
    (tiny_folder / "README.md").write_text("no facts")
    with pytest.raises(CheckpointError, match="README.md says no licence"):
        push_to_hub(tiny_folder, "someone/shapes")
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors"):
        push_to_hub(tiny_folder, "someone/shapes")
    with pytest.raises(CheckpointError, match="names a revision"):
        push_to_hub(tiny_folder, "someone/shapes@v2")
    with pytest.raises(FileExistsError, match="not empty: name a new folder"):
        save_model(tiny_folder, "shapes_tiny", card=CARD)
    assert hub.asked == []


def test_classes_of_a_model_without_text_go_with_it(tiny_mask_cfg: Any, tmp_path: Path) -> None:
    model = build_model(tiny_mask_cfg)
    whole = portable_config(tiny_mask_cfg, model)
    assert whole.MODEL.CLASS_HEAD.CLASS_NAMES == list(model.classes.names)
    whole.DATASETS.TRAIN, whole.DATASETS.TEST = ("unknown_train",), ("unknown_val",)
    again = build_model(load_cfg(whole, ["MODEL.DEVICE", "cpu"]))
    assert again.classes == model.classes
    with pytest.raises(ValueError, match="CLASS_NAMES has 1 names"):
        build_model(load_cfg(whole, ["MODEL.DEVICE", "cpu", "MODEL.CLASS_HEAD.CLASS_NAMES", ["one"]]))


# --------------------------------------------------------------------------------------------------------- fetching


def test_a_published_name_means_a_configuration_and_its_weights(hub: Hub, tmp_path: Path) -> None:
    name = "IDEA-Research/grounding-dino-tiny"
    assert get_config_file(name) == get_config_file("swin_t_ogc") and hub.asked == []
    assert find_weights(load_cfg(name), name) == f"hf://{name}" == model_weights(name)
    assert find_weights(load_cfg(name, ["MODEL.WEIGHTS", "own.pth"]), name, ["MODEL.WEIGHTS", "own.pth"]) == "own.pth"
    hub.files[name] = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"others"}
    assert sorted(file.name for file in Path(local_path(f"hf://{name}")).iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_folder_of_transformers_says_its_configuration(hub: Hub) -> None:
    theirs = {"model_type": "mm-grounding-dino", "backbone_config": {"model_type": "swin", "embed_dim": 128}}
    hub.files["someone/theirs"] = {"config.json": json.dumps(theirs).encode(), "model.safetensors": b""}
    assert get_config_file("someone/theirs") == get_config_file("mm_swin_b")
    hub.files["someone/other"] = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b""}
    with pytest.raises(FileNotFoundError, match="someone/other says no configuration: .* --weights someone/other"):
        load_cfg("someone/other")


def test_shards_single_checkpoints_and_none(hub: Hub) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    hub.files["someone/shards"] = {"model.safetensors.index.json": index, **dict.fromkeys(shards, b"x"), "tf.h5": b""}
    folder = Path(local_path("someone/shards"))
    assert sorted(file.name for file in folder.iterdir()) == [*shards, "model.safetensors.index.json"]
    hub.files["someone/single"] = {"swin.pth": b"x", "notes.txt": b""}
    assert local_path("someone/single").endswith("/swin.pth")
    hub.files["someone/several"] = {"a.pth": b"x", "b.pth": b"y"}
    with pytest.raises(CheckpointError, match=r"someone/several has several checkpoints \(a.pth, b.pth\)"):
        local_path("someone/several")
    hub.files["someone/none"] = {"notes.txt": b""}
    with pytest.raises(CheckpointError, match="someone/none has no weights; it holds notes.txt"):
        local_path("someone/none")


@pytest.mark.parametrize(
    "config, message",
    [
        (b"_BASE_: /etc/passwd\n", "stands alone"),
        (b"!!python/object/apply:os.system ['touch harmed']\n", "not plain YAML"),
        (b"OUTPUT_DIR: /home\n", "sets OUTPUT_DIR to '/home'"),
        (b"MODEL:\n  WEIGHTS: https://example.com/a.pth\n", "sets MODEL.WEIGHTS to"),
    ],
)
def test_a_configuration_from_the_hub_names_no_files_and_runs_nothing(hub: Hub, config: bytes, message: str) -> None:
    hub.files["someone/sly"] = {"config.yaml": config, "model.safetensors": b""}
    with pytest.raises(CheckpointError, match=message):
        load_cfg("someone/sly")
    assert not Path("harmed").exists()


def test_what_cannot_be_had_says_how_to_get_it_by_hand(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="the hub has no such model, or it is private") as caught:
        load_cfg("someone/nothing")
    assert f"fetch {hub.address}/someone/nothing/resolve/main/model.safetensors" in str(caught.value)
    hub.files["someone/shapes"] = {"model.safetensors": b""}
    with pytest.raises(CheckpointError, match="no such revision"):
        load_cfg("someone/shapes@v7")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = "IDEA-Research/grounding-dino-base"
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids") as caught:
        local_path(name)
    hand = f"curl -LO {hub.address}/{name}/resolve/main/model.safetensors"
    assert hand in str(caught.value) and "--config-file swin_b_cogcoor --weights model.safetensors" in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"needs the package huggingface_hub .*\[hub\]") as caught:
        local_path(name)
    assert hand in str(caught.value)


@pytest.mark.slow
def test_the_demo_takes_a_name_and_the_variables_of_the_hub(hub: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    put(hub, "someone/shapes", tiny_folder)
    picture = str(ROOT / "demo" / "pictures" / "stars.jpg")
    command = [sys.executable, "-m", "grounding_dino", "demo", "--config-file", "someone/shapes", "--input", picture]
    command += ["--categories", "star", "--device", "cpu", "--json", "found.json"]
    environment = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "PATH": ""}
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 240}
    for extra in ({}, {"HF_HUB_OFFLINE": "1"}):
        hub.asked.clear()
        done = subprocess.run(command, env={**environment, **extra}, **options)
        assert done.returncode == 0 and Path("found.json").is_file(), done.stderr
        assert bool(hub.asked) != bool(extra)
        Path("found.json").unlink()
    assert (tmp_path / "home" / "hub" / "models--someone--shapes").is_dir()
