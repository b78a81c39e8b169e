"""Calls the playground's own modules outside of a page."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mixtral_gateway

STATIC = Path(mixtral_gateway.__file__).parent / "static"
NODE = shutil.which("node")


def run_module(folder: Path, module: str, code: str, **values: Any) -> Any:
    """What `code`, the body of an async function, returns in Node. It sees the values by name and the module as `m`.

    folder: an empty one. Only data of JSON goes in and out.
    """
    assert NODE is not None
    if not (folder / module).exists():
        shutil.copytree(STATIC, folder, dirs_exist_ok=True)
        (folder / "package.json").write_text('{"type": "module"}')
    address = json.dumps((folder / module).as_uri())
    program = f"""
        const m = await import({address});
        const call = async ({", ".join(["m", *values])}) => {{ {code} }};
        const result = await call({", ".join(["m", *(json.dumps(value) for value in values.values())])});
        console.log(JSON.stringify(result ?? null));
    """
    done = subprocess.run([NODE, "--input-type=module"], input=program, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
