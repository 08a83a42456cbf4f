"""GLIP (Li et al., "Grounded language-image pre-training", CVPR 2022): a dense detector that text is fused into."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from grounding_dino.modeling.dense_head.anchors import place_anchors
from grounding_dino.modeling.dense_head.dense_criterion import DenseCriterion
from grounding_dino.modeling.dense_head.detections import DenseDetections
from grounding_dino.modeling.dense_head.dyhead import DyHead
from grounding_dino.modeling.dense_head.options import check_options
from grounding_dino.modeling.dense_head.token_head import TokenHead
from grounding_dino.modeling.fixed_classes import FixedClasses
from grounding_dino.modeling.meta_arch.detector import (
    PictureFormat,
    PromptedDetector,
    PromptLimits,
    backbone_of,
    groups_of_equal_size,
    padded_to_multiple,
    shapes_of_maps,
    size_of,
)
from grounding_dino.structures import DensePredictions, Prompt, TextFeatures
from grounding_dino.text.text_encoder import build_text_encoder

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

NUM_EXTRA_LEVELS = 2  # of the pyramid, beyond the backbone's maps

# The index of a picture, one of its prompts, and what was found, without a batch axis.
Found = tuple[int, Prompt, DensePredictions]


@META_ARCH_REGISTRY.register()
class GLIP(PromptedDetector):
    """Pictures and prompts to losses or `Instances`."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        pyramid: nn.Module,
        text_encoder: nn.Module | None,
        prompt_vectors: nn.Embedding | None,
        tower: nn.Module,
        head: nn.Module,
        anchor_scale: float,
        criterion: DenseCriterion,
        detections: DenseDetections,
        pictures: PictureFormat,
        limits: PromptLimits,
    ) -> None:
        """
        Args:
            in_features: names of the backbone's maps, finest first.
            pyramid: from these maps to as many, and NUM_EXTRA_LEVELS of twice the stride each.
            prompt_vectors: learned vectors added to the text's features by place (prompt tuning); None without.
            tower: see :class:`DyHead`.
            head: see :class:`TokenHead`.
            anchor_scale: side of the anchors in strides.
        """
        super().__init__(
            backbone=backbone,
            text_encoder=text_encoder,
            classes=None,
            pictures=pictures,
            limits=limits,
        )
        self.in_features = list(in_features)
        self.pyramid = pyramid
        self.strides = _strides(backbone, self.in_features)
        self.prompt_vectors = prompt_vectors
        self.tower = tower
        self.head = head
        self.anchor_scale = anchor_scale
        self.criterion = criterion
        self.detections = detections

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that the configuration names.

        Raises:
            ValueError: it asks for what GLIP has not, or for maps that the backbone does not give.
        """
        from torchvision.ops import FeaturePyramidNetwork  # on use: it takes seconds to import
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        check_options(cfg)
        backbone = backbone_of(cfg)
        head, text, dim = cfg.MODEL.DENSE_HEAD, cfg.MODEL.TEXT_ENCODER, cfg.MODEL.EMBED_DIM
        shapes = shapes_of_maps(cfg, backbone, "MODEL.DENSE_HEAD.IN_FEATURES", head.IN_FEATURES)
        channels = [int(shape.channels or 0) for shape in shapes]
        return {
            "backbone": backbone,
            "in_features": head.IN_FEATURES,
            "pyramid": FeaturePyramidNetwork(channels, dim, extra_blocks=LastLevelP6P7(dim, dim)),
            "text_encoder": build_text_encoder(cfg),
            "prompt_vectors": _prompt_vectors(head.PROMPT_VECTORS, text.HIDDEN_SIZE),
            "tower": DyHead(cfg),
            "head": TokenHead(dim, text.HIDDEN_SIZE, len(channels) + NUM_EXTRA_LEVELS),
            "anchor_scale": head.ANCHOR_SCALE,
            "criterion": DenseCriterion(cfg),
            "detections": DenseDetections.from_config(cfg),
            "pictures": PictureFormat.from_config(cfg, padding_counts=True),
            "limits": PromptLimits.from_config(cfg),
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses by name in training, else one dict a picture with `instances` (see `DenseDetections.of_picture`).

        Each input has `image` (C, H, W) uint8 or float 0 to 255, and `categories` or `caption` (with optional
        `phrases`); in training also `instances`, whose `gt_classes` count that picture's categories or phrases.
        """
        images = self.preprocess_image(batched_inputs)
        prompts = [self.text_prompts_of(inputs) for inputs in batched_inputs]
        if self.training:
            return self.losses(images, [p[0] for p in prompts], batched_inputs)
        results: dict[int, Any] = {}
        for i, found in itertools.groupby(self.predict(images, prompts), key=lambda item: item[0]):
            results[i] = self._detections(found, batched_inputs[i], size_of(images[i]))
        return [results[i] for i in range(len(images))]

    def _detections(self, found: Iterator[Found], inputs: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        """Of one picture. A prompt's logits for all places are gone before the next batch of prompts comes."""
        first = next(found)
        pairs = ((prompt, predictions) for _, prompt, predictions in itertools.chain([first], found))
        return self.detections.of_picture(pairs, self.anchors(first[2]), inputs, size)

    def extract_features(self, batch: Tensor) -> list[Tensor]:
        """The levels' maps (B, C, h, w), finest first, of pictures (B, 3, H, W)."""
        maps = self.backbone(batch)
        return list(self.pyramid(OrderedDict((name, maps[name]) for name in self.in_features)).values())

    def predict(self, images: Sequence[Tensor], prompts: Sequence[Sequence[Prompt]]) -> Iterator[Found]:
        """What was found of each prompt, picture by picture, though not in their order; see :class:`PromptLimits`.

        Padding is not masked, so pictures meet only those of their own padded size; the maps are shared by all prompts.
        """
        if self.pad_before_backbone:
            images = list(ImageList.from_tensors(list(images), self.divisibility).tensor)
        images = [padded_to_multiple(image, self.divisibility) for image in images]
        self._warn_of_other_prompts(prompts)
        for members in groups_of_equal_size(images):
            maps = self.extract_features(torch.stack([images[i] for i in members]))
            for rows, chosen in self.prompt_batches([prompts[i] for i in members]):
                output = self.detect(maps if rows == list(range(len(members))) else [m[rows] for m in maps], chosen)
                for k, (row, prompt) in enumerate(zip(rows, chosen)):
                    yield members[row], prompt, output.of_picture(k)

    def detect(self, maps: Sequence[Tensor], prompts: Sequence[Prompt]) -> DensePredictions:
        """One prompt a picture through tower and head."""
        return self.head_outputs(maps, self.encode_text(prompts))

    def encode_text(self, prompts: Sequence[Prompt | FixedClasses]) -> TextFeatures:
        """Features of one prompt a picture, with the learned vectors of their places.

        Raises:
            ValueError: a prompt is longer than there are learned vectors.
        """
        return self.with_prompt_vectors(self.text_encoder(prompts))

    def with_prompt_vectors(self, text: TextFeatures) -> TextFeatures:
        """`text` with the learned vectors of its places, if there are any; raises as :meth:`encode_text`."""
        if self.prompt_vectors is None:
            return text
        length, rows = text.embeddings.shape[1], self.prompt_vectors.num_embeddings
        if length > rows:
            raise ValueError(
                f"a prompt has {length} tokens, but there are {rows} learned vectors "
                "(MODEL.DENSE_HEAD.PROMPT_VECTORS); name fewer categories in it, or train more vectors"
            )
        return dataclasses.replace(text, embeddings=text.embeddings + self.prompt_vectors.weight[:length])

    def _warn_of_other_prompts(self, prompts: Sequence[Sequence[Prompt]]) -> None:
        """Learned vectors belong to the places of one prompt, the one of their training."""
        most = max(map(len, prompts), default=0)
        if self.prompt_vectors is not None and most > 1:
            log_first_n(
                logging.WARNING,
                f"a picture's names take {most} prompts, and each gets the learned vectors of the same places "
                "(MODEL.DENSE_HEAD.PROMPT_VECTORS), which were trained with one prompt: its own names",
            )

    def head_outputs(self, maps: Sequence[Tensor], text: TextFeatures) -> DensePredictions:
        """What tower and head say of every place."""
        levels, tokens = self.tower(maps, text)
        output: DensePredictions = self.head(levels, tokens, text)
        return output

    def anchors(self, predictions: DensePredictions) -> list[Tensor]:
        """Of each level (h * w, 4) cxcywh in pixels of the padded picture."""
        return place_anchors(predictions.sizes, self.strides, self.anchor_scale, predictions.centerness[0])

    def losses(
        self, images: Sequence[Tensor], prompts: Sequence[Prompt], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Weighted losses of pictures that are padded to the batch's largest."""
        batch = ImageList.from_tensors(list(images), self.divisibility)
        text = self.encode_text(prompts)
        frames = [size_of(image) for image in images]
        targets = [
            self.target_of(inputs, prompt, frame, text.padding_mask.shape[1])
            for inputs, prompt, frame in zip(batched_inputs, prompts, frames)
        ]
        predictions = self.head_outputs(self.extract_features(batch.tensor), text)
        return self.criterion(predictions, self.anchors(predictions), targets, frames, text.padding_mask)


def _prompt_vectors(rows: int, text_dim: int) -> nn.Embedding | None:
    if rows == 0:
        return None
    vectors = nn.Embedding(rows, text_dim)
    nn.init.zeros_(vectors.weight)
    return vectors


def _strides(backbone: Backbone, names: Sequence[str]) -> list[int]:
    """Of the pyramid's levels, in pixels.

    Raises:
        ValueError: the maps are not in order.
    """
    shapes = backbone.output_shape()
    strides = [int(shapes[name].stride or 0) for name in names]
    if strides != sorted(set(strides)):
        raise ValueError(
            f"MODEL.DENSE_HEAD.IN_FEATURES is {list(names)}, of the strides {strides}; name each map once, the finest "
            "first"
        )
    return [*strides, *(strides[-1] * 2 ** (k + 1) for k in range(NUM_EXTRA_LEVELS))]
