import io
import os
import tarfile
import zipfile

from grounding_dino.data.prepare.files import get_parser, parse, unpack_all, write_json

import pytest


def _tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


def _zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)


@pytest.mark.parametrize(("pack", "name"), [(_tar, "a.tar.gz"), (_zip, "a.zip")])
def test_archives_below_a_folder_are_unpacked_once(pack, name, tmp_path):
    (tmp_path / "downloads").mkdir()
    pack(tmp_path / "downloads" / name, {"patch0/1.jpg": "one", "2.json": "two"})
    assert unpack_all(tmp_path, tmp_path / "set", quiet=True) == 1
    assert (tmp_path / "set/patch0/1.jpg").read_text() == "one"
    assert (tmp_path / "set/2.json").read_text() == "two"
    (tmp_path / "set/2.json").unlink()
    assert unpack_all(tmp_path, tmp_path / "set", quiet=True) == 0
    assert not (tmp_path / "set/2.json").exists()


def test_an_archive_that_changed_is_unpacked_again(tmp_path):
    _zip(tmp_path / "a.zip", {"1.txt": "old"})
    unpack_all(tmp_path, tmp_path, quiet=True)
    _zip(tmp_path / "a.zip", {"1.txt": "newer"})
    assert unpack_all(tmp_path, tmp_path, quiet=True) == 1
    assert (tmp_path / "1.txt").read_text() == "newer"


@pytest.mark.parametrize(("pack", "name"), [(_tar, "a.tar.gz"), (_zip, "a.zip")])
def test_nothing_is_written_outside_of_the_folder(pack, name, tmp_path):
    (tmp_path / "set").mkdir()
    pack(tmp_path / "set" / name, {"../evil.txt": "x"})
    with pytest.raises(ValueError, match=r"would write '\.\./evil.txt' outside"):
        unpack_all(tmp_path / "set", tmp_path / "set", quiet=True)
    assert not (tmp_path / "evil.txt").exists()


def test_links_in_archives_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(entry)
    unpack_all(tmp_path, tmp_path, quiet=True)
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.unpacked"]


def test_a_broken_download_is_named(tmp_path):
    (tmp_path / "a.zip").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="a.zip is neither a zip nor a tar file; download it again"):
        unpack_all(tmp_path, tmp_path, quiet=True)


def test_json_is_moved_when_whole(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "a.json", {"a": object()})
    assert not (tmp_path / "new" / "a.json").exists()
    write_json(tmp_path / "new" / "a.json", {"a": [1]})
    assert (tmp_path / "new" / "a.json").read_text() == '{"a":[1]}'


def test_the_root_that_is_named_holds_for_names_too(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    options = parse(get_parser("x"), ["--root", str(tmp_path)])
    assert options.root == tmp_path
    assert os.environ["DETECTRON2_DATASETS"] == str(tmp_path)
