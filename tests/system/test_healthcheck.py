"""The images' health check, asked of a real server."""

import os
import subprocess
import sys
from pathlib import Path

from system_server import Server

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "healthcheck.py"


def test_a_ready_server_is_well(server: Server) -> None:
    port = server.http_url.rsplit(":", 1)[1]
    environment = os.environ | {"MIXTRAL_HTTP_PORT": port}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, f"127.0.0.1:{port} answers 200\n")
