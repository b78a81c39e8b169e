"""What a user of the openai client does, as a program for any version of it: BASE_URL API_KEY -> JSON of the answers.

It imports nothing but that client, since it also runs in an environment that has nothing else.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai

CHAT: list[Any] = [{"role": "user", "content": "My name is Zorin. What is my name?"}]


def converse(client: openai.OpenAI) -> dict[str, Any]:
    ask: dict[str, Any] = {"model": "mixtral", "messages": CHAT, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    streamed = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = client.completions.create(
        model="mixtral", prompt="Once upon a time", max_tokens=5, temperature=0, echo=True, logprobs=1
    )
    refusals = [
        refusal(lambda: client.completions.create(model="mixtral", prompt="Once", temperature=900)),
        refusal(lambda: client.completions.create(model="another", prompt="Once")),
        refusal(lambda: client.chat.completions.create(**ask, extra_body={"no_such_field": 1})),
        refusal(lambda: client.with_options(api_key="a-wrong-key-of-somebody").models.list()),
    ]
    left = client.completions.create(
        model="mixtral", prompt="Once", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(left))
    left.close()
    return {
        "models": [model.id for model in client.models.list()],
        "chat": whole.choices[0].model_dump(include={"message": {"content", "role"}, "finish_reason": True}),
        "log_probs": [token.logprob for token in whole.choices[0].logprobs.content or []]
        if whole.choices[0].logprobs
        else None,
        "streamed": "".join(choice.delta.content or "" for event in streamed for choice in event.choices),
        "usage": streamed[-1].usage.total_tokens if streamed[-1].usage else None,
        "text": text.choices[0].text,
        "tokens": text.choices[0].logprobs.tokens if text.choices[0].logprobs else None,
        "refusals": refusals,
    }


def refusal(call: Callable[[], object]) -> list[Any] | None:
    """The status and what the error object says; None when there is none."""
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.type, error.param, error.code]
    return None


async def many(url: str, key: str) -> list[str]:
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
        ask: dict[str, Any] = {"model": "mixtral", "prompt": "Once upon a time", "max_tokens": 5, "temperature": 0}

        async def one(stream: bool) -> str:
            if not stream:
                return str((await client.completions.create(**ask)).choices[0].text)
            return "".join(
                [event.choices[0].text async for event in await client.completions.create(**ask, stream=True)]
            )

        return sorted(set(await asyncio.gather(*(one(index % 2 == 0) for index in range(64)))))


if __name__ == "__main__":
    url, key = sys.argv[1:]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as opened:
        said = converse(opened)
    print(json.dumps(said | {"many": asyncio.run(many(url, key))}))
