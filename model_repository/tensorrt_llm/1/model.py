"""The engine of the ensemble, whichever runtime the engine directory names."""

from typing import Any

from mixtral_runtime.open_engine import open_engine
from mixtral_serving.engine_metrics import FAMILIES
from mixtral_serving.engine_model import EngineModel, warm_up
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.serve_config import ServeConfig
from mixtral_serving.triton import check_numpy, engine_dir, freeze_garbage, metric_registry
from mixtral_serving.triton_log import log_to_triton


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        check_numpy()
        log_to_triton(args["model_name"])
        self.config = ServeConfig.from_environment()
        directory = engine_dir()
        end_id = PromptBuilder.load(directory / "tokenizer").end_id
        engine = open_engine(
            directory,
            device=self.config.engine.device,
            activation_dtype=self.config.engine.activation_dtype,
            pytorch=self.config.pytorch,
            tensorrt_llm=self.config.tensorrt_llm,
        )
        warm_up(engine)
        registry = metric_registry(FAMILIES, args)
        self.model = EngineModel(engine, end_id, registry, self.config.engine.max_queued_tokens)
        freeze_garbage()

    def execute(self, requests: list[Any]) -> None:
        self.model.execute(requests)

    def finalize(self) -> None:
        self.model.close(self.config.engine.drain_s)
