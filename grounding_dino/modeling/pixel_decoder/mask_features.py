"""Features at a quarter of the picture's resolution, which masks are read from (Mask DINO, section 3.3)."""

from __future__ import annotations

from grounding_dino.modeling.input_projection import conv_norm, pad_maps
from grounding_dino.structures import FeaturePyramid, Memory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # pixels of a picture to one of its mask


class MaskFeatures(nn.Module):
    """The encoder's finest level, enlarged and added to the backbone's map of stride 4, then convolved."""

    def __init__(self, embed_dim: int, mask_dim: int, padded_maps: bool = False) -> None:
        """`padded_maps`: take padding in at inference too, as in training."""
        super().__init__()
        self.padded_maps = padded_maps
        self.output = conv_norm(embed_dim, embed_dim, kernel_size=3)
        self.projection = nn.Conv2d(embed_dim, mask_dim, kernel_size=1)
        nn.init.kaiming_uniform_(self.projection.weight, a=1)
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    def forward(self, features: FeaturePyramid, memory: Memory) -> Tensor:
        """(B, mask_dim, H/4, W/4).

        Where pictures of a batch differ in size, at inference each is computed on its own part of the maps: padding
        would change the convolution at the border and the averages of GroupNorm.
        """
        assert features.mask_map is not None, "the input projection makes it where MODEL.MASK_ON is True"
        height, width = features.maps[0].shape[-2:]
        finest = memory.features[:, : height * width].transpose(1, 2).unflatten(-1, (height, width))
        # sizes may differ in the map of stride 4 alone, and be equal in all levels
        differ = features.has_padding or len({mask_size(frame) for frame in features.frames}) > 1
        if self.training or self.padded_maps or not differ:
            return self.combine(features.mask_map, finest)
        masks = []
        for i, frame in enumerate(features.frames):
            rows, columns = mask_size(frame)
            valid = ~features.padding_masks[0][i]
            own = finest[i : i + 1, :, : int(valid[:, 0].sum()), : int(valid[0].sum())]
            masks.append(self.combine(features.mask_map[i : i + 1, :, :rows, :columns], own)[0])
        return pad_maps(masks)[0]

    def combine(self, mask_map: Tensor, finest: Tensor) -> Tensor:
        """`mask_map` (B, C, h, w) and the finest level (B, C, h', w') of the same pictures."""
        x = mask_map + F.interpolate(finest, size=mask_map.shape[-2:], mode="bilinear", align_corners=False)
        x = self.projection(F.relu(self.output(x)))
        return torch.as_tensor(x)

    def ratios(self, features: FeaturePyramid) -> Tensor:
        """(B, 2) w h: the share of the map of stride 4 that is each picture's own."""
        assert features.mask_map is not None
        height, width = features.mask_map.shape[-2:]
        shares = [(columns / width, rows / height) for rows, columns in map(mask_size, features.frames)]
        return torch.tensor(shares, dtype=torch.float32, device=features.mask_map.device)


def mask_size(frame: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the mask of a picture of `frame` (h, w) pixels."""
    return -(-frame[0] // STRIDE), -(-frame[1] // STRIDE)
