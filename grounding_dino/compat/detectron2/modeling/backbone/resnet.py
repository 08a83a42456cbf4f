"""ResNet (He et al., https://arxiv.org/abs/1512.03385) in Detectron2's module names: stem, res2 ... res5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

__all__ = ["BasicBlock", "BasicStem", "BottleneckBlock", "ResNet", "build_resnet_backbone", "make_stage"]

_BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: Any, **kwargs: Any) -> Conv2d:
    """A convolution without bias, then its norm; weights from He's initialisation."""
    conv = Conv2d(
        in_channels, out_channels, kernel_size=kernel_size, bias=False, norm=get_norm(norm, out_channels), **kwargs
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _shortcut(in_channels: int, out_channels: int, norm: Any, stride: int) -> Conv2d | None:
    """The projection beside a block; None where the channels stay the same."""
    return _conv(in_channels, out_channels, 1, norm, stride=stride) if in_channels != out_channels else None


class BasicStem(CNNBlockBase):
    """The first layers: a 7x7 convolution and 3x3 max pooling, together of stride 4."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Any = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/4, W/4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class BasicBlock(CNNBlockBase):
    """Two 3x3 convolutions beside a shortcut, as in ResNet-18 and -34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Any = "BN") -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = (
            _conv(in_channels, out_channels, 1, norm, stride=stride) if in_channels != out_channels else None
        )
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride, padding=1)
        self.conv2 = _conv(out_channels, out_channels, 3, norm, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv2(F.relu_(self.conv1(x))) + shortcut)


class BottleneckBlock(CNNBlockBase):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, as in ResNet-50 and deeper."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Any = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        """`stride_in_1x1`: the first convolution carries the stride (the original weights) instead of the second."""
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = (
            _conv(in_channels, out_channels, 1, norm, stride=stride) if in_channels != out_channels else None
        )
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            stride=stride_3x3,
            padding=dilation,
            groups=num_groups,
            dilation=dilation,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        return F.relu_(self.conv3(x) + shortcut)


class ResNet(Backbone):
    """A stem and stages res2, res3, ...; with `num_classes` also a linear classifier."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """`out_features`: names among "stem", "res2", ..., "linear" (default: the last); stages after the last of them
        are not built. `freeze_at`: number of first stages that stay as they are, the stem being the first."""
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        last = "linear" if num_classes is not None else f"res{len(stages) + 1}"
        self._out_features = list(out_features) if out_features is not None else [last]
        names = ["stem", *(f"res{index + 2}" for index in range(len(stages)))]
        unknown = [name for name in self._out_features if name not in (*names, "linear")]
        if not self._out_features or unknown:
            raise ValueError(f"unknown or no out_features {unknown} of ResNet; choose from {names}")
        if "linear" not in self._out_features and num_classes is None:
            stages = stages[: max(names.index(name) for name in self._out_features)]

        channels: int = self.stem.out_channels  # type: ignore[assignment]
        stride: int = self.stem.stride  # type: ignore[assignment]
        self._out_feature_channels = {"stem": channels}
        self._out_feature_strides = {"stem": stride}
        self.stage_names: tuple[str, ...] = tuple(names[1 : len(stages) + 1])
        self.stages: list[nn.Sequential] = []  # plain list: the stages are registered under their names
        for name, blocks in zip(self.stage_names, stages):
            if not blocks:
                raise ValueError(f"stage {name} of ResNet has no blocks")
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            self.stages.append(stage)
            for block in blocks:
                stride *= block.stride
            channels = blocks[-1].out_channels
            self._out_feature_channels[name] = channels
            self._out_feature_strides[name] = stride
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)  # Goyal et al., https://arxiv.org/abs/1706.02677
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> dict of the `out_features`."""
        if x.dim() != 4:
            raise ValueError(f"ResNet takes pictures of shape (B, C, H, W), got {tuple(x.shape)}")
        outputs: dict[str, Tensor] = {}
        x = self.stem(x)
        outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages):
            x = stage(x)
            outputs[name] = x
        if self.num_classes is not None:
            outputs["linear"] = self.linear(torch.flatten(self.avgpool(x), 1))
        return {name: output for name, output in outputs.items() if name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each of the `out_features` that is a feature map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
            if name in self._out_feature_channels
        }

    def freeze(self, freeze_at: int = 0) -> nn.Module:
        """Freeze the first `freeze_at` stages: 1 the stem, 2 also res2, and so on. Returns itself."""
        if freeze_at >= 1:
            self.stem.freeze()  # type: ignore[operator]
        for number, stage in enumerate(self.stages, start=2):
            if freeze_at >= number:
                for block in stage:
                    block.freeze()  # type: ignore[operator]
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
    ) -> list[CNNBlockBase]:
        """Make the blocks of a stage; only the first sees `in_channels`.

        A keyword ``NAME_per_block`` gives argument NAME one value a block; every other is the same for all of them.
        """
        suffix = "_per_block"
        blocks = []
        for index in range(num_blocks):
            arguments: dict[str, Any] = {}
            for key, value in kwargs.items():
                if not key.endswith(suffix):
                    arguments[key] = value
                    continue
                name = key[: -len(suffix)]
                if len(value) != num_blocks or name in kwargs:
                    raise ValueError(f"{key} needs {num_blocks} values and excludes {name}, got {value}")
                arguments[name] = value[index]
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **arguments))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of ResNet-`depth` (18, 34, 50, 101, 152)."""
        if depth not in _BLOCKS_PER_STAGE:
            raise ValueError(f"no ResNet of depth {depth}; choose from {sorted(_BLOCKS_PER_STAGE)}")
        if block_class is None:
            block_class = BasicBlock if depth < 50 else BottleneckBlock
        in_channels = (64, 64, 128, 256) if depth < 50 else (64, 256, 512, 1024)
        out_channels = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
        stages = []
        for index, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth]):
            if depth >= 50:
                kwargs["bottleneck_channels"] = out_channels[index] // 4
            stride = 1 if index == 0 else 2
            stages.append(
                ResNet.make_stage(
                    block_class,
                    num_blocks,
                    in_channels=in_channels[index],
                    out_channels=out_channels[index],
                    stride_per_block=[stride] + [1] * (num_blocks - 1),
                    **kwargs,
                )
            )
        return stages


def make_stage(*args: Any, **kwargs: Any) -> list[CNNBlockBase]:
    """Older name of `ResNet.make_stage`."""
    return ResNet.make_stage(*args, **kwargs)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a `ResNet` from ``cfg.MODEL.RESNETS``, frozen up to ``cfg.MODEL.BACKBONE.FREEZE_AT``.

    Raises ValueError for what is not provided: deformable stages, and other dilations of res5 than 1 and 2.
    """
    node = cfg.MODEL.RESNETS
    if any(node.DEFORM_ON_PER_STAGE):
        raise ValueError("MODEL.RESNETS.DEFORM_ON_PER_STAGE needs upstream Detectron2, whose deformable layers it uses")
    if node.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION is {node.RES5_DILATION}, it must be 1 or 2")
    if node.DEPTH not in _BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {node.DEPTH}; choose from {sorted(_BLOCKS_PER_STAGE)}")
    is_basic = node.DEPTH < 50
    if is_basic and (node.RES2_OUT_CHANNELS != 64 or node.RES5_DILATION != 1 or node.NUM_GROUPS != 1):
        raise ValueError("ResNet-18 and -34 need MODEL.RESNETS.RES2_OUT_CHANNELS 64, RES5_DILATION 1 and NUM_GROUPS 1")
    stem = BasicStem(in_channels=input_shape.channels or 3, out_channels=node.STEM_OUT_CHANNELS, norm=node.NORM)
    stages = []
    in_channels, out_channels = node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS
    bottleneck_channels = node.NUM_GROUPS * node.WIDTH_PER_GROUP
    for index, num_blocks in enumerate(_BLOCKS_PER_STAGE[node.DEPTH]):
        dilation = node.RES5_DILATION if index == 3 else 1
        stride = 1 if index == 0 or dilation == 2 else 2
        arguments: dict[str, Any] = {"stride_per_block": [stride] + [1] * (num_blocks - 1), "norm": node.NORM}
        if not is_basic:
            arguments |= {
                "bottleneck_channels": bottleneck_channels,
                "num_groups": node.NUM_GROUPS,
                "stride_in_1x1": node.STRIDE_IN_1X1,
                "dilation": dilation,
            }
        block = BasicBlock if is_basic else BottleneckBlock
        stages.append(
            ResNet.make_stage(block, num_blocks, in_channels=in_channels, out_channels=out_channels, **arguments)
        )
        in_channels, out_channels, bottleneck_channels = out_channels, out_channels * 2, bottleneck_channels * 2
    return ResNet(stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
