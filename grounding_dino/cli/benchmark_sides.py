"""What is measured in the processes of `tools/benchmark.py`: our model, `transformers`', and matrix products.

Both models read the same random weights, pictures and prompts from a folder that `Preparation` writes. Ours is timed
from uint8 pictures to `Instances`; `transformers`' from normalised tensors and token ids to logits and boxes, so what
its processor does before and after is not in its time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from grounding_dino.analysis.ceiling import matmul_rate, synchronize
from grounding_dino.analysis.part_times import TRANSFORMERS_OUTSIDE, TRANSFORMERS_RULES, PartClock
from grounding_dino.cli.benchmark_inputs import (
    CONFIG_FILE,
    DTYPES,
    TRANSFORMERS_FOLDER,
    WEIGHTS_FILE,
    calls_of,
    first_names,
    inputs_of,
    load_transformers,
    names_of,
    pictures_of,
    prompts_of,
)
from grounding_dino.engine.process_memory import peak_resident_bytes

import numpy as np
import torch


class Side:
    """What the models of both sides share: precision, clock and memory."""

    model: Any
    loading: int

    def __init__(self, dtype: str, device: str) -> None:
        self.dtype, self.device = dtype, torch.device(device)

    def forward(self) -> Any:
        """One batch through the model."""
        raise NotImplementedError

    def before(self) -> None:
        """What is done before a run, outside of its time."""

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """fp32 as it is, else autocast."""
        if self.dtype == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.dtype])

    def run(self) -> float:
        """Seconds of one batch."""
        self.before()
        with torch.no_grad(), self.precision():
            synchronize(self.device)
            start = time.perf_counter()
            self.forward()
            synchronize(self.device)
            return time.perf_counter() - start

    def memory(self) -> dict[str, int]:
        """The most bytes held: by the process so far and until the model was loaded, and on the GPU so far."""
        on_gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return {"process": peak_resident_bytes(), "loading": self.loading, "gpu": on_gpu}


class Ours(Side):
    """Our model, as `GroundingPredictor` calls it."""

    def __init__(
        self,
        folder: str,
        size: Sequence[int],
        batch: int,
        categories: int,
        dtype: str,
        device: str = "cpu",
        text_kept: bool = False,
    ) -> None:
        """`text_kept`: features of prompts are kept from run to run; else forgotten before each."""
        super().__init__(dtype, device)
        from grounding_dino.model_zoo import build_model, load_cfg

        self.cfg = load_cfg(f"{folder}/{CONFIG_FILE}", ["MODEL.DEVICE", device])
        self.text_kept = text_kept
        self.names = names_of(categories)
        self.inputs = inputs_of(self.cfg, size, batch, self.names)
        self.model = build_model(self.cfg, f"{folder}/{WEIGHTS_FILE}")
        self.loading = peak_resident_bytes()
        self.run()

    def before(self) -> None:
        text_encoder = getattr(self.model, "text_encoder", None)
        if text_encoder is not None and not self.text_kept:
            text_encoder.clear_cache()

    def forward(self) -> Any:
        return self.model(self.inputs)

    def parts(self) -> dict[str, float]:
        """Seconds of each part in one run; prompts count as the text encoder's."""
        return self._parts(self.inputs)

    def chunk_parts(self) -> dict[str, float]:
        """As `parts`, of the first prompt alone."""
        names = first_names(self.cfg, self.names)
        return self._parts([{**inputs, "categories": names} for inputs in self.inputs])

    def _parts(self, inputs: list[dict[str, Any]]) -> dict[str, float]:
        self.before()
        build = self.model.prompts_of
        with torch.no_grad(), self.precision(), PartClock(self.model) as clock:

            def timed(*arguments: Any) -> Any:
                clock.enter("text_encoder")
                try:
                    return build(*arguments)
                finally:
                    clock.leave()

            self.model.prompts_of = timed
            try:
                self.model(inputs)
            finally:
                del self.model.prompts_of
        return clock.seconds

    def compare(self, file: str) -> dict[str, float]:
        """Largest differences from what `Transformers.write_outputs` wrote, for the same queries.

        Near ties of the ranking would move whole queries, so its choice of tokens is taken.
        """
        expected = torch.load(file, weights_only=True)
        found: list[Any] = []
        selection = self.model.query_selection
        hook = self.model.transformer_decoder.register_forward_hook(lambda _, __, output: found.append(output))
        selection.select = lambda scores, memory: (expected["indices"].to(scores.device), None)
        names = first_names(self.cfg, self.names)
        try:
            with torch.no_grad(), self.precision():
                self.model([{**inputs, "categories": names} for inputs in self.inputs])
        finally:
            hook.remove()
            del selection.select
        last = found[0].layers[-1]
        ours, theirs = last.pred_logits.float().cpu(), expected["logits"]
        theirs = theirs[..., : ours.shape[-1]]
        known = theirs.isfinite() & ours.isfinite()
        if not torch.equal(theirs.isfinite(), ours.isfinite()):
            raise ValueError("the two models mask different tokens")
        return {
            "logits": float((ours - theirs)[known].abs().max()),
            "logits_range": float(theirs[known].max() - theirs[known].min()),
            "boxes": float((last.pred_boxes.float().cpu() - expected["boxes"]).abs().max()),
        }


class Transformers(Side):
    """`transformers`' model; where the names take several prompts, all of it runs for each."""

    def __init__(
        self,
        folder: str,
        size: Sequence[int],
        batch: int,
        categories: int,
        dtype: str,
        device: str = "cpu",
        compiled: bool = False,
        warm_up: bool = True,
    ) -> None:
        super().__init__(dtype, device)
        from grounding_dino.model_zoo import load_cfg

        cfg = load_cfg(f"{folder}/{CONFIG_FILE}")
        self.calls = calls_of(cfg, size, batch, names_of(categories), self.device)
        self.model = load_transformers(f"{folder}/{TRANSFORMERS_FOLDER}").to(self.device).eval()
        self.loading = peak_resident_bytes()
        self.called = torch.compile(self.model) if compiled else self.model
        if warm_up:
            self.run()

    def forward(self) -> Any:
        for call in self.calls:
            output = self.called(**call)
        return output

    def parts(self) -> dict[str, float]:
        """Seconds of each part in one run."""
        with torch.no_grad(), self.precision():
            with PartClock(self.model, TRANSFORMERS_RULES, TRANSFORMERS_OUTSIDE) as clock:
                for call in self.calls:
                    self.model(**call)
        return clock.seconds

    def write_outputs(self, file: str) -> None:
        """Logits, boxes and chosen tokens of the first prompt, for `Ours.compare`."""
        with torch.no_grad(), self.precision():
            output = self.model(**self.calls[0])
        queries = output.logits.shape[1]
        indices = output.enc_outputs_class.amax(-1).topk(queries, dim=1).indices
        content = {"logits": output.logits.float(), "boxes": output.pred_boxes.float(), "indices": indices}
        torch.save({name: tensor.cpu() for name, tensor in content.items()}, file)


class Exported(Side):
    """A file of `tools/export_model.py` in another runtime, from arrays to logits and boxes; texts are read each time.

    Where the names take several prompts, all of it runs for each.
    """

    def __init__(
        self,
        folder: str,
        size: Sequence[int],
        batch: int,
        categories: int,
        dtype: str,
        file: str,
        runtime: str,
        device: str = "cpu",
    ) -> None:
        super().__init__(dtype, device)
        from grounding_dino.exported.runtimes import load_runtime
        from grounding_dino.model_zoo import load_cfg
        from grounding_dino.text.prompt_arrays import stack_prompts

        self.model = load_runtime(file, runtime)
        self.loading = peak_resident_bytes()
        divisor = max(1, self.model.description.size_divisibility)
        frame = [-(-side // divisor) * divisor for side in size]
        images = np.zeros((batch, 3, *frame), dtype=np.float32)
        images[..., : size[0], : size[1]] = torch.stack(pictures_of(size, batch)).numpy()
        padding_mask = np.ones((batch, *frame), dtype=np.bool_)
        padding_mask[:, : size[0], : size[1]] = False
        pictures = {"images": images, "padding_mask": padding_mask}
        self.calls: list[dict[str, Any]] = []
        prompts = prompts_of(load_cfg(f"{folder}/{CONFIG_FILE}"), names_of(categories))
        for prompt in prompts or (None,):
            call = dict(pictures)
            if prompt is not None:
                text = stack_prompts([prompt] * batch)
                call |= {"input_ids": text.input_ids, "position_ids": text.position_ids}
                call |= {"text_padding_mask": text.padding_mask, "text_attention_mask": text.attention_mask}
            self.calls.append({name: call[name] for name in self.model.input_names})
        self.run()

    def forward(self) -> Any:
        for call in self.calls:
            output = self.model.run(call)
        return output


class Ceiling:
    """The machine's matrix products."""

    def __init__(self, dtypes: Sequence[str], device: str) -> None:
        self.dtypes, self.device = dtypes, device

    def run(self) -> dict[str, float]:
        """Operations a second of each dtype."""
        return {name: matmul_rate(DTYPES[name], self.device) for name in self.dtypes}
