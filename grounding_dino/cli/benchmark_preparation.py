"""The folder that all sides of a benchmark read: configuration, random weights, and these for `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.benchmark_inputs import (
    CONFIG_FILE,
    TRANSFORMERS_FOLDER,
    WEIGHTS_FILE,
    first_names,
    inputs_of,
    names_of,
    prompts_of,
)

import torch
from torch import nn

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# `transformers` has 1e-5 for both inverse sigmoids, the published models 1e-3: a different number, the same work.
_SAME_NUMBERS = ("MODEL.TRANSFORMER_DECODER.REFERENCE_EPS", 1e-5, "MODEL.TRANSFORMER_DECODER.BOX_EPS", 1e-5)


class Preparation:
    """Writes the folder that both sides read: configuration, random weights, and these for `transformers`."""

    def __init__(self, config: str, opts: Sequence[Any], folder: str, size: Sequence[int], categories: int) -> None:
        self.config, self.opts, self.folder = config, list(opts), Path(folder)
        self.size, self.names = size, names_of(categories)

    def prepare(self) -> dict[str, Any]:
        """`prompts`: how many; `obstacle`: why `transformers` cannot run this model, "" where it can."""
        from grounding_dino.checkpoint.saving import save_checkpoint
        from grounding_dino.model_zoo import load_cfg

        cfg = load_cfg(self.config, self.opts)
        cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
        cfg.MODEL.DENOISING.ENABLED_ON = False
        obstacle = _obstacle(cfg)
        if not obstacle:
            cfg.merge_from_list(list(_SAME_NUMBERS))
        (self.folder / CONFIG_FILE).write_text(cfg.dump(), encoding="utf-8")
        cfg.MODEL.TEXT_ENCODER.CACHE_SIZE = 0  # operations are counted of every run, and as PyTorch has them
        cfg.TEST.COMPILE_ON = cfg.TEST.CUDA_GRAPHS_ON = False
        model = random_model(cfg)
        save_checkpoint(str(self.folder / WEIGHTS_FILE), model.state_dict())
        if not obstacle:
            obstacle = self._write_for_transformers(cfg, model)
        self.cfg, self.model = cfg, model
        return {"prompts": len(prompts_of(cfg, self.names)), "obstacle": obstacle}

    def _write_for_transformers(self, cfg: CfgNode, model: nn.Module) -> str:
        """Why it could not be; "" where it is written."""
        from grounding_dino.checkpoint.files import CheckpointError
        from grounding_dino.checkpoint.huggingface import HeadCounts, save_huggingface_folder

        heads = HeadCounts(
            num_points=cfg.MODEL.PIXEL_DECODER.NUM_POINTS,
            decoder_heads=cfg.MODEL.TRANSFORMER_DECODER.NUM_HEADS,
            text_encoder_heads=cfg.MODEL.TEXT_ENCODER.NUM_HEADS,
        )
        folder = str(self.folder / TRANSFORMERS_FOLDER)
        try:
            save_huggingface_folder(
                folder, model.state_dict(), heads=heads, vocabulary=cfg.MODEL.TEXT_ENCODER.VOCABULARY
            )
        except (CheckpointError, ImportError) as error:
            return str(error)
        except KeyError as error:
            return f"transformers' Grounding DINO has {error}, which this model lacks"
        return ""

    def count(self, compared: bool) -> dict[str, Any]:
        """Floating-point operations of one picture and its first prompt, two a multiply-add: ours by part, theirs."""
        from grounding_dino.analysis.flops import count_flops
        from grounding_dino.analysis.parts import PARTS

        names = first_names(self.cfg, self.names)
        flops = count_flops(self.model, inputs_of(self.cfg, self.size, 1, names))
        parts = {part: 2 * flops.total(part) for part in PARTS if flops.total(part)}
        found: dict[str, Any] = {"parts": parts, "ours": 2 * flops.total(), "transformers": None}
        if compared:
            from grounding_dino.cli.benchmark_sides import Transformers

            from torch.utils.flop_counter import FlopCounterMode

            theirs = Transformers(str(self.folder), self.size, 1, len(names), "fp32", warm_up=False)
            with FlopCounterMode(display=False) as counter:
                theirs.run()
            found["transformers"] = counter.get_total_flops()
        return found


def random_model(cfg: CfgNode, seed: int = 0) -> nn.Module:
    """The model of `cfg` with weights that are the same every time.

    Sampling offsets and boxes begin at zero in a new model; here they are spread, as training spreads them, so that
    memory is read from as many places.
    """
    from grounding_dino.model_zoo import build_model

    torch.manual_seed(seed)
    model = build_model(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets.weight" in name:
                parameter.normal_(std=0.1)
            elif "box_head" in name and parameter.dim() > 1:
                parameter.normal_(std=0.03)
    return model


def _obstacle(cfg: CfgNode) -> str:
    """Why `transformers` has no such model; "" where it may have one."""
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedDINO" or not cfg.MODEL.TEXT_ENCODER.NAME:
        return "transformers has no such model"
    if cfg.MODEL.BACKBONE.NAME != "SwinTransformer":
        return f"transformers' Grounding DINO has no {cfg.MODEL.BACKBONE.NAME}"
    return ""
