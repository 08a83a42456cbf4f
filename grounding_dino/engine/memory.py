"""How much memory a training step takes: measured, or scaled from small measured steps.

Tensors are counted as they are made and freed, which gives the same on a CPU as on a GPU. What comes on top is what no
tensor shows: workspaces of kernels, gaps between blocks of the allocator, and on GPUs the half gigabyte of CUDA itself.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grounding_dino.modeling  # noqa: F401  (registers the models)
from grounding_dino.engine.lora import build_adapters
from grounding_dino.engine.optimizer import OPTIMIZERS, build_optimizer
from grounding_dino.engine.process_memory import peak_resident_bytes
from grounding_dino.engine.train_step import TrainStep

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Sample = dict[str, Any]
Size = tuple[int, int]  # height, width

_SHORT_SIDES = (256, 384)  # of the pictures that the memory of larger ones is scaled from


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one process in training, and how they were found.

    Attributes:
        weights: parameters and buffers.
        gradients: of the parameters that are trained.
        optimizer: its state.
        average: of SOLVER.EMA.
        activations: what the forward pass of all pictures of a pass has to keep, at its peak.
        peak: the most that a whole step really took, its weights included; None where none was run.
        picture: height and width of the pictures.
        pictures: how many in a pass.
        objects: in each of them.
        how: in words.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    peak: int | None
    picture: Size
    pictures: int
    objects: int
    how: str

    @property
    def total(self) -> int:
        """All together: a little more than the peak, since activations go while gradients come."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


class LiveBytes(TorchDispatchMode):
    """Counts, while it is entered, the bytes of all tensors that were made within it and are not freed yet.

    Attributes:
        live: bytes now.
        peak: the most so far.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        """`known`: tensors made before, whose views are not new memory."""
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def largest_picture(cfg: CfgNode, sizes: Sequence[Size]) -> Size:
    """The largest (height, width) that augmentation makes of pictures of `sizes`.

    With INPUT.CROP pictures can get any shape; then it is the largest that INPUT allows.
    """
    if cfg.INPUT.LARGE_SCALE_JITTER.ENABLED_ON:
        return cfg.INPUT.LARGE_SCALE_JITTER.SIZE, cfg.INPUT.LARGE_SCALE_JITTER.SIZE
    short, longest = max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    if cfg.INPUT.CROP.ENABLED or not sizes:
        return min(short, longest), longest
    shapes = [T.ResizeShortestEdge.get_output_shape(height, width, short, longest) for height, width in set(sizes)]
    return max(shapes, key=lambda shape: shape[0] * shape[1])


def crowded(sample: Sample, size: Size, objects: int) -> Sample:
    """A training sample enlarged to `size`, with its objects repeated up to `objects`; without masks."""
    image = F.interpolate(sample["image"][None].float(), size, mode="bilinear")[0].to(torch.uint8)
    instances = sample["instances"]
    scale = torch.tensor([size[1] / sample["image"].shape[2], size[0] / sample["image"].shape[1]]).repeat(2)
    places = torch.arange(objects) % max(1, len(instances)) if len(instances) else torch.arange(0)
    repeated = Instances(size)
    repeated.gt_boxes = Boxes(instances.gt_boxes.tensor[places] * scale)
    repeated.gt_classes = instances.gt_classes[places]
    return {**sample, "image": image, "instances": repeated, "height": size[0], "width": size[1]}


def estimate_memory(cfg: CfgNode, sample: Sample, size: Size, pictures: int, objects: int) -> TrainingMemory:
    """The memory of a training step, its activations scaled from forward passes of one small picture each.

    Activations grow in proportion to the pixels, beside a constant part for text and queries: two sizes give both.
    Pictures that are no larger than those two are measured as they are.
    """
    parts = _Parts(cfg)
    smaller = [small for small in (_scaled(size, side) for side in _SHORT_SIDES) if _pixels(small) < _pixels(size)]
    if len(smaller) < len(_SHORT_SIDES):
        activations = pictures * parts.forward_bytes([crowded(sample, size, objects)])
        how = f"activations of one picture measured at full size, times {pictures}"
    else:
        few, more = (parts.forward_bytes([crowded(sample, small, objects)]) for small in smaller)
        slope = (more - few) / (_pixels(smaller[1]) - _pixels(smaller[0]))
        activations = round(pictures * (few + slope * (_pixels(size) - _pixels(smaller[0]))))
        how = f"activations scaled from one picture of {_text(smaller[0])} and one of {_text(smaller[1])}, not measured"
    return TrainingMemory(*parts.fixed_bytes(), activations, None, size, pictures, objects, how)


def measure_memory(cfg: CfgNode, sample: Sample, size: Size, pictures: int, objects: int) -> TrainingMemory:
    """The memory of a training step, by running one with pictures of full size on MODEL.DEVICE."""
    parts = _Parts(cfg)
    batch = [crowded(sample, size, objects)] * pictures
    fixed, activations = parts.fixed_bytes(), parts.forward_bytes(batch)
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step = parts.step(batch)
    with EventStorage(), LiveBytes(parts.tensors()) as counter:
        step.iter = 0
        step.run_step()
    if on_gpu:
        peak, how = torch.cuda.max_memory_allocated(), "one step was run; the peak is what torch took of the GPU"
    else:
        peak, how = parts.weight_bytes() + counter.peak, "one step was run; the peak counts tensors"
        resident = peak_resident_bytes()
        how += f"; the whole process took {format_bytes(resident)}" if resident else ""
    return TrainingMemory(*fixed, activations, peak, size, pictures, objects, how)


class _Parts:
    """The model and the optimizer of a training, without weights from a file."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.model = build_model(cfg).train()
        self.adapters = build_adapters(cfg, self.model)
        self.optimizer = build_optimizer(cfg, self.model)  # freezes, too

    def tensors(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def weight_bytes(self) -> int:
        return _bytes(self.tensors())

    def fixed_bytes(self) -> tuple[int, int, int, int]:
        """Weights, gradients, state of the optimizer, average."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradients = _bytes(trained)
        states = round(_states_an_element(self.cfg) * sum(parameter.numel() for parameter in trained))
        return self.weight_bytes(), gradients, states, gradients if self.cfg.SOLVER.EMA.ENABLED_ON else 0

    def step(self, batch: list[Sample]) -> TrainStep:
        """A step of one pass."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS = len(batch), 1
        return TrainStep(self.model, [batch], self.optimizer, cfg)

    def forward_bytes(self, batch: list[Sample]) -> int:
        """What the forward pass has to keep at its peak."""
        step = self.step(batch)
        with LiveBytes(self.tensors()) as counter:
            step.losses_of(batch)
        return counter.peak


def _states_an_element(cfg: CfgNode) -> float:
    """Bytes that the optimizer keeps for each number that it trains, seen on a small tensor."""
    parameter = nn.Parameter(torch.zeros(1024))
    optimizer = OPTIMIZERS[cfg.SOLVER.OPTIMIZER](cfg, [{"params": [parameter]}])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    return _bytes([value for value in kept if value.shape == parameter.shape]) / parameter.numel()


def format_bytes(count: float) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _scaled(size: Size, short: int) -> Size:
    height, width = T.ResizeShortestEdge.get_output_shape(*size, short, sys.maxsize)
    return height, width


def _pixels(size: Size) -> int:
    return size[0] * size[1]


def _text(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
