"""Learning rates that fall from the last layer of backbone and BERT to the first (SOLVER.LAYER_DECAY)."""

from __future__ import annotations

import re

from detectron2.config import CfgNode
from torch import nn

# A block of a backbone or of BERT, such as layers.2.blocks.5 (Swin), res4.3 (ResNet), layer3.1, stages_2.blocks.0,
# blocks.4.1 (timm), encoder.layer.7 (BERT); the norms of Swin's outputs are named after stages as well.
_BLOCK = re.compile(r"(?<!norms\.)(?:layers?|stages?|res|blocks?)[._]?\d+(?:\.(?:blocks?\.)?\d+)?(?=\.)")

_PARTS = {"BACKBONE": "backbone.", "TEXT_ENCODER": "text_encoder.bert."}


def layer_factors(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """Parameter name -> factor of its learning rate, for the parts whose SOLVER.LAYER_DECAY is not 1.

    The last block has factor 1, each block before it the next one's times the decay, and what stands before the first
    block (stem, embeddings) is a layer of its own. What stands between or behind blocks goes with the block before it.

    Raises:
        ValueError: a decay that is not in (0, 1], or no block is recognised by the parameters' names.
    """
    factors: dict[str, float] = {}
    names = [name for name, _ in model.named_parameters()]
    for key, prefix in _PARTS.items():
        decay = float(cfg.SOLVER.LAYER_DECAY[key])
        if not 0 < decay <= 1:
            raise ValueError(f"SOLVER.LAYER_DECAY.{key} is {decay}; give a factor above 0, at most 1")
        if decay == 1:
            continue
        layers = layer_indices([name for name in names if name.startswith(prefix)])
        last = max(layers.values(), default=0)
        if last == 0:
            raise ValueError(
                f"SOLVER.LAYER_DECAY.{key} is {decay}, but the names of the parameters of {prefix[:-1]!r} show no "
                "layers; set it to 1.0, and rates by name with SOLVER.PARAMETER_GROUPS"
            )
        factors.update({name: decay ** (last - layer) for name, layer in layers.items()})
    return factors


def layer_indices(names: list[str]) -> dict[str, int]:
    """The layer of each parameter: 0 before the first block, then 1, 2, ...; `names` are in the order of the model."""
    blocks = {name: found.group() for name in names if (found := _BLOCK.search(name))}
    containers = {block.rsplit(".", 1)[0] for block in blocks.values() if "." in block}
    containers |= {container.rsplit(".", 1)[0] for container in containers if "." in container}
    order: dict[str, int] = {}
    indices: dict[str, int] = {}
    for name in names:
        block = blocks.get(name)
        if block is not None and block not in containers:
            order.setdefault(block, len(order) + 1)
            indices[name] = order[block]
        else:
            indices[name] = len(order)
    return indices
