"""BERT's weights from a local folder or file, under the names that published files use."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

logger = logging.getLogger(__name__)

FILE_NAMES = ("model.safetensors", "pytorch_model.bin", "model.pth")  # looked for in a folder, in this order

_PREFIX = re.compile(r"^(module\.)?(bert\.)?")
_UNUSED = re.compile(r"^(pooler|cls)\.|^embeddings\.(position_ids|token_type_ids)$")
_OLD_LEAVES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def load_bert_weights(bert: nn.Module, source: str) -> None:
    """Fill `bert` from a folder or a file (.safetensors, else a PyTorch file without code).

    The pooler and the pre-training heads are dropped; every other name and shape must fit.

    Raises:
        FileNotFoundError: no such file, or no weights in the folder.
        ValueError: the file cannot be read, or its tensors are not those of `bert`.
    """
    path = _weights_file(Path(source).expanduser())
    weights = rename_bert_weights(_read(path))
    expected = bert.state_dict()
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    misshapen = [
        f"{name} {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(weights))
        if weights[name].shape != expected[name].shape
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{path} does not hold the weights of this text encoder: missing {_listed(missing)}; unexpected "
            f"{_listed(unexpected)}; of another shape {_listed(misshapen)}; check MODEL.TEXT_ENCODER.WEIGHTS and the "
            "sizes beside it (NUM_LAYERS, HIDDEN_SIZE, FFN_DIM, MAX_POSITIONS, VOCABULARY_SIZE)"
        )
    bert.load_state_dict(weights)
    logger.info("text encoder weights from %s", path)


def rename_bert_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> names of :class:`grounding_dino.text.bert.Bert`, which are those of today's files."""
    renamed = {}
    for name, value in weights.items():
        name = _PREFIX.sub("", name)
        if _UNUSED.match(name):
            continue
        for old, new in _OLD_LEAVES:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        for name in FILE_NAMES:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"no BERT weights in the folder {path}; it must hold one of {list(FILE_NAMES)}")
    if not path.is_file():
        raise FileNotFoundError(f"no BERT weights at {path}; set MODEL.TEXT_ENCODER.WEIGHTS to a local file or folder")
    return path


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"the BERT weights {path} cannot be read: {error}") from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} does not hold a dictionary of tensors; give a BERT state dict")
    return weights


def _listed(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + rest
