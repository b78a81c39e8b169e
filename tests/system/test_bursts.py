"""Hundreds of requests in one instant, straight to the engine model, that want one of its outputs.

The backend drops what was not asked for beside running Python code. Before the models kept it until a response was
sent, a process that got a few of these bursts ended by SIGSEGV or SIGABRT.
"""

from pathlib import Path

import pytest
from streaming_load import engine_request, run_streams
from streaming_measure import Prompts
from streaming_paths import LIMITS
from synthetic_server import synthetic_server
from tritonclient.grpc import service_pb2

from mixtral_serving.server.installation import unsupported_platform
from mixtral_serving.server.stubs import live_stubs

STREAMS = 256
TOKENS = 100
BURSTS = 8  # four of six servers without the repair ended within twelve


def wants_the_count_alone(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferRequest:
    for name in ("return_log_probs", "return_num_input_tokens", "return_num_output_tokens"):
        request.inputs.add(name=name, datatype="BOOL", shape=[1, 1])
        request.raw_input_contents.append(b"\1")
    del request.outputs[:]
    request.outputs.add().name = "sequence_length"
    return request


def test_bursts_that_want_one_output_harm_nobody(tmp_path: Path) -> None:
    if reason := unsupported_platform():
        pytest.skip(reason)
    engine_dir = tmp_path / "engine"
    with (tmp_path / "log").open("w") as log, synthetic_server(engine_dir, {"step_s": 0}, LIMITS, log=log) as server:
        before = live_stubs(server.pid)
        prompts = Prompts(engine_dir / "tokenizer", seed=1)
        for _ in range(BURSTS):
            asked = [wants_the_count_alone(engine_request(prompts.make(4), TOKENS)) for _ in range(STREAMS)]
            for arrivals in run_streams(server.address.grpc_port, asked):
                assert sum(arrivals.tokens) == TOKENS
        assert live_stubs(server.pid) == before
