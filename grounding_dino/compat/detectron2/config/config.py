"""`CfgNode` (fvcore's, without arbitrary code), `get_cfg` and the `configurable` decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import IO, Any

import yaml
from fvcore.common.config import CfgNode as _CfgNode

from detectron2.utils.file_io import PathManager

__all__ = ["CfgNode", "configurable", "get_cfg"]


class CfgNode(_CfgNode):
    """Tree of configuration values with ``_BASE_`` inheritance between YAML files.

    Unlike upstream it never runs code found in a file: YAML is read safely even with ``allow_unsafe=True``.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[Any]:
        return PathManager.open(filename, "r")

    @classmethod
    def _load_cfg_py_source(cls, filename: str) -> CfgNode:
        raise ValueError(f"{filename!r} is a Python file, which is not run as a configuration; write it as YAML")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge the YAML file `cfg_filename` and its ``_BASE_`` files into this node.

        `allow_unsafe` is accepted for compatibility and has no effect: tags that would construct Python objects
        are refused. Raises FileNotFoundError, ValueError (unsafe tag, other config version) or KeyError (unknown key).
        """
        if not PathManager.isfile(cfg_filename):
            raise FileNotFoundError(f"config file {cfg_filename!r} does not exist; check the path")
        try:
            values = self.load_yaml_with_base(cfg_filename, allow_unsafe=False)
        except yaml.constructor.ConstructorError as error:
            raise ValueError(
                f"config file {cfg_filename!r} holds a YAML tag that constructs Python objects ({error.problem}); "
                "replace it by plain numbers, strings, lists and mappings"
            ) from error
        loaded = type(self)(values)
        version, own_version = loaded.get("VERSION"), self.get("VERSION")
        if version is not None and own_version is not None and version != own_version:
            raise ValueError(
                f"config file {cfg_filename!r} has VERSION {version}, this program reads {own_version}; "
                "rename its keys to those of the current version"
            )
        self.merge_from_other_cfg(loaded)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the tree as YAML text that `merge_from_file` reads back."""
        return str(super().dump(*args, **kwargs))


def get_cfg() -> CfgNode:
    """Return a fresh copy of the default configuration."""
    from .defaults import default_config

    return default_config()


def configurable(init_func: Callable[..., Any] | None = None, *, from_config: Callable[..., Any] | None = None) -> Any:
    """Let a constructor or function be called with a config as well as with its explicit arguments.

    On ``__init__`` (bare ``@configurable``) the class must have a classmethod ``from_config(cls, cfg, ...)`` that
    returns the constructor's arguments as a dict. On a function, pass ``from_config=`` a function of the same kind.
    Arguments given beside the config override what ``from_config`` returns.
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or init_func.__name__ != "__init__" or from_config is not None:
            raise TypeError("@configurable without arguments decorates __init__; for functions use from_config=...")
        return _configurable_init(init_func)
    if from_config is None:
        return configurable  # "@configurable()" is the same as "@configurable"
    if not inspect.isfunction(from_config):
        raise TypeError(f"from_config of @configurable must be a function, got {type(from_config).__name__}")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if _is_called_with_config(*args, **kwargs):
                return function(**_arguments_from_config(from_config, *args, **kwargs))
            return function(*args, **kwargs)

        wrapped.from_config = from_config  # type: ignore[attr-defined]
        return wrapped

    return decorate


def _configurable_init(init_func: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        from_config = getattr(type(self), "from_config", None)
        if from_config is None:
            raise AttributeError(f"{type(self).__name__} uses @configurable and so needs a classmethod from_config")
        if not inspect.ismethod(from_config):
            raise TypeError(f"{type(self).__name__}.from_config must be a classmethod")
        if _is_called_with_config(*args, **kwargs):
            init_func(self, **_arguments_from_config(from_config, *args, **kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _is_called_with_config(*args: Any, **kwargs: Any) -> bool:
    candidate = args[0] if args else kwargs.get("cfg")
    return isinstance(candidate, _CfgNode)


def _arguments_from_config(from_config: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Call `from_config` with what it accepts; what it does not accept overrides or adds to its result."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        name = getattr(from_config, "__qualname__", repr(from_config))
        raise TypeError(f"the first argument of {name} must be named 'cfg'")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameter.kind in variadic for parameter in parameters.values()):
        return from_config(*args, **kwargs)
    overrides = {name: value for name, value in kwargs.items() if name not in parameters}
    accepted = {name: value for name, value in kwargs.items() if name in parameters}
    return {**from_config(*args, **accepted), **overrides}
