"""What masks take of the CPU's memory, with a full-size model in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

LIMIT = 6e9  # bytes
BUILD = """
import grounding_dino.modeling
from grounding_dino.engine.process_memory import peak_resident_bytes
from grounding_dino.model_zoo import load_cfg

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

torch.manual_seed(0)
model = build_model(load_cfg({config!r}, ["MODEL.DEVICE", "cpu", *{opts!r}]))
"""
TRAIN = """
corner, size = torch.rand(375, 2) * 220, torch.rand(375, 2) * 20 + 5
boxes = torch.cat((corner, (corner + size).clamp(max=255)), 1)
masks = torch.zeros(375, 256, 256, dtype=torch.bool)
for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
instances = Instances((256, 256))
instances.gt_boxes, instances.gt_masks = Boxes(boxes), BitMasks(masks)
instances.gt_classes = torch.zeros(375, dtype=torch.int64)
losses = model.train()([{"image": torch.randint(256, (3, 256, 256), dtype=torch.uint8), "instances": instances}])
sum(losses.values()).backward()
"""
DETECT = """
with torch.no_grad():
    (found,) = model.eval()([{"image": torch.randint(256, (3, 800, 1333), dtype=torch.uint8)}])
assert set(found) == {"instances", "panoptic_seg", "sem_seg"}
"""
PEAK = "\nprint(peak_resident_bytes())\n"


@pytest.mark.parametrize(
    ("run", "config", "opts"),
    [
        (TRAIN, "mask_dino/coco/r50_instance", []),
        (TRAIN, "mask_dino/coco/r50_instance", ["MODEL.DENOISING.MIN_GROUPS", 1]),  # 375 denoising queries more
        (DETECT, "mask_dino/coco/r50_panoptic", []),
    ],
    ids=["375 instances", "375 instances and denoising", "300 queries at 800 x 1333"],
)
def test_peak(run: str, config: str, opts: list[object]) -> None:
    script = BUILD.format(config=config, opts=opts) + run + PEAK
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.splitlines()[-1]) < LIMIT
