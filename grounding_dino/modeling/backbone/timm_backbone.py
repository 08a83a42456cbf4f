"""Any timm model with `features_only` as a Detectron2 backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """Feature maps of a timm model, named by stride: `s4`, `s8`, `s16`, `s32`."""

    @configurable
    def __init__(
        self, *, name: str, out_strides: Sequence[int], pretrained: bool = False, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        import timm  # imports many models; only those who use it pay

        if name not in timm.list_models():
            close = timm.list_models(f"*{name.split('_')[0]}*")[:8]
            raise ValueError(f"timm knows no model {name!r} (MODEL.TIMM.NAME); similar names: {close}")
        options = dict(options or {})
        available = timm.create_model(name, features_only=True, pretrained=False, **options).feature_info.reduction()
        missing = sorted(set(out_strides) - set(available))
        if missing:
            raise ValueError(f"{name} has no feature map of stride {missing} (MODEL.TIMM.OUT_STRIDES); it has {available}")
        # where several stages share a stride the last is the deepest
        indices = [max(i for i, s in enumerate(available) if s == stride) for stride in out_strides]
        self.model = timm.create_model(
            name, features_only=True, pretrained=pretrained, out_indices=indices, **options
        )
        self._out_features = [f"s{stride}" for stride in out_strides]
        self._out_feature_strides = dict(zip(self._out_features, out_strides))
        self._out_feature_channels = dict(zip(self._out_features, self.model.feature_info.channels()))
        self._channels_last = self.model.feature_info.get_dicts()[0].get("fmt", "") == "NHWC" or getattr(
            self.model, "output_fmt", ""
        ) == "NHWC"

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        timm_cfg = cfg.MODEL.TIMM
        return {
            "name": timm_cfg.NAME,
            "out_strides": timm_cfg.OUT_STRIDES,
            "pretrained": timm_cfg.PRETRAINED_ON,
            "options": {key.lower(): value for key, value in timm_cfg.OPTIONS.items()},
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`images` (B, 3, H, W), normalised -> (B, C, H/stride, W/stride) for each configured stride."""
        maps = self.model(images)
        if self._channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return dict(zip(self._out_features, maps))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
