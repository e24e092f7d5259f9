"""What travels between us and vLLM's OpenAI-compatible server: the request, the events of its answer, its errors."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from operators.engines.ports import Generation
from operators.errors import Reject, Retry, RuvError, Stop

Json = dict[str, Any]


def salt(secret: str, scope: str) -> str:
    """What makes prefixes of one scope strangers to every other: 64 hex digits.

    Whoever may use the server and knows the salt can find out by the time of an answer whether a prompt was asked
    before. So it hangs on a secret, the server's key.
    """
    return hmac.new(secret.encode(), scope.encode(), hashlib.sha256).hexdigest()


def completion(request: Generation, served: str, secret: str) -> Json:
    """The body of a streamed ``/v1/completions``; it gives every sampling option, so that no model's default counts."""
    body: Json = {
        "model": served,
        "prompt": list(request.prompt),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": None if request.seed is None else request.seed % 2**63,
        # vLLM ends the answer at a stop string, and counts; it would hold back text that can't become one any more, so
        # it gives the string out and we cut it.
        "stop": [s for s in request.stop if s],
        "include_stop_str_in_output": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_salt": salt(secret, request.scope),
    }
    if request.logprobs:
        body |= {"logprobs": 0, "return_token_ids": True}
    return body


def scoring(prompt: list[int], tokens: list[int], served: str, secret: str) -> Json:
    """The body of a ``/v1/completions`` that tells the log-probabilities of ``tokens`` after ``prompt``."""
    return {
        "model": served,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": len(tokens),
        "logprob_token_ids": tokens,
        "return_tokens_as_token_ids": True,
        "cache_salt": salt(secret, ""),
    }


def scores(who: str, answer: Json, tokens: list[int]) -> dict[int, float]:
    """Token → natural log-probability. Raises ``Stop`` if the server does not know ``logprob_token_ids``."""
    found = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    missing = [token for token in tokens if f"token_id:{token}" not in found]
    if missing:
        remedy = "update the server: it must know logprob_token_ids"
        raise Stop(who, f"no log-probability of tokens {missing[:5]}, only of {sorted(found)[:5]}", remedy)
    return {token: float(found[f"token_id:{token}"]) for token in tokens}


async def events(who: str, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Json, None]:
    """The JSON of server-sent events, until ``[DONE]``. Raises ``Retry`` if the answer is cut off before that."""
    rest, done = b"", False
    async for chunk in chunks:
        # By bytes: text may hold characters, such as U+2028, at which a reader of lines would cut.
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                done = True  # read on to the end, so that the connection can be used again
            elif line.startswith(b"data:"):
                event = parsed(who, data)
                if "error" in event:
                    raise error(who, int(event["error"].get("code") or 500), data)
                yield event
    if not done:
        raise Retry(who, "the stream ended in the middle", "try again")


def parsed(who: str, data: bytes) -> Json:
    """A JSON object. Raises ``Retry`` if it is none, as when something between us and the server answers instead."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Retry(who, f"no JSON object from vLLM but {data[:80]!r}", "try again, or correct vllm.url")
    return found


def error(who: str, status: int, body: bytes) -> RuvError:
    """What to do about an answer that is none. Its text may quote a prompt, so little of it is kept."""
    try:
        told = json.loads(body)
        message = str(told["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")
    got = f"vLLM answered {status}: {message[:300]}"
    if status == 429:
        return Retry(who, got, "try again later", status=429)
    if status >= 500 or status == 408:
        return Retry(who, got, "try again")
    if status == 400 and "context length" in message:
        return Reject(
            who, got, "shorten the messages or ask for fewer tokens", 400, "messages", "context_length_exceeded"
        )
    if status in (401, 403):
        return Stop(who, got, "set vllm.api_key to the server's key")
    if status == 404:
        return Stop(who, got, "correct vllm.url or vllm.served_name")
    return Stop(
        who, got, "this server does not understand our requests: use the version of vLLM that requirements name"
    )
