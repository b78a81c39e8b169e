"""Sends a fuzzed request as it is, without a client library's own checks, and collects what comes back."""

import http.client
import json
import threading
from dataclasses import dataclass
from typing import Any

import grpc
from fuzz_requests import Case, WireTensor
from system_server import Server
from tritonclient.grpc import service_pb2, service_pb2_grpc

ANSWER_S = 20.0  # answers are short: who waits longer waits for ever
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class Reply:
    """errors: what the client may read. status: of gRPC by name, of HTTP as a number, None for a call that ended well.
    given_up: the client left. hung: nothing came in time."""

    results: int = 0
    errors: tuple[str, ...] = ()
    status: str | int | None = None
    given_up: bool = False
    hung: bool = False


class Unsendable(Exception):
    """The client's own library refuses to write this down."""


def send(server: Server, case: Case) -> Reply | None:
    """None for a request that cannot be put on the wire at all."""
    try:
        return _send_grpc(server, case) if case.way in ("stream", "unary") else _send_http(server, case)
    except Unsendable:
        return None


def _send_grpc(server: Server, case: Case) -> Reply:
    request = _request(case)
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([request]), timeout=ANSWER_S) if case.way == "stream" else None
        future = stub.ModelInfer.future(request, timeout=ANSWER_S) if call is None else call
        timer = threading.Timer(case.cancel_after_s or 0.0, future.cancel)
        if case.cancel_after_s is not None:
            timer.start()
        results, errors = 0, []
        try:
            if call is None:
                future.result()
                return Reply(results=1)
            for response in call:
                if response.error_message:
                    errors.append(response.error_message)
                else:
                    results += 1
        except grpc.FutureCancelledError:
            return Reply(results, tuple(errors), given_up=True)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.CANCELLED and case.cancel_after_s is not None:
                return Reply(results, tuple(errors), given_up=True)
            hung = code is grpc.StatusCode.DEADLINE_EXCEEDED
            return Reply(results, (*errors, error.details() or ""), code.name, hung=hung)
        finally:
            timer.cancel()
        return Reply(results, tuple(errors))


def _request(case: Case) -> Any:
    try:
        request = service_pb2.ModelInferRequest(model_name=case.model, id=case.request_id)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for name, value in case.parameters:
            _set_parameter(request.parameters[name], value)
        for tensor in case.tensors:
            wire = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            for name, value in tensor.parameters:
                _set_parameter(wire.parameters[name], value)
            if case.typed_contents and tensor.raw is None and (field := _CONTENTS.get(tensor.datatype)):
                getattr(wire.contents, field).extend(tensor.values)
            else:
                request.raw_input_contents.append(tensor.to_bytes())
        for output in case.outputs:
            request.outputs.add(name=output)
    except (ValueError, TypeError) as error:
        raise Unsendable(str(error)) from error
    return request


def _set_parameter(parameter: Any, value: Any) -> None:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    setattr(parameter, kinds[type(value)], value)


def _send_http(server: Server, case: Case) -> Reply:
    headers = {"Content-Type": case.content_type.encode("latin-1")}
    body, header_length = _body(case)
    if header_length is not None:
        headers["Inference-Header-Content-Length"] = str(header_length).encode()
    verb = case.way.removesuffix("-binary")
    connection = http.client.HTTPConnection("127.0.0.1", server.address.http_port, timeout=ANSWER_S)
    try:
        connection.request("POST", f"/v2/models/{case.model}/{verb}", body, headers)
        if case.cancel_after_s is not None:
            # A hang-up while the answer is being made or read.
            assert connection.sock is not None
            connection.sock.settimeout(max(case.cancel_after_s, 0.001))
        answer = connection.getresponse()
        text = answer.read()
    except TimeoutError:
        return Reply(given_up=case.cancel_after_s is not None, hung=case.cancel_after_s is None)
    except (ConnectionError, http.client.HTTPException) as error:
        return Reply(errors=(f"connection: {error!r}",), status=0)
    finally:
        connection.close()
    return _read_http(answer.status, text, case.way == "generate_stream")


def _read_http(status: int, text: bytes, events: bool) -> Reply:
    lines = [line.removeprefix(b"data: ") for line in text.splitlines() if line] if events else [text]
    errors, results = [], 0
    for line in lines:
        try:
            answer = json.loads(line, strict=False)  # Triton does not escape what it quotes of a request
        except ValueError:
            answer = None
        if isinstance(answer, dict) and "error" in answer:
            errors.append(str(answer["error"]))
        elif status == 200:
            results += 1
        else:
            errors.append(line.decode(errors="replace"))
    return Reply(results, tuple(errors), None if status == 200 else status)


def _body(case: Case) -> tuple[bytes, int | None]:
    """The body and, where tensors follow the JSON as bytes, the JSON's length."""
    if case.body is not None:
        return case.body, None
    if case.way.startswith("generate"):
        fields: dict[str, Any] = {tensor.name: _json_values(tensor) for tensor in case.tensors}
        if case.request_id:
            fields["id"] = case.request_id
        return _dump(fields | dict(case.parameters)), None
    binary = case.way == "infer-binary"
    inputs = []
    for tensor in case.tensors:
        fields = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
        if binary:
            fields["parameters"] = {"binary_data_size": len(tensor.to_bytes())} | dict(tensor.parameters)
        else:
            fields["data"] = [_json_value(value) for value in tensor.values]
        inputs.append(fields)
    document: dict[str, Any] = {"inputs": inputs, "parameters": dict(case.parameters)}
    if case.outputs:
        document["outputs"] = [{"name": name} for name in case.outputs]
    if case.request_id:
        document["id"] = case.request_id
    head = _dump(document)
    if not binary:
        return head, None
    return head + b"".join(tensor.to_bytes() for tensor in case.tensors), len(head)


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _json_values(tensor: WireTensor) -> Any:
    made = [_json_value(value) for value in tensor.values]
    return made[0] if len(made) == 1 else made


def _json_value(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
