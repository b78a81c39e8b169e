"""The `generate` loop of transformers with its KV cache, on the model's own 16-bit weights; also the judge of what the
other peers generate."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from peers.interface import Prompt, Settings, Trace
from torch import Tensor
from transformers import MixtralForCausalLM
from transformers.generation.streamers import BaseStreamer


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is not typed here
    """`generate` hands over the prompts first and then each step's tokens, one per sequence."""

    def __init__(self, sequences: int) -> None:
        self.trace = Trace.start(time.perf_counter(), sequences)
        self._prompts_came = False

    def put(self, value: Tensor) -> None:
        now = time.perf_counter()
        if not self._prompts_came:
            self._prompts_came = True
            return
        for sequence, token in enumerate(value.tolist()):
            self.trace.add(sequence, [token], now)

    def end(self) -> None: ...


class Transformers:
    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = MixtralForCausalLM.from_pretrained(settings.model, dtype="auto").to(self._device).eval()
        # No end token: lengths are exact, and an end token is one like any other.
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self._threads = settings.threads

    def describe(self) -> dict[str, Any]:
        return {
            "versions": {name: version(name) for name in ("transformers", "torch")},
            "weights": str(self._model.dtype).removeprefix("torch."),
            "threads": self._threads,
        }

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        clock = _Clock(len(prompts))
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self._device)
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=output_tokens,
            streamer=clock,
        )
        return clock.trace

    def regrets(self, prompts: Sequence[Prompt], outputs: Sequence[Sequence[int]]) -> list[float]:
        """How much less likely each token is than the likeliest at its place, in nats, given the same tokens before
        it: 0 where this model would have chosen the same."""
        ids = torch.tensor([[*prompt, *output] for prompt, output in zip(prompts, outputs, strict=True)])
        begin, ids = len(prompts[0]), ids.to(self._device)
        with torch.inference_mode():
            log_probs = self._model(ids).logits[:, begin - 1 : -1].float().log_softmax(-1)
        chosen = log_probs.gather(-1, ids[:, begin:, None])[..., 0]
        regrets: list[float] = (log_probs.amax(-1) - chosen).flatten().tolist()
        return regrets

    def close(self) -> None: ...


def open_peer(settings: Settings) -> Transformers:
    return Transformers(settings)
