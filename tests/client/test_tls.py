"""TLS of the client: what it trusts, what it shows, and one sentence for whatever does not fit together."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from certificates import Authority, encrypt
from click.testing import CliRunner
from scripted_server import ScriptedServer, answer

from mixtral_client import AsyncClient, Client, InvalidArgument, ServerUnreachable, TlsOptions
from mixtral_client.cli import main

STORY = answer("Once upon a", finish="length", final=True)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("strangers"), "strangers")


def tls_server(authority: Authority, *hosts: str, mutual: bool = False, expired: bool = False) -> ScriptedServer:
    pair = authority.issue("server", *hosts, expired=expired)
    files = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    server = ScriptedServer(grpc.ssl_server_credentials(files, authority.ca.read_bytes() if mutual else None, mutual))
    server.play(STORY)
    return server


@pytest.fixture(scope="module")
def encrypted(ours: Authority) -> Iterator[ScriptedServer]:
    server = tls_server(ours, "127.0.0.1", "localhost")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def mutual(ours: Authority) -> Iterator[ScriptedServer]:
    server = tls_server(ours, "127.0.0.1", mutual=True)
    yield server
    server.stop()


def generate(url: str, tls: TlsOptions | None) -> str:
    with Client(url, tls=tls) as client:
        return client.generate("Hi").text


def generate_async(url: str, tls: TlsOptions | None) -> str:
    async def run() -> str:
        async with AsyncClient(url, tls=tls) as client:
            return (await client.generate("Hi")).text

    return asyncio.run(run())


def unreachable(url: str, tls: TlsOptions | None) -> str:
    """The sentence, the same from both clients. It is not the idle timeout's: that error has another class."""
    sentences = set()
    for client in (generate, generate_async):
        with pytest.raises(ServerUnreachable) as refused:
            client(url, tls)
        sentences.add(str(refused.value))
    (sentence,) = sentences
    return sentence


def test_a_trusted_server_answers(encrypted: ScriptedServer, ours: Authority) -> None:
    assert generate(encrypted.url, ours.options()) == "Once upon a"
    assert generate_async(encrypted.url, ours.options()) == "Once upon a"


def test_a_known_client_is_answered(mutual: ScriptedServer, ours: Authority) -> None:
    known = ours.options(ours.issue("client"))
    assert generate(mutual.url, known) == "Once upon a"
    assert generate_async(mutual.url, known) == "Once upon a"


def test_a_server_of_another_authority(encrypted: ScriptedServer, strangers: Authority) -> None:
    sentence = unreachable(encrypted.url, strangers.options())
    assert sentence.startswith(f"the certificate of {encrypted.url} is not signed by a trusted authority (")
    assert sentence.endswith("is the CA file the right one?")


def test_a_private_authority_is_not_a_public_one(encrypted: ScriptedServer) -> None:
    assert "is not signed by a trusted authority" in unreachable(encrypted.url, TlsOptions())


def test_a_certificate_for_another_host(ours: Authority) -> None:
    server = tls_server(ours, "elsewhere.example")
    assert unreachable(server.url, ours.options()) == (
        f"the certificate of {server.url} is for another host; connect by a name or address that it lists"
    )
    server.stop()


def test_an_expired_certificate(ours: Authority) -> None:
    server = tls_server(ours, "127.0.0.1", expired=True)
    assert unreachable(server.url, ours.options()) == f"the certificate of {server.url} has expired"
    server.stop()


def test_tls_at_a_server_without_it(server: ScriptedServer, ours: Authority) -> None:
    assert unreachable(server.url, ours.options()) == f"{server.url} does not speak TLS; connect without it"


def test_no_tls_at_a_server_that_wants_it(encrypted: ScriptedServer) -> None:
    sentence = unreachable(encrypted.url, None)
    assert sentence == f"{encrypted.url} closed the connection at once; does it expect TLS?"


def test_a_client_that_shows_no_certificate(mutual: ScriptedServer, ours: Authority) -> None:
    sentence = unreachable(mutual.url, ours.options())
    assert sentence == f"{mutual.url} closed the connection at once; does it ask for a client certificate?"


def test_a_client_of_another_authority(mutual: ScriptedServer, ours: Authority, strangers: Authority) -> None:
    stranger = strangers.issue("client")
    sentence = unreachable(mutual.url, TlsOptions(ours.ca, stranger.certificate, stranger.key))
    assert sentence.endswith("does it trust the authority of the client certificate?")


def test_a_server_that_is_not_there_is_told_as_ever(ours: Authority) -> None:
    assert unreachable("127.0.0.1:1", ours.options()) == "cannot reach 127.0.0.1:1: Connection refused"


def test_files_that_do_not_fit(ours: Authority, tmp_path: Path) -> None:
    known, other = ours.issue("client"), ours.issue("other")
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("not a certificate")
    rubbish.chmod(0o600)
    absent = tmp_path / "absent.pem"
    encrypted_key = encrypt(known.key, tmp_path / "encrypted.key")
    shared_key = tmp_path / "shared.key"
    shared_key.write_bytes(known.key.read_bytes())
    shared_key.chmod(0o640)
    cases = {
        TlsOptions(absent): f"the CA file {absent} cannot be read: No such file or directory",
        TlsOptions(rubbish): f"the CA file {rubbish} holds no certificate in PEM form",
        TlsOptions(ours.ca, known.certificate): "a client certificate and its key are needed together",
        TlsOptions(ours.ca, None, known.key): "a client certificate and its key are needed together",
        TlsOptions(ours.ca, absent, known.key): f"the client certificate {absent} cannot be read",
        TlsOptions(ours.ca, known.certificate, absent): f"the client key {absent} cannot be read",
        TlsOptions(ours.ca, known.certificate, other.key): f"{other.key} does not belong to the certificate",
        TlsOptions(ours.ca, rubbish, known.key): "are not a certificate and its key in PEM form",
        TlsOptions(ours.ca, known.certificate, encrypted_key): "is encrypted; gRPC takes only plain keys",
        TlsOptions(ours.ca, known.certificate, shared_key): "is open to other users (mode 0640); chmod 600 it",
    }
    for options, complaint in cases.items():
        with pytest.raises(InvalidArgument) as refused:
            Client("127.0.0.1:1", tls=options)
        assert complaint in str(refused.value)


def test_every_command_that_connects_has_the_flags(mutual: ScriptedServer, ours: Authority) -> None:
    pair = ours.issue("client")
    mutual.info = {"manifest": {}, "limits": {}, "stats": {}}
    flags = [
        "--url",
        mutual.url,
        "--tls",
        "--ca",
        str(ours.ca),
        "--cert",
        str(pair.certificate),
        "--key",
        str(pair.key),
    ]
    for arguments in (["stream", "Hi"], ["chat", "Hi"], ["status"]):
        result = CliRunner().invoke(main, [*arguments, *flags])
        assert result.exit_code == 0, result.output
    variables = {"MIXTRAL_CA": str(ours.ca), "MIXTRAL_CERT": str(pair.certificate), "MIXTRAL_KEY": str(pair.key)}
    result = CliRunner().invoke(main, ["stream", "Hi"], env={"MIXTRAL_URL": mutual.url, **variables})
    assert result.stdout == "Once upon a\n"
    for measuring in (["bench"], ["eval", "perplexity"], ["eval", "multiple-choice"]):
        assert "--tls" in CliRunner().invoke(main, [*measuring, "--help"]).output


@pytest.mark.parametrize("flags", [["--tls"], [], ["--ca", "/dev/null"]], ids=["untrusted", "plain", "no CA"])
def test_a_command_says_one_sentence_and_nothing_of_grpc(encrypted: ScriptedServer, flags: list[str]) -> None:
    command = [sys.executable, "-m", "mixtral_client", "stream", "Hi", "--url", encrypted.url, *flags]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
