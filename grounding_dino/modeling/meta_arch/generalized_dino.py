"""One meta-architecture for the DINO family: its parts decide which model it is."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from grounding_dino.layers.box_ops import box_xyxy_to_cxcywh
from grounding_dino.modeling.backbone.checkpointing import checkpoint_blocks
from grounding_dino.modeling.input_projection import InputProjection, pyramid_of_padded, pyramid_of_pictures
from grounding_dino.modeling.losses.criterion import SetCriterion
from grounding_dino.modeling.pixel_decoder import build_pixel_decoder
from grounding_dino.modeling.postprocess import postprocess_picture
from grounding_dino.modeling.transformer_decoder import QuerySelection, build_transformer_decoder
from grounding_dino.modeling.transformer_decoder.decoder import prepend_denoising
from grounding_dino.modeling.transformer_decoder.denoising import DenoisingGenerator
from grounding_dino.structures import DecoderOutput, FeaturePyramid, Predictions, Prompt, Targets
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts, positive_map
from grounding_dino.text.text_encoder import build_text_encoder

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, ResNet, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class InferenceOptions:
    """What holds when a model detects, and not when it is trained.

    Attributes:
        pad_before_backbone: pad pictures to the batch's largest before the backbone.
        detections_per_image: best (query, category) pairs kept; of every prompt, and of all prompts together.
        categories_per_prompt: names in a prompt at most; 0 lists as many as fit.
    """

    pad_before_backbone: bool = False
    detections_per_image: int = 300
    categories_per_prompt: int = 0


@META_ARCH_REGISTRY.register()
class GeneralizedDINO(nn.Module):
    """Grounding DINO (and, by other parts, DINO and Mask DINO): pictures and prompts to losses or `Instances`."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        input_projection: InputProjection,
        text_encoder: nn.Module,
        pixel_decoder: nn.Module,
        query_selection: QuerySelection,
        transformer_decoder: nn.Module,
        denoising: DenoisingGenerator | None,
        criterion: SetCriterion,
        pixel_statistics: tuple[Sequence[float], Sequence[float]],
        inference: InferenceOptions = InferenceOptions(),
    ) -> None:
        """`pixel_statistics`: mean and standard deviation of each channel, 0 to 255, in the order of the input."""
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        self.input_projection = input_projection
        self.text_encoder = text_encoder
        self.pixel_decoder = pixel_decoder
        self.query_selection = query_selection
        self.transformer_decoder = transformer_decoder
        self.denoising = denoising
        self.criterion = criterion
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in pixel_statistics)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        self.pad_before_backbone = inference.pad_before_backbone
        self.detections_per_image = inference.detections_per_image
        self.categories_per_prompt = inference.categories_per_prompt

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that the configuration names."""
        backbone = build_backbone(cfg)
        if cfg.MODEL.RESNETS.ACTIVATION_CHECKPOINTING_ON and isinstance(backbone, ResNet):  # Detectron2's has no switch
            checkpoint_blocks(backbone)
        in_features = cfg.MODEL.PIXEL_DECODER.IN_FEATURES
        shapes = backbone.output_shape()
        missing = [name for name in in_features if name not in shapes]
        if missing:
            raise ValueError(
                f"MODEL.PIXEL_DECODER.IN_FEATURES names {missing}, but {cfg.MODEL.BACKBONE.NAME} gives {sorted(shapes)}"
            )
        return {
            "backbone": backbone,
            "in_features": in_features,
            "input_projection": InputProjection(
                [shapes[name] for name in in_features], cfg.MODEL.EMBED_DIM, cfg.MODEL.PIXEL_DECODER.NUM_FEATURE_LEVELS
            ),
            "text_encoder": build_text_encoder(cfg),
            "pixel_decoder": build_pixel_decoder(cfg),
            "query_selection": QuerySelection(cfg),
            "transformer_decoder": build_transformer_decoder(cfg),
            "denoising": DenoisingGenerator(cfg) if cfg.MODEL.DENOISING.ENABLED_ON else None,
            "criterion": SetCriterion(cfg),
            "pixel_statistics": (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
            "inference": InferenceOptions(
                pad_before_backbone=cfg.MODEL.PAD_BEFORE_BACKBONE_ON,
                detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
                categories_per_prompt=cfg.TEST.CATEGORIES_PER_PROMPT,
            ),
        }

    @property
    def device(self) -> torch.device:
        """Where the model is, and its inputs go."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses by name in training, else one `{"instances": Instances}` a picture (see `postprocess_picture`).

        Each input has `image` (C, H, W) uint8 or float 0 to 255, and `categories` or `caption` (with optional
        `phrases`); in training also `instances`, whose `gt_classes` count that picture's categories or phrases.
        """
        images = self.preprocess_image(batched_inputs)
        prompts = [self.prompts_of(inputs) for inputs in batched_inputs]
        features = self.extract_features(images)
        if self.training:
            return self.losses(features, [p[0] for p in prompts], batched_inputs, images)
        predictions = self.predict(features, prompts)
        return [
            postprocess_picture(found, inputs, image.shape[-2:], self.detections_per_image)
            for found, inputs, image in zip(predictions, batched_inputs, images)
        ]

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """Normalised pictures (3, H, W), each in its own size.

        Raises:
            ValueError: a picture has another number of channels, or no pixel.
        """
        dtype = self.query_selection.content.weight.dtype
        images = []
        for inputs in batched_inputs:
            image = inputs["image"]
            if image.dim() != 3 or len(image) != len(self.pixel_mean) or image.numel() == 0:
                raise ValueError(
                    f"the image of {_name(inputs)} has the shape {tuple(image.shape)}, but the model takes "
                    f"({len(self.pixel_mean)}, height, width); repeat the channel of a greyscale picture"
                )
            image = image.to(self.device, torch.promote_types(dtype, torch.float32))
            images.append(((image - self.pixel_mean) / self.pixel_std).to(dtype))
        return images

    def prompts_of(self, inputs: dict[str, Any]) -> list[Prompt]:
        """The prompts of a picture: several where its categories do not fit in one."""
        encoder: Any = self.text_encoder
        tokenizer, max_tokens = encoder.tokenizer, encoder.max_tokens
        if "categories" in inputs:
            at_once = inputs.get("names_per_prompt", 0 if self.training else self.categories_per_prompt)
            prompts = build_category_prompts(inputs["categories"], tokenizer, max_tokens, at_once)
            if self.training and len(prompts) > 1:
                raise ValueError(
                    f"the {len(inputs['categories'])} categories of {_name(inputs)} take more than {max_tokens} "
                    "tokens; sample fewer in training (INPUT.NUM_NEGATIVE_CATEGORIES)"
                )
            return prompts
        if "caption" in inputs:
            return [build_caption_prompt(inputs["caption"], tokenizer, max_tokens, inputs.get("phrases"))]
        raise ValueError(f"the input {_name(inputs)} names nothing to look for: give it 'categories' or 'caption'")

    def extract_features(self, images: list[Tensor]) -> FeaturePyramid:
        """The projected pyramid of a batch.

        At inference the backbone sees each picture in its own size, grouped with its equals, since padding would
        change the features of real pixels; training pads first, as the authors do.
        """
        if self.training or self.pad_before_backbone:
            batch = ImageList.from_tensors(images, self.backbone.size_divisibility)
            return pyramid_of_padded(self._project(batch.tensor), batch.image_sizes, batch.tensor.shape[-2:])
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            groups[image.shape].append(i)
        pictures: list[list[Tensor]] = [[] for _ in images]
        for members in groups.values():
            maps = self._project(torch.stack([images[i] for i in members]))
            for row, i in enumerate(members):
                pictures[i] = [m[row] for m in maps]
        return pyramid_of_pictures(pictures)

    def _project(self, batch: Tensor) -> list[Tensor]:
        maps = self.backbone(batch)
        return self.input_projection([maps[name] for name in self.in_features])

    def predict(self, features: FeaturePyramid, prompts: list[list[Prompt]]) -> list[list[tuple[Prompt, Predictions]]]:
        """For each picture its prompts with what was found; the backbone's work is shared by all prompts."""
        found: list[list[tuple[Prompt, Predictions]]] = [[] for _ in prompts]
        for row in itertools.zip_longest(*prompts):
            pictures = [i for i, prompt in enumerate(row) if prompt is not None]
            chosen = [row[i] for i in pictures]
            output = self.detect(features.select(pictures), chosen)
            last = output.layers[-1]
            for j, i in enumerate(pictures):
                of_picture = Predictions(last.pred_logits[j], last.pred_boxes[j])
                found[i].append((chosen[j], _without_padding(of_picture) if features.has_padding else of_picture))
        return found

    def detect(self, features: FeaturePyramid, prompts: Sequence[Prompt]) -> DecoderOutput:
        """One prompt a picture through encoder, query selection and decoder; the last layer's predictions."""
        text = self.text_encoder(prompts)
        memory, text = self.pixel_decoder(features, text)
        queries, _ = self.query_selection(memory, text)
        return self.transformer_decoder(queries, memory, text, all_layers=False)

    def losses(
        self,
        features: FeaturePyramid,
        prompts: list[Prompt],
        batched_inputs: list[dict[str, Any]],
        images: list[Tensor],
    ) -> dict[str, Tensor]:
        """Weighted losses of all decoder layers, of the encoder, and of the denoising queries."""
        text = self.text_encoder(prompts)
        targets = [
            self.target_of(inputs, prompt, image.shape[-2:], text.padding_mask.shape[1])
            for inputs, prompt, image in zip(batched_inputs, prompts, images)
        ]
        memory, text = self.pixel_decoder(features, text)
        queries, encoder = self.query_selection(memory, text)
        noised = None
        if self.denoising is not None:
            noised = self.denoising(targets, queries.content.shape[1])
        if noised is not None:
            queries = prepend_denoising(queries, noised.content, noised.reference_points, noised.attention_mask)
        output = self.transformer_decoder(queries, memory, text)
        output = dataclasses.replace(output, encoder=encoder)
        return self.criterion(output, targets, noised, text.padding_mask)

    def target_of(self, inputs: dict[str, Any], prompt: Prompt, image_size: Sequence[int], num_tokens: int) -> Targets:
        """The ground truth of a picture, boxes relative to its unpadded size.

        Raises:
            ValueError: the picture has no `instances`, or one of a class that its prompt does not name.
        """
        if "instances" not in inputs:
            raise ValueError(f"{_name(inputs)} has no 'instances', which training needs (empty ones are fine)")
        instances = inputs["instances"]
        labels, named = instances.gt_classes, len(prompt.token_spans)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < named:
            raise ValueError(
                f"gt_classes of {_name(inputs)} run from {int(labels.min())} to {int(labels.max())}, but its prompt "
                f"names {named} categories or phrases ({prompt.caption[:80]!r}); they are indices into that list"
            )
        height, width = image_size
        boxes = instances.gt_boxes.tensor.float()
        return Targets(
            labels=labels.to(self.device),
            boxes=box_xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height])).to(self.device),
            positive_map=positive_map(prompt, num_tokens)[labels.cpu()].to(self.device),
        )


def _name(inputs: dict[str, Any]) -> str:
    """What an error calls a picture."""
    known = [f"{key} {inputs[key]!r}" for key in ("file_name", "image_id") if key in inputs]
    return f"the picture with {known[0]}" if known else "a picture"


def _without_padding(predictions: Predictions) -> Predictions:
    """Without the queries (all logits -inf) that a picture lacks image tokens for; alone it would not have them."""
    kept = predictions.pred_logits.amax(-1) != -math.inf
    return Predictions(predictions.pred_logits[kept], predictions.pred_boxes[kept])
