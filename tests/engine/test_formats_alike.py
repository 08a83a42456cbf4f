"""Every format is drawn, trained on and scored; the same data in COCO, ODVG and MDETR form trains the same."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.cli.visualize_data import training_samples, write_drawings
from grounding_dino.data.convert import convert
from grounding_dino.data.shapes.prepare import SplitRecipe, prepare_split
from grounding_dino.engine.trainer import Trainer
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer

import pytest
from detectron2.config import CfgNode
from detectron2.engine import HookBase

STEPS = 10
# The prompts coincide where they list all names in their order; everything else stays as random as it is.
SAME_PROMPTS = ("INPUT.SHUFFLE_CATEGORIES_ON", False, "INPUT.NUM_NEGATIVE_CATEGORIES", -1)


@pytest.fixture
def shapes(tmp_path: Path) -> dict[str, Path]:
    """Six pictures of the shapes data set and the classes that occur in them, in each format."""
    folder = tmp_path / "shapes"
    prepare_split(SplitRecipe("val", pictures=6, size=64, seed=1), folder, progress=False)
    content = json.loads((folder / "annotations" / "val.json").read_text())
    present = sorted({annotation["category_id"] for annotation in content["annotations"]})
    content["categories"] = [category for category in content["categories"] if category["id"] in present]
    assert len(content["categories"]) > 10  # most are absent from each picture: negatives
    coco = folder / "coco.json"
    coco.write_text(json.dumps(content))
    files = {"coco": coco, "odvg": folder / "odvg.jsonl", "mdetr": folder / "mdetr.json"}
    for name in ("odvg", "mdetr"):
        convert(str(coco), str(files[name]), "coco", name)
    return files


class _Losses(HookBase):
    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.prompts: list[list[tuple[Any, ...]]] = []

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.losses.append({name: value for name, (value, _) in latest.items() if "loss" in name})


def train(cfg: CfgNode) -> _Losses:
    """The losses of each step, and what each picture was asked for."""
    seen = _Losses()
    trainer = Trainer(cfg)
    loader = trainer._trainer.data_loader

    class Watched:
        def __iter__(self) -> Any:
            for batch in loader:
                seen.prompts.append([_tokens(sample) for sample in batch])
                yield batch

    trainer._trainer._data_loader_iter_obj = iter(Watched())
    trainer.register_hooks([seen])
    trainer.train()
    return seen


def _tokens(sample: dict[str, Any]) -> tuple[Any, ...]:
    tokenizer = build_tokenizer()
    if "caption" in sample:
        prompt = build_caption_prompt(sample["caption"], tokenizer, phrases=sample["phrases"])
    else:
        (prompt,) = build_category_prompts(sample["categories"], tokenizer)
    boxes, labels = sample["instances"].gt_boxes.tensor, sample["instances"].gt_classes
    layout = (prompt.input_ids, prompt.position_ids, prompt.attention_ranges, prompt.token_spans)
    return (*layout, tuple(map(tuple, boxes.tolist())), tuple(labels.tolist()), int(sample["image"].sum()))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["odvg", "mdetr"])
def test_the_first_losses_are_those_of_the_coco_form(
    shapes: dict[str, Path], train_cfg: Callable[..., CfgNode], form: str
) -> None:
    """Bit by bit, with denoising, flips and dropout: boxes, their order, tokens and label numbers are the same."""
    runs = {}
    for name in ("coco", form):
        data = ("DATASETS.EXTRA", [f"shapes_{name}={shapes[name]}:{shapes[name].parent / 'val'}"])
        opts = (*data, "DATASETS.TRAIN", (f"shapes_{name}",), "SOLVER.MAX_ITER", STEPS, *SAME_PROMPTS)
        runs[name] = train(train_cfg(*opts, output=name))
    assert len(runs[form].losses) == STEPS
    assert runs[form].prompts == runs["coco"].prompts
    assert runs[form].losses == runs["coco"].losses


# ----------------------------------------------------------------------------------------------- every format


def _grit(coco: Path, output: Path) -> None:
    """Each object of a COCO file as a noun chunk of its name."""
    content = json.loads(coco.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    rows = []
    for image in content["images"]:
        caption, chunks, (width, height) = "", [], (image["width"], image["height"])
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                name, start = names[annotation["category_id"]], len(caption)
                box = [x / width, y / height, (x + w) / width, (y + h) / height]
                caption += f"a {name}, "
                chunks.append([start + 2, start + 2 + len(name), *box, 0.9])
        size = {"width": width, "height": height}
        rows.append({"file_name": image["file_name"], **size, "caption": caption, "noun_chunks": chunks})
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _expressions(coco: Path, output: Path) -> None:
    """The objects of a COCO file that are alone in their pictures, as referring expressions."""
    content = json.loads(coco.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[int, list[Any]] = {}
    for annotation in content["annotations"]:
        found.setdefault(annotation["image_id"], []).append(annotation)
    alone = [annotation for (annotation, *more) in found.values() if not more]
    expressions = [{**a, "caption": f"the {names[a['category_id']]}"} for a in alone]
    output.write_text(json.dumps({"images": content["images"], "expressions": expressions}))


def _tar(coco: Path, output: Path) -> None:
    """GRIT rows beside their pictures, as webdataset packs them."""
    _grit(coco, rows := output.with_suffix(".rows"))
    with tarfile.open(output, "w") as archive:
        for line in rows.read_text().splitlines():
            picture = coco.parent / json.loads(line)["file_name"]
            for suffix, content in ((".json", line.encode()), (picture.suffix, picture.read_bytes())):
                member = tarfile.TarInfo(picture.stem + suffix)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _converted(*steps: str) -> Callable[[Path, Path], object]:
    def write(coco: Path, output: Path) -> None:
        source = str(coco)
        for number, (before, after) in enumerate(zip(steps, steps[1:])):
            target = str(output.with_name(f"{number}-{output.name}"))
            convert(source, target, before, after, names="present")
            source = target
        Path(source).replace(output)

    return write


FORMS: dict[str, tuple[str, Callable[[Path, Path], object], str]] = {
    "coco": ("x.json", lambda coco, output: shutil.copy(coco, output), "bbox/AP"),
    "odvg detection": ("x.jsonl", _converted("coco", "odvg"), "bbox/AP"),
    "odvg grounding": ("x.jsonl", _converted("coco", "mdetr", "odvg"), "flickr30k/R@1"),
    "mdetr": ("x.json", _converted("coco", "mdetr"), "flickr30k/R@1"),
    "grit": ("x.jsonl", _grit, "flickr30k/R@1"),
    "refexp": ("x.json", _expressions, "refexp/P@1"),
    "tar": ("x.tar", _tar, ""),  # rows that stay on disk are not scored
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("data_root")  # which has a cache for the indices of shards
def test_every_format_is_drawn_trained_on_and_scored(
    coco_folder: Path, train_cfg: Callable[..., CfgNode], form: str, tmp_path: Path
) -> None:
    name, write, metric = FORMS[form]
    file = coco_folder / name
    write(coco_folder / "boxes.json", file)
    data = ("DATASETS.EXTRA", [f"form={file}:{coco_folder}"], "DATASETS.TRAIN", ("form",))
    cfg = train_cfg(*data, "DATASETS.TEST", ("form",) if metric else (), "SOLVER.MAX_ITER", 2)
    samples = list(itertools.islice(training_samples(cfg), 2))
    assert all(len(sample["instances"]) for sample in samples)
    assert all(path.is_file() for path in write_drawings(cfg, samples, tmp_path / "drawn"))
    trainer = Trainer(cfg)
    results = trainer.train()
    if metric:
        group, key = metric.split("/")
        assert 0 <= results[group][key] <= 100
    assert trainer.storage.latest()["total_loss"][0] > 0
