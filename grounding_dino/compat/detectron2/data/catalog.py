"""Data sets by name: how to load them (`DatasetCatalog`) and what is known about them (`MetadataCatalog`)."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

Records = list[dict[str, Any]]
Names = list[str]


class _DatasetCatalog(UserDict[str, Callable[[], Records]]):
    """Name -> function that returns the data set as a list of dicts, called anew on every `get`."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Make `name` known. `func` has to return the same records in the same order on every call: a list, or a torch
        data set.

        Raises:
            TypeError: `func` cannot be called.
            ValueError: the name is taken.
        """
        if not callable(func):
            raise TypeError(f"data set {name!r} has to be registered with a function, but got {func!r}.")
        if name in self:
            raise ValueError(f"data set {name!r} is already registered; remove it first or choose another name.")
        self[name] = func

    def get(self, name: str) -> Records:  # type: ignore[override]
        """Load the data set.

        Raises:
            KeyError: nothing is registered under `name`.
        """
        if name not in self:
            known = ", ".join(sorted(self.keys()))
            raise KeyError(f"data set {name!r} is not registered; the known ones are: {known}.")
        return self[name]()

    def list(self) -> Names:
        """The registered names."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Forget `name`."""
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.keys())})"

    __repr__ = __str__


class Metadata(SimpleNamespace):
    """Facts about a data set (class names, colours, file names), set once: another value for a set key is an error."""

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(
            f"the metadata of data set {self.name!r} has no {key!r}; it has: {', '.join(self.__dict__) or 'nothing'}."
        )

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != val:
            raise AssertionError(
                f"{key!r} of data set {self.name!r} is already set to {self.__dict__[key]!r} and cannot become {val!r}."
            )
        super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy of all facts."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> Metadata:
        """Set several facts; returns itself."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """A fact, or `default` where it is not set."""
        return getattr(self, key, default)


class _MetadataCatalog(UserDict[str, Metadata]):
    """Name -> `Metadata`, created on first use."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The metadata of a data set; the same object on every call.

        Raises:
            ValueError: the name is empty.
        """
        if not name:
            raise ValueError("a data set's name must not be empty.")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> Names:
        """The names that have metadata."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Forget what is known about `name`."""
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.keys())})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
