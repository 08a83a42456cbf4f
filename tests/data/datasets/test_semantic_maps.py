from grounding_dino.data.datasets.semantic_maps import load_semantic

import pytest


@pytest.fixture
def files(tmp_path):
    """`files(*paths)`: empty files."""

    def write(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return str(tmp_path / "pictures"), str(tmp_path / "maps")

    return write


def test_pictures_and_maps_are_paired_by_their_names(files, tmp_path):
    roots = files("pictures/b.jpg", "pictures/city/a.jpg", "maps/city/a.png", "maps/b.png")
    assert load_semantic(*roots) == [
        {
            "file_name": str(tmp_path / f"pictures/{name}.jpg"),
            "image_id": name.split("/")[-1],
            "sem_seg_file_name": str(tmp_path / f"maps/{name}.png"),
        }
        for name in ("b", "city/a")
    ]


def test_endings_may_be_longer_than_an_extension(files):
    roots = files("pictures/a_left.png", "maps/a_ids.png", "maps/a_colour.png")
    (record,) = load_semantic(*roots, "_left.png", "_ids.png")
    assert record["image_id"] == "a"
    assert record["sem_seg_file_name"].endswith("a_ids.png")


def test_a_file_without_its_counterpart_is_counted(files, caplog):
    roots = files("pictures/a.jpg", "pictures/b.jpg", "pictures/c.jpg", "maps/a.png", "maps/z.png")
    assert len(load_semantic(*roots)) == 1
    assert "left out 2 pictures" in caplog.text and "b.jpg" in caplog.text
    assert "left out 1 maps" in caplog.text and "z.png" in caplog.text


def test_no_pair_and_no_folder_are_errors(files):
    pictures, maps = files("pictures/a.jpg", "maps/b.png")
    with pytest.raises(FileNotFoundError, match=r"no picture \*.jpg in .*pictures \(1 there\) has a map"):
        load_semantic(pictures, maps)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_semantic(pictures, maps + "/no")
