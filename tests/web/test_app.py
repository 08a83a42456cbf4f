"""The page in a real browser: upload, type, see boxes; messages, downloads, two users, a telephone."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

Stars = dict[str, tuple[int, int, int, int]]
pytestmark = pytest.mark.slow
IMAGE = "#picture input[type=file]"


def upload(page: Any, file: str | Path | dict[str, Any]) -> None:
    """Put a file into the page's picture field, and wait until the server has it."""
    with page.expect_response(re.compile(r"/gradio_api/upload")):
        page.set_input_files(IMAGE, file)
    page.wait_for_selector("#picture img")


def type_and_detect(page: Any, text: str) -> None:
    page.fill("#text textarea", text)
    page.click("#start")


def rows(page: Any) -> list[list[str]]:
    """The cells of the table, row by row, once there is one."""
    page.wait_for_selector("#table table")
    return page.eval_on_selector_all(
        "#table tbody tr", "rows => rows.map(row => [...row.children].map(cell => cell.innerText.trim()))"
    )


def saved(page: Any, name: str, folder: Path) -> Path:
    """The file that one of the page's buttons gives."""
    with page.expect_download() as waiting:
        page.click(f"#download_{name}")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def shown_picture(page: Any) -> np.ndarray:
    """The result's pixels as the browser has them."""
    address = page.get_attribute("#drawing img", "src")
    response = page.request.get(address)
    assert response.ok
    return np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB")).astype(int)


def test_upload_type_see_boxes_and_save_them(
    visit: Any, tmp_path: Path, screenshots: Path, pictures: Path, stars: Stars
) -> None:
    page, requests = visit()
    upload(page, pictures / "stars.jpg")
    type_and_detect(page, ", ".join(stars))
    table = rows(page)
    found = {row[0]: [float(cell) for cell in row[1:]] for row in reversed(table)}  # the best of each name
    assert found.keys() == stars.keys()
    for name, (left, top, width, height) in stars.items():
        assert np.allclose(found[name][1:], [left, top, left + width, top + height], atol=10), name
        assert found[name][0] > 0.35
    assert f"{len(table)} detections" in page.inner_text("#message")
    drawn = saved(page, "picture", tmp_path)
    _check_drawing(drawn, pictures, stars)
    shown, small = shown_picture(page), np.asarray(Image.open(drawn).convert("RGB").resize((560, 560))).astype(int)
    assert shown.shape == small.shape and np.abs(shown - small).mean() < 12  # the same, with sharper lines and names
    page.screenshot(path=screenshots / "desktop.png", full_page=True)
    _check_files(page, tmp_path, found, stars)
    origin = page.url.rstrip("/")
    assert not [url for url in requests if not url.startswith((origin, "data:", "blob:"))]


def _check_drawing(file: Path, pictures: Path, stars: Stars) -> None:
    """Lines and labels around the objects are new, most of the picture is as it was."""
    drawn = np.asarray(Image.open(file).convert("RGB")).astype(int)
    original = np.asarray(Image.open(pictures / "stars.jpg").convert("RGB")).astype(int)
    assert drawn.shape == original.shape
    changed = np.abs(drawn - original).max(axis=2) > 80
    for left, top, width, height in stars.values():
        edge = changed[max(top - 8, 0) : top + height + 8, max(left - 8, 0) : left + width + 8].copy()
        assert edge.sum() > width + height  # a box's line is longer than half its own circumference
    assert changed.mean() < 0.35


def _check_files(page: Any, folder: Path, found: dict[str, list[float]], stars: Stars) -> None:
    (record,) = json.loads(saved(page, "json", folder).read_text())
    assert record["file_name"] == "stars.jpg" and (record["width"], record["height"]) == (384, 384)
    best = {each["label"]: each["box"] for each in reversed(record["detections"])}
    assert all(np.allclose(best[name], values[1:], atol=0.51) for name, values in found.items())
    path = saved(page, "coco", folder)
    assert path.name == "stars_coco.json"
    coco = COCO(str(path))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(stars)
    boxes = {coco.cats[each["category_id"]]["name"]: each["bbox"] for each in reversed(coco.loadAnns(coco.getAnnIds()))}
    assert all(np.allclose(boxes[name], stars[name], atol=12) for name in stars)


def test_bad_input_is_said_in_words(visit: Any, tmp_path: Path, pictures: Path) -> None:
    page, _ = visit()

    def message(part: str) -> None:
        page.wait_for_selector(f"#message [role=alert]:has-text({part!r})")
        assert page.inner_text("#table") == "" and page.is_disabled("#download_picture")

    type_and_detect(page, "blue star")
    message("There is no picture yet")
    upload(page, pictures / "stars.jpg")
    type_and_detect(page, "   ")
    message("There is nothing to look for")
    type_and_detect(page, " , . ")
    message("names nothing")
    huge = tmp_path / "huge.png"
    Image.new("1", (12000, 9000)).save(huge)  # 108 megapixels in a few kilobytes
    for file, part in (
        (huge, "108 megapixels"),
        ({"name": "broken.png", "mimeType": "image/png", "buffer": huge.read_bytes()[:900]}, "broken"),
        ({"name": "words.png", "mimeType": "image/png", "buffer": b"no picture"}, "is not a picture"),
    ):
        page.click("#picture [aria-label='Remove Image']")
        upload(page, file)
        type_and_detect(page, "blue star")
        message(part)
    assert not re.search(r"/\w+/grounding_dino_page", page.content().split("<script")[0] + page.inner_text("#message"))


def test_a_slow_request_leaves_the_page_to_others_and_can_be_cancelled(
    visit: Any, screenshots: Path, pictures: Path, stars: Stars
) -> None:
    first, _ = visit()
    first.click("#model input")
    first.get_by_role("option", name="slow").click()
    upload(first, pictures / "stars.jpg")
    type_and_detect(first, ", ".join(f"{name} {number}" for number in range(60) for name in stars))
    first.wait_for_selector("#cancel")
    first.wait_for_selector("#drawing :text('Looking')")
    second, _ = visit()  # opens while the model works
    upload(second, pictures / "stars.jpg")
    type_and_detect(second, "blue star")
    second.wait_for_selector("#drawing :text('queue: 1/1')")
    second.screenshot(path=screenshots / "queue.png", full_page=True)
    assert not first.query_selector("#table table")
    first.click("#cancel")
    first.wait_for_selector("#message :text('Cancelled')")
    assert [row[0] for row in rows(second)] == ["blue star"]
    assert not first.query_selector("#table table")
    type_and_detect(first, first.input_value("#text textarea"))
    first.wait_for_selector("#drawing :text('Looking')")
    first.close()  # who has gone keeps nobody waiting
    second.click("#start")
    second.wait_for_selector("#cancel")
    second.wait_for_selector("#cancel", state="hidden")
    assert "1 detection" in second.inner_text("#message")


def test_fixed_classes_take_no_text_and_give_segments(visit: Any, screenshots: Path, pictures: Path) -> None:
    page, _ = visit(dark=True)
    page.click("#model input")
    page.get_by_role("option", name="shapes_tiny_panoptic").click()
    page.wait_for_selector("#text", state="hidden")
    upload(page, pictures / "rings.jpg")
    page.click("#start")
    page.wait_for_selector("#table caption:has-text('Segments')")
    assert "segments" in page.inner_text("#message")
    page.screenshot(path=screenshots / "dark.png", full_page=True)


def test_a_telephone_and_a_keyboard_are_enough(visit: Any, screenshots: Path) -> None:
    page, _ = visit(390, 844)
    example = page.get_by_role("button", name="Example 3")
    example.focus()
    page.keyboard.press("Enter")
    assert len(rows(page)) >= 5
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("#drawing").bounding_box()["y"] < page.locator("#settings").bounding_box()["y"]
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input:not([type=file]), textarea, button")].filter(element =>
            element.offsetParent && !(element.labels?.length || element.ariaLabel || element.innerText?.trim()
            || element.title || element.querySelector("img[alt]"))).map(element => element.outerHTML)"""
    )
    assert nameless == []
    page.screenshot(path=screenshots / "telephone.png", full_page=True)
    page.focus("#text textarea")
    page.keyboard.press("Control+a")
    page.keyboard.type("a red thing")
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector("#message [role=status]:not(:has-text('5 detections'))")
