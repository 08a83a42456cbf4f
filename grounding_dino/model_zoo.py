"""Configurations by name, and models built from them."""

from __future__ import annotations

import difflib
import functools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.checkpoint.hub import HUB_CONFIGS, HUB_PREFIX, HubName, config_of, fetch, hub_name, weights_of
from grounding_dino.config import add_grounding_dino_config

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
ASSETS = PACKAGE / "assets"
SHIPPED_MODEL = "shapes_tiny"

# The authors' configurations, by the stem of their file (dots and case aside) -> ours.
AUTHORS_CONFIGS = {
    "groundingdino_swint_ogc": "swin_t_ogc",
    "groundingdino_swinb_cfg": "swin_b_cogcoor",
}


# What is drawn in the pictures of `example_pictures`, as far as SHIPPED_MODEL can be asked for it.
EXAMPLE_CATEGORIES = (
    *("blue star", "black star", "pink star", "red cross", "purple circle", "brown ring", "white diamond"),
    *("orange ring", "red ring", "red triangle", "black triangle", "blue heart", "purple cross", "white ring"),
    *("orange diamond", "orange crescent", "purple star", "red star", "orange circle", "purple crescent"),
)


def example_pictures() -> Path:
    """The folder of pictures to try: `demo/pictures` of a checkout, or the copy in an installed package."""
    checkout = PACKAGE.parent / "demo" / "pictures"
    return checkout if checkout.is_dir() else PACKAGE / "example_pictures"


def get_cfg() -> CfgNode:
    """Detectron2's default configuration with the keys of this project."""
    cfg = get_detectron2_cfg()
    add_grounding_dino_config(cfg)
    return cfg


def config_folders() -> list[Path]:
    """Where configurations lie: `configs/` of a checkout, and the copy in an installed package."""
    folders = PACKAGE.parent / "configs", PACKAGE / "configs"
    return [folder for folder in folders if (folder / "Base-GroundingDINO.yaml").is_file()]


def _config_names() -> set[tuple[str, ...]]:
    """All models as ("mask_dino", "coco", "r50_instance"): folders below `configs/`, and the file without ".yaml"."""
    files = (file.relative_to(folder) for folder in config_folders() for file in folder.rglob("*.yaml"))
    return {file.with_suffix("").parts for file in files if not file.stem.startswith("Base-")}


def list_configs() -> list[str]:
    """The short names of all models: the file's, with as many of its folders as tell it from the others."""
    names = _config_names()
    endings = Counter(name[start:] for name in names for start in range(len(name)))
    alone = ([name[start:] for start in range(len(name)) if endings[name[start:]] == 1] or [name] for name in names)
    return sorted("/".join(choices[-1]) for choices in alone)


def get_config_file(name: str | Path) -> str:
    """The file of a configuration.

    Args:
        name: a path to a .yaml file; a short name ("swin_t_ogc"), with a folder before it where several files share one
            ("ade20k/r50_semantic"); a path inside `configs/` ("grounding_dino/swin_t_ogc.yaml"); the path of one of the
            authors' .py configurations, recognised by its file name and never executed; a folder with a model and its
            configuration; or, where none of these is there, a model on a hub ("IDEA-Research/grounding-dino-tiny",
            with "@revision" behind it if need be), of which see :mod:`grounding_dino.checkpoint.hub`.

    Raises:
        FileNotFoundError: nothing of that name; the message lists what comes close.
        ValueError: a short name that several files share, or a model that the hub does not give.
    """
    path = Path(name).expanduser()
    if path.suffix == ".py":
        return get_config_file(_of_authors(path))
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return str(path)
    model = model_folder(name)
    if model is not None:
        return _config_of_model(model)
    wanted = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    for folder in config_folders():
        found = [file for file in sorted(folder.rglob("*.yaml")) if _matches(file.relative_to(folder), wanted)]
        if len(found) > 1:
            choices = ", ".join(str(file.relative_to(folder)) for file in found)
            raise ValueError(f"the configuration name {str(name)!r} fits {choices}; give one of these")
        if found:
            return str(found[0])
    raise FileNotFoundError(_unknown_config(name, wanted))


def model_folder(name: str | Path) -> Path | HubName | None:
    """The folder, or the name on a hub, that holds a model and its configuration; None where `name` is of another kind.

    Short names come before a hub, and, written without a separator, before folders.
    """
    text = str(name)
    path = Path(text).expanduser()
    if path.is_dir() and config_of(path) is not None and (os.sep in text or not _is_packaged(path)):
        return path
    model = hub_name(text)
    if model is None or (not text.startswith(HUB_PREFIX) and _is_packaged(path, or_folder=True)):
        return None
    return model


def _is_packaged(wanted: Path, or_folder: bool = False) -> bool:
    """Whether `configs/` has a file of that name, or else its folder."""
    files = [file.relative_to(folder) for folder in config_folders() for file in folder.rglob("*.yaml")]
    if or_folder and any(wanted.parts[:-1] == file.parts[-1 - len(wanted.parts[:-1]) : -1] for file in files):
        return True
    return any(_matches(file, wanted) for file in files)


def _config_of_model(model: Path | HubName) -> str:
    """The configuration file of a folder or of a model on a hub."""
    if isinstance(model, HubName) and model.repository in HUB_CONFIGS:
        return get_config_file(HUB_CONFIGS[model.repository])
    folder = fetch(model) if isinstance(model, HubName) else model
    config = config_of(folder, model if isinstance(model, HubName) else None)
    if config is None:
        raise FileNotFoundError(
            f"{model} says no configuration: it has neither a config.yaml of this project nor the config.json of a "
            "Grounding DINO of transformers; name the one that its weights were made with, and the weights: "
            f"--config-file swin_t_ogc --weights {model}, or load_predictor('swin_t_ogc', '{model}')"
        )
    return get_config_file(config)


def _unknown_config(name: str | Path, wanted: Path) -> str:
    """That there is no such configuration, and which come close."""
    names = list_configs()
    close = difflib.get_close_matches(wanted.name, names) or names
    return (
        f"there is no configuration {str(name)!r}: it is neither a .yaml file nor a name of "
        f"{[str(folder) for folder in config_folders()]}; known names: {', '.join(close) or 'none'}"
    )


def _matches(file: Path, wanted: Path) -> bool:
    """Whether a file, relative to its configuration folder, ends in the wanted name (without .yaml)."""
    parts = file.with_suffix("").parts
    return parts[-len(wanted.parts) :] == wanted.parts if wanted.parts else False


def _of_authors(path: Path) -> str:
    key = path.name[: -len(".py")].lower().replace(".", "_")
    if key not in AUTHORS_CONFIGS:
        raise ValueError(
            f"{path.name!r} is a Python file, which is not executed, and not the name of a published Grounding DINO "
            f"configuration ({', '.join(sorted(AUTHORS_CONFIGS))}); give a .yaml configuration"
        )
    return AUTHORS_CONFIGS[key]


def load_cfg(config: CfgNode | str | Path = SHIPPED_MODEL, opts: Sequence[object] = ()) -> CfgNode:
    """A configuration by name, path, or as a node (copied), with `KEY, VALUE, ...` overrides.

    Raises:
        FileNotFoundError, ValueError: as `get_config_file` and `merge_options` raise them.
    """
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
    else:
        cfg = get_cfg()
        cfg.merge_from_file(get_config_file(config))
        cfg.MODEL.WEIGHTS = model_weights(config) or cfg.MODEL.WEIGHTS
    merge_options(cfg, opts)
    return cfg


def model_weights(name: str | Path) -> str:
    """The weights that lie with a configuration, of a folder or of a model on a hub; "" for all other names.

    Raises:
        CheckpointError: the folder has none, or several.
    """
    model = model_folder(name)
    if model is None:
        return ""
    return f"{HUB_PREFIX}{model}" if isinstance(model, HubName) else weights_of(model)


def merge_options(cfg: CfgNode, options: Sequence[object]) -> None:
    """Override keys of `cfg` in place with `KEY, VALUE, ...`.

    Raises:
        ValueError: no pairs, an unknown key (the message names those that come close), or a value that does not fit.
    """
    if isinstance(options, str):
        raise ValueError(f"options are a list of KEY, VALUE, ..., not the string {options!r}; give {options.split()}")
    flags = [option for option in options if isinstance(option, str) and option.startswith("--")]
    if flags:
        raise ValueError(f"{flags[0]} stands behind the first KEY VALUE pair; move it before them")
    if len(options) % 2:
        text = " ".join(map(str, options))
        raise ValueError(f"{text!r} are not pairs of KEY VALUE: one is left over")
    known, open_nodes = set(config_keys(cfg)), _open_nodes(cfg)
    for key, value in zip(options[::2], options[1::2]):
        if key not in known and key not in open_nodes:
            close = difflib.get_close_matches(str(key), known, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else "; grounding_dino/config.py lists them"
            raise ValueError(f"there is no configuration key {key!r}{hint}")
        try:
            if key in open_nodes and isinstance(value, str):
                value = yaml.safe_load(value)  # Detectron2 takes the keys below as a mapping only
            cfg.merge_from_list([key, str(value) if isinstance(value, Path) else value])
        except (ValueError, KeyError, yaml.YAMLError) as error:
            raise ValueError(f"{key} cannot be {value!r}: {error.args[0]}") from error
    if "SOLVER.MAX_ITER" in options[::2] and "SOLVER.EPOCHS.MAX" not in options[::2]:
        cfg.SOLVER.EPOCHS.MAX = 0  # iterations asked for by name win over a recipe's epochs


def _open_nodes(node: CfgNode, prefix: str = "") -> set[str]:
    """The full names of the nodes that take any keys, such as one for each data set."""
    inner = [(f"{prefix}{key}", value) for key, value in node.items() if isinstance(value, CfgNode)]
    found = {name for name, value in inner if value.is_new_allowed()}
    return found.union(*(_open_nodes(value, f"{name}.") for name, value in inner if name not in found))


def config_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The full names of all keys of a configuration, "MODEL.WEIGHTS" and the like, each behind `prefix`."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from config_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def find_weights(cfg: CfgNode, config_name: str = "", opts: Sequence[object] = ()) -> str:
    """The weights of a configuration: its MODEL.WEIGHTS, else the shipped file, else the released one's URL.

    What a recipe itself names as MODEL.WEIGHTS is where its training starts, and gives way to what came out of it, if
    that is shipped or released; weights named in `opts` never give way.

    Args:
        config_name: the name or path that `cfg` was read from, "" if unknown.
        opts: the `KEY, VALUE, ...` overrides that are part of `cfg`.

    Raises:
        FileNotFoundError: none of these is known.
    """
    is_named = "MODEL.WEIGHTS" in list(opts)[::2] or bool(config_name and model_weights(config_name))
    shipped = ASSETS / f"{Path(config_name).stem}.safetensors"
    trained = str(shipped) if config_name and shipped.is_file() else str(cfg.MODEL.RELEASE.URL)
    if cfg.MODEL.WEIGHTS and (is_named or not (trained and _is_start_of_recipe(cfg, config_name))):
        return str(cfg.MODEL.WEIGHTS)
    if trained:
        return trained
    raise FileNotFoundError(
        f"no weights are known for the configuration {config_name or 'given'!r}: name a checkpoint (weights=..., "
        "--weights, or MODEL.WEIGHTS in the configuration); MODEL_ZOO.md says where published ones lie"
    )


def _is_start_of_recipe(cfg: CfgNode, config_name: str) -> bool:
    """Whether MODEL.WEIGHTS is what a recipe of this project begins with, not what came out of it."""
    try:
        file = Path(get_config_file(config_name)).resolve()
    except (FileNotFoundError, ValueError):
        return False  # the name of nothing, or of several files
    if not any(file.is_relative_to(folder) for folder in config_folders()):
        return False
    return bool(load_cfg(file).MODEL.WEIGHTS == cfg.MODEL.WEIGHTS)


def resolve_device(device: str | None, fallback: bool = False) -> str:
    """The device to use: the one named, else a GPU where there is one, else the CPU.

    Args:
        fallback: take the CPU, with a log line, where CUDA is named and missing; for configurations, whose
            default is "cuda" everywhere.

    Raises:
        ValueError: no such kind of device, or one that this machine lacks.
    """
    import torch

    available = torch.cuda.is_available()
    if device is None:
        return "cuda" if available else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except (RuntimeError, TypeError):
        raise ValueError(
            f"there is no device {device!r}; say 'cuda', 'cuda:1', ... or 'cpu', or leave it out"
        ) from None
    if kind not in ("cpu", "cuda") and not (hasattr(torch, kind) and getattr(torch, kind).is_available()):
        raise ValueError(f"torch finds no {kind!r} device on this machine; say 'cuda' or 'cpu', or leave it out")
    if kind == "cuda" and available and index >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is asked for, but torch finds only {torch.cuda.device_count()} CUDA device(s), "
            "counted from 0"
        )
    if kind == "cuda" and not available:
        if not fallback:
            raise ValueError(
                f"device {device!r} is asked for, but torch finds no CUDA device; leave it out or say 'cpu'"
            )
        logger.info("no CUDA device: running on the CPU")
        return "cpu"
    return str(device)


def build_model(cfg: CfgNode, weights: str | Path | None = None) -> nn.Module:
    """The model of a configuration on its MODEL.DEVICE, in evaluation mode.

    Args:
        weights: a checkpoint of any origin (file, folder or URL); None takes MODEL.WEIGHTS, and where that is
            empty too, the weights stay random: those of parts (MODEL.BACKBONE.WEIGHTS, ...) are a training's start.
    """
    import grounding_dino.modeling  # noqa: F401  # fills the registries
    from grounding_dino.modeling.hot_path import speed_up

    from detectron2.modeling import build_model as build

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE, fallback=True)
    if not cfg.MODEL.TEXT_ENCODER.NAME:
        from grounding_dino.data.class_count import read_class_names, with_class_count

        cfg = with_class_count(cfg)
        read_class_names(cfg)
    source = str(weights or cfg.MODEL.WEIGHTS)
    if not source:
        return speed_up(cfg, build(cfg).eval())
    from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
    from grounding_dino.checkpoint.loaded_model import build_loaded

    # strictly, also where the recipe's training is a warm start
    checkpointer_of = functools.partial(GroundingCheckpointer, ignore=cfg.MODEL.WEIGHTS_IGNORE)
    model, rest = build_loaded(lambda: build(cfg), checkpointer_of, source)
    complete_weights(cfg, model, rest)
    return speed_up(cfg, model.eval())


def complete_weights(cfg: CfgNode, model: nn.Module, rest: Mapping[str, Any]) -> bool:
    """What a model computes with at inference beyond the weights of its checkpoint.

    The adapters of MODEL.LORA.WEIGHTS are merged; without any, and with SOLVER.EMA.ENABLED_ON, averaged weights that
    the checkpoint holds take the place of the trained ones. Adapters belong to the trained ones, from which their
    training began.

    Args:
        rest: what else the checkpoint held, as `GroundingCheckpointer.load` returns it.

    Returns:
        Whether averaged weights are used.

    Raises:
        CheckpointError: averaged weights or adapters do not fit the model.
    """
    if cfg.MODEL.LORA.WEIGHTS:
        from grounding_dino.checkpoint.adapters import merge_adapter

        merge_adapter(model, cfg.MODEL.LORA.WEIGHTS, rest)
        return False
    if not cfg.SOLVER.EMA.ENABLED_ON:
        return False
    from grounding_dino.checkpoint.loading import load_average_into

    return load_average_into(model, rest)
