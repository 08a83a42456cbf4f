"""Where a checkpoint comes from, recognised from its key names, and its tensors in our names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grounding_dino.checkpoint.files import EXTRAS_PREFIX, STATE_KEYS, CheckpointError, read_checkpoint_file
from grounding_dino.checkpoint.rules import StateDict, Table
from grounding_dino.checkpoint.tables import (
    dino_official,
    glip_mmdet,
    glip_official,
    grounding_dino_huggingface,
    grounding_dino_mmdet,
    grounding_dino_official,
    mask_dino_official,
)

from torch import Tensor

OURS = "ours"


@dataclass(frozen=True)
class Format:
    """One origin's way to name one model: its `signature` is a pattern for each key that must be there."""

    origin: str
    model: str
    signature: tuple[str, ...]
    table_of: Callable[[Mapping[str, Tensor]], Table]  # of a state in our names or in theirs
    state_key: str = ""  # where the origin's files hold the tensors; "" at the top
    prefix: str = ""  # of every name in the origin's files


def _mmdet_table(tensors: Mapping[str, Tensor]) -> Table:
    """mmdet numbers projections of maps and of extra levels apart, and norms by the attentions that there are."""
    num_layers = _num_decoder_layers(tensors)
    has_text = any(".cross_attn_text." in name or ".text_attention." in name for name in tensors)
    convolutions = _indices(tensors, r"neck\.convs\.(\d+)\.")
    if convolutions:
        levels = len(convolutions) + len(_indices(tensors, r"neck\.extra_convs\.(\d+)\."))
        found = grounding_dino_mmdet.table(num_layers, len(convolutions), levels, has_text)
        trained_there = any(name.startswith("dn_query_generator.") for name in tensors)
        # mmdet's conversions of the authors' files have no denoising part
        return found if trained_there else dataclasses.replace(found, absent=(r"denoising\.",))
    levels = len(_indices(tensors, r"input_projection\.(\d+)\."))
    kernels = [tensors[name].shape[-1] for name in tensors if re.match(r"input_projection\.\d+\.0\.weight", name)]
    return grounding_dino_mmdet.table(num_layers, kernels.count(1) if kernels else min(3, levels), levels, has_text)


FORMATS = (
    Format(
        "official",
        "grounding_dino",
        (r"transformer\.encoder\.fusion_layers\.", r"bert\.", r"feat_map\."),
        lambda tensors: grounding_dino_official.table(_num_decoder_layers(tensors)),
        state_key="model",
        prefix="module.",
    ),
    Format(
        "official",
        "dino",
        (r"transformer\.decoder\.layers\.", r"transformer\.enc_out_class_embed\.", r"label_enc\."),
        lambda tensors: dino_official.table(_num_decoder_layers(tensors), tensors),
        state_key="model",
    ),
    Format(
        "official",
        "mask_dino",
        (r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.", r"sem_seg_head\.predictor\.decoder\.layers\."),
        lambda tensors: mask_dino_official.table(_num_decoder_layers(tensors), tensors),
        state_key="model",
    ),
    Format(
        "mmdet",
        "grounding_dino",
        (r"encoder\.fusion_layers\.", r"language_model\.language_backbone\.", r"text_feat_map\."),
        _mmdet_table,
        state_key="state_dict",
    ),
    Format(
        "mmdet",
        "dino",
        (r"encoder\.layers\.", r"decoder\.layers\.", r"memory_trans_fc\.", r"bbox_head\.cls_branches\.\d+\.weight"),
        _mmdet_table,
        state_key="state_dict",
    ),
    Format(
        "huggingface",
        "grounding_dino",
        (r"model\.encoder\.layers\.\d+\.fusion_layer\.", r"model\.text_backbone\.", r"model\.input_proj_vision\."),
        lambda tensors: grounding_dino_huggingface.table(_num_decoder_layers(tensors)),
    ),
    Format(
        "official",
        "glip",
        (r"rpn\.head\.dyhead_tower\.", r"language_backbone\.", r"backbone\.fpn\."),
        glip_official.table,
        state_key="model",
        prefix="module.",
    ),
    Format(
        "mmdet",
        "glip",
        (r"bbox_head\.head\.dyhead_tower\.", r"language_model\.language_backbone\.", r"neck\.lateral_convs\."),
        glip_mmdet.table,
        state_key="state_dict",
    ),
)
# of models that decode queries, and of GLIP
_OUR_SIGNATURES = (
    (r"transformer_decoder\.layers\.\d+\.", r"query_selection\."),
    (r"tower\.blocks\.\d+\.convolution\.", r"head\.level_scales$"),
)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in our names.

    `extras` are tensors that no module of ours holds (an unused pooler, constant tables, a training remnant); they
    are kept so that the file can be written back exactly. `unknown` are names that the origin's table does not know,
    `absent` patterns of our names that the origin has no place for, and `rest` whatever else the file holds
    (optimizer, iteration).
    """

    path: str
    origin: str
    model: str
    state: StateDict
    extras: StateDict = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    rest: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(path: str, mmap: bool = False) -> LoadedCheckpoint:
    """Read a checkpoint of any known origin from a local file or folder.

    Raises:
        CheckpointError: the file cannot be read, or its names belong to no known origin.
    """
    return translate_checkpoint(read_checkpoint_file(path, mmap), path)


def translate_checkpoint(content: Mapping[str, Any], path: str) -> LoadedCheckpoint:
    """The content of a checkpoint file, as `read_checkpoint_file` gives it, in our names."""
    tensors, extras, rest = split_content(content)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; its entries are {sorted(map(str, content))[:10]}")
    if any(_has_all(tensors, signature) for signature in _OUR_SIGNATURES):
        extras.update({k[len(EXTRAS_PREFIX) :]: v for k, v in tensors.items() if k.startswith(EXTRAS_PREFIX)})
        state = {k: v for k, v in tensors.items() if not k.startswith(EXTRAS_PREFIX)}
        return LoadedCheckpoint(path, OURS, model_of(state), state, extras, rest=rest)
    form = recognise(tensors, path)
    table = form.table_of(tensors)
    try:
        translation = table.to_ours(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path} ({form.origin}): {error}") from error
    state = dict(translation.state)
    for pattern in table.absent:  # training parameters that the origin's own files cannot hold come back from the side
        state.update({name: extras.pop(name) for name in list(extras) if re.match(pattern, name)})
    extras = {**translation.carried, **extras}
    return LoadedCheckpoint(path, form.origin, form.model, state, extras, translation.unknown, table.absent, rest)


def recognise(names: Iterable[str], path: str = "the checkpoint") -> Format:
    """The format whose signature the names bear."""
    names = list(names)
    for form in FORMATS:
        if _has_all(names, form.signature):
            return form
    known = sorted({form.origin for form in FORMATS} | {OURS})
    raise CheckpointError(
        f"{path} holds {len(names)} tensors of a model that is not known here ({', '.join(sorted(names)[:5])}, ...); "
        f"known are Grounding DINO and MM-Grounding-DINO from {', '.join(known)}, DINO and GLIP from their authors and "
        "mmdet, and the authors' Mask DINO. "
        "Weights of a backbone alone belong into MODEL.BACKBONE.WEIGHTS, of a text encoder alone into "
        "MODEL.TEXT_ENCODER.WEIGHTS"
    )


def model_of(state: Mapping[str, Tensor]) -> str:
    """Which of the models that formats name a state in our names is."""
    if any(name.startswith("tower.") for name in state):
        return "glip"
    if any(name.startswith("text_encoder.") for name in state):
        return "grounding_dino"
    return "mask_dino" if any(name.startswith("transformer_decoder.mask_head.") for name in state) else "dino"


def format_of(origin: str, model: str) -> Format:
    """The format by name.

    Raises:
        CheckpointError: the origin has no such model, or is not known.
    """
    for form in FORMATS:
        if (form.origin, form.model) == (origin, model):
            return form
    known = [form.origin for form in FORMATS if form.model == model]
    raise CheckpointError(f"no format {origin!r} of {model} is known here; choose from {[*known, OURS]}")


def split_content(content: Mapping[str, Any]) -> tuple[StateDict, StateDict, dict[str, Any]]:
    """(tensors with their wrapper's prefix removed, extras, everything else) of a checkpoint file."""
    rest = dict(content)
    tensors: Any = rest
    for key in STATE_KEYS:
        if isinstance(rest.get(key), Mapping):
            tensors = rest.pop(key)
            break
    extras = rest.pop("extras", None) if tensors is not rest else None
    state = {str(name): value.detach() for name, value in tensors.items() if isinstance(value, Tensor)}
    while state and all(name.startswith("module.") for name in state):
        state = {name[len("module.") :]: value for name, value in state.items()}
    if tensors is rest:
        rest = {name: value for name, value in rest.items() if not isinstance(value, Tensor)}
    extra_tensors = {k: v for k, v in extras.items() if isinstance(v, Tensor)} if isinstance(extras, Mapping) else {}
    return state, extra_tensors, rest


def _has_all(names: Iterable[str], patterns: Iterable[str]) -> bool:
    names = list(names)
    return all(any(re.match(pattern, name) for name in names) for pattern in patterns)


def _indices(names: Iterable[str], pattern: str) -> set[int]:
    return {int(match.group(1)) for name in names if (match := re.match(pattern, name))}


def _num_decoder_layers(names: Iterable[str]) -> int:
    """Decoder layers under the names of any format, ours among them."""
    decoders = r"(?:transformer_decoder|(?:transformer\.|model\.|sem_seg_head\.predictor\.)?decoder)"
    return max(_indices(names, rf"{decoders}\.layers\.(\d+)\."), default=-1) + 1
