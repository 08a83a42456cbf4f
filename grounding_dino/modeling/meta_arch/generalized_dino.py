"""One meta-architecture for the DINO family: its parts decide which model it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from grounding_dino.modeling.fixed_classes import FixedClasses, fixed_classes
from grounding_dino.modeling.input_projection import InputProjection, pyramid_of_padded, pyramid_of_pictures
from grounding_dino.modeling.losses.criterion import SetCriterion
from grounding_dino.modeling.mask_results import MaskResults
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
from grounding_dino.modeling.pixel_decoder import build_pixel_decoder
from grounding_dino.modeling.pixel_decoder.mask_features import STRIDE, mask_size
from grounding_dino.modeling.postprocess import postprocess_picture
from grounding_dino.modeling.transformer_decoder import build_query_selection, build_transformer_decoder
from grounding_dino.modeling.transformer_decoder.decoder import prepend_denoising
from grounding_dino.modeling.transformer_decoder.denoising import DenoisingGenerator
from grounding_dino.structures import DecoderOutput, FeaturePyramid, Predictions, Prompt, Targets, TextFeatures
from grounding_dino.text.text_encoder import build_text_encoder

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class InferenceOptions:
    """What holds when a model detects, and not when it is trained.

    Attributes:
        detections_per_image: best (query, category) pairs kept; of every prompt, and of all prompts together.
        limits: see :class:`PromptLimits`.
        masks: what a model with masks gives; None for boxes alone.
    """

    detections_per_image: int = 300
    limits: PromptLimits = PromptLimits()
    masks: MaskResults | None = None


@META_ARCH_REGISTRY.register()
class GeneralizedDINO(PromptedDetector):
    """Grounding DINO (and, by other parts, DINO and Mask DINO): pictures and prompts to losses or `Instances`."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        input_projection: InputProjection,
        text_encoder: nn.Module | None,
        classes: FixedClasses | None = None,
        pixel_decoder: nn.Module,
        query_selection: nn.Module,
        transformer_decoder: nn.Module,
        denoising: DenoisingGenerator | None,
        criterion: SetCriterion,
        pictures: PictureFormat,
        inference: InferenceOptions = InferenceOptions(),
    ) -> None:
        """Either `text_encoder` or `classes` says what can be found; ValueError for both, or neither."""
        super().__init__(
            backbone=backbone,
            text_encoder=text_encoder,
            classes=classes,
            pictures=pictures,
            limits=inference.limits,
        )
        self.in_features = list(in_features)
        self.input_projection = input_projection
        self.pixel_decoder = pixel_decoder
        self.query_selection = query_selection
        self.transformer_decoder = transformer_decoder
        self.denoising = denoising
        self.criterion = criterion
        self.detections_per_image = inference.detections_per_image
        self.masks = inference.masks

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that the configuration names."""
        _check_text_width(cfg)
        backbone = backbone_of(cfg)
        return {
            "backbone": backbone,
            "in_features": cfg.MODEL.PIXEL_DECODER.IN_FEATURES,
            "input_projection": _build_projection(cfg, backbone),
            "text_encoder": build_text_encoder(cfg),
            "classes": fixed_classes(cfg),
            "pixel_decoder": build_pixel_decoder(cfg),
            "query_selection": build_query_selection(cfg),
            "transformer_decoder": build_transformer_decoder(cfg),
            "denoising": DenoisingGenerator(cfg) if cfg.MODEL.DENOISING.ENABLED_ON else None,
            "criterion": SetCriterion(cfg),
            "pictures": PictureFormat.from_config(cfg, padding_counts=not cfg.MODEL.PADDING_MASK_ON),
            "inference": InferenceOptions(
                detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
                limits=PromptLimits.from_config(cfg),
                masks=MaskResults.from_config(cfg) if cfg.MODEL.MASK_ON else None,
            ),
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses by name in training, else one dict a picture with `instances` (see `postprocess_picture`).

        Each input has `image` (C, H, W) uint8 or float 0 to 255, and `categories` or `caption` (with optional
        `phrases`), which a model of fixed classes does without; in training also `instances`, whose `gt_classes` count
        that picture's categories or phrases, or the classes, with `gt_masks` for a model with masks.
        """
        images = self.preprocess_image(batched_inputs)
        prompts = [self.prompts_of(inputs) for inputs in batched_inputs]
        sizes = [size_of(image) for image in images]
        features = self.extract_features(images)
        del images  # before the encoder, which needs the most memory
        if self.training:
            return self.losses(features, [p[0] for p in prompts], batched_inputs)
        predictions = self.predict(features, prompts)
        return [
            postprocess_picture(found, inputs, size, self.detections_per_image, self.masks, frame)
            for found, inputs, size, frame in zip(predictions, batched_inputs, sizes, features.frames)
        ]

    def extract_features(self, images: list[Tensor]) -> FeaturePyramid:
        """The projected pyramid of a batch.

        At inference the backbone sees each picture in its own size, grouped with its equals, since padding would
        change the features of real pixels; training pads first, as the authors do.
        """
        if self.training or self.pad_before_backbone:
            batch = ImageList.from_tensors(images, self.divisibility)
            padded = size_of(batch.tensor)
            sizes = [padded if self.padding_counts else size_of(image) for image in images]
            maps, mask_map = self._project(batch.tensor)
            return pyramid_of_padded(maps, sizes, padded, mask_map)
        if self.padding_counts:
            images = [padded_to_multiple(image, self.divisibility) for image in images]
        pictures: list[list[Tensor]] = [[] for _ in images]
        mask_maps: dict[int, Tensor] = {}
        for members in groups_of_equal_size(images):
            maps, mask_map = self._project(torch.stack([images[i] for i in members]))
            for row, i in enumerate(members):
                pictures[i] = [m[row] for m in maps]
                if mask_map is not None:
                    mask_maps[i] = mask_map[row]
        sizes = [size_of(image) for image in images]
        return pyramid_of_pictures(pictures, sizes, [mask_maps[i] for i in sorted(mask_maps)] or None)

    def _project(self, batch: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The levels' maps, finest first, and for a model with masks the map of stride 4."""
        maps = self.backbone(batch)
        projection = self.input_projection
        levels = projection([maps[name] for name in self.in_features])
        return levels, None if projection.mask_map is None else projection.mask_map(maps[projection.mask_input])

    def predict(
        self, features: FeaturePyramid, prompts: Sequence[Sequence[Prompt | FixedClasses]]
    ) -> list[list[tuple[Prompt | FixedClasses, Predictions]]]:
        """For each picture its prompts with what was found; the backbone's work is shared by all prompts."""
        found: list[list[tuple[Prompt | FixedClasses, Predictions]]] = [[] for _ in prompts]
        for pictures, chosen in self.prompt_batches(prompts):
            output = self.detect(features.select(pictures), chosen)
            for j, i in enumerate(pictures):
                of_picture = _of_picture(output.layers[-1], j, features.frames[i])
                if features.has_padding and features.fewest_tokens < len(of_picture.pred_logits):
                    of_picture = _without_padding(of_picture)  # the host waits for the device
                found[i].append((chosen[j], of_picture))
        return found

    def detect(self, features: FeaturePyramid, prompts: Sequence[Prompt | FixedClasses]) -> DecoderOutput:
        """One prompt a picture through encoder, query selection and decoder; the last layer's predictions."""
        return self.find(features, self.encode_text(prompts))

    def find(self, features: FeaturePyramid, text: TextFeatures | None) -> DecoderOutput:
        """`detect` of encoded text: what runs on the device alone, without the host looking at anything."""
        memory, text = self.pixel_decoder(features, text)
        queries, _ = self.query_selection(memory, text, self.transformer_decoder)
        return self.transformer_decoder(queries, memory, text, all_layers=False)

    def check_target(self, target: Targets) -> None:
        """See that denoising knows the labels.

        Raises:
            ValueError: MODEL.DENOISING.NUM_LABELS is too low.
        """
        if self.denoising is not None:
            self.denoising.check_labels(target.labels)

    def losses(
        self,
        features: FeaturePyramid,
        prompts: Sequence[Prompt | FixedClasses],
        batched_inputs: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Weighted losses of all decoder layers, of the encoder, and of the denoising queries."""
        text = self.encode_text(prompts)
        num_tokens = 0 if text is None else text.padding_mask.shape[1]
        mask_frame = None
        if self.masks is not None and features.mask_map is not None:
            rows, columns = features.mask_map.shape[-2:]
            mask_frame = (rows * STRIDE, columns * STRIDE)
        targets = [
            self.target_of(inputs, prompt, frame, num_tokens, mask_frame)
            for inputs, prompt, frame in zip(batched_inputs, prompts, features.frames)
        ]
        memory, text = self.pixel_decoder(features, text)
        queries, encoder = self.query_selection(memory, text, self.transformer_decoder)
        noised = None
        if self.denoising is not None:
            noised = self.denoising(targets, queries.content.shape[1])
        if noised is not None:
            queries = prepend_denoising(queries, noised.content, noised.reference_points, noised.attention_mask)
        output = self.transformer_decoder(queries, memory, text)
        output = dataclasses.replace(output, encoder=encoder)
        return self.criterion(output, targets, noised, None if text is None else text.padding_mask)


def _check_text_width(cfg: CfgNode) -> None:
    """Encoder and decoder read text in as many channels as pictures."""
    text, dim = cfg.MODEL.TEXT_ENCODER, cfg.MODEL.EMBED_DIM
    if text.NAME and not text.PROJECTION_ON and text.HIDDEN_SIZE != dim:
        raise ValueError(
            f"MODEL.TEXT_ENCODER.PROJECTION_ON is False, so text has {text.HIDDEN_SIZE} channels "
            f"(MODEL.TEXT_ENCODER.HIDDEN_SIZE), but {cfg.MODEL.META_ARCHITECTURE} reads {dim} (MODEL.EMBED_DIM); set "
            "it to True"
        )


def _build_projection(cfg: CfgNode, backbone: Backbone) -> InputProjection:
    """The projection of the backbone's maps that the configuration names.

    Raises:
        ValueError: the backbone does not give one of them, or gives that of masks in another stride than 4.
    """
    decoder, mask_input = cfg.MODEL.PIXEL_DECODER, None
    shapes = shapes_of_maps(cfg, backbone, "MODEL.PIXEL_DECODER.IN_FEATURES", decoder.IN_FEATURES)
    if cfg.MODEL.MASK_ON:
        name = cfg.MODEL.MASK_HEAD.IN_FEATURE
        mask_input = (name, *shapes_of_maps(cfg, backbone, "MODEL.MASK_HEAD.IN_FEATURE", [name], STRIDE))
    return InputProjection(
        shapes,
        cfg.MODEL.EMBED_DIM,
        decoder.NUM_FEATURE_LEVELS,
        mask_input,
        bias=decoder.PROJECTION_BIAS_ON,
    )


def _of_picture(predictions: Predictions, index: int, frame: tuple[int, int]) -> Predictions:
    """One picture's predictions, masks without the batch's padding."""
    masks = predictions.pred_masks
    if masks is not None:
        height, width = mask_size(frame)
        masks = masks[index, :, :height, :width]
    return Predictions(predictions.pred_logits[index], predictions.pred_boxes[index], masks)


def _without_padding(predictions: Predictions) -> Predictions:
    """Without the queries (all logits -inf) that a picture lacks image tokens for; alone it would not have them."""
    kept = predictions.pred_logits.amax(-1) != -math.inf
    masks = predictions.pred_masks
    return Predictions(
        predictions.pred_logits[kept], predictions.pred_boxes[kept], None if masks is None else masks[kept]
    )
