"""Models of a hub by name, "owner/name" or "owner/name@revision": fetched by `huggingface_hub`, or found in its cache.

From a repository come its configuration and its weights, and of these .safetensors where it has them. Nothing of it is
run: its configuration is plain YAML without paths, its weights are read as those of any file are.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.files import EXTRAS_FILE, CheckpointError

import yaml

logger = logging.getLogger(__name__)

_TIMEOUT = 10.0  # seconds without an answer to the first question
HUB_PREFIX = "hf://"
CONFIG_FILE = "config.yaml"  # of this project: a whole configuration
THEIR_CONFIG_FILE = "config.json"  # of transformers
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
INSTALL = 'pip install "grounding-dino-detectron2[hub]"'

# Repositories of published models that say nothing of this project -> the configuration that their weights fit.
HUB_CONFIGS = {
    "IDEA-Research/grounding-dino-tiny": "swin_t_ogc",
    "IDEA-Research/grounding-dino-base": "swin_b_cogcoor",
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg": "mm_swin_t_o365_goldg",
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit": "mm_swin_t_o365_goldg_grit",
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det": "mm_swin_t_o365_goldg_v3det",
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit_v3det": "mm_swin_t",
    "openmmlab-community/mm_grounding_dino_base_o365v1_goldg_v3det": "mm_swin_b_o365_goldg_v3det",
    "openmmlab-community/mm_grounding_dino_base_all": "mm_swin_b",
    "openmmlab-community/mm_grounding_dino_large_o365v2_oiv6_goldg": "mm_swin_l_o365v2_oi_goldg",
    "openmmlab-community/mm_grounding_dino_large_all": "mm_swin_l",
}
# Others in the format of transformers: the type and the channels of the Swin in their config.json -> configuration.
_CONFIGS_OF_THEIRS = {
    ("grounding-dino", 96): "swin_t_ogc",
    ("grounding-dino", 128): "swin_b_cogcoor",
    ("mm-grounding-dino", 96): "mm_swin_t",
    ("mm-grounding-dino", 128): "mm_swin_b",
    ("mm-grounding-dino", 192): "mm_swin_l",
}
_SWIN_CHANNELS = 96  # where config.json leaves them out
# Keys that name files of a machine, or what a training starts from. A configuration that comes from elsewhere has none.
LOCAL_KEYS = (
    *("OUTPUT_DIR", "DATASETS.EXTRA", "MODEL.WEIGHTS", "MODEL.BACKBONE.WEIGHTS", "MODEL.TEXT_ENCODER.WEIGHTS"),
    *("MODEL.TEXT_ENCODER.VOCABULARY", "MODEL.LORA.WEIGHTS", "MODEL.RELEASE.URL", "MODEL.TIMM.PRETRAINED_ON"),
)

_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?$")
_WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt", ".pkl", ".bin")
_OTHER_ENDINGS = (".yaml", ".yml", ".py", ".json", ".onnx")
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)$")


@dataclass(frozen=True)
class HubName:
    """A repository of models, and a branch, tag or commit of it."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"

    def address(self, file: str) -> str:
        """Where one of its files is fetched by hand."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/{self.revision}/{file}"


def hub_name(text: str | os.PathLike[str]) -> HubName | None:
    """The repository that `text` names; None where it names something else.

    Behind "hf://" it is always one. Without, what is on the disk comes first: a file or folder of that name, and
    anything below a folder that is there, be it misspelt. So does what ends like a file.
    """
    text = os.fspath(text)
    forced = text.startswith(HUB_PREFIX)
    match = _NAME.match(text.removeprefix(HUB_PREFIX))
    if match is None:
        if forced:
            raise CheckpointError(
                f"{text!r} is no name of a model on a hub; write {HUB_PREFIX}owner/name, or ...@revision"
            )
        return None
    repository = match["repository"]
    if not forced:
        is_file = repository.lower().endswith((*_WEIGHTS_ENDINGS, *_OTHER_ENDINGS))
        if is_file or os.path.exists(text) or os.path.isdir(repository.split("/")[0]):
            return None
    return HubName(repository, match["revision"] or "main")


@functools.cache
def fetch(name: HubName) -> Path:
    """The local folder with the configuration and the weights of a repository; asked for once in a process.

    Without a network, or under HF_HUB_OFFLINE, it is what the hub's cache (HF_HOME) holds.

    Raises:
        CheckpointError: neither gives it; the message says how to get the file by hand.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{str(name)!r} is no file or folder here, and as a name on the hub it needs the package huggingface_hub "
            f"({error}): {INSTALL}. {by_hand(name)}"
        ) from None
    try:
        listed = HfApi().model_info(name.repository, revision=name.revision, timeout=_TIMEOUT).siblings or []
        wanted = wanted_files(name, [file.rfilename for file in listed])
        logger.info("%s: %s", name, ", ".join(wanted))
        folder = snapshot_download(name.repository, revision=name.revision, allow_patterns=wanted)
    except CheckpointError:
        raise
    except Exception as error:  # which package does the hub's HTTP, and its errors, differ from release to release
        cached = _cached(name)
        if cached is None:
            raise CheckpointError(_unreachable(name, error)) from error
        logger.info("%s is taken from the cache, %s (%s)", name, cached, reason_of(error))
        return cached
    return Path(folder)


def weights_of(folder: Path) -> str:
    """What to load of a folder with a model: the folder itself, or the one file of weights in it.

    Raises:
        CheckpointError: it holds no weights, or several files of them.
    """
    names = weight_files([file.name for file in folder.iterdir() if file.is_file()], str(folder))
    return str(folder / names[0]) if _is_alone(names) else str(folder)


def config_of(folder: Path, name: HubName | None = None) -> str | None:
    """The configuration of a folder with a model: a file, or a short name; None where it holds none.

    Args:
        name: the repository that the folder was fetched from; None for one of the user's own.

    Raises:
        CheckpointError: the configuration of a repository is none, or names files.
    """
    if name is not None and name.repository in HUB_CONFIGS:
        return HUB_CONFIGS[name.repository]
    file = folder / CONFIG_FILE
    if file.is_file():
        if name is not None:
            check_foreign_config(file, str(name))
        return str(file)
    try:
        theirs = json.loads((folder / THEIR_CONFIG_FILE).read_text(encoding="utf-8"))
        backbone = theirs.get("backbone_config") or {}
        return _CONFIGS_OF_THEIRS.get((theirs.get("model_type"), backbone.get("embed_dim", _SWIN_CHANNELS)))
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def check_foreign_config(file: Path, source: str) -> None:
    """See that a configuration from elsewhere is plain values that stand alone.

    Raises:
        CheckpointError: it is no YAML mapping, builds on another file, or names files and folders.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the {CONFIG_FILE} of {source} is not plain YAML: {error}") from error
    if not isinstance(content, dict) or "_BASE_" in content:
        raise CheckpointError(f"the {CONFIG_FILE} of {source} is not a whole configuration that stands alone")
    for key in LOCAL_KEYS:
        value: Any = content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value and not (key == "OUTPUT_DIR" and value == "./output"):
            raise CheckpointError(
                f"the {CONFIG_FILE} of {source} sets {key} to {value!r}, which is for its user to say: fetch it, look "
                "into it, and load the folder if it is meant so"
            )


def wanted_files(name: HubName, files: Sequence[str]) -> list[str]:
    """Of all files of a repository those that matter: configuration, card, weights."""
    configs = [file for file in (CONFIG_FILE, THEIR_CONFIG_FILE, CARD_FILE) if file in files]
    return [*configs, *weight_files(files, str(name))]


def weight_files(files: Iterable[str], place: str) -> list[str]:
    """The files of weights, .safetensors before others: one model file, its shards, or a single checkpoint.

    Raises:
        CheckpointError: `place` has none, or several checkpoints.
    """
    top = sorted(file for file in files if "/" not in file)
    extras = [file for file in top if file == EXTRAS_FILE]
    for single in (WEIGHTS_FILE, "pytorch_model.bin"):
        if single in top:
            return [single, *extras]
        if f"{single}.index.json" in top:
            ending = Path(single).suffix
            shards = [file for file in top if _SHARD.match(file) and file.endswith(ending)]
            return [f"{single}.index.json", *shards, *extras]
    alone = [file for file in top if file.endswith(_WEIGHTS_ENDINGS) and file not in extras]
    if len(alone) == 1:
        return alone
    held = (
        f"several checkpoints ({', '.join(alone)}); fetch one and name the file"
        if alone
        else (f"no weights; it holds {', '.join(top[:8]) or 'nothing'}{', ...' if len(top) > 8 else ''}")
    )
    raise CheckpointError(f"{place} has {held}")


def _is_alone(names: list[str]) -> bool:
    return len(names) == 1 and names[0] not in (WEIGHTS_FILE, "pytorch_model.bin")


def _cached(name: HubName) -> Path | None:
    """The folder of a repository in the cache, if its weights are there."""
    from huggingface_hub import snapshot_download

    try:
        # no pattern: whatever of it is there, since what it has besides cannot be asked
        folder = Path(
            snapshot_download(name.repository, revision=name.revision, local_files_only=True, allow_patterns=[])
        )
        weights_of(folder)
    except (OSError, ValueError) as error:
        logger.debug("%s is not in the cache: %s", name, error)
        return None
    return folder


def by_hand(name: HubName) -> str:
    """How to get the weights of a repository without `huggingface_hub`, or without a network."""
    config = HUB_CONFIGS.get(name.repository)
    if config:
        return (
            f"By hand, on a machine with a network: curl -LO {name.address(WEIGHTS_FILE)}, and then name the file: "
            f"--config-file {config} --weights {WEIGHTS_FILE}, or load_predictor({config!r}, {WEIGHTS_FILE!r})"
        )
    folder = name.repository.split("/")[1]
    return (
        f"By hand, on a machine with a network: fetch {name.address(WEIGHTS_FILE)} and {name.address(CONFIG_FILE)} (or "
        f"{THEIR_CONFIG_FILE}, where it has that) into one folder, and then name it: --config-file ./{folder}, or "
        f"load_predictor('./{folder}')"
    )


def _unreachable(name: HubName, error: Exception) -> str:
    """Why a repository cannot be had."""
    return (
        f"{str(name)!r} is no file or folder here, it is not in the hub's cache, and it cannot be fetched: "
        f"{reason_of(error)}. {by_hand(name)}"
    )


def reason_of(error: Exception) -> str:
    """What the hub, or the way to it, says, in words."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "its owner gives it to those who ask; do so on its page, and log in (hf auth login, or HF_TOKEN)"
    if kind == "RepositoryNotFoundError":
        return "the hub has no such model, or it is private (hf auth login, or HF_TOKEN)"
    if kind == "RevisionNotFoundError":
        return "the model has no such revision"
    if kind == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE forbids to ask the hub"
    return str(error).strip().split("\n")[0].rstrip(".") or kind
