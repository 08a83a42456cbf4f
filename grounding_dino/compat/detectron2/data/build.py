"""From the names of data sets to loaders that give batches."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data as torch_data
from tabulate import tabulate
from torch.utils.data.sampler import Sampler

from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler

logger = logging.getLogger(__name__)

HISTOGRAM_COLUMNS = 6
HISTOGRAM_NAME_LENGTH = 13


def load_proposals_into_dataset(dataset_dicts: list[dict[str, Any]], proposal_file: str) -> list[dict[str, Any]]:
    """Not available: precomputed proposals belong to models that this implementation does not have."""
    raise NotImplementedError("Precomputed proposals need an installed upstream Detectron2.")


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with at least one annotation that is not a crowd."""
    kept = [
        record for record in dataset_dicts if any(ann.get("iscrowd", 0) == 0 for ann in record.get("annotations", []))
    ]
    removed = len(dataset_dicts) - len(kept)
    logger.info("left out %d pictures without usable annotations; %d pictures remain", removed, len(kept))
    return kept


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Make sure that data sets used together agree on a fact such as "thing_classes".

    Raises:
        ValueError: two of them differ.
    """
    if not dataset_names:
        return
    values = [getattr(MetadataCatalog.get(name), key, None) for name in dataset_names]
    for name, value in zip(dataset_names, values, strict=True):
        if value != values[0]:
            raise ValueError(
                f"data sets used together need the same {key!r}, but {name!r} has {value!r} "
                f"and {dataset_names[0]!r} has {values[0]!r}."
            )


def print_instances_class_histogram(dataset_dicts: list[dict[str, Any]], class_names: Sequence[str]) -> None:
    """Log how many instances (crowds left out) each class has, as a table.

    Raises:
        ValueError: an annotation's class index is none of `class_names`.
    """
    counts = np.zeros(len(class_names), dtype=np.int64)
    for record in dataset_dicts:
        for annotation in record.get("annotations", []):
            if annotation.get("iscrowd", 0):
                continue
            index = annotation["category_id"]
            if not 0 <= index < len(class_names):
                name = record.get("file_name", record.get("image_id"))
                raise ValueError(f"{name} has an instance of class {index}, but there are {len(class_names)} classes.")
            counts[index] += 1

    def short(name: str) -> str:
        # Long names would tear the table; the log is for people.
        return name if len(name) <= HISTOGRAM_NAME_LENGTH else name[: HISTOGRAM_NAME_LENGTH - 2] + ".."

    cells: list[Any] = list(
        itertools.chain.from_iterable((short(n), int(c)) for n, c in zip(class_names, counts, strict=True))
    )
    total = int(counts.sum())
    columns = min(HISTOGRAM_COLUMNS, len(cells))
    cells.extend([None] * (-len(cells) % max(columns, 1)))
    if len(class_names) > 1:
        cells.extend(["total", total])
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)] if columns else []
    headers = ["category", "#instances"] * (columns // 2)
    table = tabulate(rows, headers=headers, tablefmt="pipe", numalign="left", stralign="center")
    log_first_n(logging.INFO, f"instances of all {len(class_names)} categories:\n{table}", key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Load data sets by name and join them.

    Args:
        names: one name or several.
        filter_empty: leave out pictures without instances, or with crowds only.
        check_consistency: several data sets have to agree on their class names.

    Returns:
        a list of dicts; or a `ConcatDataset` where the data sets are torch data sets.

    Raises:
        KeyError: a name is not registered.
        NotImplementedError: keypoints or precomputed proposals are asked for.
        ValueError: no name is given, or a data set is empty.
    """
    if min_keypoints > 0 or proposal_files:
        raise NotImplementedError("Keypoints and precomputed proposals need an installed upstream Detectron2.")
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("no data set is named: set DATASETS.TRAIN (or DATASETS.TEST).")
    parts: list[Any] = [DatasetCatalog.get(name) for name in names]
    if isinstance(parts[0], torch_data.Dataset):
        return parts[0] if len(parts) == 1 else torch_data.ConcatDataset(parts)
    for name, part in zip(names, parts, strict=True):
        if not len(part):
            raise ValueError(f"data set {name!r} has no records.")
    dataset_dicts = list(itertools.chain.from_iterable(parts))
    has_instances = "annotations" in dataset_dicts[0]
    if filter_empty and has_instances:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    if check_consistency and has_instances:
        class_names = getattr(MetadataCatalog.get(names[0]), "thing_classes", None)
        if class_names is not None:
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dataset_dicts, class_names)
    if not dataset_dicts:
        raise ValueError(f"no picture of {', '.join(names)} has an instance to train on.")
    return dataset_dicts


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """A batch is the list of its records: pictures of different sizes cannot be stacked."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed all generators of a loader worker, numpy's too, each worker differently."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def build_batch_data_loader(
    dataset: Any,
    sampler: Sampler[int] | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """A loader of this process's share of batches of `total_batch_size` records in the sampler's order.

    Args:
        dataset: map-style, with a sampler; or iterable, without one.
        total_batch_size: over all processes; has to be divisible by their number.
        aspect_ratio_grouping: batches of only wide or only tall pictures (see `AspectRatioGroupedDataset`).
        single_gpu_batch_size: in place of `total_batch_size`, the size on each process.
        seed: fixes the seeds of the loader's workers.

    Raises:
        ValueError: the batch sizes contradict each other or the number of processes.
    """
    batch_size = _batch_size_of_process(total_batch_size, single_gpu_batch_size)
    if isinstance(dataset, torch_data.IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable data set has an order of its own: sampler must be None.")
    else:
        if sampler is None:
            raise ValueError("a map-style data set needs a sampler that says in which order to read it.")
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    generator = None
    if seed is not None:
        generator = torch.Generator()
        generator.manual_seed(seed)
    options = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "generator": generator,
        **kwargs,
    }
    if aspect_ratio_grouping:
        if not drop_last:
            raise ValueError("aspect_ratio_grouping gives full batches only: it needs drop_last=True.")
        # Single records come out of the workers; the grouping happens here.
        records: Any = torch_data.DataLoader(dataset, collate_fn=operator.itemgetter(0), **options)
        batches = AspectRatioGroupedDataset(records, batch_size)
        return batches if collate_fn is None else MapDataset(batches, collate_fn)
    collate = trivial_batch_collator if collate_fn is None else collate_fn
    return torch_data.DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate, **options)


def _batch_size_of_process(total_batch_size: int, single_gpu_batch_size: int | None) -> int:
    if single_gpu_batch_size:
        if total_batch_size:
            raise ValueError("give total_batch_size or single_gpu_batch_size, not both.")
        return single_gpu_batch_size
    world_size = get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size:
        raise ValueError(
            f"the batch of {total_batch_size} pictures cannot be shared equally among {world_size} processes: "
            "choose SOLVER.IMS_PER_BATCH a multiple of their number."
        )
    return total_batch_size // world_size


def _proposal_files(cfg: Any, files: Sequence[str]) -> Sequence[str] | None:
    return list(files) if cfg.MODEL.LOAD_PROPOSALS else None


def _train_sampler(cfg: Any, dataset: Any) -> Sampler[int]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("training sampler: %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors)
    raise ValueError(
        f"unknown DATALOADER.SAMPLER_TRAIN {name!r}; choose TrainingSampler or RepeatFactorTrainingSampler."
    )


def _train_loader_from_config(
    cfg: Any, mapper: Callable[..., Any] | None = None, *, dataset: Any = None, sampler: Sampler[int] | None = None
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=_proposal_files(cfg, cfg.DATASETS.PROPOSAL_FILES_TRAIN),
        )
    if sampler is None and not isinstance(dataset, torch_data.IterableDataset):
        sampler = _train_sampler(cfg, dataset)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: Sampler[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """An endless loader of training batches; call it with these arguments or with a config.

    Args:
        dataset: a list of dicts, or a torch data set.
        mapper: from a record to what the model reads; None leaves records as they are.
        sampler: None means `TrainingSampler`; has to be None for an iterable data set.
        total_batch_size, aspect_ratio_grouping, num_workers, kwargs: see `build_batch_data_loader`.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if sampler is None and not isinstance(dataset, torch_data.IterableDataset):
        sampler = TrainingSampler(len(dataset))
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: Any, dataset_name: str | Sequence[str], mapper: Callable[..., Any] | None = None
) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = _proposal_files(cfg, cfg.DATASETS.PROPOSAL_FILES_TEST)
    dataset = get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files)
    is_stream = isinstance(dataset, torch_data.IterableDataset)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if is_stream else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list[Any] | torch_data.Dataset[Any],
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: Sampler[int] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> torch_data.DataLoader[Any]:
    """A loader of every record once; call it with these arguments or with a config and a data set's name.

    Args:
        dataset: a list of dicts, or a torch data set.
        mapper: from a record to what the model reads; None leaves records as they are.
        sampler: None means `InferenceSampler`, which shares the records out among processes.
        batch_size: on each process; the last batch may be smaller.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torch_data.IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable data set has an order of its own: sampler must be None.")
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))  # type: ignore[arg-type]
    return torch_data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )
