"""A backbone of one's own: four convolutions, three maps."""

import grounding_dino  # noqa: F401  # makes detectron2 importable

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn


@BACKBONE_REGISTRY.register()
class ConvBackbone(Backbone):
    """Maps `s8`, `s16` and `s32`, each a strided convolution of the one before."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape.channels, 32, kernel_size=7, stride=4, padding=3)
        self.stages = nn.ModuleDict(
            {
                "s8": nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1),
                "s16": nn.Conv2d(64, 128, kernel_size=3, stride=2, padding=1),
                "s32": nn.Conv2d(128, 256, kernel_size=3, stride=2, padding=1),
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`images` (B, 3, H, W) -> (B, C, H/stride, W/stride), rounded up, by name."""
        features, outputs = self.stem(images).relu(), {}
        for name, convolution in self.stages.items():
            features = outputs[name] = convolution(features).relu()
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """What the input projection is built for."""
        return {
            name: ShapeSpec(channels=convolution.out_channels, stride=int(name[1:]))
            for name, convolution in self.stages.items()
        }
