"""Rules of image backbones, under any prefix of the other origin; ours is `backbone.`."""

from __future__ import annotations

from grounding_dino.checkpoint.rules import MMDET_MERGING, ROWS, SAME, Join, Rule

_BLOCK = "backbone.layers.{i}.blocks.{j}."


def _merging(theirs: str, join: Join = SAME) -> list[Rule]:
    ours = "backbone.layers.{i}.downsample."
    return [Rule(f"{ours}{leaf}", f"{theirs}{leaf}", join) for leaf in ("norm.weight", "norm.bias", "reduction.weight")]


def swin_official(prefix: str) -> list[Rule]:
    """Swin as its authors name it, and so official Grounding DINO; timm's Swin shares the names of the blocks."""
    block = f"{prefix}layers.{{i}}.blocks.{{j}}."
    return [
        Rule("backbone.patch_embed.projection.{p}", f"{prefix}patch_embed.proj.{{p}}"),
        Rule("backbone.patch_embed.norm.{p}", f"{prefix}patch_embed.norm.{{p}}"),
        Rule(f"{_BLOCK}norm1.{{p}}", f"{block}norm1.{{p}}"),
        Rule(f"{_BLOCK}norm2.{{p}}", f"{block}norm2.{{p}}"),
        Rule(f"{_BLOCK}attention.relative_position_bias_table", f"{block}attn.relative_position_bias_table"),
        Rule(f"{_BLOCK}attention.relative_position_index", f"{block}attn.relative_position_index", carried=True),
        Rule(f"{_BLOCK}attention.qkv.{{p}}", f"{block}attn.qkv.{{p}}"),
        Rule(f"{_BLOCK}attention.projection.{{p}}", f"{block}attn.proj.{{p}}"),
        Rule(f"{_BLOCK}mlp.0.{{p}}", f"{block}mlp.fc1.{{p}}"),
        Rule(f"{_BLOCK}mlp.2.{{p}}", f"{block}mlp.fc2.{{p}}"),
        *_merging(f"{prefix}layers.{{i}}.downsample."),
        *stage_norms(f"{prefix}norm"),
    ]


def swin_mmdet(prefix: str) -> list[Rule]:
    """Swin as mmdet names it; patch merging reads its inputs in another order there."""
    block = f"{prefix}stages.{{i}}.blocks.{{j}}."
    return [
        Rule("backbone.patch_embed.{p}.{rest}", f"{prefix}patch_embed.{{p}}.{{rest}}"),
        Rule(f"{_BLOCK}norm1.{{p}}", f"{block}norm1.{{p}}"),
        Rule(f"{_BLOCK}norm2.{{p}}", f"{block}norm2.{{p}}"),
        Rule(f"{_BLOCK}attention.relative_position_bias_table", f"{block}attn.w_msa.relative_position_bias_table"),
        Rule(f"{_BLOCK}attention.relative_position_index", f"{block}attn.w_msa.relative_position_index", carried=True),
        Rule(f"{_BLOCK}attention.qkv.{{p}}", f"{block}attn.w_msa.qkv.{{p}}"),
        Rule(f"{_BLOCK}attention.projection.{{p}}", f"{block}attn.w_msa.proj.{{p}}"),
        Rule(f"{_BLOCK}mlp.0.{{p}}", f"{block}ffn.layers.0.0.{{p}}"),
        Rule(f"{_BLOCK}mlp.2.{{p}}", f"{block}ffn.layers.1.{{p}}"),
        *_merging(f"{prefix}stages.{{i}}.downsample.", MMDET_MERGING),
        *stage_norms(f"{prefix}norm"),
    ]


def stage_norms(theirs: str) -> list[Rule]:
    """Output norms: ours count stages from 1, others' outputs from 0."""
    return [Rule(f"backbone.norms.stage{k + 1}.{{p}}", f"{theirs}{k}.{{p}}") for k in range(4)]


def swin_huggingface(prefix: str) -> list[Rule]:
    """Swin inside Hugging Face's models: the names that every release writes to disk, and 5.x's in-memory names."""
    old, new = f"{prefix}encoder.layers.{{i}}.", f"{prefix}swin.encoder.layers.{{i}}."
    names = [
        ("layernorm_before.{p}", "norm1.{p}"),
        ("layernorm_after.{p}", "norm2.{p}"),
        ("attention.self.relative_position_bias_table", "attention.relative_position_bias_table"),
        ("attention.relative_position_bias.relative_position_bias_table", "attention.relative_position_bias_table"),
        ("attention.output.dense.{p}", "attention.projection.{p}"),
        ("attention.o_proj.{p}", "attention.projection.{p}"),
        ("intermediate.dense.{p}", "mlp.0.{p}"),
        ("mlp.fc1.{p}", "mlp.0.{p}"),
        ("output.dense.{p}", "mlp.2.{p}"),
        ("mlp.fc2.{p}", "mlp.2.{p}"),
    ]
    written: set[str] = set()
    rules = []
    for start in (old, new):
        blocks = f"{start}blocks.{{j}}."
        for theirs, ours in names:
            rules.append(Rule(_BLOCK + ours, blocks + theirs, read_only=ours in written))
            written.add(ours)
        for query in ("attention.self.{}.{{p}}", "attention.{}_proj.{{p}}"):
            words = ("query", "key", "value") if "self" in query else ("q", "k", "v")
            parts = tuple(blocks + query.format(word) for word in words)
            rules.append(Rule(f"{_BLOCK}attention.qkv.{{p}}", parts, ROWS, read_only="qkv" in written))
            written.add("qkv")
        index = f"{_BLOCK}attention.relative_position_index"
        for name in ("attention.self.", "attention.relative_position_bias."):
            theirs = f"{blocks}{name}relative_position_index"
            rules.append(Rule(index, theirs, carried=True, read_only="index" in written))
            written.add("index")
        rules += [Rule(rule.ours, rule.theirs, read_only=start is new) for rule in _merging(f"{start}downsample.")]
    for start, read_only in ((f"{prefix}embeddings.", False), (f"{prefix}swin.embeddings.", True)):
        theirs = f"{start}patch_embeddings.projection.{{p}}"
        rules.append(Rule("backbone.patch_embed.projection.{p}", theirs, read_only=read_only))
        rules.append(Rule("backbone.patch_embed.norm.{p}", f"{start}norm.{{p}}", read_only=read_only))
    rules += [
        Rule("backbone.norms.{rest}", f"{prefix}hidden_states_norms.{{rest}}"),
        Rule("backbone.unused_norm.{p}", f"{prefix}swin.layernorm.{{p}}", carried=True),
    ]
    return rules


def convnext_official(prefix: str, coarser_outputs: bool = True) -> list[Rule]:
    """ConvNeXt as its authors name it, and so DINO's; ours is timm's with a norm for each output (TimmBackbone).

    DINO's files hold output norms of all four stages. `coarser_outputs`: the first is not an output, its norm is kept.
    """
    ours, theirs = "backbone.model.stages_{i}.", f"{prefix}stages.{{i}}.{{j}}."
    words = {
        "conv_dw.{p}": "dwconv.{p}",
        "norm.{p}": "norm.{p}",
        "mlp.fc1.{p}": "pwconv1.{p}",
        "mlp.fc2.{p}": "pwconv2.{p}",
        "gamma": "gamma",
    }
    unused = Rule("carried.official.convnext_norm0.{p}", f"{prefix}norm0.{{p}}", carried=True)
    return [
        *(Rule(f"backbone.model.stem_{j}.{{p}}", f"{prefix}downsample_layers.0.{j}.{{p}}") for j in (0, 1)),
        Rule(f"{ours}downsample.{{j}}.{{p}}", f"{prefix}downsample_layers.{{i}}.{{j}}.{{p}}"),
        *(Rule(f"{ours}blocks.{{j}}.{a}", f"{theirs}{b}") for a, b in words.items()),
        *([unused] if coarser_outputs else []),
        *(Rule(f"backbone.norms.s{4 << k}.{{p}}", f"{prefix}norm{k}.{{p}}") for k in range(4)),
    ]


def resnet(prefix: str) -> list[Rule]:
    """ResNet as torchvision names it, and so mmdet and the authors; ours are Detectron2's names."""
    rules = [Rule("backbone.stem.conv1.weight", f"{prefix}conv1.weight"), *_batch_norm("stem.conv1", f"{prefix}bn1")]
    for stage in range(2, 6):
        ours, theirs = f"res{stage}.{{i}}", f"{prefix}layer{stage - 1}.{{i}}"
        for n in (1, 2, 3):
            rules.append(Rule(f"backbone.{ours}.conv{n}.weight", f"{theirs}.conv{n}.weight"))
            rules += _batch_norm(f"{ours}.conv{n}", f"{theirs}.bn{n}")
        rules.append(Rule(f"backbone.{ours}.shortcut.weight", f"{theirs}.downsample.0.weight"))
        rules += _batch_norm(f"{ours}.shortcut", f"{theirs}.downsample.1")
    return rules


def _batch_norm(ours: str, theirs: str) -> list[Rule]:
    # a counter of training steps: no number depends on it, and Detectron2's frozen norm has none
    counter = Rule(f"backbone.{ours}.norm.num_batches_tracked", f"{theirs}.num_batches_tracked", carried=True)
    return [counter, Rule(f"backbone.{ours}.norm.{{p}}", f"{theirs}.{{p}}")]


def resnet_caffe2() -> list[Rule]:
    """ResNet in Detectron2's older .pkl files, whose norms hold a scale and a shift alone."""
    rules = [
        Rule("backbone.stem.conv1.weight", "conv1_w"),
        Rule("backbone.stem.conv1.norm.weight", "res_conv1_bn_s"),
        Rule("backbone.stem.conv1.norm.bias", "res_conv1_bn_b"),
    ]
    for ours, theirs in {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}.items():
        for stage in range(2, 6):
            name, branch = f"backbone.res{stage}.{{i}}.{ours}", f"res{stage}_{{i}}_branch{theirs}"
            rules.append(Rule(f"{name}.weight", f"{branch}_w"))
            rules.append(Rule(f"{name}.norm.weight", f"{branch}_bn_s"))
            rules.append(Rule(f"{name}.norm.bias", f"{branch}_bn_b"))
    return rules
