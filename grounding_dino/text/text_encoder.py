"""Text encoders: prompts -> features, with BERT's weights under `bert.*`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grounding_dino.layers.transfer import to_device
from grounding_dino.structures import Prompt, TextFeatures, TokenizedText
from grounding_dino.text.batch import collate_prompts, pad_text
from grounding_dino.text.bert import Bert
from grounding_dino.text.bert_weights import load_bert_weights
from grounding_dino.text.feature_cache import FeatureCache
from grounding_dino.text.prompt_builder import PromptBuilder
from grounding_dino.text.tokenizer import WordPieceTokenizer

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

TEXT_ENCODER_REGISTRY = Registry("TEXT_ENCODER")
TEXT_ENCODER_REGISTRY.__doc__ = "Modules that map a sequence of prompts to TextFeatures; built from a config."

# What BERT sees in a padded column: [PAD] at position 0, attending to itself alone.
PADDING = Prompt(caption="", input_ids=(0,), position_ids=(0,), attention_ranges=((0, 1),))


def build_text_encoder(cfg: CfgNode) -> nn.Module | None:
    """The encoder that MODEL.TEXT_ENCODER.NAME registers; None for "" (models without text)."""
    name = cfg.MODEL.TEXT_ENCODER.NAME
    return TEXT_ENCODER_REGISTRY.get(name)(cfg) if name else None


@TEXT_ENCODER_REGISTRY.register()
class BertEncoder(nn.Module):
    """BERT over the attention ranges of prompts, then a linear layer to the detector's width where it has one.

    At inference (eval mode, no gradient) the features of a prompt are kept, so a second picture with the same
    prompt does not run BERT. Entries are valid for the weights, device, precision and prompt they were computed
    with; code that changes weights through `parameter.data` calls :meth:`clear_cache`. A prompt's features do
    not depend on the other prompts of the batch.

    Args:
        bert: the layers that read tokens.
        prompts: what it reads: vocabulary, longest prompt, and how far a token sees.
        embed_dim: width of the returned embeddings; None returns BERT's own.
        freeze: BERT keeps its weights and stays in eval mode; the projection is trained.
        cache_size: prompts whose features are kept.

    Raises:
        ValueError: the vocabulary, or the longest prompt, is larger than BERT's tables.
    """

    @configurable
    def __init__(
        self,
        *,
        bert: Bert,
        prompts: PromptBuilder,
        embed_dim: int | None,
        freeze: bool = False,
        cache_size: int = 1024,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if prompts.tokenizer.size > bert.vocabulary_size:
            raise ValueError(
                f"the vocabulary has {prompts.tokenizer.size} tokens, but BERT's table only {bert.vocabulary_size} "
                "rows; set MODEL.TEXT_ENCODER.VOCABULARY_SIZE to the size of MODEL.TEXT_ENCODER.VOCABULARY"
            )
        if prompts.max_tokens > bert.max_positions:
            raise ValueError(
                f"MODEL.TEXT_ENCODER.MAX_TOKENS {prompts.max_tokens} exceeds MAX_POSITIONS "
                f"{bert.max_positions}: one long phrase would have no position embedding"
            )
        self.prompts = prompts
        self.freeze = freeze
        self.bert = bert
        self.projection: nn.Module = nn.Identity()
        if embed_dim is not None:
            self.projection = nn.Linear(bert.hidden_size, embed_dim)
            nn.init.xavier_uniform_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        self._cache: FeatureCache[TextFeatures] = FeatureCache(cache_size)
        self.bert.activation_checkpointing = activation_checkpointing and not freeze
        if freeze:
            self.bert.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.TEXT_ENCODER
        bert = Bert(
            vocabulary_size=options.VOCABULARY_SIZE,
            hidden_size=options.HIDDEN_SIZE,
            num_layers=options.NUM_LAYERS,
            num_heads=options.NUM_HEADS,
            ffn_dim=options.FFN_DIM,
            max_positions=options.MAX_POSITIONS,
            dropout=options.DROPOUT,
        )
        return {
            "bert": bert,
            "prompts": PromptBuilder.from_config(cfg),
            "embed_dim": cfg.MODEL.EMBED_DIM if options.PROJECTION_ON else None,
            "freeze": options.FREEZE_ON,
            "cache_size": options.CACHE_SIZE,
            "activation_checkpointing": options.ACTIVATION_CHECKPOINTING_ON,
        }

    @property
    def tokenizer(self) -> WordPieceTokenizer:
        return self.prompts.tokenizer

    @property
    def max_tokens(self) -> int:
        return self.prompts.max_tokens

    @property
    def device(self) -> torch.device:
        return self._any_weight().device

    def _any_weight(self) -> Tensor:
        """One that quantisation and adapters leave as it is."""
        return self.bert.embeddings.word_embeddings.weight

    def train(self, mode: bool = True) -> BertEncoder:
        super().train(mode)
        if self.freeze:
            self.bert.eval()
        self.clear_cache()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BertEncoder:
        """Every `.to()`, `.half()`, `.cuda()` passes here: other weights, though maybe at the same addresses."""
        super()._apply(fn, recurse)
        self.clear_cache()
        return self

    def load_weights(self, source: str) -> None:
        """Fill BERT from a folder or file, see :func:`load_bert_weights`; the projection stays as it is."""
        load_bert_weights(self.bert, source)
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forget all kept features."""
        self._cache.clear()

    def forward(self, prompts: Sequence[Prompt]) -> TextFeatures:
        """Features (B, T, C) of `prompts`, padded to the longest, on this module's device."""
        use_cache = not self.training and not torch.is_grad_enabled() and self._cache.size > 0
        return self._cached(prompts) if use_cache and prompts else self._computed(prompts)

    def _computed(self, prompts: Sequence[Prompt]) -> TextFeatures:
        text = self._to_device(collate_prompts(prompts))
        embeddings = self.projection(self.encode(text))
        return TextFeatures(embeddings, text.padding_mask, text.attention_mask, text.position_ids, text.has_padding)

    def encode(self, text: TokenizedText) -> Tensor:
        """BERT's last hidden state (B, T, hidden size) of a batch on this module's device."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            hidden: Tensor = self.bert(
                input_ids=text.input_ids, attention_mask=text.attention_mask, position_ids=text.position_ids
            )
        return hidden

    def _cached(self, prompts: Sequence[Prompt]) -> TextFeatures:
        """Like `_computed`, but each prompt, and the padding, is computed once, and its masks stay on the device."""
        needed = {_key(prompt): prompt for prompt in prompts}
        if len({len(prompt) for prompt in prompts}) > 1:
            needed[_key(PADDING)] = PADDING
        state = self._state()
        rows = {key: row for key in needed if (row := self._cache.get((state, key))) is not None}
        absent = [key for key in needed if key not in rows]
        if absent:
            computed = self._computed([needed[key] for key in absent])
            for index, key in enumerate(absent):
                rows[key] = _row(computed, index, len(needed[key]))
                self._cache.put((state, key), rows[key])
        return _batch([rows[_key(prompt)] for prompt in prompts], rows.get(_key(PADDING)))

    def _state(self) -> tuple[object, ...]:
        """What cached features depend on besides the prompt: weights, device, precision.

        Asked for every picture, hence the plain walk: `parameters()` takes three times as long.
        """
        found: list[tuple[int, int, torch.dtype]] = []
        modules: list[nn.Module | None] = [self]
        for module in modules:  # which grows as it is gone through
            if module is None:
                continue
            for weight in module._parameters.values():
                if weight is not None:
                    version = 0 if weight.is_inference() else weight._version
                    found.append((weight.data_ptr(), version, weight.dtype))
            modules.extend(module._modules.values())
        return hash(tuple(found)), str(self.device), self._compute_dtype()

    def _compute_dtype(self) -> torch.dtype:
        device_type = self.device.type
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return self._any_weight().dtype

    def _to_device(self, text: TokenizedText) -> TokenizedText:
        device = self.device
        return TokenizedText(
            input_ids=to_device(text.input_ids, device),
            padding_mask=to_device(text.padding_mask, device),
            attention_mask=to_device(text.attention_mask, device),
            position_ids=to_device(text.position_ids, device),
            has_padding=text.has_padding,
        )


def _key(prompt: Prompt) -> tuple[object, ...]:
    return prompt.input_ids, prompt.position_ids, prompt.attention_ranges


def _row(batch: TextFeatures, index: int, length: int) -> TextFeatures:
    """A batch of one of a batch's prompts without padding. Copied: a view would keep the whole batch alive.

    The copies are usable with gradients too, where inference mode made the batch.
    """
    row, part = slice(index, index + 1), slice(length)
    with torch.inference_mode(False):
        return TextFeatures(
            embeddings=batch.embeddings[row, part].clone(),
            padding_mask=batch.padding_mask[row, part].clone(),
            attention_mask=batch.attention_mask[row, part, part].clone(),
            position_ids=batch.position_ids[row, part].clone(),
            has_padding=False,
        )


def _batch(rows: Sequence[TextFeatures], padding: TextFeatures | None) -> TextFeatures:
    """One batch of batches of one; `padding` is what a padded column has, if lengths differ."""
    first, longest = rows[0], max(row.embeddings.shape[1] for row in rows)
    if len(rows) == 1:
        return first
    if all(row is first for row in rows):  # pictures of one prompt
        size = len(rows)
        return TextFeatures(
            embeddings=first.embeddings.repeat(size, 1, 1),
            padding_mask=first.padding_mask.repeat(size, 1),
            attention_mask=first.attention_mask.repeat(size, 1, 1),
            position_ids=first.position_ids.repeat(size, 1),
            has_padding=False,
        )
    if padding is not None:
        rows = [pad_text(row, longest - row.embeddings.shape[1], padding.embeddings) for row in rows]
    return TextFeatures(
        embeddings=torch.cat([row.embeddings for row in rows]),
        padding_mask=torch.cat([row.padding_mask for row in rows]),
        attention_mask=torch.cat([row.attention_mask for row in rows]),
        position_ids=torch.cat([row.position_ids for row in rows]),
        has_padding=padding is not None,
    )
