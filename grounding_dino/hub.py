"""Our own models for others: a folder of weights, configuration and card, pushed to a hub and pulled from it.

save_model("my_model", "shapes_tiny", card=ModelCard(licence="apache-2.0", training_data="drawn shapes"))
push_to_hub("my_model", "owner/my_model")
load_predictor("owner/my_model"), or load_predictor("./my_model") without a hub
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.hub import (
    CARD_FILE,
    CONFIG_FILE,
    INSTALL,
    LOCAL_KEYS,
    WEIGHTS_FILE,
    HubName,
    check_foreign_config,
    fetch,
    hub_name,
    reason_of,
)

import yaml

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

LIBRARY = "grounding-dino-detectron2"
# Keys that say how this machine runs or began a training: they are as by default in what is given away.
_RESET = (*LOCAL_KEYS, "MODEL.DEVICE", "MODEL.WEIGHTS_IGNORE", "MODEL.WARM_START_ON")
_FRONT = "---\n"


@dataclass(frozen=True)
class ModelCard:
    """What a user of a model has to know, and its numbers alone do not say.

    Attributes:
        licence: of the weights, as hubs spell it ("apache-2.0", "cc-by-nc-4.0", "other").
        training_data: what the model was trained on, in words.
        results: data set -> box AP in percent.
        description: a sentence or more on what it is for, and what it cannot do.
        name: as which it is pushed, "owner/name"; for the lines that show its use.
    """

    licence: str
    training_data: str
    results: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    name: str = ""


def save_model(
    folder: str | Path,
    config: CfgNode | str | Path,
    weights: str | Path | None = None,
    opts: Sequence[object] = (),
    *,
    card: ModelCard,
) -> None:
    """Write a model to a new folder: model.safetensors, config.yaml that stands alone, and the card as README.md.

    Adapters (MODEL.LORA.WEIGHTS) are merged, averaged weights (SOLVER.EMA) take the place of the trained ones, and the
    class names of a model without text are written into the configuration.

    Args:
        config, weights, opts: as of `load_predictor`.

    Raises:
        FileExistsError: the folder is there and not empty.
        ValueError: the model needs a vocabulary of its own, which has no place in the folder, or as `load_predictor`.
    """
    from grounding_dino.checkpoint.saving import save_safetensors, write_atomically
    from grounding_dino.model_zoo import build_model, find_weights, load_cfg

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already, and not empty: name a new folder")
    opts = [*opts, "MODEL.DEVICE", "cpu"]
    cfg = load_cfg(config, opts)
    cfg.MODEL.WEIGHTS = str(weights) if weights else find_weights(cfg, _name_of(config), opts)
    if cfg.MODEL.TEXT_ENCODER.VOCABULARY:
        raise ValueError(
            f"MODEL.TEXT_ENCODER.VOCABULARY is {cfg.MODEL.TEXT_ENCODER.VOCABULARY!r}: a vocabulary of its own has no "
            "place in a folder that others load"
        )
    model = build_model(cfg)
    whole = portable_config(cfg, model)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(str(folder / CONFIG_FILE), lambda file: file.write(whole.dump().encode()))
    write_atomically(str(folder / CARD_FILE), lambda file: file.write(card_text(card, whole, folder).encode()))
    save_safetensors(str(folder / WEIGHTS_FILE), model.state_dict())


def _name_of(config: CfgNode | str | Path) -> str:
    return str(config) if isinstance(config, (str, Path)) else ""


def portable_config(cfg: CfgNode, model: nn.Module) -> CfgNode:
    """`cfg` without paths and settings of this machine, and with the class names of `model` if these are fixed."""
    from grounding_dino.data.class_count import with_class_count
    from grounding_dino.model_zoo import get_cfg

    whole = with_class_count(cfg).clone()
    whole.defrost()
    default = get_cfg()
    for key in _RESET:
        *parts, last = key.split(".")
        node, standard = whole, default
        for part in parts:
            node, standard = node[part], standard[part]
        node[last] = standard[last]
    classes: Any = getattr(model, "classes", None)
    if classes is not None:
        whole.MODEL.CLASS_HEAD.CLASS_NAMES = list(classes.names)
        whole.MODEL.CLASS_HEAD.THINGS = sorted(classes.things or ())
    return whole


def card_text(card: ModelCard, cfg: CfgNode, folder: Path) -> str:
    """README.md as hubs read it: facts as YAML, then words."""
    name = card.name or folder.name
    is_open = bool(cfg.MODEL.TEXT_ENCODER.NAME)
    task = "zero-shot-object-detection" if is_open else "image-segmentation" if _has_masks(cfg) else "object-detection"
    facts: dict[str, Any] = {
        "license": card.licence,
        "library_name": LIBRARY,
        "pipeline_tag": task,
        "tags": ["detectron2", "object-detection", cfg.MODEL.META_ARCHITECTURE],
    }
    if card.results:
        results = [
            {
                "task": {"type": task},
                "dataset": {"name": data, "type": data},
                "metrics": [{"type": "map", "name": "box AP", "value": value}],
            }
            for data, value in card.results.items()
        ]
        facts["model-index"] = [{"name": name.split("/")[-1], "results": results}]
    front = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    call = 'categories=["cat", "traffic light"]' if is_open else ""
    source = card.name or f"./{folder.name}"
    parts = [
        f"{_FRONT}{front}{_FRONT}\n# {name.split('/')[-1]}",
        card.description,
        f'```python\nfrom grounding_dino import load_predictor\n\npredictor = load_predictor("{source}")\n'
        f'found = predictor("picture.jpg"{", " if call else ""}{call})\n```',
        f"## Training data\n\n{card.training_data}",
        _results_table(card.results),
        _classes_of(cfg),
        f"## Licence\n\nOf these weights: {card.licence}. The program that runs them is {LIBRARY}, Apache-2.0.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _has_masks(cfg: CfgNode) -> bool:
    return bool(cfg.MODEL.MASK_ON)


def _results_table(results: Mapping[str, float]) -> str:
    if not results:
        return ""
    rows = "\n".join(f"| {data} | {value:.1f} |" for data, value in results.items())
    return f"## Results\n\n| data set | box AP |\n|---|---|\n{rows}"


def _classes_of(cfg: CfgNode) -> str:
    names = cfg.MODEL.CLASS_HEAD.CLASS_NAMES
    return f"## Classes\n\n{', '.join(names)}" if names else ""


def check_folder(folder: Path) -> None:
    """See that a folder is what `save_model` writes, and what others can load.

    Raises:
        CheckpointError: a file is missing, the configuration names files, or the card says no licence.
    """
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(missing)}: `grounding-dino hub save`, or save_model, writes a folder to push"
        )
    check_foreign_config(folder / CONFIG_FILE, str(folder))
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    try:
        facts = yaml.safe_load(text.split(_FRONT)[1]) if text.startswith(_FRONT) else None
    except yaml.YAMLError:
        facts = None
    if not isinstance(facts, dict) or not facts.get("license"):
        raise CheckpointError(f"{folder / CARD_FILE} says no licence: it begins with YAML between two lines of ---")


def push_to_hub(folder: str | Path, name: str, private: bool = False, message: str = "") -> str:
    """Push a folder of :func:`save_model` to the hub as `name`, which is made if it is not there; its address.

    The hub wants to know who pushes: `hf auth login`, or the variable HF_TOKEN.

    Raises:
        CheckpointError: it is no such folder or name, `huggingface_hub` is missing, or the hub refuses.
    """
    model = _named(name)
    if model.revision != "main":
        raise CheckpointError(f"{name!r} names a revision; a model is pushed to owner/name, and becomes its newest")
    folder = Path(folder)
    check_folder(folder)
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise CheckpointError(f"pushing needs the package huggingface_hub ({error}): {INSTALL}") from None
    api = HfApi(library_name=LIBRARY)
    try:
        page = api.create_repo(model.repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=model.repository,
            folder_path=folder,
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
            commit_message=message or f"Push a model of {LIBRARY}",
        )
    except Exception as error:  # which package does the hub's HTTP, and its errors, differ from release to release
        raise CheckpointError(
            f"{folder} cannot be pushed as {name}: {reason_of(error)}; the hub wants to know who pushes (hf auth "
            "login, or HF_TOKEN, with the right to write)"
        ) from error
    return str(page)


def pull_from_hub(name: str, folder: str | Path) -> list[str]:
    """Copy the configuration, weights and card of a model on the hub into a new folder; the files' names.

    Raises:
        FileExistsError: the folder is there and not empty.
        CheckpointError: as :func:`grounding_dino.checkpoint.hub.fetch`.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already, and not empty: name a new folder")
    files = [file for file in sorted(fetch(_named(name)).iterdir()) if file.is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)  # what a link of the cache points to
    return [file.name for file in files]


def _named(name: str) -> HubName:
    model = hub_name(name) or hub_name(f"hf://{name}")
    assert model is not None  # behind "hf://" it is one, or an error
    return model
