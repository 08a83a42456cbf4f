"""Any timm model with `features_only` as a Detectron2 backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.modeling.backbone.checkpointing import checkpoint_blocks

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """Feature maps of a timm model, named by stride: `s4`, `s8`, `s16`, `s32`.

    Pictures are zero-padded to a multiple of the largest stride, and each map is cut to the picture's size divided
    by its stride, rounded up: some models refuse other sizes, and others round down at every stage, so that a map
    would end before the picture does and all positions on it would be off.

    Detectors on ConvNeXt normalise each output map over its channels, which timm's `features_only` does not:
    `out_norms` adds these LayerNorms (eps 1e-6, ConvNeXt's) as `norms.s8` and so on.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        out_strides: Sequence[int],
        options: Mapping[str, Any] | None = None,
        out_norms: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        """Create timm's model `name` with further `options`, and random weights.

        Raises:
            ValueError: timm has no such model, the model no map of one of `out_strides`, or no blocks to checkpoint.
        """
        super().__init__()
        import timm  # imports many models; only those who use it pay

        if name.split(".")[0] not in timm.list_models():
            close = timm.list_models(f"*{name.split('_')[0]}*")[:8]
            raise ValueError(f"timm knows no model {name!r} (MODEL.TIMM.NAME); similar names: {close}")
        options = dict(options or {})
        probe: Any = timm.create_model(name, features_only=True, pretrained=False, **options)
        available = probe.feature_info.reduction()
        missing = sorted(set(out_strides) - set(available))
        if missing:
            raise ValueError(
                f"{name} has no feature map of stride {missing} (MODEL.TIMM.OUT_STRIDES); it has {available}"
            )
        # where several stages share a stride the last is the deepest
        indices = [max(i for i, s in enumerate(available) if s == stride) for stride in out_strides]
        self._options = {**options, "features_only": True, "out_indices": indices}
        model: Any = timm.create_model(name, pretrained=False, **self._options)
        self.name = name
        self.model = model
        self._out_features = [f"s{stride}" for stride in out_strides]
        self._out_feature_strides = dict(zip(self._out_features, out_strides))
        self._out_feature_channels = dict(zip(self._out_features, model.feature_info.channels()))
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"  # EfficientNets do not say
        named = self._out_feature_channels.items() if out_norms else ()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(channels, eps=1e-6) for name, channels in named})
        if activation_checkpointing:
            checkpoint_blocks(model)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read MODEL.TIMM."""
        timm_cfg = cfg.MODEL.TIMM
        return {
            "name": timm_cfg.NAME,
            "out_strides": timm_cfg.OUT_STRIDES,
            "options": {key.lower(): value for key, value in timm_cfg.OPTIONS.items()},
            "out_norms": timm_cfg.OUT_NORMS_ON,
            "activation_checkpointing": timm_cfg.ACTIVATION_CHECKPOINTING_ON,
        }

    def load_pretrained(self) -> None:
        """Fetch the weights that timm publishes for this model; MODEL.TIMM.PRETRAINED_ON asks for it.

        Raises:
            RuntimeError: there are none, or they cannot be fetched.
        """
        import timm

        try:
            source: Any = timm.create_model(self.name, pretrained=True, **self._options)
        except (OSError, RuntimeError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise RuntimeError(
                f"MODEL.TIMM.PRETRAINED_ON is True, but timm cannot fetch weights of {self.name!r} ({why}); set it to "
                "False, and name a file as MODEL.BACKBONE.WEIGHTS if you have one"
            ) from error
        self.model.load_state_dict(source.state_dict())
        logger.info("backbone: weights of %s from timm", self.name)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`images` (B, 3, H, W), normalised -> (B, C, H/stride, W/stride), rounded up, for each configured stride.

        Raises:
            ValueError: the timm model takes pictures of one size only.
        """
        height, width = images.shape[-2:]
        multiple = max(self._out_feature_strides.values())
        images = F.pad(images, (0, -width % multiple, 0, -height % multiple))
        try:
            maps = self.model(images)
        except AssertionError as error:
            raise ValueError(
                f"timm's {self.name} refuses pictures of {images.shape[-2]} x {images.shape[-1]} ({error}); where the "
                "model has it, set strict_img_size: False under MODEL.TIMM.OPTIONS, else choose a convolutional one"
            ) from error
        if self._channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        outputs = {
            name: x[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride]
            for (name, stride), x in zip(self._out_feature_strides.items(), maps)
        }
        return {name: self._normalised(name, x) for name, x in outputs.items()}

    def _normalised(self, name: str, feature: Tensor) -> Tensor:
        if name not in self.norms:
            return feature
        return self.norms[name](feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
