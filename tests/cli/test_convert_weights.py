"""The conversion command: round trips of files, and its errors."""

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.saving import save_checkpoint
from grounding_dino.cli.convert_weights import main

import pytest
import torch

SHAPES = {
    "transformer.level_embed": (4, 32),
    "transformer.encoder.fusion_layers.0.gamma_v": (32,),
    "transformer.decoder.layers.0.norm1.weight": (32,),
    "transformer.decoder.layers.0.self_attn.in_proj_weight": (96, 32),
    "transformer.decoder.bbox_embed.0.layers.0.bias": (32,),
    "bbox_embed.0.layers.0.bias": (32,),
    "bert.embeddings.word_embeddings.weight": (5, 8),
    "bert.pooler.dense.bias": (8,),
    "feat_map.bias": (32,),
    **{f"input_proj.{level}.0.bias": (32,) for level in range(4)},
    "transformer.enc_output.bias": (32,),
    "backbone.0.layers.0.downsample.reduction.weight": (8, 16),
    "backbone.0.layers.0.blocks.0.attn.relative_position_index": (4,),
    "label_enc.weight": (3, 32),
}


@pytest.fixture
def authors_file(tmp_path):
    tensors = {f"module.{name}": torch.randn(shape) for name, shape in SHAPES.items()}
    tensors["module.bbox_embed.0.layers.0.bias"] = tensors["module.transformer.decoder.bbox_embed.0.layers.0.bias"]
    tensors["module.backbone.0.layers.0.blocks.0.attn.relative_position_index"] = torch.arange(4)
    torch.save({"model": tensors}, tmp_path / "authors.pth")
    return tmp_path / "authors.pth", tensors


@pytest.mark.parametrize("way", [["ours"], ["ours.safetensors"], ["mmdet"], ["mmdet", "ours", "mmdet"]])
def test_round_trips_are_exact(tmp_path, authors_file, way, capsys):
    path, tensors = authors_file
    for step, name in enumerate([*way, "official"]):
        to, _, suffix = name.partition(".")
        output = tmp_path / f"step{step}.{suffix or 'pth'}"
        assert main(["--to", to, str(path), str(output)]) == 0
        path = output
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model"}
    assert content["model"].keys() == tensors.keys()
    assert all(torch.equal(content["model"][name], value) for name, value in tensors.items())
    assert "(official) ->" in capsys.readouterr().out


def test_half(tmp_path, authors_file):
    path, tensors = authors_file
    assert main(["--to", "ours", "--half", str(path), str(tmp_path / "half.pth")]) == 0
    model = torch.load(tmp_path / "half.pth", weights_only=True)["model"]
    assert all(tensor.dtype == torch.float16 for tensor in model.values())


def test_errors_are_sentences(tmp_path, authors_file, capsys):
    path, tensors = authors_file
    assert main(["--to", "official", str(tmp_path / "none.pth"), str(tmp_path / "out.pth")]) == 1
    assert "there is no checkpoint at" in capsys.readouterr().err
    assert main(["--to", "official", str(path), str(tmp_path / "out.bin")]) == 1
    assert "should end in .pth" in capsys.readouterr().err
    assert main(["--to", "mmdet", str(path), str(tmp_path / "out.safetensors")]) == 1
    assert "is a .pth file" in capsys.readouterr().err
    torch.save({"model": {**tensors, "module.adapter.weight": torch.ones(1)}}, path)
    assert main(["--to", "ours", str(path), str(tmp_path / "out.pth")]) == 1
    assert "1 tensors of unknown names: adapter.weight" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def started(tmp_path, tiny_cfg, tiny_model):
    """(path of a file of the tiny model, path of a configuration with a decoder layer more and other labels)."""
    save_checkpoint(str(tmp_path / "source.pth"), tiny_model.state_dict())
    tiny_cfg.MODEL.TRANSFORMER_DECODER.NUM_LAYERS = 3
    tiny_cfg.MODEL.DENOISING.NUM_LABELS = 7
    (tmp_path / "target.yaml").write_text(tiny_cfg.dump())
    return tmp_path / "source.pth", tmp_path / "target.yaml"


def test_warm_start_writes_the_target_model(tmp_path, started, tiny_model, capsys):
    source, config = started
    for name in ("a.pth", "b.pth"):
        assert main(["--warm-start", "--config-file", str(config), str(source), str(tmp_path / name)]) == 0
    lines = capsys.readouterr().out.splitlines()
    a, b = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("a.pth", "b.pth"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)  # new parts too
    new = {name for name in a if name not in tiny_model.state_dict()}
    assert {name[: len("transformer_decoder.layers.2.")] for name in new if "heads" not in name} == {
        "transformer_decoder.layers.2."
    }
    other = {"denoising.label_embedding.weight"}
    for name, value in tiny_model.state_dict().items():
        assert name in other or torch.equal(a[name], value), name
    assert a["denoising.label_embedding.weight"].shape == (7, 32)
    (decoder,) = (line.split() for line in lines[: len(lines) // 2] if line.split()[0] == "transformer_decoder.layers")
    in_a_layer = sum(name.startswith("transformer_decoder.layers.2.") for name in a)
    assert decoder[1:] == [str(2 * in_a_layer), str(in_a_layer), "0", "0"]
    assert len({len(line) for line in lines[: lines.index("new:")]}) == 1  # aligned
    assert "  transformer_decoder.layers.2.norm_cross.weight" in lines
    assert "  denoising.label_embedding.weight (256, 32) instead of (7, 32)" in lines
    assert f"tensors taken, {len(new)} new" in lines[-1]


def test_warm_start_needs_a_model(tmp_path, started, capsys):
    source, _ = started
    for arguments, message in ((["--warm-start"], "needs --config-file"), ([], "--to is needed")):
        with pytest.raises(SystemExit):
            main([*arguments, str(source), str(tmp_path / "out.pth")])
        assert message in capsys.readouterr().err


def test_warm_start_from_another_backbone(tmp_path, started, tiny_cfg, capsys):
    source, config = started
    tiny_cfg.MODEL.SWIN.EMBED_DIM = 32
    config.write_text(tiny_cfg.dump())
    assert main(["--warm-start", "--config-file", str(config), str(source), str(tmp_path / "out.pth")]) == 1
    assert "is of another backbone than the model" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
    options = ["--opts", "MODEL.WEIGHTS_IGNORE", "['^backbone']"]
    assert main(["--warm-start", "--config-file", str(config), str(source), str(tmp_path / "out.pth"), *options]) == 0
    assert (tmp_path / "out.pth").is_file()


def test_options_of_no_model_are_refused(tmp_path, capsys):
    arguments = [str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--opts"]
    with pytest.raises(SystemExit):
        main(["--to", "ours", *arguments, "MODEL.DEVICE", "cpu"])
    assert "--opts changes the model of --warm-start" in capsys.readouterr().err
    assert main(["--warm-start", "--config-file", "shapes_tiny", *arguments, "MODEL.NO", "1"]) == 1
    assert "MODEL.NO" in capsys.readouterr().err
