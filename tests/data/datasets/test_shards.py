import json

from grounding_dino.data.datasets.rows import RowError
from grounding_dino.data.datasets.shards import first_row, load_shards
from grounding_dino.data.streaming import LazyRecords

import pytest
from detectron2.data import MetadataCatalog

pytestmark = pytest.mark.usefixtures("cache")

SIZE = {"height": 40, "width": 50}
DETECTION = {
    "filename": "a.png",
    **SIZE,
    "detection": {"instances": [{"bbox": [1, 2, 9, 9], "label": 4, "category": "Bakset"}]},
}
GRIT = {"file_name": "b.png", **SIZE, "caption": "a cat", "noun_chunks": [[0, 5, 0.0, 0.0, 0.5, 0.5, 0.7]]}


def test_rows_stay_on_disk_each_read_by_its_keys(write_rows, pictures, new_name):
    records = load_shards(write_rows([DETECTION, GRIT]), pictures, new_name, fixes={"Bakset": "Basket"})
    assert isinstance(records, LazyRecords)
    assert records[0]["annotations"][0]["category_id"] == 0 and records[1]["caption"] == "a cat"
    assert records[1]["file_name"] == f"{pictures}/b.png" and records[1]["dataset_name"] == new_name
    assert MetadataCatalog.get(new_name).thing_classes == ["Basket"]


def test_names_are_collected_from_the_files_of_a_pattern_alone(write_rows, pictures, new_name, tmp_path, monkeypatch):
    write_rows([DETECTION], "one-0.jsonl")
    other = [{"bbox": [1, 2, 9, 9], "label": 4, "category": "bag"}]
    write_rows([{**DETECTION, "detection": {"instances": other}}], "two-0.jsonl")
    monkeypatch.chdir(tmp_path)
    assert len(load_shards("one-*.jsonl", pictures, new_name)) == 1
    assert MetadataCatalog.get(new_name).thing_classes == ["Bakset"]


def test_captions_have_no_class_names(write_rows, pictures, new_name):
    records = load_shards(write_rows([GRIT]), pictures, new_name)
    assert len(records) == 1 and not hasattr(MetadataCatalog.get(new_name), "thing_classes")
    with pytest.raises(RowError, match="yields nothing"):
        load_shards(write_rows([GRIT]), pictures, new_name, min_score=0.9)


def test_a_label_map_lies_beside_tar_files(write_tar, tmp_path, new_name):
    shard = write_tar("0000.tar", [{**DETECTION, "filename": "7.png"}])
    (tmp_path / "label_map.json").write_text(json.dumps({"4": "basket", "9": "bag"}))
    records = load_shards(str(tmp_path / "*.tar"), "no folder is needed", new_name)
    assert MetadataCatalog.get(new_name).thing_classes == ["basket", "bag"]
    assert records[0]["image_bytes"][:4] == b"\x89PNG" and records[0]["file_name"].startswith(shard)


def test_another_picture_folder_is_an_error_at_start(write_rows, tmp_path, new_name):
    with pytest.raises(FileNotFoundError, match="none of the first 1 pictures"):
        load_shards(write_rows([GRIT]), str(tmp_path), new_name)


def test_the_first_row_is_the_first_line_that_is_not_empty(write_rows):
    assert first_row(write_rows(["", {"a": 1}, {"a": 2}])) == {"a": 1}
    assert first_row(write_rows(["{"])) == {} == first_row(write_rows([]))
