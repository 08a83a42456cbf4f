"""`DetectionCheckpointer`: fvcore's, for the file formats of detection models, without running code from files."""

from __future__ import annotations

import logging
import os
import pickle
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

# Computed from the config, so checkpoints may lack them.
_CONFIG_BUFFERS = ("pixel_mean", "pixel_std")


class DetectionCheckpointer(Checkpointer):
    """Saves and loads a model and whatever else has a ``state_dict``.

    Reads .pth files (tensors and plain values only), .safetensors, and .pkl files of numpy arrays. None of them can
    run code. With ``"matching_heuristics": True`` in the file, or ``?matching_heuristics=True`` after its name, names
    are matched by their ends (``stem.conv1.weight`` is loaded as ``backbone.stem.conv1.weight``).
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        """`save_to_disk`: by default only rank 0 saves."""
        save = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save, **checkpointables)
        self.path_manager = PathManager
        self._match_names = False

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the file or address `path` (nothing if empty); arguments and result as ``Checkpointer.load``.

        Raises OSError where the file cannot be read and ValueError where its content cannot be used.
        """
        self._match_names = False
        if path:
            parts = urlparse(path)
            query = parse_qs(parts.query)
            if "matching_heuristics" in query:
                self._match_names = query["matching_heuristics"] == ["True"]
                path = parts._replace(query="").geturl()
            if not os.path.isfile(self.path_manager.get_local_path(path)):
                raise OSError(
                    f"checkpoint {path!r} is not a file that process {comm.get_rank()} can read; check the path"
                )
            logger.info("[DetectionCheckpointer] Loading from %s ...", path)
        checkpoint: dict[str, Any] = super().load(path, *args, **kwargs)
        return checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = _read(filename)
        if filename.endswith(".pkl") and "model" not in data:
            raise ValueError(
                f"{filename!r} holds Caffe2 weights, whose names are not known here; use the torchvision weights "
                "detectron2://ImageNetPretrained/torchvision/R-50.pkl or upstream Detectron2"
            )
        checkpoint: dict[str, Any] = data if "model" in data else {"model": data}
        if self._match_names:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.pop("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = match_by_suffix(self.model.state_dict(), checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in _CONFIG_BUFFERS:
            if name in buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        return incompatible


def match_by_suffix(model_state: dict[str, Tensor], file_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a file to the model's names of which theirs are the end, the longest end first.

    An entry whose shape differs from the model's is left out with a warning; one that matches nothing keeps its name.
    Raises ValueError for an entry that matches two of the model's.
    """
    matched: dict[str, str] = {}  # name in the file -> name in the model
    for name, value in model_state.items():
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        found = next((end for end in ends if end in file_state), None)
        if found is None:
            continue
        if file_state[found].shape != value.shape:
            shapes = f"{tuple(file_state[found].shape)} in the file, {tuple(value.shape)} in the model"
            logger.warning("%s is not loaded into %s: its shape is %s", found, name, shapes)
            continue
        if found in matched:
            raise ValueError(f"{found!r} of the checkpoint matches both {matched[found]!r} and {name!r} of the model")
        matched[found] = name
    return {matched.get(name, name): value for name, value in file_state.items()}


def _read(filename: str) -> dict[str, Any]:
    """Read a checkpoint without running code from it."""
    try:
        if filename.endswith(".safetensors"):
            from safetensors.torch import load_file

            return dict(load_file(filename))
        with PathManager.open(filename, "rb") as file:
            if filename.endswith(".pkl"):
                data = _ArrayUnpickler(file, encoding="latin1").load()
            else:
                data = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"checkpoint {filename!r} is damaged or holds Python objects other than tensors, arrays and plain values, "
            f"which are not loaded for safety: {error}"
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"checkpoint {filename!r} holds a {type(data).__name__} instead of a dict of tensors")
    return data


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers, and refuses everything else."""

    _ALLOWED = {
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),  # how Python 2 arrays' bytes are written
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        if module_name == "numpy.core.multiarray":
            module_name = "numpy._core.multiarray"  # renamed in numpy 2
            try:
                return super().find_class(module_name, global_name)
            except ModuleNotFoundError:
                module_name = "numpy.core.multiarray"
        return super().find_class(module_name, global_name)
