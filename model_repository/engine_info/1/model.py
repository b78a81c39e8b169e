"""What is served: manifest, limits and live statistics as JSON. Echoes bytes, for the server's self-test.

A request that names the output `vocabulary` gets the bytes of every token, special tokens by their names.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mixtral_runtime.errors import Internal, MixtralError
from mixtral_runtime.manifest import MANIFEST_NAME
from mixtral_runtime.tokenizer import load_tokenizer
from mixtral_serving import statistics_file
from mixtral_serving.counters import Counters
from mixtral_serving.triton import (
    as_mixtral_error,
    call_engine,
    check_numpy,
    engine_dir,
    error_response,
    read,
    response,
)
from mixtral_serving.triton_log import log_to_triton
from mixtral_serving.vocabulary import Vocabulary


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        check_numpy()
        self.log = log_to_triton(args["model_name"])
        self.manifest = json.loads((engine_dir() / MANIFEST_NAME).read_text())
        self.statistics_path = statistics_file.path_beside(Counters.of_server())

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            stats = engine_stats(self.statistics_path)
            info = {"manifest": self.manifest, "limits": stats.pop("limits"), "stats": stats}
            outputs = {"info": np.array([[json.dumps(info)]], np.object_)}
            if "vocabulary" in request.requested_output_names():
                outputs |= vocabulary_outputs()
            if (echo := read(request).array("echo")) is not None:
                outputs["echo"] = echo
            return response(outputs)
        except Exception as error:
            if not isinstance(error, MixtralError):
                self.log.exception("the engine's statistics could not be read")
            return error_response(as_mixtral_error(error))


@lru_cache(maxsize=1)
def vocabulary_outputs() -> dict[str, Any]:
    """Read at the first request for it, since most servers get none."""
    tokenizer = load_tokenizer(engine_dir() / "tokenizer")
    token_bytes = Vocabulary.of(tokenizer).token_bytes.copy()
    special = [i for i, added in tokenizer.added_tokens_decoder.items() if added.special]
    for index in special:
        token_bytes[index] = tokenizer.added_tokens_decoder[index].content.encode()
    return {
        "vocabulary": np.array([token_bytes], np.object_),
        "special_ids": np.array([special], np.int32),
    }


def engine_stats(path: Path) -> dict[str, Any]:
    for answer in call_engine({"return_engine_stats": np.array([[True]])}, ["output_ids"]):
        if answer.has_error():
            raise Internal(f"the engine gives no statistics: {answer.error().message()}")
    return statistics_file.read(path)
