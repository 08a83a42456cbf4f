"""The benchmark of folder runs, on pictures that take milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

from grounding_dino.cli import benchmark

import numpy as np
import pytest
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


def _small() -> list[str]:
    sizes = ["MODEL.SWIN.DEPTHS", "(1,1,1,1)", "MODEL.SWIN.EMBED_DIM", "24", "MODEL.TEXT_ENCODER.NUM_LAYERS", "1"]
    return [*TINY, *sizes, "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", "1"]
