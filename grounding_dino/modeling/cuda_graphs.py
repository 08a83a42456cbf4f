"""CUDA graphs of functions of tensors: captured for shapes that come again, and replayed.

At batch 1 a GPU is done with a kernel before the host has launched the next one; a graph launches all at once (CUDA
Programming Guide, "CUDA Graphs"). A captured function must not look at its tensors' values on the host.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MAX_GRAPHS = 32  # kept by each function; each holds its inputs, and all share the memory of what lies between
REMEMBERED = 256  # shapes seen once, which wait for a second time
WARM_UPS = 3  # runs before a capture: libraries choose algorithms and caches fill in them

# (function without arguments) -> (what replays it, its results, which a replay overwrites)
Capture = Callable[[Callable[[], Any]], tuple[Callable[[], Any], Any]]


class ShapeGraphs:
    """Calls a function; where the same shapes come a second time it is captured, and replayed from then on.

    Everything of the arguments that is no tensor is part of the key, by value. Graphs that were used longest ago give
    way. The function runs as it is where gradients are wanted, on other devices, and for shapes whose capture failed.
    """

    device_type = "cuda"

    def __init__(
        self,
        function: Callable[..., Any],
        state: Callable[[], Any] = lambda: None,
        limit: int = MAX_GRAPHS,
        capture: Capture | None = None,
    ) -> None:
        """
        Args:
            function: of tensors, and of tuples, lists, dicts and dataclasses of them.
            state: what else, hashable, a captured graph depends on, such as where the weights are.
            limit: graphs kept at most.
            capture: how to capture; default `CudaCapture`.
        """
        self.function = function
        self.limit = limit
        self._state = state
        self._capture = capture or CudaCapture()
        self._graphs: OrderedDict[Any, _Graph | None] = OrderedDict()  # None: cannot be captured
        self._seen: OrderedDict[Any, None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, *arguments: Any) -> Any:
        """The function's result; tensors in it are the caller's own."""
        tensors: list[Tensor] = []
        structure = _flatten(arguments, tensors)
        if torch.is_grad_enabled() or not tensors or any(t.device.type != self.device_type for t in tensors):
            return self.function(*arguments)
        with self._lock:
            graph = self._graph(arguments, structure, tensors)
            return self.function(*arguments) if graph is None else graph.run(tensors)

    def _graph(self, arguments: Any, structure: Any, tensors: list[Tensor]) -> _Graph | None:
        shapes = tuple((t.shape, t.dtype, t.device) for t in tensors)
        key = (structure, shapes, self._state(), _autocast(self.device_type))
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if key not in self._seen:
            _remember(self._seen, key, None, REMEMBERED)
            return None
        del self._seen[key]
        try:
            graph = _Graph(self.function, arguments, tensors, self._capture)
        except RuntimeError as error:
            logger.warning("no CUDA graph for these shapes, which run without: %s", str(error).splitlines()[0])
            graph = None
        _remember(self._graphs, key, graph, self.limit)
        return graph


class _Graph:
    """One captured call: inputs of its own, and results that a replay overwrites."""

    def __init__(self, function: Callable[..., Any], arguments: Any, tensors: list[Tensor], capture: Capture) -> None:
        with torch.inference_mode(False), torch.no_grad():  # tensors that any later call may write into
            self.inputs = [tensor.clone() for tensor in tensors]
            own = _replace(arguments, iter(self.inputs))
            self.replay, self.results = capture(lambda: function(*own))

    def run(self, tensors: list[Tensor]) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            for own, given in zip(self.inputs, tensors):
                own.copy_(given)
            self.replay()
            found: list[Tensor] = []
            _flatten(self.results, found)
            return _replace(self.results, iter([tensor.clone() for tensor in found]))


class CudaCapture:
    """Captures on the current device, all graphs in one pool of memory: none is read while another runs."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """Warm up, then capture. Raises RuntimeError where something in `run` cannot be captured."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # autocast keeps casted weights until it ends; a graph must cast its own
        autocast = torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
        )
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), autocast:
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with autocast, torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = run()
        return graph.replay, results


def _autocast(device_type: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)


def _remember(kept: OrderedDict[Any, Any], key: Any, value: Any, limit: int) -> None:
    kept[key] = value
    while len(kept) > limit:
        kept.popitem(last=False)


def _parts(item: Any) -> list[Any] | None:
    """What a structure holds, in order; None for what is no structure."""
    if isinstance(item, (list, tuple)):
        return list(item)
    if isinstance(item, dict):
        return list(item.values())
    if dataclasses.is_dataclass(item):
        return [getattr(item, field.name) for field in dataclasses.fields(item)]
    return None


def _flatten(item: Any, tensors: list[Tensor]) -> Any:
    """A hashable description of all but the tensors, which are appended to `tensors`."""
    if isinstance(item, Tensor):
        tensors.append(item)
        return Tensor
    parts = _parts(item)
    if parts is None:
        return item
    names = tuple(item) if isinstance(item, dict) else ()
    return type(item), names, tuple(_flatten(part, tensors) for part in parts)


def _replace(item: Any, tensors: Iterator[Tensor]) -> Any:
    """The same structure with other tensors, in `_flatten`'s order."""
    if isinstance(item, Tensor):
        return next(tensors)
    parts = _parts(item)
    if parts is None:
        return item
    replaced = [_replace(part, tensors) for part in parts]
    if isinstance(item, dict):
        return dict(zip(item, replaced))
    if isinstance(item, (list, tuple)):
        return type(item)(replaced)
    return dataclasses.replace(item, **{f.name: part for f, part in zip(dataclasses.fields(item), replaced)})
