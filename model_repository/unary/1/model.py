"""Plain unary calls in front of the decoupled ensemble."""

from typing import Any

from mixtral_serving.triton import check_numpy
from mixtral_serving.triton_log import log_to_triton
from mixtral_serving.unary_model import UnaryModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        check_numpy()
        log_to_triton(args["model_name"])
        self.model = UnaryModel()

    def execute(self, requests: list[Any]) -> None:
        self.model.execute(requests)

    def finalize(self) -> None:
        self.model.close()
