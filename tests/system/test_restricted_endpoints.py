"""The admin endpoints: closed to everyone by default, open to the token alone, and the token is seen nowhere."""

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from guarded_server import GuardedServer, blocks
from process_watch import ProcessWatch
from system_server import Server

from mixtral_client import GenerationOptions
from mixtral_serving.server.exposure import CLOSED, GRPC_HEADER_PREFIX, TOKEN_HEADER

RESTRICTED = "This protocol is restricted, expecting header"

GRPC: dict[str, Callable[[Any, Mapping[str, str]], Any]] = {
    "repository index": lambda client, headers: client.get_model_repository_index(headers=headers),
    "load": lambda client, headers: client.load_model("unary", headers=headers),
    "unload": lambda client, headers: client.unload_model("unary", headers=headers),
    "trace": lambda client, headers: client.get_trace_settings(headers=headers),
    "trace of a model": lambda client, headers: client.get_trace_settings("ensemble", headers=headers),
    "set trace": lambda client, headers: client.update_trace_settings(settings={"trace_rate": "1"}, headers=headers),
    "log": lambda client, headers: client.get_log_settings(headers=headers),
    "set log": lambda client, headers: client.update_log_settings({"log_verbose_level": 1}, headers=headers),
    "shared memory": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    "map shared memory": lambda client, headers: client.register_system_shared_memory("r", "/r", 8, headers=headers),
    "unmap shared memory": lambda client, headers: client.unregister_system_shared_memory(headers=headers),
    "map GPU memory": lambda client, headers: client.register_cuda_shared_memory("r", b"", 0, 8, headers=headers),
    "unmap GPU memory": lambda client, headers: client.unregister_cuda_shared_memory(headers=headers),
}
HTTP: dict[str, tuple[str, object]] = {
    "repository index": ("/v2/repository/index", {}),
    "load": ("/v2/repository/models/unary/load", {}),
    "unload": ("/v2/repository/models/unary/unload", {}),
    "trace": ("/v2/trace/setting", None),
    "trace of a model": ("/v2/models/ensemble/trace/setting", None),
    "set trace": ("/v2/trace/setting", {"trace_rate": "1"}),
    "log": ("/v2/logging", None),
    "set log": ("/v2/logging", {"log_verbose_level": 1}),
    "shared memory": ("/v2/systemsharedmemory/status", None),
    "map shared memory": ("/v2/systemsharedmemory/region/r/register", {"key": "/r", "offset": 0, "byte_size": 8}),
    "unmap shared memory": ("/v2/systemsharedmemory/unregister", {}),
    "GPU memory": ("/v2/cudasharedmemory/status", None),
    "unmap GPU memory": ("/v2/cudasharedmemory/unregister", {}),
}
HARMLESS = ("repository index", "trace", "trace of a model", "log", "shared memory")


def http(server: Server, path: str, body: object, headers: Mapping[str, str]) -> tuple[int, str]:
    """Status and text. body: None asks with GET."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.http_url}{path}", data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def grpc_error(ask: Callable[[Any, Mapping[str, str]], Any], client: Any, headers: Mapping[str, str]) -> str:
    with pytest.raises(grpc.InferenceServerException) as refused:
        ask(client, headers)
    return str(refused.value.message())


def known_client(guarded: GuardedServer) -> grpc.InferenceServerClient:
    return grpc.InferenceServerClient(
        guarded.server.grpc_url,
        ssl=True,
        root_certificates=str(guarded.tls.ca),
        private_key=str(guarded.tls.key),
        certificate_chain=str(guarded.tls.certificate),
    )


@pytest.mark.parametrize("endpoint", GRPC)
def test_without_a_token_set_grpc_is_closed_to_everyone(server: Server, endpoint: str) -> None:
    client = grpc.InferenceServerClient(server.grpc_url)
    for headers in ({}, {f"{GRPC_HEADER_PREFIX}{TOKEN_HEADER}": "guess"}):
        assert RESTRICTED in grpc_error(GRPC[endpoint], client, headers)
    client.close()


@pytest.mark.parametrize("endpoint", HTTP)
def test_without_a_token_set_http_is_closed_to_everyone(server: Server, endpoint: str) -> None:
    path, body = HTTP[endpoint]
    for headers in ({}, {TOKEN_HEADER: "guess"}):
        status, text = http(server, path, body, headers)
        assert (status, "This API is restricted" in text) == (403, True)


@pytest.mark.parametrize("endpoint", GRPC)
def test_a_known_client_needs_the_token_for_grpc(guarded: GuardedServer, endpoint: str) -> None:
    client = known_client(guarded)
    header = f"{GRPC_HEADER_PREFIX}{TOKEN_HEADER}"
    for headers in ({}, {header: guarded.token[:-1]}, {header: "closed to everyone"}):
        assert RESTRICTED in grpc_error(GRPC[endpoint], client, headers)
    if endpoint in HARMLESS:
        GRPC[endpoint](client, {header: guarded.token})
    client.close()


@pytest.mark.parametrize("endpoint", HTTP)
def test_http_needs_the_token(guarded: GuardedServer, endpoint: str) -> None:
    path, body = HTTP[endpoint]
    assert http(guarded.server, path, body, {TOKEN_HEADER: guarded.token[:-1]})[0] == 403
    if endpoint in HARMLESS:
        assert http(guarded.server, path, body, {TOKEN_HEADER: guarded.token})[0] == 200


def test_the_pages_command_shows_the_token(guarded: GuardedServer) -> None:
    (command,) = (block for block in blocks("sh") if block.startswith("curl"))
    command = command.replace("localhost:8000", guarded.server.http_url)
    done = subprocess.run(["bash", "-c", command], cwd=guarded.folder, capture_output=True, text=True, check=True)
    assert {"name": "ensemble", "version": "1", "state": "READY"} in json.loads(done.stdout)


def test_even_the_token_changes_no_model(guarded: GuardedServer) -> None:
    client = known_client(guarded)
    for endpoint in ("load", "unload"):
        error = grpc_error(GRPC[endpoint], client, {f"{GRPC_HEADER_PREFIX}{TOKEN_HEADER}": guarded.token})
        assert "explicit model load / unload is not allowed" in error
    client.close()


def test_what_stays_open(server: Server) -> None:
    """Health, metadata, configuration and statistics, which clients and load generators ask for."""
    for path in ("/v2", "/v2/health/ready", "/v2/models/ensemble", "/v2/models/ensemble/config", "/v2/models/stats"):
        assert http(server, path, None, {})[0] == 200


def test_no_request_can_carry_the_header_in_ps(server: Server) -> None:
    """The command line shows the header that would open a closed endpoint, but neither HTTP/1.1 nor HTTP/2 takes it."""
    name, value = CLOSED.split("=")
    index = b"/v2/repository/index"
    assert b" 403 " in raw_http(server, index, b"")  # the control: a request by hand is understood
    for line_end in (b"", b"\r", b"\r\n", b"\n", b"\r\n "):
        for header in (f"{name}: {value}", f"{name.strip()}:{value}"):
            sent = header.encode().replace(b"\n", b"\n" + line_end) + b"\r\n"
            assert b" 200 " not in raw_http(server, index, sent)
    index = b"/inference.GRPCInferenceService/RepositoryIndex"
    data, reset = 0, 3  # types of HTTP/2 frames
    assert data in raw_grpc(server, b"/inference.GRPCInferenceService/ServerLive", {b"any-header": b"x"})  # the control
    assert data not in raw_grpc(server, index, {b"any-header": b"x"})
    header_name = f"{GRPC_HEADER_PREFIX}{name}".encode()
    assert reset in raw_grpc(server, index, {header_name: value.encode()})
    assert data not in raw_grpc(server, index, {header_name: value.encode()})


def test_what_passes_through_shared_memory_is_for_the_servers_user_alone(server: Server) -> None:
    regions = list(Path("/dev/shm").glob(f"mixtral-{os.getpid()}-*"))
    assert regions
    assert {stat.S_IMODE(region.stat().st_mode) for region in regions} == {0o600}


def test_token_key_and_prompt_are_seen_nowhere(guarded: GuardedServer) -> None:
    assert guarded.watch.rounds > 10
    assert guarded.watch.seen == set()
    # Not even in Triton's most talkative log, which only the token's holder can ask for.
    token = {TOKEN_HEADER: guarded.token}
    assert http(guarded.server, "/v2/logging", {"log_verbose_level": 9}, token)[0] == 200
    for headers in (token, {"x": guarded.token}):
        http(guarded.server, "/v2/repository/index", {}, headers)
    client = known_client(guarded)
    client.get_log_settings(headers={f"{GRPC_HEADER_PREFIX}{TOKEN_HEADER}": guarded.token})
    client.close()
    with guarded.client() as ours:
        ours.generate("Zanzibar is far", options=GenerationOptions(max_tokens=3))
    assert http(guarded.server, "/v2/logging", {"log_verbose_level": 0}, token)[0] == 200
    log = guarded.log.read_text()
    assert "HTTP request: 2 /v2/logging" in log
    assert guarded.token not in log
    assert "Zanzibar" not in log
    assert guarded.token not in guarded.ready


def test_the_watch_sees_what_a_process_shows() -> None:
    with ProcessWatch("planted-secret") as watch:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()", "planted-secret"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        begun = watch.rounds
        while watch.rounds < begun + 2:
            time.sleep(0.01)
        process.communicate()
    assert (str(process.pid), "cmdline") in watch.seen


def test_models_processes_inherit_nothing_of_it(guarded: GuardedServer) -> None:
    """Of the stubs, which are the server's children."""
    stubs = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stub = b"triton_python_backend_stub" in (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if stub and str(guarded.log.parent).encode() in environment:
            stubs += 1
            assert b"admin_token" not in environment
            assert b"MIXTRAL_ADMIN_TOKEN_FILE" not in environment
    assert stubs >= 5


def raw_http(server: Server, path: bytes, header: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.address.http_port)) as connection:
        connection.settimeout(60)
        start = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        connection.sendall(start + header + b"Content-Length: 2\r\n\r\n{}")
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError:
            pass
    return received


def raw_grpc(server: Server, path: bytes, headers: Mapping[bytes, bytes]) -> list[int]:
    """The types of the HTTP/2 frames that answer one call, whose headers are written by hand: no client library would
    send such names."""
    own = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x"}
    own |= {b"te": b"trailers", b"content-type": b"application/grpc", **headers}
    # Literal fields that no table keeps (RFC 7541, 6.2.2), each part with its length in one byte.
    block = b"".join(b"\0" + bytes([len(part[0])]) + part[0] + bytes([len(part[1])]) + part[1] for part in own.items())
    settings, end_headers, end_stream = 4, 4, 1
    request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, 0, 0, b"")
    request += frame(1, end_headers, 1, block) + frame(0, end_stream, 1, bytes(5))
    types = []
    with socket.create_connection(("127.0.0.1", server.address.grpc_port)) as connection:
        connection.settimeout(60)
        connection.sendall(request)
        stream = connection.makefile("rb")
        while head := stream.read(9):
            length, kind, flags, on = struct.unpack(">I", b"\0" + head[:3])[0], head[3], head[4], head[8]
            stream.read(length)
            if on == 1:
                types.append(kind)
                if kind == 3 or flags & end_stream:
                    break
    return types


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
