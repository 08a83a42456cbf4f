"""Low-rank adapters (LoRA, arXiv:2106.09685) by the library peft: put on, written and read in its files, merged.

A model with adapters keeps the names of its state dict: each adapted layer shows its merged weight under the name it
always had, and takes a plain weight from a checkpoint. So checkpoints are read and written as those of any model.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from grounding_dino.checkpoint.files import CheckpointError, read_checkpoint_file
from grounding_dino.checkpoint.report import listed
from grounding_dino.checkpoint.saving import save_safetensors, write_atomically

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_NAME = "default"  # peft's, of the adapter in use
_PREFIX = "base_model.model."  # of every name in peft's files
_BASE = "base_layer."  # between the name of an adapted layer and its own weight and bias


def check_peft() -> None:
    """See that the package peft is there.

    Raises:
        ValueError: it is missing.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("LoRA adapters (MODEL.LORA) need the package peft, which is not installed; pip install peft")


def add_adapters(model: nn.Module, layers: Sequence[str], rank: int, alpha: int, dropout: float) -> Any:
    """Put fresh adapters, which change nothing yet, on the linear layers of these names; all else is frozen.

    Returns:
        peft's `LoraConfig` of them.
    """
    check_peft()
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers))
    peft.inject_adapter_in_model(config, model, _NAME)
    for layer in adapted_layers(model).values():
        layer.register_state_dict_post_hook(_show_merged)
        layer.register_load_state_dict_pre_hook(_take_plain)
    return config


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def is_of_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's own."""
    return f".{_NAME}." in name and ".lora_" in name


def plain_name(name: str) -> str:
    """The name that a parameter of the base model has without adapters."""
    return name.replace(f".{_BASE}", ".")


def _show_merged(layer: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    base = layer.base_layer
    state[f"{prefix}weight"] = base.weight.detach() + layer.get_delta_weight(_NAME).detach()
    if base.bias is not None:
        state[f"{prefix}bias"] = base.bias.detach()


def _take_plain(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, tensor in layer.named_parameters():
        if is_of_adapter(f".{name}"):
            state.setdefault(prefix + name, tensor.detach())  # stays as it is
        elif prefix + name.removeprefix(_BASE) in state:
            state[prefix + name] = state.pop(prefix + name.removeprefix(_BASE))


def save_adapter(folder: str, config: Any, trained: Mapping[str, Tensor], base: str = "") -> None:
    """Write the adapters, and other `trained` parameters by name, as a folder that peft reads.

    `base`: the weights that the adapters belong to, a note for whoever reads the file.
    """
    os.makedirs(folder, exist_ok=True)
    save_safetensors(
        os.path.join(folder, WEIGHTS_FILE),
        {_PREFIX + name.replace(f".{_NAME}.", "."): tensor for name, tensor in trained.items()},
    )
    config.base_model_name_or_path = base or None
    with tempfile.TemporaryDirectory() as scratch:
        config.save_pretrained(scratch)
        with open(os.path.join(scratch, CONFIG_FILE), "rb") as file:
            content = file.read()
    write_atomically(os.path.join(folder, CONFIG_FILE), lambda file: file.write(content))


def read_adapter(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Tensor]]:
    """peft's `LoraConfig` and the tensors, by the base model's names and peft's endings, of a folder or the file in it.

    Raises:
        CheckpointError: a file is missing, or it is no LoRA adapter.
        ValueError: peft is missing.
    """
    check_peft()
    import peft

    folder = os.fspath(path)
    if not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not os.path.isfile(os.path.join(folder, name)):
            raise CheckpointError(f"{path} is no adapter: {folder} has no {name} (MODEL.LORA.WEIGHTS)")
    try:
        config = peft.PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{os.path.join(folder, CONFIG_FILE)} cannot be read: {error}") from error
    if not isinstance(config, peft.LoraConfig) or config.modules_to_save or config.layer_replication:
        raise CheckpointError(
            f"{os.path.join(folder, CONFIG_FILE)} is of the type {config.peft_type}, or saves or repeats whole "
            "modules; MODEL.LORA.WEIGHTS takes plain LoRA adapters"
        )
    if type(config.r) is not int or config.r < 1 or type(config.lora_alpha) not in (int, float):
        raise CheckpointError(
            f"{os.path.join(folder, CONFIG_FILE)} has the rank r {config.r!r} and lora_alpha {config.lora_alpha!r}, "
            "which are no numbers of an adapter"
        )
    config.init_lora_weights = True  # others rewrite the base model, and the weights are read anyway
    tensors = read_checkpoint_file(os.path.join(folder, WEIGHTS_FILE))
    return config, {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def merge_adapter(model: nn.Module, path: str | os.PathLike[str], rest: Collection[str] = ()) -> list[str]:
    """Add the adapters of a file to the weights of `model`, in place; the names of the layers changed.

    Parameters that were trained in full replace the model's.

    Args:
        rest: names of what else the checkpoint of the weights held. A warning is logged where it comes from a training
            of adapters, which its weights have in them.

    Raises:
        CheckpointError: the adapter cannot be read, or belongs to another model, which is unchanged then.
    """
    config, tensors = read_adapter(path)
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name})
    problems = list(_misfits(model, config, layers, tensors))
    if problems or not layers:
        base = config.base_model_name_or_path or "unnamed weights"
        raise CheckpointError(
            f"the adapter {path} (MODEL.LORA.WEIGHTS) does not fit the model: {listed(problems) or 'no layers'}; "
            f"it was trained on {base}: take the configuration of that run"
        )
    from peft.tuners.lora import LoraModel

    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config.target_modules = layers
    tuner = LoraModel(model, config, _NAME)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[_in_model(name)].copy_(tensor)
    tuner.merge_and_unload()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
    base = config.base_model_name_or_path or "weights that the file does not name"
    if "lora" in rest:
        logger.warning(
            "%s is merged into weights that have the adapters of their own training in them already; that is right "
            "only if it was trained on them (it was on %s): else leave out MODEL.LORA.WEIGHTS, or name those weights",
            path,
            base,
        )
    logger.info(
        "%s: adapters of %d layers are merged into the weights; they were trained on %s", path, len(layers), base
    )
    return layers


def _in_model(name: str) -> str:
    """The name that peft gives a tensor of its file inside a model."""
    head, dot, tail = name.rpartition(".")
    return f"{head}.{_NAME}{dot}{tail}" if ".lora_" in name else name


def _rank(config: Any, layer: str) -> int:
    from peft.utils.other import get_pattern_key

    return int(config.rank_pattern.get(get_pattern_key(config.rank_pattern, layer), config.r))


def _misfits(model: nn.Module, config: Any, layers: Iterable[str], tensors: Mapping[str, Tensor]) -> Iterable[str]:
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    expected: dict[str, tuple[int, ...]] = {}
    for name in layers:
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            yield f"there is no linear layer {name}"
            continue
        rank = _rank(config, name)
        expected[f"{name}.lora_A.weight"] = (rank, layer.in_features)
        expected[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    for name, shape in expected.items():
        if name not in tensors:
            yield f"it lacks {name}"
        elif tuple(tensors[name].shape) != shape:
            yield f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
    for name, tensor in tensors.items():
        if ".lora_" in name:
            if name not in expected and name.rsplit(".lora_", 1)[0] in modules:
                yield f"{name} is of a kind that is not known"
        elif name not in parameters:
            yield f"there is no parameter {name}"
        elif tensor.shape != parameters[name].shape:
            yield f"{name} is {tuple(tensor.shape)} instead of {tuple(parameters[name].shape)}"
