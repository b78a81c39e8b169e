"""Asked of a server before anyone else may: do bytes come back as they went, does the engine answer, is closed what
should be? Over HTTP, for which no client certificate is needed."""

import json
import secrets
import urllib.error
import urllib.request
from pathlib import Path

from mixtral_runtime.errors import Internal
from mixtral_serving.server.command import Address
from mixtral_serving.server.exposure import TOKEN_HEADER, Exposure
from mixtral_serving.server.local_http import open_local
from mixtral_serving.server.secret_files import read_token

_TIMEOUT_S = 60.0
_LENGTH_HEADER = "Inference-Header-Content-Length"  # of the JSON before the bytes, in requests and answers


def self_test(address: Address, exposure: Exposure | None = None) -> None:
    """Raises Internal when the echo differs (the numpy of the stubs is wrong), the engine does not answer, or the
    admin endpoints are not closed, or not open for the token of `exposure`."""
    sent = bytes(range(256)) + secrets.token_bytes(64)
    if _echo(address, sent) != sent:
        raise Internal("the server changes bytes on their way: the numpy that its models import does not fit Triton")
    _check_admin_endpoints(address, exposure.token_file if exposure else None)


def server_version(address: Address) -> str:
    """Triton's own, for example 2.51.0."""
    with open_local(f"{address.local_http}/v2", _TIMEOUT_S) as answer:
        version: str = json.load(answer)["version"]
    return version


def _echo(address: Address, sent: bytes) -> bytes:
    data = len(sent).to_bytes(4, "little") + sent  # a BYTES element is its length and itself
    header = json.dumps(
        {
            "inputs": [
                {"name": "echo", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(data)}}
            ],
            "outputs": [{"name": "echo", "parameters": {"binary_data": True}}],
        }
    ).encode()
    request = urllib.request.Request(
        f"{address.local_http}/v2/models/engine_info/infer",
        header + data,
        {_LENGTH_HEADER: str(len(header)), "Content-Type": "application/octet-stream"},
    )
    try:
        with open_local(request, _TIMEOUT_S) as answer:
            received: bytes = answer.read()[int(answer.headers[_LENGTH_HEADER]) + 4 :]
    except urllib.error.HTTPError as error:
        reason = error.read().decode(errors="replace")
        raise Internal(f"the server is up but its self-test failed: {reason}") from error
    except OSError as error:
        raise Internal(f"the server is up but its self-test failed: {error}") from error
    return received


def _check_admin_endpoints(address: Address, token_file: Path | None) -> None:
    if _index_status(address, {}) == 200:
        raise Internal("the server's admin endpoints are open to everyone, though they should be restricted")
    if token_file is not None and _index_status(address, {TOKEN_HEADER: read_token(token_file)}) != 200:
        raise Internal(f"the server does not take the token in {token_file}; its admin endpoints stay closed")


def _index_status(address: Address, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"{address.local_http}/v2/repository/index", b"", headers, method="POST")
    try:
        with open_local(request, _TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
