"""A hostile file runs nothing; harmless foreign objects do not hide the tensors."""

import argparse
import builtins
import collections
import io
import os
import pickle
import sys

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.files import CheckpointError, read_checkpoint_file
from grounding_dino.checkpoint.restricted_unpickler import Stub, load_restricted_pickle

import numpy as np
import pytest
import torch


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


def attacks(marker):
    touch = f"touch {marker}"
    nested = pickle.dumps(Calls(os.system, touch))
    return {
        "os.system": Calls(os.system, touch),
        "builtins.eval": Calls(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Calls(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "open": Calls(open, str(marker), "w"),
        "pickle.loads": Calls(pickle.loads, nested),
        "torch.load": Calls(torch.load, io.BytesIO(nested)),
        "load_from_bytes": Calls(torch.storage._load_from_bytes, nested),
        "inside a dict": {"a": [1, {"b": Calls(os.system, touch)}]},
        "as a key": {(Calls(os.system, touch), 1): 2},
        "partial": Calls(__import__("functools").partial, os.system, touch),
    }


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
def test_hostile_files_run_nothing(tmp_path, name, form):
    marker = tmp_path / "ran"
    content = {"model": {"weight": torch.ones(2)}, "payload": attacks(marker)[name]}
    path = tmp_path / "hostile.pth"
    if form == "pickle":
        content["model"] = {"weight": np.ones(2, dtype=np.float32)}
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    loaded = read_checkpoint_file(str(path))
    assert not marker.exists()
    assert torch.equal(loaded["model"]["weight"], torch.ones(2))


def test_the_same_file_would_have_run_code(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(attacks(marker)["os.system"]))
    assert marker.exists()


@pytest.mark.parametrize("target", ["_rebuild_tensor_v2", "_encode", "OrderedDict", "Stub"])
def test_pickles_cannot_change_what_they_are_given(target):
    names = {
        "_rebuild_tensor_v2": b"ctorch._utils\n_rebuild_tensor_v2\n",
        "_encode": b"c_codecs\nencode\n",
        "OrderedDict": b"ccollections\nOrderedDict\n",
        "Stub": b"cany.thing\nAtAll\n",
    }
    # object, (None, {"attribute": "value"}), BUILD: the state's second part is set attribute by attribute
    program = b"\x80\x02" + names[target] + b"N}X\x08\x00\x00\x00__name__X\x05\x00\x00\x00values\x86b."
    before = torch._utils._rebuild_tensor_v2.__name__, collections.OrderedDict.__name__, Stub.__name__
    with pytest.raises((pickle.UnpicklingError, TypeError, AttributeError)):
        load_restricted_pickle(io.BytesIO(program))
    assert before == (torch._utils._rebuild_tensor_v2.__name__, collections.OrderedDict.__name__, Stub.__name__)


def test_nothing_is_imported(tmp_path):
    program = b"\x80\x02cantigravity\nfly\n)R."
    assert isinstance(load_restricted_pickle(io.BytesIO(program)), Stub)
    assert "antigravity" not in sys.modules


class History(dict):
    """Stands for mmengine's objects: a class of its own, with items and state."""

    def __init__(self):
        super().__init__(a=1)
        self.more = [1, 2]


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_objects_become_stubs_and_tensors_stay(tmp_path, zipped):
    path = tmp_path / "released.pth"
    content = {
        "model": collections.OrderedDict(weight=torch.arange(6.0).reshape(2, 3), half=torch.ones(3).half()),
        "args": argparse.Namespace(lr=1e-4),
        "history": History(),
        "losses": np.float64(3.5),
        "array": np.arange(4),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint_file(str(path))
    assert torch.equal(loaded["model"]["weight"], content["model"]["weight"])
    assert loaded["model"]["half"].dtype == torch.float16
    assert isinstance(loaded["args"], Stub) and isinstance(loaded["history"], Stub)
    assert "argparse.Namespace" in repr(loaded["args"])
    assert loaded["losses"] == 3.5
    assert torch.equal(loaded["array"], torch.arange(4))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2_pickles(tmp_path, protocol):
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": {"stem.conv1.weight": array}, "__author__": "x"}, protocol=protocol))
    loaded = read_checkpoint_file(str(path))
    assert torch.equal(loaded["model"]["stem.conv1.weight"], torch.from_numpy(array.copy()))


def test_object_arrays_stay_inert(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "objects.pkl"
    path.write_bytes(pickle.dumps({"a": np.array([Calls(os.system, f"touch {marker}")], dtype=object)}))
    read_checkpoint_file(str(path))
    assert not marker.exists()


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "program.pth"
    torch.jit.script(torch.nn.ReLU()).save(str(path))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint_file(str(path))
