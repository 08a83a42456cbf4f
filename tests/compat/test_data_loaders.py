"""Data set wrappers, samplers and loaders."""

import itertools
from collections import Counter
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.common import ToIterableDataset
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler

# --- lists, mapping, samplers


@pytest.mark.parametrize("serialize", [True, False, lambda lst: tuple(lst)])
def test_dataset_from_list(serialize: Any) -> None:
    items = [{"a": i, "b": np.arange(i)} for i in range(5)]
    dataset = DatasetFromList(items, serialize=serialize)
    assert len(dataset) == 5 and [dataset[i]["a"] for i in range(5)] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(dataset[3]["b"], [0, 1, 2])
    assert len(list(dataset)) == 5
    if serialize in (True, False):
        dataset[2]["a"] = "changed"
        assert dataset[2]["a"] == 2 and items[2]["a"] == 2


def test_map_dataset_replaces_what_the_mapper_refuses() -> None:
    dataset = MapDataset(DatasetFromList(list(range(6))), lambda x: x * 10 if x % 2 else None)
    assert len(dataset) == 6 and dataset[3] == 30
    assert all(dataset[0] in (10, 30, 50) for _ in range(10))
    with pytest.raises(ValueError, match="every record"):
        _ = MapDataset(DatasetFromList([1, 2]), lambda x: None)[0]


def test_map_dataset_keeps_streams_streams() -> None:
    stream = ToIterableDataset(DatasetFromList(list(range(6))), InferenceSampler(6))
    mapped = MapDataset(stream, lambda x: x * 10 if x % 2 else None)
    assert isinstance(mapped, torch.utils.data.IterableDataset) and isinstance(mapped, MapDataset)
    assert list(mapped) == [10, 30, 50]


def test_training_sampler_is_a_seeded_stream_of_permutations() -> None:
    first = list(itertools.islice(TrainingSampler(5, seed=3), 15))
    assert first == list(itertools.islice(TrainingSampler(5, seed=3), 15))
    assert all(sorted(first[i : i + 5]) == [0, 1, 2, 3, 4] for i in (0, 5, 10))
    assert first[:5] != first[5:10] or first[5:10] != first[10:]
    assert list(itertools.islice(TrainingSampler(3, shuffle=False), 7)) == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises((ValueError, AssertionError)):
        TrainingSampler(0)


@pytest.mark.parametrize("size", [1, 5, 8])
def test_inference_shares_cover_all_once(size: int) -> None:
    shares = [list(InferenceSampler._share(size, 3, rank)) for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_repeat_factors() -> None:
    records = [{"annotations": [{"category_id": 0}]}] * 3 + [{"annotations": [{"category_id": 0}, {"category_id": 1}]}]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.5)
    np.testing.assert_allclose(factors, [1, 1, 1, 2**0.5])
    linear = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.5, sqrt=False)
    np.testing.assert_allclose(linear, [1, 1, 1, 2])
    counts = Counter(itertools.islice(RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0, 1.5]), seed=0), 4500))
    assert counts[1] / counts[0] == pytest.approx(2, rel=0.02) and counts[2] / counts[0] == pytest.approx(1.5, rel=0.05)


# --- loaders


def test_train_loader_from_a_config(registered: str, small_cfg: Any) -> None:
    loader = build_detection_train_loader(small_cfg)
    for batch in itertools.islice(loader, 5):
        assert len(batch) == 2
        wide = [record["width"] > record["height"] for record in batch]
        assert len(set(wide)) == 1  # grouped by aspect ratio
        assert all("instances" in record and record["image_id"] != 4 for record in batch)


def test_train_loader_overrides_beside_the_config(registered: str, small_cfg: Any) -> None:
    cfg = small_cfg
    loader = build_detection_train_loader(cfg, mapper=lambda record: record["image_id"], aspect_ratio_grouping=False)
    seen = set(itertools.chain.from_iterable(itertools.islice(loader, 9)))
    assert seen == {1, 2, 3}
    cfg.DATALOADER.SAMPLER_TRAIN = "Nothing"
    with pytest.raises(ValueError, match="RepeatFactorTrainingSampler"):
        build_detection_train_loader(cfg)


def test_repeat_factor_loader(registered: str, small_cfg: Any) -> None:
    cfg = small_cfg
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 0.5
    assert len(next(iter(build_detection_train_loader(cfg)))) == 2


def test_test_loader_gives_every_picture_once(registered: str, small_cfg: Any) -> None:
    loader = build_detection_test_loader(small_cfg, registered)
    assert len(loader) == 4
    assert [batch[0]["image_id"] for batch in loader] == [1, 2, 3, 4]
    direct = build_detection_test_loader([{"v": i} for i in range(5)], mapper=lambda x: x["v"], batch_size=2)
    assert list(direct) == [[0, 1], [2, 3], [4]]


def _itself(record: Any) -> Any:
    return record


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_give_the_same_batches(num_workers: int) -> None:
    dataset = MapDataset(DatasetFromList(list(range(10))), _itself)
    loader = build_batch_data_loader(dataset, TrainingSampler(10, shuffle=False), 4, num_workers=num_workers)
    batches = list(itertools.islice(loader, 5))
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]


def test_batch_size_contradictions() -> None:
    sampler = TrainingSampler(4)
    with pytest.raises(ValueError, match="not both"):
        build_batch_data_loader([1], sampler, 4, single_gpu_batch_size=2)
    with pytest.raises(ValueError, match="IMS_PER_BATCH"):
        build_batch_data_loader([1], sampler, 0)


def test_data_set_dicts_are_joined_and_checked(registered: str) -> None:
    assert len(get_detection_dataset_dicts([registered], filter_empty=False)) == 4
    assert [record["image_id"] for record in get_detection_dataset_dicts(registered)] == [1, 2, 3]
    other = "compat_test_other"
    DatasetCatalog.register(other, lambda: DatasetCatalog.get(registered))
    MetadataCatalog.get(other).thing_classes = ["something", "else"]
    try:
        with pytest.raises((ValueError, AssertionError), match="thing_classes"):
            get_detection_dataset_dicts([registered, other])
        assert len(get_detection_dataset_dicts([registered, other], check_consistency=False)) == 6
    finally:
        DatasetCatalog.remove(other)
        MetadataCatalog.remove(other)
    with pytest.raises((ValueError, AssertionError)):
        get_detection_dataset_dicts([])
