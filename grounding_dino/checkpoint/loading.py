"""Filling a model from a checkpoint of any origin: strictly, or in parts where that is asked for by name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.checkpoint.download import local_path
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.likely_config import likely_config
from grounding_dino.checkpoint.origins import LoadedCheckpoint, load_checkpoint
from grounding_dino.checkpoint.rules import StateDict, collapse_heads, expand_heads
from grounding_dino.checkpoint.tables.grounding_dino_official import BOX_HEADS, CLASS_HEADS

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Parameters that training alone uses: a checkpoint that has them loads into a model without.
_TRAINING_ONLY = re.compile(r"denoising\.")
_CLASS_HEAD = re.compile(rf"({re.escape(CLASS_HEADS)}\d+|query_selection\.class_head)\.")
_FROM_CONFIG = re.compile(r"pixel_(mean|std)$")  # buffers whose values the configuration gives
_LISTED = 8


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's tensors and of a model's parameters, by name."""

    path: str
    origin: str
    taken: tuple[str, ...]
    new: tuple[str, ...] = ()  # of the model, without a counterpart: keep their initial values
    dropped: tuple[str, ...] = ()  # of the checkpoint, without a counterpart
    misshapen: tuple[str, ...] = ()  # "name (shape in the checkpoint) instead of (shape in the model)"
    ignored: tuple[str, ...] = ()  # because a pattern says so

    def __str__(self) -> str:
        counts = f"{len(self.taken)} tensors taken from {self.path} ({self.origin})"
        groups = {"new": self.new, "dropped": self.dropped, "of another shape": self.misshapen, "ignored": self.ignored}
        return counts + "".join(f"; {len(names)} {word}: {listed(names)}" for word, names in groups.items() if names)


def listed(names: Sequence[str], most: int = _LISTED) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_weights(
    model: nn.Module, path_or_url: str | os.PathLike[str], ignore: Iterable[str] = (), warm_start: bool = False
) -> LoadReport:
    """Fill `model` from a checkpoint of any origin (file, folder or URL), converting to its number formats.

    Every tensor of the checkpoint and every parameter of the model must be accounted for, unless `ignore` (regular
    expressions on our names) or `warm_start` (take what fits) says otherwise.

    Raises:
        CheckpointError: unreadable or unknown file, or names or shapes that do not fit; the message lists them and says
            which configuration fits. The model is unchanged then.
    """
    return load_checkpoint_into(model, load_checkpoint(local_path(path_or_url), mmap=True), ignore, warm_start)


def load_checkpoint_into(
    model: nn.Module, checkpoint: LoadedCheckpoint, ignore: Iterable[str] = (), warm_start: bool = False
) -> LoadReport:
    """As :func:`load_weights`, of a checkpoint that is already read."""
    expected = model.state_dict()
    patterns = [re.compile(pattern) for pattern in ignore]
    state = fit_heads(checkpoint.state, expected)
    ignored = {name for name in {*state, *expected} if any(p.search(name) for p in patterns)}
    if patterns and not ignored:
        logger.warning("MODEL.WEIGHTS_IGNORE %s matches no name", [p.pattern for p in patterns])
    report = _compare(checkpoint, state, expected, ignored)
    problems = _problems(checkpoint, report)
    if problems and not warm_start:
        raise CheckpointError(_explain(checkpoint, report, problems))
    if not report.taken:
        raise CheckpointError(f"nothing in {checkpoint.path} fits the model; {likely_config(checkpoint.state)}")
    model.load_state_dict({name: state[name] for name in report.taken}, strict=False)
    level = logging.WARNING if problems else logging.INFO
    logger.log(level, "%s", report)
    return report


def load_average_into(model: nn.Module, rest: Mapping[str, Any]) -> bool:
    """Put averaged weights (SOLVER.EMA) over those of the checkpoint that held `rest`; without any, say so in the log.

    Returns:
        Whether there were any.

    Raises:
        CheckpointError: they are those of another model.
    """
    average = rest.get("ema")
    if not isinstance(average, Mapping) or not isinstance(average.get("weights"), Mapping):
        logger.info("SOLVER.EMA.ENABLED_ON is True, but the checkpoint holds no averaged weights: its own are used")
        return False
    expected, weights = model.state_dict(), average["weights"]
    odd = [name for name, tensor in weights.items() if name not in expected or tensor.shape != expected[name].shape]
    if odd:
        raise CheckpointError(f"the averaged weights (SOLVER.EMA) do not fit the model: {listed(odd)}")
    model.load_state_dict(dict(weights), strict=False)
    logger.info(
        "averaged weights of %s steps are used (SOLVER.EMA.ENABLED_ON): %d tensors", average["steps"], len(weights)
    )
    return True


def fit_heads(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> StateDict:
    """Bring the heads to the form that the model has, without a change of what they compute.

    One head for all layers is repeated for a model with one a layer; equal heads become one for a model that shares it.
    Class heads without parameters, the authors', get a learned scale of exp(0) where the model has one: so mmdet
    fine-tunes Grounding DINO.
    """
    fitted = dict(state)
    for prefix in (BOX_HEADS, CLASS_HEADS):
        numbers = {int(name[len(prefix) :].split(".", 1)[0]) for name in expected if name.startswith(prefix)}
        if numbers == {0}:
            fitted = collapse_heads(fitted, prefix)
        elif numbers:
            fitted = expand_heads(fitted, prefix, len(numbers))
    if not any(_CLASS_HEAD.match(name) for name in fitted):
        scales = [name for name in expected if _CLASS_HEAD.match(name) and name.endswith(".log_scale")]
        fitted.update({name: torch.zeros(expected[name].shape) for name in scales})
    return fitted


def _compare(
    checkpoint: LoadedCheckpoint, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], ignored: set[str]
) -> LoadReport:
    common = [name for name in expected if name in state and name not in ignored]
    fits = {name for name in common if state[name].shape == expected[name].shape}
    return LoadReport(
        path=checkpoint.path,
        origin=checkpoint.origin,
        taken=tuple(name for name in common if name in fits),
        new=tuple(n for n in expected if n not in state and n not in ignored and not _FROM_CONFIG.match(n)),
        dropped=(*(n for n in state if n not in expected and n not in ignored), *checkpoint.unknown),
        misshapen=tuple(
            f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in common
            if name not in fits
        ),
        ignored=tuple(sorted(ignored)),
    )


def _problems(checkpoint: LoadedCheckpoint, report: LoadReport) -> dict[str, list[str]]:
    """What a strict load does not accept."""
    tolerated = [re.compile(pattern) for pattern in checkpoint.absent]
    missing = [name for name in report.new if not any(pattern.match(name) for pattern in tolerated)]
    unexpected = [name for name in report.dropped if not _TRAINING_ONLY.match(name) and not _FROM_CONFIG.match(name)]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": list(report.misshapen)}
    return {word: names for word, names in problems.items() if names}


def _explain(checkpoint: LoadedCheckpoint, report: LoadReport, problems: Mapping[str, Sequence[str]]) -> str:
    lines = [f"{checkpoint.path} ({checkpoint.origin}) does not fit the model ({len(report.taken)} tensors would):"]
    lines += [f"  {len(names)} {word}: {listed(names)}" for word, names in problems.items()]
    lines.append(f"  {likely_config(checkpoint.state)}.")
    training = [name for names in problems.values() for name in names if _TRAINING_ONLY.match(name)]
    if training:
        lines.append(
            f"  Only training uses {listed(training, 2)}: set MODEL.DENOISING as it was, or start it anew with "
            "MODEL.WEIGHTS_IGNORE \"['^denoising']\"."
        )
    if len(training) < sum(map(len, problems.values())):
        lines.append(
            "  To take only a part on purpose: MODEL.WEIGHTS_IGNORE (patterns), or what fits: MODEL.WARM_START_ON True "
            "(--warm-start of train_net.py)."
        )
    return "\n".join(lines)
