"""Tokenizers for the serving tests: the demo model's and the real Mixtral one."""

from pathlib import Path

import pytest

from mixtral_serving.prompt import PromptBuilder


@pytest.fixture(scope="session")
def mixtral_builder(mixtral_tokenizer_dir: Path) -> PromptBuilder:
    return PromptBuilder.load(mixtral_tokenizer_dir)


@pytest.fixture(scope="session")
def demo_builder(demo_model: Path) -> PromptBuilder:
    return PromptBuilder.load(demo_model)


@pytest.fixture(scope="session", params=["demo", "mixtral"])
def builder(request: pytest.FixtureRequest) -> PromptBuilder:
    """Both tokenizers, one after the other."""
    chosen: PromptBuilder = request.getfixturevalue(f"{request.param}_builder")
    return chosen
