"""Files that are no checkpoint are refused in words; every format is read to the same tensors."""

import json
import tarfile

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.files import CheckpointError, read_checkpoint_file

import pytest
import torch
from safetensors.torch import save_file


def whole_files(folder):
    content = {"model": {"weight": torch.randn(64, 64)}}
    torch.save(content, folder / "zip.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(content["model"], folder / "tensors.safetensors")


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "tensors.safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_truncated_files(tmp_path, name, share):
    whole_files(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: max(1, int(len(data) * share))])
    with pytest.raises(CheckpointError, match="cut off|damaged|no whole") as error:
        read_checkpoint_file(str(tmp_path / name))
    assert name in str(error.value)


def test_a_zip_file_whose_first_byte_is_another(tmp_path):
    whole_files(tmp_path)
    data = bytearray((tmp_path / "zip.pth").read_bytes())
    data[0] ^= 1
    (tmp_path / "zip.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"zip.pth is damaged: a zip-format checkpoint that begins with b'QK"):
        read_checkpoint_file(str(tmp_path / "zip.pth"))


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n <html>no</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
        (b"\x1f\x8b\x08rest", "archive"),
        (b"hello world, this is text", "no checkpoint"),
        (b"\x80\x04K\x01.", "holds a int"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, data, words):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as error:
        read_checkpoint_file(str(path))
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint_file(str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match="holds neither"):
        read_checkpoint_file(str(tmp_path))


def test_tar_is_refused_before_torch_unpacks_it(tmp_path):
    (tmp_path / "storages").write_bytes(b"x")
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    with pytest.raises(CheckpointError, match="tar"):
        read_checkpoint_file(str(tmp_path / "old.pth"))


def test_shards_of_a_folder(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_checkpoint_file(str(tmp_path)) == {"a": torch.ones(1), "b": torch.zeros(1)}
    index["weight_map"]["b"] = "../outside.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_checkpoint_file(str(tmp_path))


def test_mapped_and_read_tensors_agree(tmp_path):
    whole_files(tmp_path)
    read = read_checkpoint_file(str(tmp_path / "zip.pth"))["model"]["weight"]
    mapped = read_checkpoint_file(str(tmp_path / "zip.pth"), mmap=True)["model"]["weight"]
    assert torch.equal(read, mapped)
