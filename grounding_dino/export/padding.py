"""Pictures padded to one size in a graph, with the results that each has alone.

`GeneralizedDINO` runs its backbone on each picture in its own size, since padding would change the features of real
pixels: a convolution's borders, a window's padding, the averages of GroupNorm. A graph gets a padded batch and cannot
take it apart. Here the layers that look further than one cell are shown zeros beyond each picture instead, as they see
them beyond the border of a picture alone. That is exact for convolutional networks and Swin; timm's other transformers
look at padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from grounding_dino.modeling.backbone.swin import SwinStage, SwinTransformer, up_to, window_partition
from grounding_dino.modeling.backbone.timm_backbone import TimmBackbone
from grounding_dino.modeling.meta_arch.detector import size_of
from grounding_dino.modeling.pixel_decoder.mask_features import STRIDE, MaskFeatures
from grounding_dino.structures import FeaturePyramid, Memory

import torch
import torch.nn.functional as F
from detectron2.modeling import ResNet
from torch import Tensor, nn

_SPATIAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_PROBE = 256  # pixels of a side, a multiple of every stride


@dataclass(frozen=True)
class PictureSizes:
    """Heights and widths of the pictures of a padded batch, in pixels, as tensors (B,) int64."""

    heights: Tensor
    widths: Tensor

    @classmethod
    def of_mask(cls, padding_mask: Tensor) -> PictureSizes:
        """`padding_mask` (B, H, W), True right of and below each picture."""
        return cls((~padding_mask[:, :, 0]).sum(1), (~padding_mask[:, 0, :]).sum(1))

    def rounded_up(self, multiple: int) -> PictureSizes:
        """The sizes padded to a multiple."""
        cells = self.cells(max(1, multiple))
        return PictureSizes(cells.heights * max(1, multiple), cells.widths * max(1, multiple))

    def cells(self, stride: int) -> PictureSizes:
        """The sizes in cells of `stride` pixels; one that a picture ends in is its own."""
        # divided as positive numbers: ONNX rounds towards zero
        heights, widths = (
            torch.div(size + stride - 1, stride, rounding_mode="floor") for size in (self.heights, self.widths)
        )
        return PictureSizes(heights, widths)

    def padding(self, size: tuple[int, int], stride: int) -> Tensor:
        """(B, h, w) bool: the padding of maps of `size` (h, w)."""
        own, (height, width) = self.cells(stride), size
        below = torch.arange(height, device=own.heights.device) >= own.heights[:, None]
        right = torch.arange(width, device=own.widths.device) >= own.widths[:, None]
        return below[:, :, None] | right[:, None, :]


class Windows:
    """The layers of a backbone that look further than one cell, with the strides of what they look at."""

    def __init__(self, backbone: Any) -> None:
        """Finds them by running the backbone once, on a small picture."""
        self.backbone = backbone
        self.strides: list[tuple[nn.Module, int]] = []
        if isinstance(backbone, SwinTransformer):
            return
        weight = next(backbone.parameters())

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.strides.append((module, _PROBE // inputs[0].shape[-1]))

        with ExitStack() as stack, torch.no_grad():
            for module in backbone.modules():
                if isinstance(module, _SPATIAL) and module.kernel_size not in (1, (1, 1)):
                    stack.callback(module.register_forward_pre_hook(note).remove)
            backbone(weight.new_zeros(1, 3, _PROBE, _PROBE))

    @contextmanager
    def masked(self, sizes: PictureSizes) -> Iterator[None]:
        """While it lasts they see zeros beyond pictures of these sizes."""
        if isinstance(self.backbone, TimmBackbone):  # it pads pictures, and takes this padding for picture
            sizes = sizes.rounded_up(max(shape.stride or 1 for shape in self.backbone.output_shape().values()))
        with ExitStack() as stack:
            if isinstance(self.backbone, ResNet):  # its pooling is a function, behind a ReLU
                stem: Any = self.backbone.stem.conv1
                stack.callback(stem.register_forward_hook(_zeros_in_result(sizes, stem.stride[0])).remove)
            for module, stride in self.strides:
                stack.callback(module.register_forward_pre_hook(_zeros_beyond(sizes, stride)).remove)
            if isinstance(self.backbone, SwinTransformer):
                _mask_swin(stack, self.backbone, sizes)
            yield


@contextmanager
def as_if_alone(model: Any, windows: Windows, sizes: PictureSizes) -> Iterator[None]:
    """While it lasts a `GeneralizedDINO` treats pictures of a padded batch, of these sizes, as if alone."""
    projection = model.input_projection
    shapes = model.backbone.output_shape()
    stride = 0
    with ExitStack() as stack:
        stack.enter_context(windows.masked(sizes))
        for level in range(projection.num_levels):
            convolution, norm = projection[level]
            if level < projection.num_inputs:
                stride = int(shapes[model.in_features[level]].stride)
            else:
                stack.callback(convolution.register_forward_pre_hook(_zeros_beyond(sizes, stride)).remove)
                stride *= 2
            stack.callback(norm.register_forward_hook(_own_averages(sizes, stride)).remove)
        if projection.mask_map is not None:
            norm = projection.mask_map[1]
            stack.callback(norm.register_forward_hook(_own_averages(sizes, STRIDE)).remove)
        mask_features = getattr(model.pixel_decoder, "mask_features", None)
        if mask_features is not None:
            stack.enter_context(_masks_of_own(mask_features, sizes))
        yield


def _zeros_beyond(sizes: PictureSizes, stride: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        # a maximum ignores what lies beyond the border
        value = torch.finfo(x.dtype).min if isinstance(module, nn.MaxPool2d) else 0.0
        return x.masked_fill(sizes.padding(size_of(x), stride)[:, None], value), *rest

    return before


def _zeros_in_result(sizes: PictureSizes, stride: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _, __, x: x.masked_fill(sizes.padding(size_of(x), stride)[:, None], 0.0)


def _own_averages(sizes: PictureSizes, stride: int) -> Callable[[nn.GroupNorm, tuple[Tensor, ...], Tensor], Tensor]:
    """GroupNorm over each picture's own cells."""

    def after(norm: nn.GroupNorm, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        x = inputs[0]
        padding = sizes.padding(size_of(x), stride)[:, None, None]  # (B, 1, 1, h, w)
        groups = x.unflatten(1, (norm.num_groups, -1))  # (B, groups, C / groups, h, w)
        own = sizes.cells(stride)
        count = ((own.heights * own.widths) * groups.shape[2]).to(x.dtype)[:, None, None, None, None]
        mean = groups.masked_fill(padding, 0.0).sum((2, 3, 4), keepdim=True) / count
        centred = (groups - mean).masked_fill(padding, 0.0)
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        normed = (centred * (variance + norm.eps).rsqrt()).flatten(1, 2)
        return normed * norm.weight[:, None, None] + norm.bias[:, None, None]

    return after


def _mask_swin(stack: ExitStack, swin: SwinTransformer, sizes: PictureSizes) -> None:
    """Zeros behind the first norm, as windows are padded; no attention from a picture to what lies beyond it."""
    stride = swin.patch_embed.patch_size
    for stage in swin.layers:
        assert isinstance(stage, SwinStage)
        for block in stage.blocks:
            norm: Any = block.norm1
            stack.callback(norm.register_forward_hook(_zeros_behind(sizes, stride)).remove)
            if block.shift:
                stack.callback(block.register_forward_pre_hook(_own_regions(sizes, stride)).remove)
        if stage.downsample is not None:

            def before(_: nn.Module, inputs: tuple[Tensor], stride: int = stride) -> tuple[Tensor]:
                return (_cleared(inputs[0], sizes, stride),)

            stack.callback(stage.downsample.register_forward_pre_hook(before).remove)
        stride *= 2


def _cleared(x: Tensor, sizes: PictureSizes, stride: int) -> Tensor:
    """(B, h, w, C) with zeros beyond the pictures."""
    return x.masked_fill(sizes.padding((x.shape[1], x.shape[2]), stride)[..., None], 0.0)


def _zeros_behind(sizes: PictureSizes, stride: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda _, __, output: _cleared(output, sizes, stride)


def _own_regions(sizes: PictureSizes, stride: int) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    """`shifted_window_mask` of each picture, which ends at its own last window."""

    def before(block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, window, shift = inputs[0], block.window_size, block.shift
        own = sizes.cells(stride).rounded_up(window)

        def regions(size: int, ends: Tensor) -> Tensor:
            padded = up_to(size, window)
            place = torch.arange(padded, device=x.device) + shift  # before the map was rolled
            first = place >= padded
            return torch.where(first, 0, 1 + (place >= ends[:, None]).long())  # (B, padded)

        rows, columns = regions(x.shape[1], own.heights), regions(x.shape[2], own.widths)
        labels = window_partition((rows[:, :, None] * 3 + columns[:, None, :])[..., None], window)[..., 0]
        return x, (labels[:, None, :] != labels[:, :, None]).to(x.dtype) * -100.0

    return before


@contextmanager
def _masks_of_own(mask_features: MaskFeatures, sizes: PictureSizes) -> Iterator[None]:
    """Mask features of each picture's own part of the maps, and 0 beyond it."""

    def forward(features: FeaturePyramid, memory: Memory) -> Tensor:
        assert features.mask_map is not None
        height, width = features.maps[0].shape[-2:]
        finest = memory.features[:, : height * width].transpose(1, 2).unflatten(-1, (height, width))
        rows, columns = features.mask_map.shape[-2:]
        beyond = sizes.padding((rows, columns), STRIDE)[:, None]
        level = PictureSizes.of_mask(features.padding_masks[0])
        x = features.mask_map + _enlarged(finest, level, sizes.cells(STRIDE), (rows, columns))
        convolution, norm = mask_features.output
        own_averages: Any = _own_averages(sizes, STRIDE)
        x = own_averages(norm, (convolution(x.masked_fill(beyond, 0.0)),), x)
        return mask_features.projection(F.relu(x)).masked_fill(beyond, 0.0)

    def ratios(features: FeaturePyramid) -> Tensor:
        assert features.mask_map is not None
        own = sizes.cells(STRIDE)
        rows, columns = features.mask_map.shape[-2:]
        return torch.stack((own.widths / columns, own.heights / rows), dim=-1).float()

    module: Any = mask_features
    module.forward, module.ratios = forward, ratios
    try:
        yield
    finally:
        del module.forward, module.ratios


def _enlarged(x: Tensor, own: PictureSizes, wanted: PictureSizes, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of each picture's `own` cells of `x` (B, C, h, w) to its `wanted` cells of a map of `size`.

    `F.interpolate` with `align_corners=False` of each part alone; what lies beyond `wanted` means nothing.
    """

    def places(count: int, own: Tensor, wanted: Tensor, length: int) -> Tensor:
        cell = (torch.arange(count, device=x.device) + 0.5) * (own / wanted)[:, None] - 0.5  # (B, count)
        cell = torch.minimum(cell.clamp(min=0.0), (own - 1)[:, None].to(cell.dtype))
        return (2 * cell + 1) / length - 1

    rows = places(size[0], own.heights, wanted.heights, x.shape[-2])
    columns = places(size[1], own.widths, wanted.widths, x.shape[-1])
    grid = torch.stack((columns[:, None, :].expand(-1, size[0], -1), rows[:, :, None].expand(-1, -1, size[1])), dim=-1)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False)
