"""The plainest program that moves a build's bytes: reads all of SOURCES, writes WRITE_BYTES of what it read to TARGET.

Both in chunks of 8 MiB through the page cache, with one fsync at the end, as `mixtral-build quantize` has it.
"""

import os
from pathlib import Path

import click

CHUNK_BYTES = 8 << 20


@click.command(help=__doc__)
@click.argument("write_bytes", type=int)
@click.argument("target", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(write_bytes: int, target: Path, sources: tuple[Path, ...]) -> None:
    total = sum(path.stat().st_size for path in sources)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    read = written = 0
    with target.open("wb", buffering=0) as out:
        for path in sources:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    read += count
                    due = write_bytes * read // total - written  # spread evenly over the reading
                    while due > 0:
                        done = out.write(buffer[: min(due, count)])
                        due, written = due - done, written + done
        os.fsync(out.fileno())


if __name__ == "__main__":
    main()
