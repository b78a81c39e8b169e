"""What the launcher decides before and while a server starts, as far as no server is needed to see it."""

import io
from pathlib import Path

import pytest

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument, Unavailable
from mixtral_serving.serve_config import EngineConfig, ServeConfig
from mixtral_serving.server import preflight
from mixtral_serving.server.command import Address, server_command, server_environment
from mixtral_serving.server.installation import Installation
from mixtral_serving.server.log import LogRelay, is_shown, load_failure

WHEEL = Installation(Path("/w/bin/tritonserver"), Path("/tmp/x/backends"), (Path("/w/libs"), Path("/py/lib")))
NGC = Installation(Path("/opt/tritonserver/bin/tritonserver"), None, ())


def test_the_server_binds_loopback_unless_told_otherwise() -> None:
    command = server_command(WHEEL, Path("/r"), Address(), "mixtral-1-")
    for part in ("http", "grpc", "metrics"):
        assert f"--{part}-address=127.0.0.1" in command
    assert command[0] == "/w/bin/tritonserver"
    assert "--backend-directory=/tmp/x/backends" in command
    assert "--backend-config=python,shm-region-prefix-name=mixtral-1-" in command
    everywhere = server_command(NGC, Path("/r"), Address("0.0.0.0", 1, 2, 3), "p")
    assert "--grpc-address=0.0.0.0" in everywhere
    assert "--grpc-port=2" in everywhere
    assert not [part for part in everywhere if part.startswith("--backend-directory")]
    assert Address("0.0.0.0").local_host == "127.0.0.1"


def test_the_stub_finds_this_python_first() -> None:
    base = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/old", "MIXTRAL_SERVE_CONFIG": "/stale"}
    environment = server_environment(base, WHEEL, Path("/venv/bin"), Path("/engine"), None)
    assert environment["PATH"] == "/venv/bin:/usr/bin"
    assert environment["LD_LIBRARY_PATH"] == "/w/libs:/py/lib:/old"
    assert environment["MIXTRAL_ENGINE_DIR"] == "/engine"
    assert "MIXTRAL_SERVE_CONFIG" not in environment
    assert server_environment({}, WHEEL, Path("/b"), Path("/e"), Path("/c"))["LD_LIBRARY_PATH"] == "/w/libs:/py/lib"
    assert "LD_LIBRARY_PATH" not in server_environment({}, NGC, Path("/b"), Path("/e"), Path("/c"))


def test_ports_must_differ_and_shared_memory_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="the ports 5, 5, 6, 7 must differ"):
        preflight.check_ports(Address("127.0.0.1", 5, 5, 6, 7))
    with pytest.raises(InvalidArgument, match=r"cannot listen on 192\.0\.2\.1"):
        preflight.check_ports(Address("192.0.2.1", 50001, 50002, 50003))
    with pytest.raises(Unavailable, match="absent is missing"):
        preflight.check_shared_memory(tmp_path / "absent")
    monkeypatch.setattr(preflight, "SHM_NEEDED", 2**60)
    with pytest.raises(Unavailable, match=r"MiB free, .* MiB are needed; in a container raise it with --shm-size"):
        preflight.check_shared_memory(tmp_path)


def test_the_settings_must_fit_the_engine(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[engine]\nmax_queued_tokens = 99\n")
    limits = EngineLimits(max_batch_size=8, max_input_len=100, max_seq_len=200, max_num_tokens=64)
    with pytest.raises(InvalidArgument, match="max_queued_tokens is 99, it must be at least the engine's"):
        preflight.check_admission(limits, config)
    preflight.check_admission(limits, None)


def test_settings_are_typed_and_without_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"

    def load(text: str) -> ServeConfig:
        path.write_text(text)
        return ServeConfig.load(path)

    assert load("") == ServeConfig()
    assert load('[engine]\ndevice = "cpu"\ndrain_s = 1').engine == EngineConfig(device="cpu", drain_s=1)
    for text, complaint in (
        ("engine = 1", "engine must be a table"),
        ("[motor]", "unknown key motor, known are engine"),
        ('[engine]\ndevice = "tpu"', "engine.device is 'tpu', it must be one of auto, cpu, cuda"),
        ('[engine]\nactivation_dtype = "int8"', "engine.activation_dtype is 'int8'"),
        ("[engine]\ndrain_s = true", "engine.drain_s is True, it must be a number"),
        ("[engine]\ndrain_s = -1", "engine.drain_s is -1"),
        ("[engine]\ndrain_s = nan", "engine.drain_s is nan"),
        ("[engine", "cannot be read"),
    ):
        with pytest.raises(InvalidArgument, match=complaint):
            load(text)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        ServeConfig.load(tmp_path / "absent.toml")


FAILED = (
    "E1121 00:36:28.107710 18565 model_lifecycle.cc:642] \"failed to load 'tensorrt_llm' version 1: Internal: "
    'CheckpointError: the engine was built for sm90\\n\\nAt:\\n  /x/model.py(20): initialize\\n"\n'
)


def test_the_log_shows_what_matters_and_remembers_why_a_start_failed() -> None:
    assert load_failure(FAILED) == "tensorrt_llm: the engine was built for sm90"
    assert load_failure("I1121 00:36:28 x] successfully loaded") is None
    shown = 'W1121 00:36:28.1 1 x.cc:1] "something to act on"\n'
    hidden = [
        'I1121 00:36:28.1 1 x.cc:1] "loading"\n',
        'E1121 00:36:28.1 1 x.cc:1] "CudaDriverHelper has not been initialized."\n',
        "Signal (15) received.\n",
        "+-----+\n",
        "| Backend |\n",
        "\n",
    ]
    assert is_shown(shown)
    assert not any(map(is_shown, hidden))
    log = "".join([*hidden, FAILED, shown])
    for verbose, expected in ((False, shown), (True, log)):
        target = io.StringIO()
        relay = LogRelay(io.StringIO(log), target, verbose)
        relay.join(5)
        assert relay.failure == "tensorrt_llm: the engine was built for sm90"
        assert target.getvalue() == expected
