"""Which configuration a checkpoint fits, read off the shapes of its tensors; for error messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from grounding_dino.checkpoint.origins import model_of
from grounding_dino.checkpoint.tables.grounding_dino_official import BOX_HEADS, CLASS_HEADS

from torch import Tensor

_SWIN_NAMES = {96: "Swin-T", 128: "Swin-B", 192: "Swin-L"}
_CONVNEXT_NAMES = {128: "ConvNeXt-B", 192: "ConvNeXt-L", 256: "ConvNeXt-XL"}
_RESNET_3 = {"backbone": "ResNet-50", "num_levels": 3, "encoder_ffn": 1024}
_RESNET_4 = {"backbone": "ResNet-50", "num_levels": 4}
_SWIN_5 = {"backbone": "Swin-L", "num_levels": 5}
_MODEL_NAMES = {"grounding_dino": "Grounding DINO", "dino": "DINO", "mask_dino": "Mask DINO"}
_GLIP = "glip"


@dataclass(frozen=True)
class Architecture:
    """What the tensors of a checkpoint tell about a model that decodes queries, in our names."""

    model: str
    backbone: str
    embed_dim: int
    num_levels: int
    encoder_ffn: int
    columns: int  # of the class head; 0 for models with text
    class_bias: bool
    projection_bias: bool
    separate_box_heads: bool
    learned_queries: bool

    def __str__(self) -> str:
        heads = "one box head a layer" if self.separate_box_heads else "one box head for all layers"
        classes = "a class bias" if self.class_bias else "no class bias"
        if self.columns:
            classes = f"{self.columns} columns of the class head"
        queries = ", learned queries" if self.learned_queries else ""
        size = f"{self.backbone}, {self.embed_dim} channels, {self.num_levels} levels"
        return f"{_MODEL_NAMES[self.model]}, {size}, {heads}, {classes}{queries}"


@dataclass(frozen=True)
class DenseArchitecture:
    """The same of GLIP."""

    backbone: str
    embed_dim: int
    num_blocks: int
    deep_fusion: bool
    prompt_vectors: int  # 0 without prompt tuning
    model: str = _GLIP

    def __str__(self) -> str:
        fusion = "with" if self.deep_fusion else "without"
        vectors = f", {self.prompt_vectors} prompt vectors" if self.prompt_vectors else ""
        size = f"{self.backbone}, {self.embed_dim} channels, {self.num_blocks} blocks"
        return f"GLIP, {size} {fusion} fusion of text and picture{vectors}"


# The first row whose facts agree is the likely config in configs/; `columns` may differ where no other row has them.
_CONFIGS: tuple[tuple[str, dict[str, object]], ...] = tuple(
    (name, {"model": name.split("/")[0], "embed_dim": 128 if "/shapes_" in name else 256, **facts})
    for name, facts in (
        ("grounding_dino/swin_t_ogc", {"backbone": "Swin-T", "class_bias": False}),
        ("grounding_dino/swin_b_cogcoor", {"backbone": "Swin-B", "class_bias": False}),
        ("grounding_dino/r50_scratch", {"backbone": "ResNet-50"}),
        ("grounding_dino/mm_swin_t", {"backbone": "Swin-T", "class_bias": True}),
        ("grounding_dino/mm_swin_b", {"backbone": "Swin-B", "class_bias": True}),
        ("grounding_dino/mm_swin_l", {"backbone": "Swin-L", "class_bias": True}),
        ("grounding_dino/shapes_tiny", {"backbone": "a timm model"}),
        ("dino/mmdet_r50_4scale_12ep", {**_RESNET_4, "columns": 80, "projection_bias": False}),
        ("dino/mmdet_swin_l_5scale_12ep", {**_SWIN_5, "columns": 80, "projection_bias": False}),
        ("dino/r50_4scale_12ep", {**_RESNET_4, "columns": 91}),
        ("dino/r50_5scale_12ep", {"backbone": "ResNet-50", "num_levels": 5, "columns": 91}),
        ("dino/swin_l_4scale_12ep", {"backbone": "Swin-L", "num_levels": 4, "columns": 91}),
        ("dino/swin_l_5scale_12ep", {**_SWIN_5, "columns": 91}),
        ("dino/convnext_xl_4scale_12ep", {"backbone": "ConvNeXt-XL", "num_levels": 4, "columns": 91}),
        ("mask_dino/coco/r50_instance_hid1024", {**_RESNET_3, "learned_queries": False, "columns": 80}),
        ("mask_dino/coco/r50_instance", {**_RESNET_4, "columns": 80}),
        ("mask_dino/coco/swin_l_instance", {**_SWIN_5, "columns": 80}),
        ("mask_dino/coco/r50_panoptic", {**_RESNET_4, "columns": 133}),
        ("mask_dino/coco/swin_l_panoptic", {**_SWIN_5, "columns": 133}),
        ("mask_dino/lvis/r50_instance_lvis", {**_RESNET_4, "columns": 1203}),
        ("mask_dino/ade20k/r50_semantic", {**_RESNET_3, "learned_queries": True, "columns": 151}),
        ("mask_dino/cityscapes/r50_semantic", {**_RESNET_3, "learned_queries": True, "columns": 20}),
        ("mask_dino/shapes_tiny_panoptic", {"backbone": "a timm model"}),
        ("glip/glip_t", {"backbone": "Swin-T", "num_blocks": 6, "deep_fusion": True}),
        ("glip/glip_t_a", {"backbone": "Swin-T", "num_blocks": 6, "deep_fusion": False}),
        ("glip/glip_l", {"backbone": "Swin-L", "num_blocks": 8, "deep_fusion": True}),
        ("glip/glip_shapes_tiny", {"backbone": "a timm model", "embed_dim": 96, "num_blocks": 2, "deep_fusion": True}),
    )
)
_SHARED_HEAD_CONFIGS = ("swin_t_ogc", "swin_b_cogcoor", "shapes_tiny")


def describe_architecture(state: Mapping[str, Tensor]) -> Architecture | DenseArchitecture | None:
    """The architecture of a whole model's tensors; None where they are not of one."""
    if model_of(state) == _GLIP:
        return _dense(state)
    levels = state.get("pixel_decoder.level_embed")
    if levels is None or levels.ndim != 2:
        return None
    head = state.get(f"{CLASS_HEADS}0.weight")
    feed_forward = state.get("pixel_decoder.layers.0.image_layer.ffn.0.weight")
    return Architecture(
        model=model_of(state),
        backbone=_backbone(state),
        embed_dim=levels.shape[1],
        num_levels=levels.shape[0],
        encoder_ffn=0 if feed_forward is None else len(feed_forward),
        columns=0 if head is None else len(head),
        class_bias=f"{CLASS_HEADS}0.bias" in state,
        projection_bias="input_projection.0.0.bias" in state,
        separate_box_heads=any(name.startswith(f"{BOX_HEADS}1.") for name in state),
        learned_queries="query_selection.reference_logits.weight" in state,
    )


def _dense(state: Mapping[str, Tensor]) -> DenseArchitecture | None:
    boxes, vectors = state.get("head.box.weight"), state.get("prompt_vectors.weight")
    if boxes is None or boxes.ndim != 4:
        return None
    return DenseArchitecture(
        backbone=_backbone(state),
        embed_dim=boxes.shape[1],
        num_blocks=len({match[1] for name in state if (match := re.match(r"tower\.blocks\.(\d+)\.", name))}),
        deep_fusion=any(re.match(r"tower\.blocks\.\d+\.fusion\.", name) for name in state),
        prompt_vectors=0 if vectors is None else len(vectors),
    )


def _backbone(state: Mapping[str, Tensor]) -> str:
    patches = state.get("backbone.patch_embed.projection.weight")
    if patches is not None:
        return _SWIN_NAMES.get(patches.shape[0], f"a Swin of {patches.shape[0]} channels")
    if "backbone.stem.conv1.weight" in state:
        blocks = {match.group(1) for name in state if (match := re.match(r"backbone\.res4\.(\d+)\.", name))}
        return {6: "ResNet-50", 23: "ResNet-101"}.get(len(blocks), "a ResNet")
    patches = state.get("backbone.model.stem_0.weight")
    if patches is not None and any(name.startswith("backbone.model.stages_0.blocks.0.conv_dw.") for name in state):
        return _CONVNEXT_NAMES.get(len(patches), f"a ConvNeXt of {len(patches)} channels")
    return "a timm model"


def likely_config(state: Mapping[str, Tensor]) -> str:
    """A sentence that names the configuration which fits these tensors."""
    architecture = describe_architecture(state)
    if architecture is None:
        return "the checkpoint does not hold a whole model"
    for free in ((), ("columns",)):
        for name, facts in _CONFIGS:
            if all(getattr(architecture, key) == value for key, value in facts.items() if key not in free):
                options = _options(architecture, name, facts)
                advice = f"configs/{name}.yaml" + (f" with {', '.join(options)}" if options else "")
                return f"the checkpoint holds {architecture}: {advice} fits it"
    return f"the checkpoint holds {architecture}: no configuration in configs/ is of this kind"


def _options(architecture: Architecture | DenseArchitecture, config: str, facts: Mapping[str, object]) -> list[str]:
    """What has to be set besides the configuration."""
    if isinstance(architecture, DenseArchitecture):
        rows = architecture.prompt_vectors
        return [f"MODEL.DENSE_HEAD.PROMPT_VECTORS {rows}"] if rows else []
    options = []
    if architecture.separate_box_heads and config.rsplit("/", 1)[-1] in _SHARED_HEAD_CONFIGS:
        options.append("MODEL.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON False")
    if architecture.columns != facts.get("columns", architecture.columns):
        classes = architecture.columns - architecture.learned_queries  # a softmax has one column more
        options.append(f"MODEL.CLASS_HEAD.NUM_CLASSES {classes}")
        if architecture.model == "dino":
            options.append("MODEL.CLASS_HEAD.CATEGORY_IDS []")
    return options
