"""Training steps in processes of their own: ours, and those of `transformers`' Grounding DINO with its own loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from grounding_dino.analysis.ceiling import synchronize
from grounding_dino.cli.benchmark_inputs import (
    CONFIG_FILE,
    DTYPES,
    TRANSFORMERS_FOLDER,
    calls_of,
    inputs_of,
    load_transformers,
    names_of,
)
from grounding_dino.cli.benchmark_sides import Side
from grounding_dino.engine.process_memory import peak_resident_bytes

import torch

OBJECTS = 8  # in every picture


def objects_of(picture: int, categories: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes (OBJECTS,) and boxes (OBJECTS, 4) cxcywh in [0, 1] of a picture, the same every time."""
    generator = torch.Generator().manual_seed(picture)
    centres = 0.2 + 0.6 * torch.rand(OBJECTS, 2, generator=generator)
    sizes = 0.05 + 0.3 * torch.rand(OBJECTS, 2, generator=generator)
    return torch.randint(categories, (OBJECTS,), generator=generator), torch.cat([centres, sizes], 1)


class _Training(Side):
    """A step on one batch: forward, backward, clipping, AdamW."""

    def step(self) -> None:
        """One step; `loss` holds its loss afterwards."""
        raise NotImplementedError

    def run(self) -> float:
        """Seconds of a step."""
        synchronize(self.device)
        start = time.perf_counter()
        self.step()
        synchronize(self.device)
        return time.perf_counter() - start

    def facts(self) -> dict[str, int]:
        """What is trained."""
        return {"trainable": sum(p.numel() for p in self.model.parameters() if p.requires_grad)}


class OurTraining(_Training):
    """Our step, as `train_net.py` makes it, without loading of pictures."""

    def __init__(
        self,
        folder: str,
        size: Sequence[int],
        batch: int,
        categories: int,
        dtype: str,
        device: str = "cpu",
        denoising: bool = True,
    ) -> None:
        super().__init__(dtype, device)
        from grounding_dino.cli.benchmark_training import build_step
        from grounding_dino.model_zoo import load_cfg

        from detectron2.structures import Boxes, Instances

        opts: list[Any] = ["MODEL.DEVICE", device, "MODEL.DENOISING.ENABLED_ON", denoising]
        opts += ["SOLVER.AMP.ENABLED", dtype != "fp32"]
        if dtype != "fp32":
            opts += ["SOLVER.AMP.DTYPE", str(DTYPES[dtype]).removeprefix("torch.")]
        cfg = load_cfg(f"{folder}/{CONFIG_FILE}", opts)
        inputs = inputs_of(cfg, size, batch, names_of(categories))
        scale = torch.tensor([size[1], size[0]] * 2)
        for number, picture in enumerate(inputs):
            classes, boxes = objects_of(number, categories)
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1) * scale
            picture["instances"] = Instances((size[0], size[1]), gt_boxes=Boxes(corners), gt_classes=classes)
        self.step_, self.model = build_step(cfg, inputs)
        self.loading = peak_resident_bytes()
        self.run()

    def step(self) -> None:
        self.step_()


class TransformersTraining(_Training):
    """`transformers`' model and loss (of all decoder layers and of the encoder), with the fused
    AdamW of its own trainer."""

    def __init__(
        self, folder: str, size: Sequence[int], batch: int, categories: int, dtype: str, device: str = "cpu"
    ) -> None:
        """
        Raises:
            ValueError: the names take more than one prompt.
        """
        super().__init__(dtype, device)
        from grounding_dino.model_zoo import load_cfg

        cfg = load_cfg(f"{folder}/{CONFIG_FILE}")
        calls = calls_of(cfg, size, batch, names_of(categories), self.device)
        if len(calls) > 1:
            raise ValueError(f"--categories {categories} take {len(calls)} prompts; training takes one")
        self.inputs = calls[0]
        self.labels = []
        for number in range(batch):
            classes, boxes = objects_of(number, categories)
            self.labels.append({"class_labels": classes.to(self.device), "boxes": boxes.to(self.device)})
        encoder = cfg.MODEL.PIXEL_DECODER
        rates = {
            "dropout": encoder.DROPOUT,
            "attention_dropout": encoder.DROPOUT,
            "activation_dropout": encoder.DROPOUT,
            "fusion_dropout": encoder.TEXT_FUSION.DROPOUT,
            "fusion_droppath": encoder.TEXT_FUSION.DROP_PATH_RATE,
            "text_enhancer_dropout": encoder.TEXT_LAYER.DROPOUT,
        }
        model = load_transformers(f"{folder}/{TRANSFORMERS_FOLDER}", auxiliary_loss=True, **rates)
        self.model = model.to(self.device).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-4, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == "fp16")
        self.loading = peak_resident_bytes()
        self.run()

    def step(self) -> None:
        self.optimizer.zero_grad()
        with self.precision():
            loss = self.model(**self.inputs, labels=self.labels).loss
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 0.1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        loss.item()  # as every loop that logs it
