"""The `tensorrt_llm` Triton model: requests into the engine, outputs back as NVIDIA's tensors."""

import logging
import os
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from mixtral_runtime.engine import GREEDY, MAX_PRIORITY, Engine, FinishReason, Output, Request
from mixtral_runtime.errors import InvalidArgument, MixtralError
from mixtral_runtime.process_memory import process_memory
from mixtral_serving import statistics_file
from mixtral_serving.admission import Admission
from mixtral_serving.counters import CANARY_ID, Counters
from mixtral_serving.engine_metrics import EngineMetrics
from mixtral_serving.engine_request import engine_request
from mixtral_serving.metrics import Registry
from mixtral_serving.prepared_prompt import PreparedPrompt
from mixtral_serving.stream_chunk import NO_EXTRAS, ChunkExtras, pack_chunk
from mixtral_serving.streams import Stream, Streams
from mixtral_serving.tensors import Array, Tensors
from mixtral_serving.triton import TritonSender, as_mixtral_error, error_response, read, response

log = logging.getLogger(__name__)


class EngineModel:
    """One engine behind Triton's decoupled execute: it submits and returns, the streams' thread answers."""

    def __init__(
        self, engine: Engine, end_id: int | None, registry: Registry, max_queued_tokens: int | None = None
    ) -> None:
        """Raises InvalidArgument when max_queued_tokens does not fit the engine."""
        self._engine = engine
        self._end_id = end_id
        self._metrics = EngineMetrics(registry)
        self._admission = Admission(engine.limits, max_queued_tokens)
        counters = Counters.of_server()
        self._statistics_path = statistics_file.path_beside(counters)
        self._streams = Streams(engine, respond, self._metrics, counters, self._admission)
        self._metrics.start(engine.stats, self._streams.__len__)
        self._canary_id = os.environ.get(CANARY_ID)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = TritonSender(request.get_response_sender())
            try:
                self._accept(read(request), request.request_id(), sender)
            except Exception as error:
                if not isinstance(error, MixtralError):
                    log.exception("a request could not be submitted")
                refusal = as_mixtral_error(error)
                sender.send(error_response(refusal), final=True)
                self._metrics.rejected(refusal)

    def close(self, drain_s: float) -> None:
        self._streams.close(drain_s)
        self._metrics.close()

    def _accept(self, inputs: Tensors, request_id: str, sender: TritonSender) -> None:
        if inputs.flag("stop"):
            reason = stop_reason(inputs)
            self._streams.stop(stream_id=inputs.one("stream_id"), request_id=request_id, reason=reason)
            sender.end()
            return
        if inputs.flag("return_engine_stats"):
            stats = asdict(self._engine.stats()) | {"streams": len(self._streams), "memory": asdict(process_memory())}
            # The operator may have lowered the manifest's.
            stats["limits"] = asdict(self._engine.limits) | {"max_queued_tokens": self._admission.max_queued_tokens}
            statistics_file.write(self._statistics_path, stats)
            sender.end()
            return
        packed = inputs.array("prepared_prompt")
        prepared = None if packed is None else PreparedPrompt.unpack(packed)
        request, flags = engine_request(inputs, self._end_id, prepared)
        if request_id and request_id == self._canary_id:
            request = replace(request, priority=MAX_PRIORITY)
        context = None if prepared is None else prepared.context
        sampling = request.sampling
        seed = None if sampling is GREEDY or sampling.greedy else sampling.seed
        self._streams.submit(request, Stream(sender, request_id, flags, request.streaming, context, seed))


def stop_reason(inputs: Tensors) -> FinishReason:
    """Why a stop request was made; a client's own has no reason and is a cancel."""
    name = inputs.text("stop_reason") or FinishReason.CANCELLED.value
    try:
        return FinishReason(name)
    except ValueError as error:
        raise InvalidArgument(f"stop_reason is {name!r}, it must be one of {', '.join(FinishReason)}") from error


def warm_up(engine: Engine) -> None:
    """One token before anyone is served: the first step of a process maps the weights and chooses kernels, and an
    engine that cannot make a token must not be called ready. Logs what it took. Raises what the engine gave instead."""
    begun = time.perf_counter()
    engine.submit(Request([0], max_tokens=1))
    outputs: list[Output] = []
    while not outputs:
        outputs = engine.poll(1.0)
    if (error := outputs[0].error) is not None:
        raise error
    log.info("its first token took %.2f s; memory: %s", time.perf_counter() - begun, process_memory())


def respond(stream: Stream, output: Output | None) -> Any:
    """One engine output as a response; without an output, an empty one that shows a cancel to `postprocessing`.

    In the ensemble one tensor says what the detokenizer reads or cuts; few responses have more, which goes past it.
    An error of a stream of the ensemble travels in the chunk, because the ensemble would otherwise end without
    `postprocessing` learning of it.
    """
    if stream.context is not None:
        ids = [] if output is None else output.token_ids
        chunk = pack_chunk(stream.stream_id, ids, _extras(stream, output))
        return response({"STREAM_CHUNK": chunk, **_once(stream, output)})
    if output is not None and output.error is not None:
        return error_response(output.error)
    return response(output_tensors(stream, output))


def _extras(stream: Stream, output: Output | None) -> ChunkExtras:
    context = stream.context if stream.sent == 0 else None
    if output is None:
        return NO_EXTRAS if context is None else ChunkExtras(context)
    if output.finish_reason is None and output.log_probs is None:  # nearly all of them
        return NO_EXTRAS if context is None else ChunkExtras(context)
    tops = output.top_log_probs or None
    return ChunkExtras(
        context,
        None if output.finish_reason is None else output.finish_reason.value,
        None if output.error is None else output.error.text,
        output.log_probs,
        tops and [top.token_ids for top in tops],
        tops and [top.log_probs for top in tops],
    )


def output_tensors(stream: Stream, output: Output | None) -> dict[str, Array]:
    """For a client of this model itself."""
    ids = [] if output is None else output.token_ids
    tensors: dict[str, Array] = {
        "output_ids": np.array([ids], np.int32).reshape(1, 1, len(ids)),  # [batch, beams, tokens]
        "sequence_length": np.array([[len(ids)]], np.int32),
        "STREAM_ID": np.array([[stream.stream_id]], np.uint64),
        **_once(stream, output),
    }
    if output is None:
        return tensors
    if output.finish_reason is not None:
        tensors["finish_reason"] = np.array([[output.finish_reason.value.encode()]], np.object_)
    if ids and stream.flags.num_output_tokens:
        tensors["num_output_tokens"] = np.array([[len(ids)]], np.int32)
    if output.log_probs is not None:
        tensors["output_log_probs"] = np.array([[output.log_probs]], np.float32)
    if output.top_log_probs:
        tensors["top_token_ids"] = np.array([[top.token_ids for top in output.top_log_probs]], np.int32)
        tensors["top_token_log_probs"] = np.array([[top.log_probs for top in output.top_log_probs]], np.float32)
    return tensors


def _once(stream: Stream, output: Output | None) -> dict[str, Array]:
    """What no stop string can cut."""
    tensors: dict[str, Array] = {}
    if stream.sent == 0 and stream.seed is not None:
        tensors["used_seed"] = np.array([[stream.seed]], np.uint64)
    if output is None:
        return tensors
    if output.token_ids and stream.flags.num_input_tokens:
        tensors["num_input_tokens"] = np.array([[output.counts.input_tokens]], np.int32)
    if output.prompt_log_probs is not None:
        tensors["prompt_log_probs"] = np.array([output.prompt_log_probs], np.float32)
    return tensors
