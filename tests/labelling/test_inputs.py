"""What is listed of folders, lists, tar shards and parquet files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from grounding_dino.labelling.inputs import PictureInputs
from grounding_dino.labelling.plan import write_plan
from grounding_dino.labelling.reading import PictureReader

import pytest


def listed(*paths: object, own_words: str | None = None) -> list[tuple[str, object]]:
    """Names, and words or errors."""
    return [(item.file_name, item.error or item.words) for item in PictureInputs([str(p) for p in paths], own_words)]


def names(*paths: object) -> list[str]:
    return [name for name, _ in listed(*paths)]


def test_a_folder_is_searched_to_its_bottom_in_the_order_of_names(folder: Path) -> None:
    assert names(folder) == ["a.jpg", "a.png", "b.png", "sub/a.png", "sub/deep/c.png"]


def test_links_between_folders_do_not_go_round_in_circles(folder: Path) -> None:
    (folder / "sub" / "again").symlink_to(folder)
    assert names(folder) == ["a.jpg", "a.png", "b.png", "sub/a.png", "sub/deep/c.png"]


def test_outputs_in_the_same_folder_are_no_inputs(folder: Path) -> None:
    found = PictureInputs([str(folder)], leave_out=str(folder / "sub" / ".." / "sub" / "deep"))
    assert [item.file_name for item in found] == ["a.jpg", "a.png", "b.png", "sub/a.png"]


def test_names_are_relative_to_what_all_inputs_share(folder: Path) -> None:
    assert names(folder / "sub", folder / "b.png") == ["sub/a.png", "sub/deep/c.png", "b.png"]


def test_patterns(folder: Path) -> None:
    assert names(folder / "*.png") == ["a.png", "b.png"]


@pytest.mark.parametrize("wrong", ["missing", "none*.png"])
def test_nothing_at_a_path_is_said_at_once(folder: Path, wrong: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is nothing at --input"):
        PictureInputs([str(folder / wrong)])


def test_compressed_shards_are_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(ValueError, match="unpack it"):
        PictureInputs([str(tmp_path / "a.tar.gz")])


def test_lists_start_at_their_folder_and_keep_what_is_missing(folder: Path) -> None:
    (folder / "list.txt").write_text(f"sub/a.png\n\n{folder / 'b.png'}\ngone.png\n")
    assert names(folder / "list.txt") == ["sub/a.png", "b.png", "gone.png"]


def test_rows_have_words_of_their_own(folder: Path) -> None:
    rows = [
        {"file_name": "a.png", "categories": ["cat", "dog"]},
        {"filename": "b.png", "categories": "cat . traffic light ."},
        {"file_name": "a.jpg"},
        {"file_name": "a.jpg", "categories": 3},
        {"width": 3},
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), "no json", "[1]"]))
    found = listed(file, own_words="categories")
    assert found[:3] == [
        ("a.png", {"categories": ["cat", "dog"]}),
        ("b.png", {"categories": ["cat", "traffic light"]}),
        ("a.jpg", {}),
    ]
    assert [name for name, _ in found[3:]] == [f"rows.jsonl:{line}" for line in range(4, 8)]
    assert all("the row cannot be used" in str(error) for _, error in found[3:])


def test_texts_beside_pictures(folder: Path) -> None:
    (folder / "a.txt").write_text("cat\ntraffic light\n")
    (folder / "b.txt").write_bytes(b"\xff\xfe\xff")
    found = dict(listed(folder, own_words="categories"))
    assert found["a.png"] == {"categories": ["cat", "traffic light"]}
    assert "cannot be read" in str(found["b.png"]) and found["sub/a.png"] == {}
    assert dict(listed(folder / "a.png", own_words="caption"))["a.png"] == {"caption": "cat traffic light"}
    assert dict(listed(folder))["a.png"] == {}  # they may be labels: only who asks for them gets them


def test_members_of_tar_files_with_the_text_of_their_key(tmp_path: Path, write_tar, picture) -> None:
    members = {
        "x/1.jpg": picture(1),
        "x/1.txt": b"two dogs",
        "2.json": b'{"caption": "a cat"}',
        "2.png": picture(2),
        "3.png": picture(3),
        "4.png": picture(4),
        "4.json": b"{",
        "readme": b"",
    }
    write_tar(tmp_path / "s.tar", members)
    found = listed(tmp_path, own_words="caption")
    assert found[:3] == [
        ("s.tar/x/1.jpg", {"caption": "two dogs"}),
        ("s.tar/2.png", {"caption": "a cat"}),
        ("s.tar/3.png", {}),
    ]
    assert found[3][0] == "s.tar/4.png" and "its text (.json) cannot be used" in str(found[3][1])


def test_a_tar_file_that_is_cut_off_loses_only_what_is_missing(tmp_path: Path, write_tar, picture) -> None:
    file = write_tar(tmp_path / "s.tar", {"1.png": picture(1), "2.png": picture(2)})
    file.write_bytes(file.read_bytes()[: len(picture(1)) + 4000])
    (tmp_path / "t.tar").write_bytes(b"nothing")
    found = listed(tmp_path)
    assert found[0] == ("s.tar/1.png", {})
    assert [name for name, _ in found[1:]] == ["s.tar", "t.tar"] and all(error for _, error in found[1:])


def test_parquet_with_encoded_pictures_or_paths(tmp_path: Path, folder: Path, write_parquet, picture) -> None:
    images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(7)]
    write_parquet(tmp_path / "a.parquet", image=images, categories=[["cat"]] * 6 + [[]])
    write_parquet(folder / "b.parquet", file_name=["a.png", "gone.png"], caption=["a dog", None])
    found = listed(tmp_path / "a.parquet", own_words="categories")
    assert found[0] == ("a.parquet/0.png", {"categories": ["cat"]}) and found[6] == ("a.parquet/6.png", {})
    found = listed(folder / "b.parquet", own_words="caption")
    assert found == [("a.png", {"caption": "a dog"}), ("gone.png", {})]


def test_a_parquet_file_without_pictures_is_listed_with_its_columns(tmp_path: Path, write_parquet) -> None:
    write_parquet(tmp_path / "a.parquet", title=["x"])
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    found = listed(tmp_path)
    assert "has the columns title" in str(found[0][1]) and "no parquet file" in str(found[1][1])


def test_everything_listed_can_be_read(tmp_path: Path, folder: Path, write_tar, write_parquet, picture) -> None:
    write_tar(folder / "s.tar", {"1.png": picture(1), "2.png": picture(2)})
    write_parquet(folder / "rows.parquet", jpg=[picture(n) for n in range(40)])
    read = PictureReader()
    write_plan(tmp_path, PictureInputs([str(folder)]))
    entries = [json.loads(line) for line in (tmp_path / "pictures.jsonl").read_text().splitlines()]
    assert len(entries) == 5 + 2 + 40
    for entry in [*entries, *entries[::-7]]:  # shards are also read backwards
        assert read(entry).shape == (40, 60, 3)


def test_a_shard_that_was_changed_is_not_taken_for_the_old_one(tmp_path: Path, write_tar, picture) -> None:
    file = write_tar(tmp_path / "s.tar", {"1.png": picture(1)})
    write_plan(tmp_path, PictureInputs([str(file)]))
    os.utime(file, (1, 1))
    with pytest.raises(ValueError, match="was changed after"):
        PictureReader()(json.loads((tmp_path / "pictures.jsonl").read_text()))
