"""The training stream: a function of the seed and the place in it, whoever reads it and wherever reading starts."""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from grounding_dino.cli.errors import explains_itself
from grounding_dino.data import loader as loader_module
from grounding_dino.data.loader import (
    BatchStream,
    SampleError,
    StreamDataset,
    build_stream_loader,
    build_train_loader,
    own_random_numbers,
    pictures_an_epoch,
    start_stream_at,
)

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.utils.data import DataLoader

Record = dict[str, Any]


def records(count: int = 7) -> list[Record]:
    sizes = [(60, 40), (40, 60), (50, 50)]
    return [
        {"file_name": f"{n}.png", "image_id": n, "width": sizes[n % 3][0], "height": sizes[n % 3][1]}
        for n in range(count)
    ]


def drawing_mapper(record: Record) -> Record:
    """A mapper that draws from every generator there is."""
    return {"id": record["image_id"], "drawn": (random.random(), np.random.rand(), float(torch.rand(())))}


def build(
    num_workers: int = 0, mapper: Callable[[Record], Record | None] = drawing_mapper, **options: Any
) -> DataLoader:
    defaults = {"total_batch_size": 2, "seed": 5, "num_workers": num_workers}
    return build_stream_loader(records(), mapper, **{**defaults, **options})


def first(loader: DataLoader, count: int = 9) -> list[Any]:
    return list(itertools.islice(iter(loader), count))


def test_the_stream_does_not_depend_on_the_number_of_workers() -> None:
    alone = first(build())
    assert alone == first(build(num_workers=2)) == first(build())
    assert alone != first(build(seed=6))
    drawn = [sample["drawn"] for batch in alone for sample in batch]
    assert len(set(drawn)) == len(drawn)


def test_a_start_later_on_gives_the_rest_of_the_stream() -> None:
    whole = first(build(), 12)
    mapped: list[int] = []

    def counting(record: Record) -> Record:
        mapped.append(record["image_id"])
        return drawing_mapper(record)

    late = build(mapper=counting, seed=1)
    start_stream_at(late, 8, seed=5)
    assert first(late, 4) == whole[8:]
    assert len(mapped) == 8, "what is left out must not be read"


def test_loading_leaves_the_random_numbers_of_the_model_alone() -> None:
    def draws(read: bool) -> list[Any]:
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        if read:
            first(build())
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    assert draws(read=True) == draws(read=False)


def test_own_random_numbers_end_with_an_error_too() -> None:
    random.seed(1)
    expected = random.Random(1).random()
    with pytest.raises(KeyError), own_random_numbers(1, 2):
        random.random()
        raise KeyError
    assert random.random() == expected


def test_an_epoch_has_every_picture_once_and_batches_one_orientation() -> None:
    stream = BatchStream(records(9), 3, seed=0)
    batches = list(itertools.islice(stream, 30))
    wide = {n for n in range(9) if n % 3 == 0}
    assert all(len({index in wide for _, index in batch}) == 1 for batch in batches)
    positions = sorted(position for batch in batches for position, _ in batch)
    assert len(set(positions)) == len(positions)
    plain = list(itertools.islice(BatchStream(records(9), 3, seed=0, group_by_orientation=False), 6))
    for epoch in (plain[:3], plain[3:]):
        assert sorted(index for batch in epoch for _, index in batch) == list(range(9))
    ordered = BatchStream(records(4), 2, seed=0, shuffle=False, group_by_orientation=False)
    assert list(itertools.islice(ordered, 2)) == [[(0, 0), (1, 1)], [(2, 2), (3, 3)]]


def test_processes_share_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(itertools.islice(BatchStream(records(8), 4, seed=2, group_by_orientation=False), 6))
    parts = []
    monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda rank=rank: rank)
        stream = BatchStream(records(8), 2, seed=2, group_by_orientation=False)
        parts.append(list(itertools.islice(stream, 6)))
    joined = [sorted(left + right) for left, right in zip(*parts)]
    assert joined == [sorted(batch) for batch in alone]
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH 3 cannot be split over 2 processes"):
        build(total_batch_size=3)


def test_repeat_factors_are_how_often_a_record_is_drawn() -> None:
    stream = BatchStream(records(3), 1, seed=0, weights=[1.0, 2.0, 1.5])
    drawn = Counter(batch[0][1] for batch in itertools.islice(stream, 4500))
    assert drawn[0] == pytest.approx(1000, abs=10)
    assert drawn[1] == pytest.approx(2000, abs=20)
    assert drawn[2] == pytest.approx(1500, abs=60)
    with pytest.raises(ValueError, match="2 weights that sum up to 2.0 for 3 records"):
        BatchStream(records(3), 1, seed=0, weights=[1.0, 1.0])


def test_a_record_that_is_turned_down_is_replaced_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    def refusing(record: Record) -> Record | None:
        return None if record["image_id"] == 3 else drawing_mapper(record)

    with caplog.at_level(logging.WARNING):
        batches = first(build(mapper=refusing), 30)
    assert 3 not in {sample["id"] for batch in batches for sample in batch}
    assert caplog.messages == ["training goes on without 3.png"]
    assert first(build(mapper=refusing), 30) == batches


def test_a_data_set_of_which_nothing_is_left_ends_with_a_sentence() -> None:
    for workers in (0, 1):  # the same sentence, without the traceback of the worker
        with pytest.raises(
            SampleError, match=r"^20 records in a row .* the last one \d.png; .*pictures are still there"
        ) as caught:
            first(build(mapper=lambda record: None, num_workers=workers), 1)
        assert explains_itself(caught.value)


def test_an_error_of_the_mapper_names_the_picture() -> None:
    def broken(record: Record) -> Record:
        raise KeyError("bbox")

    with pytest.raises(RuntimeError, match=r"\d.png cannot be made into a training sample: 'bbox'"):
        first(build(mapper=broken), 1)


def test_files_that_do_not_fit_together_are_said_in_a_sentence() -> None:
    def refused(record: Record) -> Record:
        raise ValueError("map and list differ")

    for workers in (0, 1):
        with pytest.raises(SampleError, match=r"^\d.png cannot be made .*: map and list differ$") as caught:
            first(build(mapper=refused, num_workers=workers), 1)
        assert explains_itself(caught.value)


def test_records_are_kept_as_they_are() -> None:
    dataset = StreamDataset(records(2), dict, seed=0)
    assert len(dataset) == 2
    assert dataset[(0, 1)] == records(2)[1]
    dataset[(0, 1)]["width"] = -1
    assert dataset[(1, 1)] == records(2)[1]


# ------------------------------------------------------------------------------------------------ from a config


@pytest.fixture
def registered(request: pytest.FixtureRequest) -> Callable[[str, list[list[Record]]], str]:
    """`registered(name, annotations of each picture)`: a data set of pictures that do not exist."""

    def register(name: str, annotations: list[list[Record]]) -> str:
        found = [{**r, "annotations": a} for r, a in zip(records(len(annotations)), annotations)]
        DatasetCatalog.register(name, lambda: found)
        MetadataCatalog.get(name).set(thing_classes=["cat", "dog"])
        request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
        return name

    return register


def annotation(category: int, crowd: int = 0) -> Record:
    return {"category_id": category, "iscrowd": crowd, "bbox": [1, 1, 9, 9], "bbox_mode": 1}


@pytest.mark.parametrize("filter_empty", [True, False])
@pytest.mark.parametrize("annotations", [[[]], [[annotation(0, crowd=1)], []]], ids=["empty", "crowds"])
def test_nothing_to_learn_is_an_error_at_the_start(
    tiny_cfg: CfgNode, registered: Callable[..., str], annotations: list[list[Record]], filter_empty: bool
) -> None:
    tiny_cfg.DATASETS.TRAIN = (registered("loader_test_nothing", annotations),)
    tiny_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    with pytest.raises(ValueError, match="loader_test_nothing"):
        build_train_loader(tiny_cfg, seed=0)


def test_repeat_factors_count_within_each_data_set(tiny_cfg: CfgNode, registered: Callable[..., str]) -> None:
    often = [[annotation(0)]] * 3 + [[annotation(1)]]
    tiny_cfg.DATASETS.TRAIN = (registered("loader_test_a", often), registered("loader_test_b", [[annotation(0)]]))
    tiny_cfg.DATALOADER.SAMPLER_TRAIN, tiny_cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 1.0
    tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.DATALOADER.NUM_WORKERS = 1, 0
    weights = build_train_loader(tiny_cfg, seed=0).batch_sampler._weights
    frequent, rare = (1 / 0.75) ** 0.5, (1 / 0.25) ** 0.5
    torch.testing.assert_close(weights.float(), torch.tensor([frequent] * 3 + [rare, 1.0]))
    tiny_cfg.DATALOADER.REPEAT_SQRT = False
    weights = build_train_loader(tiny_cfg, seed=0).batch_sampler._weights
    torch.testing.assert_close(weights.float(), torch.tensor([1 / 0.75] * 3 + [4.0, 1.0]))


def test_ratios_say_how_often_a_set_is_gone_through_and_repeat_factors_hold_where_asked(
    tiny_cfg: CfgNode, registered: Callable[..., str]
) -> None:
    often = [[annotation(0)]] * 3 + [[annotation(1)]]
    names = registered("loader_test_a", often), registered("loader_test_b", often)
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.DATASETS.RATIOS = names, [2, 0.5]
    tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.DATALOADER.NUM_WORKERS = 1, 0
    loader = build_train_loader(tiny_cfg, seed=0)
    assert pictures_an_epoch(loader) == 4 * 2 + 4 * 0.5
    drawn = Counter(batch[0][1] for batch in itertools.islice(loader.batch_sampler, 1000))
    assert sum(drawn[place] for place in range(4)) == pytest.approx(800, abs=10)
    tiny_cfg.DATALOADER.SAMPLER_TRAIN, tiny_cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 1.0
    tiny_cfg.DATALOADER.REPEAT_SETS, tiny_cfg.DATALOADER.REPEAT_SQRT = [names[1]], False
    loader = build_train_loader(tiny_cfg, seed=0)
    assert pictures_an_epoch(loader) == 4 * 2 + 0.5 * (3 / 0.75 + 1 / 0.25)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASETS.RATIOS", [1, 2], r"DATASETS.RATIOS \[1, 2\] has 2 numbers for the 1 sets"),
        ("DATASETS.RATIOS", [-1], "the number of loader_test_one in DATASETS.RATIOS is -1"),
        ("DATASETS.RATIOS", [0], "draws nothing"),
        ("DATALOADER.REPEAT_SETS", ["other"], r"REPEAT_SETS names \['other'\]"),
    ],
)
def test_ratios_and_sets_that_do_not_fit_are_refused(
    tiny_cfg: CfgNode, registered: Callable[..., str], key: str, value: list[Any], message: str
) -> None:
    tiny_cfg.DATASETS.TRAIN = (registered("loader_test_one", [[annotation(0)]]),)
    tiny_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_train_loader(tiny_cfg, seed=0)


def test_ratios_and_weights_exclude_each_other(tiny_cfg: CfgNode, registered: Callable[..., str]) -> None:
    tiny_cfg.DATASETS.TRAIN = (registered("loader_test_one", [[annotation(0)]]),)
    tiny_cfg.DATASETS.RATIOS = tiny_cfg.DATASETS.WEIGHTS = [1.0]
    with pytest.raises(ValueError, match="exclude each other"):
        build_train_loader(tiny_cfg, seed=0)


def test_an_unknown_sampler_is_refused(tiny_cfg: CfgNode, registered: Callable[..., str]) -> None:
    tiny_cfg.DATASETS.TRAIN = (registered("loader_test_one", [[annotation(0)]]),)
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = "Sampler"
    with pytest.raises(ValueError, match="unknown DATALOADER.SAMPLER_TRAIN 'Sampler'; choose from"):
        build_train_loader(tiny_cfg, seed=0)


@pytest.mark.parametrize("grouping", [True, False])
def test_the_config_says_whether_batches_have_one_orientation(
    tiny_cfg: CfgNode, registered: Callable[..., str], grouping: bool
) -> None:
    tiny_cfg.DATASETS.TRAIN = (registered("loader_test_orientation", [[annotation(0)]] * 12),)
    tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.DATALOADER.NUM_WORKERS = 4, 0
    tiny_cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    loader = build_train_loader(tiny_cfg, seed=0)
    batches = itertools.islice(loader.batch_sampler, 12)
    mixed = [len({loader.dataset.records[index]["width"] > 50 for _, index in batch}) == 2 for batch in batches]
    assert any(mixed) is not grouping


def test_more_names_than_denoising_labels_are_refused_at_the_start(
    tiny_cfg: CfgNode, registered: Callable[..., str]
) -> None:
    tiny_cfg.DATASETS.TRAIN = (registered("loader_test_labels", [[annotation(0)], [annotation(1)]]),)
    tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.DATALOADER.NUM_WORKERS = 1, 0
    tiny_cfg.MODEL.DENOISING.NUM_LABELS = 1
    sentence = (
        r"0.png \(data set 'loader_test_labels'\) can list 2 names, but MODEL.DENOISING.NUM_LABELS is 1; set "
        r"MODEL.DENOISING.NUM_LABELS 2.*WEIGHTS_IGNORE"
    )
    with pytest.raises(ValueError, match=sentence):
        build_train_loader(tiny_cfg, seed=0)
    # A picture has one class: without negatives its prompt has one name.
    for key, value in (("INPUT.NUM_NEGATIVE_CATEGORIES", 0), ("MODEL.DENOISING.ENABLED_ON", False)):
        allowed = tiny_cfg.clone()
        allowed.merge_from_list([key, value])
        build_train_loader(allowed, seed=0)
    tiny_cfg.MODEL.DENOISING.NUM_LABELS = 2
    build_train_loader(tiny_cfg, seed=0)


def test_more_phrases_than_denoising_labels_are_refused_at_the_start(
    tiny_cfg: CfgNode, request: pytest.FixtureRequest
) -> None:
    name = "loader_test_phrases"
    caption = {"caption": "a cat and a dog", "phrases": [(0, 5), (10, 15)]}
    DatasetCatalog.register(name, lambda: [{**records(1)[0], **caption, "annotations": [annotation(1)]}])
    request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.pop(name, None)))
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.MODEL.DENOISING.NUM_LABELS = (name,), 1
    with pytest.raises(ValueError, match="can list 2 phrases"):
        build_train_loader(tiny_cfg, seed=0)
