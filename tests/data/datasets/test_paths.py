from __future__ import annotations

from pathlib import Path

from grounding_dino.data.datasets.paths import dataset_root, require

import pytest


def test_data_sets_lie_below_the_folder_of_the_variable_or_else_in_datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert dataset_root() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("DETECTRON2_DATASETS", "") if unset == "" else monkeypatch.delenv("DETECTRON2_DATASETS")
        assert dataset_root() == Path("datasets")


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    assert dataset_root() == tmp_path / "sets"


def test_what_is_there_is_found_relative_to_the_folder_or_absolutely(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "lvis").mkdir()
    assert require("lvis", "unused") == require(tmp_path / "lvis", "unused") == tmp_path / "lvis"


def test_what_is_missing_is_named_with_its_path_its_source_and_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="download it from the moon") as error:
        require("lvis/lvis_v1_val.json", "download it from the moon")
    assert str(tmp_path / "lvis" / "lvis_v1_val.json") in str(error.value)
    assert "DETECTRON2_DATASETS" in str(error.value)
