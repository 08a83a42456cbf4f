from grounding_dino.text.bert import Bert
from grounding_dino.text.bert_weights import load_bert_weights

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel


@pytest.fixture
def bert():
    return tiny_bert()


def tiny_bert(hidden_size: int = 8):
    return Bert(
        vocabulary_size=20, hidden_size=hidden_size, num_layers=1, num_heads=2, ffn_dim=16, max_positions=8, dropout=0.0
    )


def published(bert) -> dict[str, torch.Tensor]:
    """The weights under the names of an old pre-training checkpoint."""
    weights = {}
    for name, value in bert.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        weights[f"bert.{name}"] = torch.randn_like(value)
    weights["bert.embeddings.position_ids"] = torch.arange(8)[None]
    weights["bert.pooler.dense.weight"] = torch.zeros(8, 8)
    weights["cls.predictions.bias"] = torch.zeros(20)
    return weights


def assert_loaded(bert, weights) -> None:
    for name, value in bert.state_dict().items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        assert torch.equal(value, weights[f"bert.{old}"]), name


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pth"])
def test_published_names_from_a_file_and_a_folder(bert, tmp_path, name):
    weights = published(bert)
    save_file(weights, tmp_path / name) if name.endswith("safetensors") else torch.save(weights, tmp_path / name)
    for source in (tmp_path / name, tmp_path):
        other = tiny_bert()
        load_bert_weights(other, str(source))
        assert_loaded(other, weights)


def test_a_folder_written_by_transformers(bert, tmp_path):
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = BertModel(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=8))
    theirs.save_pretrained(tmp_path)
    load_bert_weights(bert, str(tmp_path))
    for name, value in bert.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


def test_weights_of_another_model_are_refused_by_name(bert, tmp_path):
    path = tmp_path / "weights.pth"
    weights = published(bert)
    del weights["bert.encoder.layer.0.output.dense.bias"]
    weights["bert.extra"] = torch.zeros(1)
    torch.save(weights, path)
    with pytest.raises(ValueError, match="missing encoder.layer.0.output.dense.bias; unexpected extra; of another"):
        load_bert_weights(bert, str(path))
    torch.save(published(tiny_bert(4)), path)
    with pytest.raises(ValueError, match=r"\(20, 4\), expected \(20, 8\).* and \d+ more; check MODEL.TEXT_ENCODER"):
        load_bert_weights(bert, str(path))


def test_nothing_there(bert, tmp_path):
    with pytest.raises(FileNotFoundError, match="it must hold one of"):
        load_bert_weights(bert, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no BERT weights at"):
        load_bert_weights(bert, str(tmp_path / "model.pth"))


class Danger:
    def __reduce__(self):
        return print, ("code of the file ran",)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_broken_files(bert, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read"):
        load_bert_weights(bert, str(path))


def test_code_in_a_file_does_not_run(bert, tmp_path, capsys):
    path = tmp_path / "a.pth"
    torch.save({"bert.weight": Danger()}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_bert_weights(bert, str(path))
    assert capsys.readouterr().out == ""


def test_a_file_without_tensors(bert, tmp_path):
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="does not hold a dictionary of tensors"):
        load_bert_weights(bert, str(tmp_path / "a.pth"))
