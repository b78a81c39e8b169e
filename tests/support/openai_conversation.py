"""What a user of the openai client does, as a program for any version of it: BASE_URL API_KEY -> JSON of the answers.

It imports nothing but that client, since it also runs in an environment that has nothing else.
"""

import asyncio
import json
import sys
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
    try:
        client.completions.create(model="mixtral", prompt="Once", temperature=900)
        refusal = None
    except openai.BadRequestError as error:
        refusal = [error.status_code, error.param, error.type]
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
        "refusal": refusal,
    }


async def many(url: str, key: str) -> list[str]:
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
        ask: dict[str, Any] = {"model": "mixtral", "prompt": "Once upon a time", "max_tokens": 5, "temperature": 0}
        answers = await asyncio.gather(*(client.completions.create(**ask) for _ in range(64)))
        return sorted({answer.choices[0].text for answer in answers})


if __name__ == "__main__":
    url, key = sys.argv[1:]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as opened:
        said = converse(opened)
    print(json.dumps(said | {"many": asyncio.run(many(url, key))}))
