"""The objects of one picture: any number of fields of equal length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Instances:
    """Fields (boxes, scores, masks, ...) of the N objects of a picture, indexed together.

    Fields are set and read as attributes. Each needs a length; the first one set decides N. `image_size` is
    (height, width) of the picture the fields refer to.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"Instances has no field {name!r}; call has({name!r}) to ask")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set field `name`. Raises ValueError where its length differs from that of the fields there are."""
        length = len(value)
        if self._fields and length != len(self):
            raise ValueError(f"field {name!r} has {length} entries, the other fields of these Instances {len(self)}")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether field `name` is set."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Drop field `name`."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """Return field `name`; KeyError where absent."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The dict of all fields itself; changing it changes the Instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """A copy in which every field that has a method ``to`` is moved or cast."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: int | slice | Tensor) -> Instances:
        """Select objects by int (one object), slice, index or bool tensor; every field is indexed."""
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"index {item} is out of range for Instances of length {len(self)}")
            item = slice(item, None, len(self))
        selected = Instances(self._image_size)
        for name, value in self._fields.items():
            selected.set(name, value[item])
        return selected

    def __len__(self) -> int:
        """Number of objects. Raises NotImplementedError while no field is set."""
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length; set a field first")

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("Instances cannot be iterated over; iterate over a field, or index with integers")

    @staticmethod
    def cat(instance_lists: list[Instances]) -> Instances:
        """Concatenate Instances of pictures of one size; fields may be tensors, lists or have a static ``cat``."""
        if not instance_lists or not all(isinstance(instances, Instances) for instances in instance_lists):
            raise TypeError("Instances.cat takes a list of at least one Instances")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        for other in instance_lists[1:]:
            if other.image_size != first.image_size:
                raise ValueError(f"Instances.cat got image sizes {first.image_size} and {other.image_size}")
            if other.get_fields().keys() != first.get_fields().keys():
                raise ValueError(
                    f"Instances.cat got different fields: {sorted(first.get_fields())} and {sorted(other.get_fields())}"
                )
        merged = Instances(first.image_size)
        for name in first.get_fields():
            merged.set(name, _concatenate(name, [instances.get(name) for instances in instance_lists]))
        return merged

    def __str__(self) -> str:
        count = len(self) if self._fields else 0
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        height, width = self._image_size
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__


def _concatenate(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values, dim=0)
    if isinstance(first, list):
        return list(itertools.chain(*values))
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(f"cannot concatenate field {name!r} of type {type(first).__name__}; it has no method cat")
