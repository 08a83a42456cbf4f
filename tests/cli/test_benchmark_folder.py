"""The benchmark of folder runs, on pictures that take milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grounding_dino.cli import benchmark
from grounding_dino.cli.benchmark_folder import measure_folder
from grounding_dino.cli.picture_work import Finished
from grounding_dino.pictures import PicturePreparation

import numpy as np
import pytest
import torch
from PIL import Image

TINY = ["INPUT.MIN_SIZE_TEST", "32", "MODEL.PIXEL_DECODER.NUM_LAYERS", "1", "MODEL.QUERY_SELECTION.NUM_QUERIES", "3"]


@pytest.mark.slow
def test_a_folder_run_beside_the_model_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    file = tmp_path / "times.json"
    arguments = ["--folder", str(tmp_path), "--pictures", "3", "--repeats", "1", "--workers", "1", "--batch", "2"]
    assert benchmark.main([*arguments, "--config-file", "swin_t_ogc", "--json", str(file), *_small()]) == 0
    records = json.loads(file.read_text())["folder"]
    assert [record["run"] for record in records] == ["model alone", "run", "run without workers"]
    assert all(record["pictures"] == 3 and record["time"]["median"] > 0 for record in records)
    assert records[0]["share"] == 1.0 and "of the model alone" in capsys.readouterr().out


class NothingFound:
    """Stands for a predictor; remembers the batches that it is asked for."""

    def __init__(self, pad_before_backbone: bool) -> None:
        self.prepare = PicturePreparation(32, 64)
        self.model = torch.nn.Module()
        self.model.pad_before_backbone = pad_before_backbone
        self.sizes: list[int] = []

    def detect(self, batch: list[dict[str, Any]], **options: Any) -> list[Any]:
        self.sizes.append(len(batch))
        return [{"panoptic_seg": (None, ["a", "b", "c"]), "class_names": []} for _ in batch]


@pytest.mark.parametrize("padded, sizes", [(False, [2]), (True, [1, 1])])
def test_the_model_alone_has_the_batches_of_a_run(tmp_path: Path, padded: bool, sizes: list[int], monkeypatch) -> None:
    monkeypatch.setattr("grounding_dino.cli.picture_work.PictureWork.finish", lambda *_: Finished({}, ""))
    for number in range(2):
        Image.new("RGB", (60 + number, 40)).save(tmp_path / f"{number}.png")
    predictor = NothingFound(padded)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    records = measure_folder(predictor, paths, {}, batch_size=2, workers=0, repeats=1)
    assert predictor.sizes == sizes * 6  # three ways, and each once before
    assert [record["detections"] for record in records] == [3.0] * 3


def _small() -> list[str]:
    sizes = ["MODEL.SWIN.DEPTHS", "(1,1,1,1)", "MODEL.SWIN.EMBED_DIM", "24", "MODEL.TEXT_ENCODER.NUM_LAYERS", "1"]
    return [*TINY, *sizes, "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", "1"]
