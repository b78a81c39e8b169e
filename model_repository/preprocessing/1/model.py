"""Tokenizer of the ensemble: text, chat messages or ids become the engine's inputs."""

from typing import Any

from mixtral_runtime.errors import MixtralError
from mixtral_serving.engine_metrics import REJECTED, count_rejection
from mixtral_serving.preprocessor import preprocess
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.triton import (
    as_mixtral_error,
    check_numpy,
    engine_dir,
    error_response,
    freeze_garbage,
    metric_registry,
    read,
    response,
)
from mixtral_serving.triton_log import log_to_triton


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        check_numpy()
        self.log = log_to_triton(args["model_name"])
        self.registry = metric_registry([REJECTED], args)
        self.builder = PromptBuilder.load(engine_dir() / "tokenizer")
        freeze_garbage()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            # The ensemble wants fewer tensors than NVIDIA's contract has.
            return response(preprocess(self.builder, read(request), request.requested_output_names()))
        except Exception as error:
            if not isinstance(error, MixtralError):
                self.log.exception("a prompt could not be prepared")
            refusal = as_mixtral_error(error)
            count_rejection(self.registry, refusal)
            self.registry.publish()
            return error_response(refusal)
