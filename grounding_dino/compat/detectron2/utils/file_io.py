"""The one path manager of Detectron2 code: local paths, http(s) addresses and ``detectron2://`` names."""

from __future__ import annotations

from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathHandler", "PathManager"]

PathManager = PathManagerBase()
"""Project-wide path manager, private to Detectron2 so that handlers registered here do not affect other libraries."""


class Detectron2Handler(PathHandler):
    """Resolves ``detectron2://NAME`` to the public download address of Detectron2's model zoo."""

    PREFIX = "detectron2://"
    ADDRESS = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(PathManager.get_local_path(self.ADDRESS + path[len(self.PREFIX) :], force=force, **kwargs))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(OneDrivePathHandler())
PathManager.register_handler(Detectron2Handler())
