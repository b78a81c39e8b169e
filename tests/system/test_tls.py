"""TLS on the real server: known clients stream and cancel as ever, strangers get no request through."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from guarded_server import GuardedServer, blocks
from system_server import Server, free_address
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mixtral_client import Client, GenerationOptions, ServerUnreachable, TlsOptions
from mixtral_client.connection import open_channel
from mixtral_serving.server.process import ServerProcess

MIXTRAL = Path(sys.executable).parent / "mixtral"
STORY = "Once upon a time"
LONG = GenerationOptions(max_tokens=1500, ignore_eos=True)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("strangers"), "strangers")


def test_a_known_client_streams_the_same_text(guarded: GuardedServer, server: Server) -> None:
    with guarded.client() as client:
        pieces = [chunk.text for chunk in client.stream(STORY, options=GenerationOptions(max_tokens=60))]
    assert len(pieces) > 1
    assert "".join(pieces) == server.ask(text_input=STORY, max_tokens=60).text


def test_a_stop_string_and_a_cancel_end_the_engines_work(guarded: GuardedServer) -> None:
    with guarded.client() as client:
        stopped = client.generate(STORY, options=GenerationOptions(max_tokens=1500, ignore_eos=True, stop_words=(".",)))
        assert stopped.finish_reason == "stop"
        with contextlib.closing(client.stream(STORY, options=LONG)) as chunks:
            next(chunks)
        for _ in range(400):  # 20 seconds; a few steps are enough
            stats = client.status().stats
            if stats["active"] == 0 and stats["finished"]["cancelled"]:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"the cancel was lost: {stats}")
        assert stats["kv_blocks_free"] == stats["kv_blocks_total"]


def test_the_pages_command_connects(guarded: GuardedServer) -> None:
    (command,) = (block for block in blocks("sh") if block.startswith("mixtral stream"))
    command = command.replace("gpu-host:8001", guarded.server.grpc_url).replace("mixtral", str(MIXTRAL), 1)
    done = subprocess.run(["bash", "-c", command], cwd=guarded.folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stdout.strip()


def test_without_streaming_over_http_on_this_machine(guarded: GuardedServer) -> None:
    body = {
        "inputs": [
            {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": [STORY]},
            {"name": "max_tokens", "datatype": "INT32", "shape": [1, 1], "data": [5]},
        ]
    }
    url = f"{guarded.server.http_url}/v2/models/unary/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as answer:
        outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    assert outputs["text_output"][0]


def test_strangers_are_told_why_they_are_refused(guarded: GuardedServer, strangers: Authority) -> None:
    stranger = strangers.issue("client")
    ca = guarded.tls.ca
    refusals: dict[TlsOptions | None, str] = {
        None: "does it expect TLS?",
        TlsOptions(ca): "does it ask for a client certificate?",
        TlsOptions(ca, stranger.certificate, stranger.key): "does it trust the authority of the client certificate?",
        TlsOptions(strangers.ca, guarded.tls.certificate, guarded.tls.key): "is the CA file the right one?",
    }
    for tls, reason in refusals.items():
        with Client(guarded.server.grpc_url, tls=tls) as client:
            for ask in (client.status, lambda client=client: client.generate(STORY)):
                with pytest.raises(ServerUnreachable) as refused:
                    ask()
                assert str(refused.value).endswith(reason)


def test_strangers_cannot_send_the_metadata_that_crashes_this_triton(guarded: GuardedServer) -> None:
    """The handshake ends before any header is read, so the server's log never tells of the mode."""
    request = service_pb2.ModelInferRequest(model_name="ensemble")  # without inputs: refused, then cancelled
    for tls in (None, TlsOptions(guarded.tls.ca)):
        for _ in range(5):
            with open_channel(grpc, guarded.server.grpc_url, tls) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                call = stub.ModelStreamInfer(iter([request]), metadata=[("triton_grpc_error", "true")])
                with pytest.raises(grpc.RpcError) as refused:
                    next(call)
                call.cancel()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "failed to connect" in refused.value.details()
    with guarded.client() as client:
        assert client.status().ready


def test_only_grpc_leaves_the_machine(guarded: GuardedServer) -> None:
    """127.0.0.2 stands for another address of this machine: what binds 0.0.0.0 is reached there, 127.0.0.1 is not."""
    address = guarded.server.address
    socket.create_connection(("127.0.0.2", address.grpc_port)).close()
    for port in (address.http_port, address.metrics_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port))


def test_the_launcher_says_what_is_open_to_whom(guarded: GuardedServer) -> None:
    at = guarded.server.address
    assert guarded.ready.rstrip().endswith(
        f"gRPC 0.0.0.0:{at.grpc_port} (mutual TLS), HTTP 127.0.0.1:{at.http_port}, "
        f"metrics 127.0.0.1:{at.metrics_port}, admin endpoints with the token, health 0.0.0.0:{at.health_port}"
    )
    assert "can crash Triton" not in guarded.log.read_text()  # strangers do not get that far


def test_tls_without_client_certificates_lets_everybody_in(engine_dir: Path, tmp_path: Path) -> None:
    """On a server without models, which starts at once."""
    authority = Authority(tmp_path, "ours")
    pair = authority.issue("server", "127.0.0.1")
    config = tmp_path / "serve.toml"
    config.write_text(f"[tls]\ncertificate = '{pair.certificate}'\nkey = '{pair.key}'\n")
    (tmp_path / "models").mkdir()
    with (
        (tmp_path / "log").open("w") as log,
        ServerProcess(tmp_path / "models", engine_dir, free_address(), config, log=log) as process,
    ):
        process.wait_until_ready(60)
        url = Server(process.address).grpc_url
        assert is_ready(url, authority.options())
        with pytest.raises(grpc.RpcError):
            is_ready(url, None)


def is_ready(url: str, tls: TlsOptions | None) -> Any:
    with open_channel(grpc, url, tls) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=60).ready
