"""Text to token ids."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mixtral_runtime.tokenizer import load_tokenizer
from mixtral_serving.triton import engine_dir


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.tokenizer = load_tokenizer(engine_dir() / "tokenizer")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        text = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy().reshape(-1)[0].decode()
        ids = [
            self.tokenizer.bos_token_id,
            *self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids,
        ]
        outputs = {
            "INPUT_ID": np.array([ids], np.int32),
            "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32),
            "REQUEST_OUTPUT_LEN": pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy(),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
