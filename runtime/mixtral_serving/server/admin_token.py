"""The admin token's way into the server, past every command line and environment (`admin_token.c` says how)."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mixtral_runtime.errors import Unavailable
from mixtral_serving.server.exposure import CLOSED, TOKEN_HEADER

SOURCE = Path(__file__).with_name("admin_token.c")


def find_compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def token_environment(token_file: Path, work_dir: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the server's environment: the token's file by name, and the library that reads it, which is built
    in `work_dir`. Raises Unavailable without a C compiler."""
    compiler = find_compiler()
    if compiler is None:
        raise Unavailable(
            "admin.token_file needs a C compiler (Debian and Ubuntu: apt-get install gcc libc6-dev), with which the "
            "token is kept out of ps; or leave the setting out, and the admin endpoints are closed to everyone"
        )
    library = work_dir / "admin_token.so"
    # A JSON string without non-ASCII characters is a C string too.
    names = [f"-DCLOSED={json.dumps(CLOSED)}", f"-DHEADER={json.dumps(TOKEN_HEADER)}"]
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", *names, "-o", str(library), str(SOURCE)], capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise Unavailable(f"admin.token_file needs a working C compiler, {compiler} failed: {reason}")
    loaded = ":".join(filter(None, [str(library), environment.get("LD_PRELOAD")]))
    return {"LD_PRELOAD": loaded, "MIXTRAL_ADMIN_TOKEN_FILE": os.fspath(token_file)}
