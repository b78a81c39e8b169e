"""llama.cpp through `llama-cpp-python`, on the same weights as GGUF Q8_0.

All prompts go into one call and so do all sequences of a decode step, as llama.cpp's own batched-bench does it.
"""

import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from peers import gguf_model
from peers.interface import Prompt, Settings, Trace

COMPILER = Path(llama_cpp.__file__).with_name("compiler.txt")  # `install.sh` writes it


class LlamaCpp:
    def __init__(self, settings: Settings) -> None:
        path = settings.weights or settings.folder / "model.gguf"
        if settings.weights is None:
            gguf_model.write(settings.model, path)
        # Kept alive with the object: the library calls it back. Its log would drown the figures.
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        tokens = settings.max_sequences * settings.max_tokens
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = tokens
        parameters.n_batch = tokens
        parameters.n_seq_max = settings.max_sequences
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {tokens} tokens")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(tokens, 0, 1)
        self._threads = settings.threads

    def describe(self) -> dict[str, Any]:
        return {
            "versions": {name: version(name) for name in ("llama-cpp-python", "gguf")},
            "weights": "Q8_0 (8 bits, blocks of 32), embedding and lm_head too",
            "threads": self._threads,
            "build": llama_cpp.llama_print_system_info().decode().strip(" |"),
            "compiler": COMPILER.read_text().strip() if COMPILER.is_file() else "unknown",
        }

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        trace = Trace.start(time.perf_counter(), len(prompts))
        tokens: Sequence[Sequence[int]] = prompts
        position = 0
        for _ in range(output_tokens):
            chosen = list(self._step(tokens, position))
            now = time.perf_counter()
            for sequence, token in enumerate(chosen):
                trace.add(sequence, [token], now)
            position += len(tokens[0])
            tokens = [[token] for token in chosen]
        return trace

    def _step(self, tokens: Sequence[Sequence[int]], position: int) -> Iterator[int]:
        """Feeds every sequence its tokens, which begin at `position`, and gives the likeliest next token of each."""
        batch, rows = self._batch, 0
        ends = []
        for sequence, fed in enumerate(tokens):
            for offset, token in enumerate(fed):
                batch.token[rows] = token
                batch.pos[rows] = position + offset
                batch.n_seq_id[rows] = 1
                batch.seq_id[rows][0] = sequence
                batch.logits[rows] = offset == len(fed) - 1
                rows += 1
            ends.append(rows - 1)
        batch.n_tokens = rows
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with {code}")
        for row in ends:
            logits = llama_cpp.llama_get_logits_ith(self._context, row)
            yield int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def open_peer(settings: Settings) -> LlamaCpp:
    return LlamaCpp(settings)
