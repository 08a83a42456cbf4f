"""A folder that Hugging Face's `transformers` loads: weights, configuration, image processor and tokenizer."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.checkpoint.files import EXTRAS_FILE, CheckpointError
from grounding_dino.checkpoint.rules import StateDict
from grounding_dino.checkpoint.saving import save_safetensors, to_half, translate_for
from grounding_dino.text.tokenizer import ASSETS, DEFAULT_VOCABULARY

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_WEIGHTS_FILE = "model.safetensors"
_BERT_HEAD_DIM = 64
_WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class HeadCounts:
    """What no shape of a tensor tells: the published models' numbers of points and heads."""

    num_points: int = 4
    decoder_heads: int = 8
    text_encoder_heads: int = 0  # 0: one a 64 channels, as BERT


def save_huggingface_folder(
    folder: str,
    state: Mapping[str, Tensor],
    extras: Mapping[str, Tensor] | None = None,
    half: bool = False,
    heads: HeadCounts = HeadCounts(),
    vocabulary: str = "",
) -> None:
    """Write our `state` as a folder for `GroundingDinoForObjectDetection` or `MMGroundingDinoForObjectDetection`.

    Which of the two is told by the class bias. `extras`, and parameters of training that `transformers` lacks, go to a
    file of their own, which `transformers` does not read. The files appear in `folder` when all are written.

    Raises:
        CheckpointError: `transformers` is missing or old, or cannot express the shape of the model.
    """
    try:
        from transformers import MMGroundingDinoConfig  # noqa: F401  # the youngest of what is needed
    except ImportError as error:
        raise CheckpointError(
            f"writing a Hugging Face folder needs the package transformers, 4.56 or newer ({error}); "
            'pip install "transformers>=4.56,<6"'
        ) from None
    tensors, aside = translate_for("huggingface", state, extras or {})
    if half:
        tensors, aside = to_half(tensors), to_half(aside)
    config = _config(state, heads)
    os.makedirs(folder, exist_ok=True)
    staging = tempfile.mkdtemp(prefix=".writing-", dir=folder)
    try:
        if half:
            config.dtype = "float16"
        config.save_pretrained(staging)
        _save_processor(staging, vocabulary or DEFAULT_VOCABULARY, len(state["text_encoder.bert." + _WORDS]))
        if aside:
            save_safetensors(os.path.join(staging, EXTRAS_FILE), aside)
        save_safetensors(os.path.join(staging, _WEIGHTS_FILE), tensors)
        if not aside and os.path.exists(os.path.join(folder, EXTRAS_FILE)):
            os.remove(os.path.join(folder, EXTRAS_FILE))  # of what stood here before
        for name in sorted(os.listdir(staging), key=lambda name: name == _WEIGHTS_FILE):
            os.replace(os.path.join(staging, name), os.path.join(folder, name))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _save_processor(folder: str, vocabulary: str, num_words: int) -> None:
    from transformers import BertTokenizer, GroundingDinoImageProcessor, GroundingDinoProcessor
    from transformers import __version__ as version

    path = Path(vocabulary) if Path(vocabulary).is_file() else Path(ASSETS) / vocabulary
    words = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if len(words) != num_words:
        raise CheckpointError(f"the vocabulary {path} has {len(words)} words, the text encoder {num_words}")
    if int(version.split(".", 1)[0]) < 5:
        tokenizer = BertTokenizer(str(path))
    else:  # there a file would make every word unknown
        tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    images = GroundingDinoImageProcessor()
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    images.save_pretrained(folder)  # older releases look for preprocessor_config.json
    shutil.copyfile(path, os.path.join(folder, "vocab.txt"))


def _config(state: Mapping[str, Tensor], heads: HeadCounts) -> PreTrainedConfig:
    from transformers import GroundingDinoConfig, MMGroundingDinoConfig

    options = _transformer_options(dict(state), heads)
    options["backbone_config"] = _swin_options(state)
    options["text_config"] = _bert_options(state, heads)
    options["decoder_bbox_embed_share"] = not _holds(state, "transformer_decoder.box_heads.1.")
    if not _holds(state, "transformer_decoder.class_heads."):
        config: PreTrainedConfig = GroundingDinoConfig(**options)
        config.architectures = ["GroundingDinoForObjectDetection"]
        return config
    options["decoder_cls_embed_share"] = not _holds(state, "transformer_decoder.class_heads.1.")
    config = MMGroundingDinoConfig(**options)
    config.architectures = ["MMGroundingDinoForObjectDetection"]
    return config


def _holds(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return max((int(match.group(1)) + 1 for name in state if (match := re.match(pattern, name))), default=0)


def _transformer_options(state: StateDict, heads: HeadCounts) -> dict[str, Any]:
    levels, dim = state["pixel_decoder.level_embed"].shape
    first = "pixel_decoder.layers.0."
    attention_rows = len(state[f"{first}image_layer.self_attention.attention_weights.bias"])
    encoder_ffn = len(state[f"{first}image_layer.ffn.0.bias"])
    widths = {len(state[f"{first}{name}.bias"]) for name in ("text_layer.ffn.0", "fusion.attention.query_image")}
    if widths != {encoder_ffn // 2}:
        raise CheckpointError(
            f"transformers' Grounding DINO has text layers and fusion half as wide as the encoder's FFN "
            f"({encoder_ffn}), but here they are {sorted(widths)} wide"
        )
    return {
        "d_model": dim,
        "num_feature_levels": levels,
        "num_queries": len(state["query_selection.content.weight"]),
        "encoder_layers": _count(state, r"pixel_decoder\.layers\.(\d+)\."),
        "decoder_layers": _count(state, r"transformer_decoder\.layers\.(\d+)\."),
        "encoder_ffn_dim": encoder_ffn,
        "decoder_ffn_dim": len(state["transformer_decoder.layers.0.ffn.0.bias"]),
        "encoder_attention_heads": attention_rows // (levels * heads.num_points),
        "decoder_attention_heads": heads.decoder_heads,
        "encoder_n_points": heads.num_points,
        "decoder_n_points": heads.num_points,
    }


def _swin_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    tables = [
        state[f"backbone.layers.{i}.blocks.0.attention.relative_position_bias_table"]
        for i in range(_count(state, r"backbone\.layers\.(\d+)\."))
    ]
    window = (round(len(tables[0]) ** 0.5) + 1) // 2  # (2 window - 1)^2 rows
    return {
        "model_type": "swin",
        "embed_dim": len(state["backbone.patch_embed.projection.bias"]),
        "depths": [_count(state, rf"backbone\.layers\.{i}\.blocks\.(\d+)\.") for i in range(len(tables))],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": window,
        "image_size": 32 * window,  # of the classifier it began as
        "out_features": sorted({name.split(".")[2] for name in state if name.startswith("backbone.norms.")}),
    }


def _bert_options(state: Mapping[str, Tensor], heads: HeadCounts) -> dict[str, Any]:
    bert = {name[len("text_encoder.bert.") :]: t for name, t in state.items() if name.startswith("text_encoder.bert.")}
    words, hidden = bert[_WORDS].shape
    return {
        "model_type": "bert",
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": _count(bert, r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": heads.text_encoder_heads or max(1, hidden // _BERT_HEAD_DIM),
        "intermediate_size": len(bert["encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(bert["embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(bert["embeddings.token_type_embeddings.weight"]),
    }
