"""Memory that a forward pass takes for its activations, part by part."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

from grounding_dino.analysis.parts import AFTER, BEFORE, PARTS, part_of, starts_last

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclasses.dataclass(frozen=True)
class ActivationBytes:
    """What a forward pass without gradients takes, in bytes.

    Attributes:
        made: by part, all outputs of operators that got memory of their own: views and in-place results have none. What
            is freed on the way counts, so it says how much is written, not how much is held.
        peak: the most that was held at once, without weights, inputs, and what an operator takes and frees inside.
    """

    made: Mapping[str, int]
    peak: int


def measure_activations(model: nn.Module, batched_inputs: list[dict[str, Any]]) -> ActivationBytes:
    """Watch one forward pass of a model in evaluation mode."""
    with _Watch(model, batched_inputs) as watch, torch.no_grad():
        results = model(batched_inputs)
        del results
    return ActivationBytes({part: watch.made[part] for part in PARTS if watch.made[part]}, watch.peak)


class _Watch(TorchDispatchMode):
    """Sees every operator's outputs, and when their memory is freed."""

    def __init__(self, model: nn.Module, batched_inputs: list[dict[str, Any]]) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()
        self.peak = 0
        self._held = 0
        self._running: list[str] = []
        self._decoded = False
        self._hooks: list[Any] = []
        self._model = model
        known = [*model.parameters(), *model.buffers(), *(inputs["image"] for inputs in batched_inputs)]
        self._storages = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __enter__(self) -> _Watch:
        for name, module in self._model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            self._hooks.append(module.register_forward_hook(self._left, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._see(output.untyped_storage())
        return outputs

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        self._storages.add(storage)
        size = storage.nbytes()
        self.made[part_of(self._running) or (AFTER if self._decoded else BEFORE)] += size
        self._held += size
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self._held -= size

    def _entering(self, name: str) -> Any:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._running.append(name)
            self._decoded = self._decoded or starts_last(name)

        return enter

    def _left(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._running.pop()
