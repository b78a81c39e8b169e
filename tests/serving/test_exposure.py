"""What the operator's settings open, and the sentence for each file that cannot be used."""

import os
import subprocess
from pathlib import Path

import pytest
from certificates import Authority, encrypt

from mixtral_runtime.errors import InvalidArgument, Unavailable
from mixtral_serving.server import admin_token
from mixtral_serving.server.command import Address
from mixtral_serving.server.exposure import CLOSED, Exposure, PlaintextSettings, is_loopback
from mixtral_serving.server.preflight import load_exposure
from mixtral_serving.server.secret_files import check_key_pair, read_token

TOKEN = "0123456789abcdef0123456789abcdef"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def load(folder: Path, text: str) -> Exposure:
    return load_exposure(write(folder / "serve.toml", text))


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(InvalidArgument) as refused:
        load(folder, text)
    return str(refused.value)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


def test_without_settings_nothing_is_encrypted_and_admin_endpoints_are_closed() -> None:
    exposure = load_exposure(None)
    endpoints = "model-repository,trace,logging,shared-memory"
    assert exposure.arguments() == [
        f"--grpc-restricted-protocol={endpoints}:{CLOSED}",
        f"--http-restricted-api={endpoints}:{CLOSED}",
    ]
    assert exposure.describe(exposure.bind(Address())) == (
        "gRPC 127.0.0.1:8001 (plain text), HTTP 127.0.0.1:8000, metrics 127.0.0.1:8002, admin endpoints closed"
    )


def test_files_are_relative_to_the_settings(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("server", "localhost")
    for name, path in {"server.pem": pair.certificate, "server.key": pair.key, "ca.pem": authority.ca}.items():
        write(tmp_path / name, path.read_text())
    exposure = load(tmp_path, "[tls]\ncertificate = 'server.pem'\nkey = 'server.key'")
    assert exposure.arguments()[2:] == [
        f"--grpc-server-cert={tmp_path}/server.pem",
        f"--grpc-server-key={tmp_path}/server.key",
        "--grpc-use-ssl=true",
    ]
    mutual = load(tmp_path, "[tls]\ncertificate = 'server.pem'\nkey = 'server.key'\nclient_ca = 'ca.pem'")
    assert mutual.arguments()[4:] == ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={tmp_path}/ca.pem"]


def test_with_tls_http_and_metrics_stay_on_loopback_unless_told_otherwise() -> None:
    everywhere = Address("0.0.0.0")
    plain = Exposure().bind(everywhere)
    assert (plain.http_host, plain.metrics_host) == ("0.0.0.0", "0.0.0.0")
    encrypted = Exposure(Path("c"), Path("k")).bind(everywhere)
    assert (encrypted.http_host, encrypted.metrics_host) == ("127.0.0.1", "127.0.0.1")
    told = Exposure(Path("c"), Path("k"), plaintext=PlaintextSettings(metrics_host="10.0.0.7")).bind(everywhere)
    assert (told.http_host, told.metrics_host) == ("127.0.0.1", "10.0.0.7")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[tls]\ncertificate = 'a'", "tls.certificate and key are needed together, only one of them is set"),
        ("[tls]\nclient_ca = 'a'", "tls.client_ca needs certificate and key"),
        ("[tls]\ncert = 'a'", "unknown key tls.cert, known are certificate, key, client_ca"),
        ("[tls]\ncertificate = 'absent'\nkey = 'absent'", "tls.certificate {folder}/absent is not a file"),
        ("[admin]\ntoken = 'secret'", "unknown key admin.token, known are token_file"),
        ("[admin]\ntoken_file = 'absent'", "admin.token_file {folder}/absent is not a file"),
        ("[plaintext]\nhttp_host = 1", "plaintext.http_host is 1, it must be a string"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, text: str, complaint: str) -> None:
    assert complaint.format(folder=tmp_path) in refusal(tmp_path, text)


def test_certificates_that_cannot_be_used(authority: Authority, tmp_path: Path) -> None:
    good, other, old = (
        authority.issue("server", "localhost"),
        authority.issue("other", "localhost"),
        authority.issue("old", "localhost", expired=True),
    )
    rubbish = write(tmp_path / "rubbish", "rubbish")
    encrypted = encrypt(good.key, tmp_path / "encrypted.key")
    cases = {
        (good.certificate, other.key): "does not belong to tls.certificate",
        (rubbish, good.key): "are not a certificate and its key in PEM form",
        (good.certificate, rubbish): "are not a certificate and its key in PEM form",
        (good.certificate, encrypted): "is encrypted; Triton takes only plain keys",
        (old.certificate, old.key): "certificate has expired",
    }
    check_key_pair(good.certificate, good.key)
    for (certificate, key), complaint in cases.items():
        with pytest.raises(InvalidArgument, match=complaint):
            check_key_pair(certificate, key)
    text = f"[tls]\ncertificate = '{good.certificate}'\nkey = '{good.key}'\nclient_ca = '{rubbish}'"
    assert "tls.client_ca" in refusal(tmp_path, text)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602, 0o601])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "token", TOKEN, mode)
    with pytest.raises(InvalidArgument, match=rf"open to other users \(mode {mode:04o}\); run chmod 600 {path}"):
        read_token(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_the_group_may_read_a_secret_that_root_mounted(tmp_path: Path) -> None:
    path = write(tmp_path / "token", TOKEN, 0o640)
    assert read_token(path) == TOKEN
    os.chown(path, 12345, -1)
    with pytest.raises(InvalidArgument, match="mode 0640"):
        read_token(path)


@pytest.mark.parametrize(
    "text", ["short", "with spaces in its middle", TOKEN + "\n" + TOKEN, "", f" {TOKEN}", "é" * 20]
)
def test_a_token_that_no_header_could_carry_is_refused_and_not_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="openssl rand -hex 32") as refused:
        read_token(write(tmp_path / "token", text))
    assert not text or text.strip() not in str(refused.value)


def test_a_token_is_refused_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"needs a C compiler .* or leave the setting out"):
        admin_token.token_environment(tmp_path / "token", tmp_path, {})
    write(tmp_path / "cc", "#!/bin/sh\necho no headers >&2\nexit 1\n", 0o755)
    with pytest.raises(Unavailable, match="cc failed: no headers"):
        admin_token.token_environment(tmp_path / "token", tmp_path, {})


@pytest.mark.skipif(admin_token.find_compiler() is None, reason="there is no C compiler")
def test_another_preloaded_library_is_kept(tmp_path: Path) -> None:
    """Only the program of the name tritonserver takes the token; and what it starts has the preload of before."""
    token_file = write(tmp_path / "token", TOKEN)
    server = tmp_path / "tritonserver"
    source = '#include <stdio.h>\n#include <stdlib.h>\nint main(int c, char **v) { puts(v[1]); return system("env"); }'
    subprocess.run(["cc", "-x", "c", "-", "-o", server], input=source, text=True, check=True)
    environment = {"PATH": os.environ["PATH"], "LD_PRELOAD": "libm.so.6"}
    environment |= admin_token.token_environment(token_file, tmp_path, environment)
    argument = f"--restricted=all:{CLOSED}"
    done = subprocess.run([server, argument], env=environment, capture_output=True, text=True, check=True)
    assert f"--restricted=all:admin-token={TOKEN}\n" in done.stdout
    assert "LD_PRELOAD=libm.so.6\n" in done.stdout
    assert "MIXTRAL_ADMIN_TOKEN_FILE" not in done.stdout
    other = server.rename(tmp_path / "mpirun")
    done = subprocess.run([other, argument], env=environment, capture_output=True, text=True, check=True)
    assert argument in done.stdout
    token_file.unlink()  # whatever goes wrong, the endpoints stay closed
    other.rename(server)
    done = subprocess.run([server, argument], env=environment, capture_output=True, text=True, check=True)
    assert argument in done.stdout


def test_the_warning_is_for_strangers_who_reach_a_triton_that_they_can_crash() -> None:
    everywhere = Address("0.0.0.0")

    def warning(exposure: Exposure, version: str = "2.51.0", address: Address = everywhere) -> str | None:
        return exposure.crash_warning(exposure.bind(address), version)

    assert (warning(Exposure()) or "").startswith(
        "whoever reaches gRPC 0.0.0.0:8001 or HTTP 0.0.0.0:8000 can crash Triton 2.51.0 (fixed in 2.68, release 26.04)"
    )
    tls = Exposure(Path("c"), Path("k"))
    assert (warning(tls, "2.67.1") or "").startswith("whoever reaches gRPC 0.0.0.0:8001 can")  # anybody may connect
    assert warning(Exposure(Path("c"), Path("k"), Path("ca"))) is None
    opened = Exposure(Path("c"), Path("k"), Path("ca"), plaintext=PlaintextSettings(http_host="0.0.0.0"))
    assert (warning(opened) or "").startswith("whoever reaches HTTP 0.0.0.0:8000 can")
    assert warning(Exposure(), "2.68.0") is None
    assert warning(Exposure(), address=Address()) is None


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "", "::", "192.0.2.1", "gpu-host")))
