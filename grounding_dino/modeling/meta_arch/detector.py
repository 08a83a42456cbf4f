"""What every detector here does with its inputs: pictures, prompts and ground truth."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from grounding_dino.layers.transfer import to_device
from grounding_dino.modeling.backbone.checkpointing import checkpoint_blocks
from grounding_dino.modeling.fixed_classes import FixedClasses
from grounding_dino.modeling.meta_arch.ground_truth import ground_truth, picture_name
from grounding_dino.ops.allocator import keep_freed_memory
from grounding_dino.structures import Prompt, Targets, TextFeatures
from grounding_dino.text.prompt_builder import PromptBuilder

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, ResNet, build_backbone
from torch import Tensor, nn

Asked = TypeVar("Asked", Prompt, Prompt | FixedClasses)

PROMPTS_PER_GPU_BATCH = 4  # a CPU gains nothing from batches, and its memory grows with them


@dataclasses.dataclass(frozen=True)
class PictureFormat:
    """How pictures enter the model.

    Attributes:
        mean, std: of each channel, 0 to 255, in the order of the input.
        padding_counts: padding is picture to the model: nothing masks it, and boxes and masks are relative to it, too.
        divisibility: where padding counts, what pictures are padded to a multiple of.
        pad_before_backbone: pad pictures to the batch's largest also at inference.
    """

    mean: Sequence[float]
    std: Sequence[float]
    padding_counts: bool = False
    divisibility: int = 0
    pad_before_backbone: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode, padding_counts: bool) -> PictureFormat:
        """Read the keys of MODEL that are about pictures."""
        model = cfg.MODEL
        return cls(
            model.PIXEL_MEAN, model.PIXEL_STD, padding_counts, model.SIZE_DIVISIBILITY, model.PAD_BEFORE_BACKBONE_ON
        )


@dataclasses.dataclass(frozen=True)
class PromptLimits:
    """How much text a model sees at once at inference.

    Attributes:
        categories: names in a prompt at most; 0 lists as many as fit.
        prompts: pairs of a picture and a prompt that run as one batch, though one prompt of every picture at least; 0
            takes as many as the device gains from.
    """

    categories: int = 0
    prompts: int = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PromptLimits:
        """Read TEST."""
        return cls(cfg.TEST.CATEGORIES_PER_PROMPT, cfg.TEST.PROMPTS_PER_BATCH)


class PromptedDetector(nn.Module):
    """A backbone, what can be found, and the way of pictures, prompts and ground truth into the model."""

    pixel_mean: Tensor
    pixel_std: Tensor
    text_encoder: Any  # a module of TEXT_ENCODER_REGISTRY, or None

    def __init__(
        self,
        *,
        backbone: Backbone,
        text_encoder: nn.Module | None,
        classes: FixedClasses | None,
        pictures: PictureFormat,
        limits: PromptLimits = PromptLimits(),
    ) -> None:
        """Either `text_encoder` or `classes` says what can be found.

        Raises:
            ValueError: both, or neither.
        """
        super().__init__()
        if (text_encoder is None) == (classes is None):
            raise ValueError("a model has either a text encoder (MODEL.TEXT_ENCODER.NAME) or a fixed list of classes")
        self.backbone = backbone
        self.text_encoder = text_encoder
        self.classes = classes
        self.categories_per_prompt = limits.categories
        self.prompts_per_batch = limits.prompts
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pictures.mean, pictures.std))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        self.padding_counts = pictures.padding_counts
        self.divisibility = pictures.divisibility if pictures.padding_counts else backbone.size_divisibility
        self.pad_before_backbone = pictures.pad_before_backbone

    @property
    def device(self) -> torch.device:
        """Where the model is, and its inputs go."""
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """Normalised pictures (3, H, W), each in its own size.

        Raises:
            ValueError: a picture has another number of channels, or no pixel.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        dtype = next(self.backbone.parameters()).dtype
        images = []
        for inputs in batched_inputs:
            image = inputs["image"]
            if image.dim() != 3 or len(image) != len(self.pixel_mean) or image.numel() == 0:
                raise ValueError(
                    f"the image of {picture_name(inputs)} has the shape {tuple(image.shape)}, but the model takes "
                    f"({len(self.pixel_mean)}, height, width); repeat the channel of a greyscale picture"
                )
            image = to_device(image, self.device).to(torch.promote_types(dtype, torch.float32))
            images.append(((image - self.pixel_mean) / self.pixel_std).to(dtype))
        return images

    def prompts_of(self, inputs: dict[str, Any]) -> Sequence[Prompt | FixedClasses]:
        """What a picture is asked for: prompts, several where its categories do not fit in one, or the classes."""
        if self.classes is not None:
            _check_nothing_else_asked(inputs, self.classes)
            return [self.classes]
        return self.text_prompts_of(inputs)

    def text_prompts_of(self, inputs: dict[str, Any]) -> list[Prompt]:
        """The prompts of a picture.

        Raises:
            ValueError: it has no text, one that no prompt can hold, or in training one that takes several prompts.
        """
        builder: PromptBuilder = self.text_encoder.prompts
        if "categories" in inputs:
            at_once = inputs.get("names_per_prompt", 0 if self.training else self.categories_per_prompt)
            prompts = builder.of_categories(inputs["categories"], at_once)
            if self.training and len(prompts) > 1:
                raise ValueError(
                    f"the {len(inputs['categories'])} categories of {picture_name(inputs)} take more than "
                    f"{builder.max_tokens} tokens; sample fewer in training (INPUT.NUM_NEGATIVE_CATEGORIES)"
                )
            return prompts
        if "caption" in inputs:
            return [builder.of_caption(inputs["caption"], inputs.get("phrases"))]
        raise ValueError(
            f"the input {picture_name(inputs)} names nothing to look for: give it 'categories' or 'caption'"
        )

    def encode_text(self, prompts: Sequence[Prompt | FixedClasses]) -> TextFeatures | None:
        """Features of one prompt a picture; None for fixed classes."""
        return None if self.text_encoder is None else self.text_encoder(prompts)

    def prompt_batches(self, prompts: Sequence[Sequence[Asked]]) -> Iterator[tuple[list[int], list[Asked]]]:
        """The pictures and prompts of one batch after the other, picture by picture; see :class:`PromptLimits`."""
        at_once = self.prompts_per_batch or (PROMPTS_PER_GPU_BATCH if self.device.type != "cpu" else 1)
        size = max(at_once, len(prompts))
        pairs = [(picture, prompt) for picture, asked in enumerate(prompts) for prompt in asked]
        for start in range(0, len(pairs), size):
            batch = pairs[start : start + size]
            yield [picture for picture, _ in batch], [prompt for _, prompt in batch]

    def check_target(self, target: Targets) -> None:
        """What a model asks of ground truth beyond its form, while it is still on the host: here nothing."""

    def target_of(
        self,
        inputs: dict[str, Any],
        asked: Prompt | FixedClasses,
        frame: Sequence[int],
        num_tokens: int,
        mask_frame: tuple[int, int] | None = None,
    ) -> Targets:
        """The ground truth of a picture where the model is; see :func:`ground_truth`."""
        target = ground_truth(inputs, asked, frame, num_tokens, mask_frame)
        self.check_target(target)
        return dataclasses.replace(
            target,
            **{
                field.name: to_device(part, self.device)
                for field in dataclasses.fields(target)
                if (part := getattr(target, field.name)) is not None
            },
        )


def backbone_of(cfg: CfgNode) -> Backbone:
    """The backbone that the configuration names."""
    backbone = build_backbone(cfg)
    if cfg.MODEL.RESNETS.ACTIVATION_CHECKPOINTING_ON and isinstance(backbone, ResNet):  # Detectron2's has no switch
        checkpoint_blocks(backbone)
    return backbone


def shapes_of_maps(
    cfg: CfgNode, backbone: Backbone, key: str, names: Sequence[str], stride: int | None = None
) -> list[ShapeSpec]:
    """Of the backbone's maps `names`, which `key` of the configuration holds.

    Raises:
        ValueError: the backbone does not give one of them, or gives it in another stride than `stride`, if not None.
    """
    shapes = backbone.output_shape()
    missing = [name for name in names if name not in shapes or stride not in (None, shapes[name].stride)]
    if missing:
        given = ", ".join(f"{name} (stride {shape.stride})" for name, shape in shapes.items())
        wanted = "" if stride is None else f", a map of stride {stride}"
        raise ValueError(f"{key} names {missing}{wanted}, but {cfg.MODEL.BACKBONE.NAME} gives {given}")
    return [shapes[name] for name in names]


def groups_of_equal_size(images: Sequence[Tensor]) -> list[list[int]]:
    """The indices of pictures that can be stacked."""
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        groups[image.shape].append(i)
    return list(groups.values())


def _check_nothing_else_asked(inputs: dict[str, Any], classes: FixedClasses) -> None:
    """A model of fixed classes finds these, whatever a text says; names of its classes are fine."""
    names = inputs.get("categories")
    if "caption" in inputs or (names is not None and len(names) != len(classes)):
        asked = f"caption {inputs['caption'][:40]!r}" if "caption" in inputs else f"{len(names or ())} categories"
        raise ValueError(
            f"{picture_name(inputs)} is asked for with a {asked}, but the model finds {len(classes)} fixed classes and "
            "reads no text (MODEL.TEXT_ENCODER.NAME is empty)"
        )


def size_of(image: Tensor) -> tuple[int, int]:
    """(h, w) of a picture or a batch of them."""
    return image.shape[-2], image.shape[-1]


def padded_to_multiple(image: Tensor, divisibility: int) -> Tensor:
    """Zero-padded right and below."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % max(1, divisibility), 0, -height % max(1, divisibility)))
