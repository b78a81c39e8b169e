"""The engine, one response per token, sent by the thread that takes them from the engine."""

import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mixtral_runtime.engine import Output, Request
from mixtral_runtime.open_engine import open_engine
from mixtral_serving.triton import engine_dir


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.engine = open_engine(engine_dir())
        self.senders: dict[int, Any] = {}
        self.lock = threading.Lock()
        self.stopping = False
        self.thread = threading.Thread(target=self._send_all, daemon=True)
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            ids, length = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1).tolist()
                for name in ("input_ids", "request_output_len")
            )
            with self.lock:
                self.senders[self.engine.submit(Request(ids, length[0]))] = request.get_response_sender()

    def finalize(self) -> None:
        self.stopping = True
        self.thread.join()
        self.engine.close()

    def _send_all(self) -> None:
        while not self.stopping:
            for output in self.engine.poll(0.1):
                with self.lock:
                    sender = self.senders.pop(output.id) if output.final else self.senders[output.id]
                self._send(sender, output)

    def _send(self, sender: Any, output: Output) -> None:
        last = len(output.token_ids) - 1
        for i, token in enumerate(output.token_ids):
            tensors = [
                pb_utils.Tensor("output_ids", np.array([[[token]]], np.int32)),
                pb_utils.Tensor("sequence_length", np.array([[1]], np.int32)),
            ]
            final = output.final and i == last
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
            sender.send(pb_utils.InferenceResponse(tensors), flags=flags)
