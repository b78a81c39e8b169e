"""Every example of docs/clients.md runs and prints what the page says. LangChain's is in tests/external/."""

from collections.abc import Iterator

import pytest
from clients_page import GRPC, HTTP, OPENAI, Example, examples
from gateway_process import gateway_process
from system_server import Server

HERE = [example for example in examples() if "langchain" not in example.code]


@pytest.fixture(scope="module")
def addresses(server: Server) -> Iterator[dict[str, str]]:
    with gateway_process(server.grpc_url) as gateway:
        yield {OPENAI: gateway.url.removeprefix("http://"), GRPC: server.grpc_url, HTTP: server.http_url[7:]}


@pytest.mark.parametrize("example", HERE, ids=lambda example: example.code.strip().splitlines()[0])
def test_it_prints_what_the_page_says(example: Example, addresses: dict[str, str]) -> None:
    output = example.run(addresses)
    assert example.prints(output), f"{example.code}\nprints\n{output}\nand not\n{example.output}"
