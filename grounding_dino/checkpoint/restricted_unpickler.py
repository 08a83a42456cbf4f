"""Reading pickled checkpoints without running anything they ask for.

Published checkpoints carry more than tensors: an `argparse.Namespace`, mmengine objects, numpy arrays. A pickle names
the functions it wants called, so an ordinary unpickler runs whatever a hostile file names. The unpickler here
knows a short list of harmless names; every other name becomes an inert stub that swallows whatever is done to it.
"""

from __future__ import annotations

import collections
import pickle
import types
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch


class _Function:
    """A harmless function, callable from a pickle but not changeable by it (a pickle may set attributes)."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"the file tries to change a function ({name})")


class _FrozenType(type):
    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"the file tries to change a class ({cls.__name__}.{name})")


class Stub(metaclass=_FrozenType):
    """What stands in for an object of any unknown class: accepts construction, state and items, and does nothing."""

    stands_for = "unknown"

    def __new__(cls, *args: object, **kwargs: object) -> Stub:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass

    def __repr__(self) -> str:
        return f"<stub of {self.stands_for}>"


def _stub_class(module: str, name: str) -> type[Stub]:
    stub: type[Stub] = _FrozenType("Stub", (Stub,), {"stands_for": f"{module}.{name}"})  # type: ignore[assignment]
    return stub


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 2 pickles spell bytes; other codecs are not needed by any array."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file asks for the codec {encoding!r}")
    return text.encode("latin1")


def _numpy_scalar(dtype: np.dtype, data: bytes | None = None) -> object:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("the file holds a numpy scalar of an unusual kind")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _numpy_reconstruct(subtype: object, shape: tuple[int, ...], typecode: object) -> np.ndarray:
    if subtype is not np.ndarray:
        raise pickle.UnpicklingError("the file holds a numpy array of an unusual class")
    return np.ndarray.__new__(np.ndarray, shape, np.dtype("int8"))


def _numpy_from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError("the file holds a numpy array of an unusual kind")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _Function(_encode_latin1),
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _Function(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Function(torch._utils._rebuild_parameter),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(module, "set"): set for module in ("builtins", "__builtin__")},
    **{(module, "frozenset"): frozenset for module in ("builtins", "__builtin__")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Function(_numpy_reconstruct) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Function(_numpy_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Function(_numpy_from_buffer) for core in ("core", "_core")},
}


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing: a name is on the list, or it becomes a :class:`Stub` class."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _stub_class(module, name)


def load_restricted_pickle(file: BinaryIO, **kwargs: Any) -> Any:
    """Read one pickle from `file`; `kwargs` as `pickle.load` (`encoding` for files written by Python 2)."""
    return RestrictedUnpickler(file, **kwargs).load()


class _PickleModule(types.ModuleType):
    """What `torch.load` takes as `pickle_module`: it subclasses `Unpickler` and calls `load`."""

    Unpickler = RestrictedUnpickler
    UnpicklingError = pickle.UnpicklingError
    load = staticmethod(load_restricted_pickle)


RESTRICTED_PICKLE = _PickleModule("grounding_dino_restricted_pickle")
