"""Mask DINO as its authors name it (Detectron2 files with the key `model`).

Levels are finest first in all parts of ours. The authors' encoder has them finest first (their FEATURE_ORDER
`low2high`) or coarsest first (`high2low`), the extra level always last in the list of projections, and their decoder
reads them in the reverse of the encoder's order. Whatever is numbered by levels is permuted: level embeddings, and the
rows (heads, levels, points[, 2]) of sampling offsets and attention weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from grounding_dino.checkpoint.rules import COPIES, SAME, Join, Rule, Table, each
from grounding_dino.checkpoint.tables.backbones import swin_official
from grounding_dino.checkpoint.tables.grounding_dino_official import BOX_HEADS, CLASS_HEADS, attention

from torch import Tensor

_HEAD = "sem_seg_head."
_ENCODER = f"{_HEAD}pixel_decoder."
_DECODER = f"{_HEAD}predictor."
_POINTS = 4  # of each head and level: the authors' code has no key for it
_LEVEL_EMBED = (f"{_ENCODER}transformer.level_embed", "pixel_decoder.level_embed")
_PROJECTIONS = (f"{_ENCODER}input_proj.", "input_projection.")


def table(num_layers: int, tensors: Mapping[str, Tensor]) -> Table:
    """The rules for `tensors`, in their names or in ours, of a model with `num_layers` decoder layers."""
    num_levels = next((len(tensors[name]) for name in _LEVEL_EMBED if name in tensors), 0)
    coarsest_first = _encoder_is_coarsest_first(tensors, num_levels)
    rules = (
        *_backbone(),
        *_input_projection(num_levels, _num_inputs(tensors, num_levels), coarsest_first),
        *_pixel_decoder(num_levels, coarsest_first),
        *_query_selection(),
        *_transformer_decoder(num_levels, not coarsest_first, num_layers),
        # the weights of classes in the cross-entropy, which ours takes from the configuration
        Rule("carried.official.empty_weight", "criterion.empty_weight", carried=True),
    )
    return Table(rules, absent=(), num_layers=num_layers)


def _encoder_is_coarsest_first(tensors: Mapping[str, Tensor], num_levels: int) -> bool:
    """The order of their encoder, from the channels that the first two projections read.

    Our names do not tell it. The released models of three levels are `high2low`, those of more `low2high`; so they are
    written, and a configuration of theirs has to say the same.
    """
    first, second = (tensors.get(f"{_PROJECTIONS[0]}{i}.0.weight") for i in range(2))
    if first is None or second is None:
        return num_levels <= 3
    return first.shape[1] > second.shape[1]


def _num_inputs(tensors: Mapping[str, Tensor], num_levels: int) -> int:
    """Levels that are maps of the backbone: projections of extra levels have a larger kernel."""
    for prefix in _PROJECTIONS:
        weights = [tensors.get(f"{prefix}{i}.0.weight") for i in range(num_levels)]
        if any(weight is not None for weight in weights):
            return sum(weight is not None and weight.shape[-1] == 1 for weight in weights)
    return num_levels


def _backbone() -> list[Rule]:
    """Detectron2's ResNet, whose names are ours, and Swin."""
    return [
        *swin_official("backbone."),
        Rule("backbone.{rest}.num_batches_tracked", "backbone.{rest}.num_batches_tracked", carried=True),
        Rule("backbone.stem.{rest}", "backbone.stem.{rest}"),
        Rule("backbone.res{i}.{rest}", "backbone.res{i}.{rest}"),
    ]


def _input_projection(num_levels: int, num_inputs: int, coarsest_first: bool) -> list[Rule]:
    rules = []
    for level in range(num_levels):
        theirs = num_inputs - 1 - level if coarsest_first and level < num_inputs else level
        rules.append(Rule(f"input_projection.{level}.{{j}}.{{p}}", f"{_PROJECTIONS[0]}{theirs}.{{j}}.{{p}}"))
    return [
        *rules,
        *_convolution_and_norm("input_projection.mask_map", f"{_ENCODER}adapter_1"),
        *_convolution_and_norm("pixel_decoder.mask_features.output", f"{_ENCODER}layer_1"),
        Rule("pixel_decoder.mask_features.projection.{p}", f"{_ENCODER}mask_features.{{p}}"),
    ]


def _convolution_and_norm(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.0.{{p}}", f"{theirs}.{{p}}"), Rule(f"{ours}.1.{{p}}", f"{theirs}.norm.{{p}}")]


def _pixel_decoder(num_levels: int, reverse: bool) -> list[Rule]:
    ours, theirs = "pixel_decoder.layers.{i}.image_layer.", f"{_ENCODER}transformer.encoder.layers.{{i}}."
    flip = each(lambda tensor: tensor.flip(0), lambda tensor: tensor.flip(0)) if reverse else SAME
    return [
        Rule(_LEVEL_EMBED[1], _LEVEL_EMBED[0], flip),
        *_deformable(f"{ours}self_attention", f"{theirs}self_attn", num_levels, reverse),
        Rule(f"{ours}norm1.{{p}}", f"{theirs}norm1.{{p}}"),
        Rule(f"{ours}ffn.0.{{p}}", f"{theirs}linear1.{{p}}"),
        Rule(f"{ours}ffn.2.{{p}}", f"{theirs}linear2.{{p}}"),
        Rule(f"{ours}norm2.{{p}}", f"{theirs}norm2.{{p}}"),
    ]


def _deformable(ours: str, theirs: str, num_levels: int, reverse: bool) -> list[Rule]:
    rows = {"sampling_offsets": 2 * _POINTS, "attention_weights": _POINTS}  # of one head and level
    joins = {word: _reversed_levels(num_levels, count) if reverse else SAME for word, count in rows.items()}
    return [
        *(Rule(f"{ours}.{word}.{{p}}", f"{theirs}.{word}.{{p}}", join) for word, join in joins.items()),
        Rule(f"{ours}.{{rest}}", f"{theirs}.{{rest}}"),
    ]


def _reversed_levels(num_levels: int, rows: int) -> Join:
    """The join of rows (heads, levels, `rows`), the levels in the opposite order."""

    def reverse(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (-1, num_levels, rows)).flip(1).flatten(0, 2)

    return each(reverse, reverse)


def _query_selection() -> list[Rule]:
    return [
        Rule("query_selection.projection.{p}", f"{_DECODER}enc_output.{{p}}"),
        Rule("query_selection.norm.{p}", f"{_DECODER}enc_output_norm.{{p}}"),
        Rule("query_selection.content.{p}", f"{_DECODER}query_feat.{{p}}"),
        Rule("query_selection.reference_logits.{p}", f"{_DECODER}query_embed.{{p}}"),
    ]


def _transformer_decoder(num_levels: int, reverse: bool, num_layers: int) -> list[Rule]:
    ours, theirs = "transformer_decoder.layers.{i}.", f"{_DECODER}decoder.layers.{{i}}."
    words = {"norm_self": "norm2", "norm_cross": "norm1", "norm_ffn": "norm3", "ffn.0": "linear1", "ffn.2": "linear2"}
    head = "layers.{j}.{p}"
    box_heads = [f"bbox_embed.{i}.{head}" for i in range(num_layers)]
    # one box head, under the names of every layer, of the decoder and of the predictor
    names = (*(f"decoder.{name}" for name in box_heads), f"_bbox_embed.{head}", *box_heads)
    return [
        *attention(f"{ours}self_attention", f"{theirs}self_attn"),
        *_deformable(f"{ours}cross_attention", f"{theirs}cross_attn", num_levels, reverse),
        *(Rule(f"{ours}{a}.{{p}}", f"{theirs}{b}.{{p}}") for a, b in words.items()),
        Rule(
            "transformer_decoder.norm.{p}",
            tuple(f"{_DECODER}{n}.{{p}}" for n in ("decoder_norm", "decoder.norm")),
            COPIES,
        ),
        Rule(f"transformer_decoder.reference_head.{head}", f"{_DECODER}decoder.ref_point_head.{head}"),
        Rule(f"{BOX_HEADS}0.{head}", tuple(f"{_DECODER}{name}" for name in names), COPIES),
        Rule(f"{CLASS_HEADS}0.{{p}}", f"{_DECODER}class_embed.{{p}}"),
        Rule(f"transformer_decoder.mask_head.{head}", f"{_DECODER}mask_embed.{head}"),
        Rule("denoising.label_embedding.{p}", f"{_DECODER}label_enc.{{p}}"),
    ]
