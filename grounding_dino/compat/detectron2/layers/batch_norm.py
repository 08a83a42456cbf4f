"""Batch normalisation with fixed statistics, and norms by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose weight, bias, running mean and running variance are buffers that never change.

    A checkpoint without running statistics (such as Caffe2's, where they are folded into weight and bias) leaves mean 0
    and variance 1 - eps, with which the layer is the plain affine map.
    """

    _version = 3
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in the dtype of `x`."""
        if x.requires_grad:
            # The affine form needs no buffers saved for a backward pass through the statistics.
            scale = self.weight * (self.running_var + self.eps).rsqrt()  # (C,)
            shift = self.bias - self.running_mean * scale
            return x * scale.to(x.dtype).reshape(1, -1, 1, 1) + shift.to(x.dtype).reshape(1, -1, 1, 1)
        # Without gradients the fused kernel saves memory.
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *statistics, training=False, eps=self.eps)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 0) < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var) - self.eps)
        if self.num_batches_tracked is None:
            state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every (sync) batch norm in `module` by a frozen one with its values; returns the module to use."""
        if isinstance(module, _BATCH_NORMS):
            frozen = cls(module.num_features, module.eps)
            _copy_statistics(module, frozen)
            return frozen
        for name, child in module.named_children():
            converted = cls.convert_frozen_batchnorm(child)
            if converted is not child:
                module.add_module(name, converted)
        return module

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """The inverse of `convert_frozen_batchnorm`: frozen norms become trainable ``torch.nn.BatchNorm2d``."""
        if isinstance(module, FrozenBatchNorm2d):
            trainable = nn.BatchNorm2d(module.num_features, module.eps)
            _copy_statistics(module, trainable)
            return trainable
        for name, child in module.named_children():
            converted = cls.convert_frozenbatchnorm2d_to_batchnorm2d(child)
            if converted is not child:
                module.add_module(name, converted)
        return module


def _copy_statistics(source: Any, target: Any) -> None:
    """Give `target` the mode, device, affine parameters and statistics of the batch norm `source`."""
    if source.running_mean is None or source.running_var is None:
        raise ValueError(f"{source} keeps no running statistics, so it cannot be frozen; set track_running_stats=True")
    target.train(source.training)
    target.to(source.running_mean.device)
    if source.weight is not None:  # affine=False: weight 1 and bias 0 stay
        target.weight.data = source.weight.data.clone().detach()
        target.bias.data = source.bias.data.clone().detach()
    target.running_mean.data = source.running_mean.data.clone()
    target.running_var.data = source.running_var.data.clone()
    if source.num_batches_tracked is not None:
        target.num_batches_tracked = source.num_batches_tracked.clone()


class _ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W), in each position by itself."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": _ChannelLayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build a norm for `out_channels` channels from its name or from a callable; None and "" give None.

    Raises ValueError for a name that is not known.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise ValueError(f"unknown norm {norm!r}; choose from {sorted(_NORMS)}, or pass a callable")
        norm = _NORMS[norm]
    return norm(out_channels)
