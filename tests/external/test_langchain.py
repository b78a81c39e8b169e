"""LangChain's example of docs/clients.md runs and prints what the page says."""

import pytest
from clients_page import OPENAI, Example, examples
from gateway_process import gateway_process
from system_server import Server


@pytest.mark.parametrize("example", [example for example in examples() if "langchain" in example.code])
def test_it_prints_what_the_page_says(example: Example, server: Server) -> None:
    with gateway_process(server.grpc_url) as gateway:
        output = example.run({OPENAI: gateway.url.removeprefix("http://")})
    assert example.prints(output), output
