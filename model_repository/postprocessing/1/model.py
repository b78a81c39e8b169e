"""Detokenizer of the ensemble: the engine's responses become text, and what ends early ends the engine's work too."""

from typing import Any

from mixtral_serving.detokenizer_model import FAMILIES, DetokenizerModel
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.triton import check_numpy, engine_dir, freeze_garbage, metric_registry, serialize_fast
from mixtral_serving.triton_log import log_to_triton


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        check_numpy()
        serialize_fast()
        log_to_triton(args["model_name"])
        vocabulary = PromptBuilder.load(engine_dir() / "tokenizer").vocabulary
        self.model = DetokenizerModel(vocabulary, metric_registry(FAMILIES, args))
        freeze_garbage()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.model.answer(request) for request in requests]

    def finalize(self) -> None:
        self.model.close()
