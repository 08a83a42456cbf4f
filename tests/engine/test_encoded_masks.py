"""Evaluations by this project's evaluators have masks run-length encoded, others as the configuration says."""

from __future__ import annotations

from typing import Any

from grounding_dino.engine.trainer import Trainer

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model


def test_masks_are_encoded_while_evaluators_of_this_project_look(
    tiny_mask_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = build_model(tiny_mask_cfg).eval()
    fields: list[set[str]] = []

    def test(cls: type, cfg: CfgNode, model: Any, evaluators: Any = None) -> None:
        with torch.no_grad():
            (found,) = model([{"image": torch.zeros(3, 40, 60, dtype=torch.uint8)}])
        fields.append({name for name in found["instances"].get_fields() if "masks" in name})

    monkeypatch.setattr(DefaultTrainer, "test", classmethod(test))
    Trainer.test(tiny_mask_cfg, model)
    Trainer.test(tiny_mask_cfg, model, [object()])
    assert model.masks.mask_format == "bitmask"
    assert fields == [{"pred_masks_rle"}, {"pred_masks"}]
