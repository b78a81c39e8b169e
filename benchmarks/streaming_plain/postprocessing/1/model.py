"""Token ids to text, each response by itself."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mixtral_runtime.tokenizer import load_tokenizer
from mixtral_serving.triton import engine_dir


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.tokenizer = load_tokenizer(engine_dir() / "tokenizer").backend_tokenizer

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        ids, length = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1).tolist()
            for name in ("TOKENS_BATCH", "SEQUENCE_LENGTH")
        )
        text = self.tokenizer.decode(ids[: length[0]])
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([text.encode()], np.object_))])
