"""Fine-tuning by low-rank adapters (MODEL.LORA): which layers get them, what is trained, what is saved."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from grounding_dino.checkpoint.adapters import (
    adapted_layers,
    add_adapters,
    check_peft,
    is_of_adapter,
    plain_name,
    save_adapter,
)
from grounding_dino.engine.ema import WeightAverage
from grounding_dino.engine.evaluations import AVERAGED

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import HookBase
from torch import Tensor, nn

logger = logging.getLogger(__name__)

FOLDER = "adapter"  # of OUTPUT_DIR: as of the last evaluation
BEST_FOLDER = "adapter_best"  # as of the best one
# All linear layers of these are attention or feed-forward layers.
DEFAULT_TARGETS = (
    r"^pixel_decoder\.layers\.",
    r"^transformer_decoder\.layers\.",
    r"^text_encoder\.bert\.encoder\.layer\.",
    r"^tower\.blocks\.\d+\.(fusion|text_layer)\.",  # GLIP
)


def build_adapters(cfg: CfgNode, model: nn.Module) -> Adapters | None:
    """Put the adapters that MODEL.LORA asks for on `model`, in place, and freeze the rest; None where it is off.

    Raises:
        ValueError: a pattern that finds nothing, a number that cannot be, an option that does not go with adapters, or
            no peft.
    """
    if not cfg.MODEL.LORA.ENABLED_ON:
        return None
    check_peft()
    options = cfg.MODEL.LORA
    if cfg.SOLVER.DATA_PARALLEL == "fsdp2":
        raise ValueError(
            "MODEL.LORA.ENABLED_ON does not go with SOLVER.DATA_PARALLEL 'fsdp2': an adapted layer's merged weight "
            "cannot be had from parts of it; set SOLVER.DATA_PARALLEL 'ddp', for which adapters leave memory enough"
        )
    if options.WEIGHTS:
        raise ValueError(
            f"MODEL.LORA.WEIGHTS is {options.WEIGHTS!r} and MODEL.LORA.ENABLED_ON is True, but training begins with "
            "fresh adapters: merge the old ones first (tools/merge_lora.py), and name the result as MODEL.WEIGHTS"
        )
    if options.RANK < 1:
        raise ValueError(f"MODEL.LORA.RANK is {options.RANK}; give 1 or more, such as 8")
    if options.ALPHA <= 0 or not 0 <= options.DROPOUT < 1:
        raise ValueError(
            f"MODEL.LORA has ALPHA {options.ALPHA} and DROPOUT {options.DROPOUT}; give a positive number, such as 16, "
            "and a share from 0 to below 1"
        )
    config = add_adapters(model, target_layers(cfg, model), options.RANK, options.ALPHA, options.DROPOUT)
    _train_in_full(cfg, model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    layers = adapted_layers(model)
    logger.info(
        "adapters on %d layers: %.3f M of %.2f M parameters are trained", len(layers), trained / 1e6, total / 1e6
    )
    return Adapters(model, config, layers, cfg.MODEL.WEIGHTS)


def target_layers(cfg: CfgNode, model: nn.Module) -> list[str]:
    """The linear layers that MODEL.LORA.TARGETS names; by default those of attention and feed-forward networks.

    A frozen BERT (MODEL.TEXT_ENCODER.FREEZE_ON) is no default, since it passes no gradient on.

    Raises:
        ValueError: a pattern finds no linear layer, or one of a frozen BERT.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    frozen = "text_encoder.bert." if cfg.MODEL.TEXT_ENCODER.FREEZE_ON else None
    if not cfg.MODEL.LORA.TARGETS:
        found = [name for name in linear if any(re.search(pattern, name) for pattern in DEFAULT_TARGETS)]
        found = [name for name in found if frozen is None or not name.startswith(frozen)]
        if not found:
            raise ValueError(
                "MODEL.LORA.TARGETS is [], but the model has none of the usual layers; name some of its own"
            )
        return found
    chosen: dict[str, None] = {}
    for pattern in cfg.MODEL.LORA.TARGETS:
        names = [name for name in linear if _finds("MODEL.LORA.TARGETS", pattern, name)]
        if not names:
            raise ValueError(f"MODEL.LORA.TARGETS has {pattern!r}, but no linear layer's name matches it")
        if frozen is not None and any(name.startswith(frozen) for name in names):
            raise ValueError(
                f"MODEL.LORA.TARGETS has {pattern!r}, which finds layers of BERT, but MODEL.TEXT_ENCODER.FREEZE_ON is "
                "True; set it to False (adapters leave BERT's own weights as they are)"
            )
        chosen.update(dict.fromkeys(names))
    return list(chosen)


def _train_in_full(cfg: CfgNode, model: nn.Module) -> None:
    parameters = {name: p for name, p in model.named_parameters() if not is_of_adapter(name)}
    for pattern in cfg.MODEL.LORA.TRAIN:
        names = [name for name in parameters if _finds("MODEL.LORA.TRAIN", pattern, plain_name(name))]
        adapted = [plain_name(name) for name in names if plain_name(name) != name]
        if not names or adapted:
            what = f"finds {adapted[0]}, whose layer has an adapter" if adapted else "matches no parameter's name"
            raise ValueError(f"MODEL.LORA.TRAIN has {pattern!r}, which {what}")
        for name in names:
            parameters[name].requires_grad_(True)


def _finds(key: str, pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{key} has {pattern!r}, which is no regular expression: {error}") from error


class Adapters:
    """The adapters of a model in training: what checkpoints hold of them, and their own small file.

    Checkpoints show merged weights under the model's names, so that they can be used like any other. To go on from one
    bit for bit, this state holds what they are merged of.
    """

    def __init__(self, model: nn.Module, config: Any, layers: dict[str, Any], base: str) -> None:
        """`base`: where the weights that the adapters belong to come from."""
        self._model = model
        self._config = config
        self._layers = layers
        self._base = base

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        """Adapters and parameters trained in full."""
        for name, parameter in self._model.named_parameters():
            if is_of_adapter(name) or parameter.requires_grad:
                yield name, parameter.detach()

    def save(self, folder: str) -> None:
        """Write them as peft does: adapter_config.json and adapter_model.safetensors."""
        save_adapter(folder, self._config, dict(self._own()), self._base)
        size = sum(tensor.numel() * tensor.element_size() for _, tensor in self._own()) / 1e6
        logger.info("saved the adapters to %s (%.2f MB)", folder, size)

    def state_dict(self) -> dict[str, Any]:
        """The adapters, and the weights of the layers below them."""
        weights = {name: layer.base_layer.weight.detach() for name, layer in self._layers.items()}
        return {"trained": dict(self._own()), "base": weights}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: it is that of other adapters.
        """
        trained, own = state["trained"], dict(self._own())
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in trained.items()}:
            odd = sorted(trained.keys() ^ own.keys()) or ["adapters of another rank"]
            raise ValueError(
                f"the checkpoint has other adapters than MODEL.LORA asks for ({odd[0]}, ...); keep MODEL.LORA as it "
                "was, or start a new run from its weights"
            )
        for name, tensor in trained.items():
            own[name].copy_(tensor)
        for name, tensor in state["base"].items():
            self._layers[name].base_layer.weight.copy_(tensor)


def save_adapters(adapters: Adapters, average: WeightAverage | None, output_dir: str, name: str) -> None:
    """Write the adapters to the folder `name` of `output_dir`, and averaged ones, if any, to that of `ema` in it."""
    adapters.save(os.path.join(output_dir, name))
    if average is not None:
        with average.applied():
            adapters.save(os.path.join(output_dir, AVERAGED, name))


class SaveAdapter(HookBase):
    """Writes the adapters to OUTPUT_DIR/adapter after each evaluation, and in the end; for the first process alone."""

    def __init__(
        self, adapters: Adapters, output_dir: str, eval_period: int, average: WeightAverage | None = None
    ) -> None:
        self._adapters = adapters
        self._average = average
        self._folder = output_dir
        self._period = eval_period

    def after_step(self) -> None:
        """Write, where there was an evaluation or training ends."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            save_adapters(self._adapters, self._average, self._folder, FOLDER)
