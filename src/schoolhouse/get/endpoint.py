"""A model behind an OpenAI-compatible address (vLLM, Ollama, llama.cpp's server, a provider): asked, and remembered.

Every answer is kept on disk under the hash of what was asked, so that nothing is asked or paid for twice.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from pydantic import Field

from schoolhouse.core.config import Duration, Strict
from schoolhouse.core.errors import ModelError, RecipeError, Stopped
from schoolhouse.text.reply import THINK_OPEN, render_thinking

MILLION = 1_000_000
WORTH_ANOTHER_TRY = {408, 409, 425, 429, 500, 502, 503, 504}
LONGEST_WAIT_S = 60.0


class Endpoint(Strict):
    """An address and what it may be used for: a table of a recipe.

    terms: in your words, what the provider allows its replies to be used for; it is kept with everything that is made
    of them. key_env: the environment variable with the key, never the key itself.
    """

    url: str = Field(pattern=r"^https?://")
    model: str = Field(min_length=1)
    terms: str = Field(min_length=1)
    key_env: str | None = None
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)
    currency: str = "USD"
    in_flight: int = Field(default=8, ge=1)
    retries: int = Field(default=6, ge=0)
    timeout: Duration = 120.0


@dataclass(frozen=True)
class Said:
    """One reply: its text, with reasoning in our tags where the endpoint gave it apart, and why it ended."""

    text: str
    finish_reason: str
    tokens_in: int
    tokens_out: int


@dataclass
class Spent:
    """What the asking took."""

    asked: int = 0
    remembered: int = 0
    tried_again: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = field(default=0.0)

    def cost(self, endpoint: Endpoint) -> float:
        """In the endpoint's currency, of what was asked now; what was remembered costs nothing."""
        return (self.tokens_in * endpoint.price_in + self.tokens_out * endpoint.price_out) / MILLION


def check_key(endpoint: Endpoint) -> None:
    """Raise RecipeError before anything starts if the variable with the key is not there."""
    if endpoint.key_env is not None and not os.environ.get(endpoint.key_env):
        raise RecipeError(f"key_env is {endpoint.key_env!r}, and no such environment variable is set: export it first.")


def ask_all(
    endpoint: Endpoint, requests: Sequence[dict[str, Any]], cache: Path, on_done: Callable[[int, Spent], bool]
) -> tuple[list[Said], Spent]:
    """Put all requests (bodies of chat completions, without the model) and return their replies in order.

    cache: the folder of what was answered before. on_done hears how many are done and what was spent; it returns
    whether to stop. Raises Stopped then, and ModelError when an address does not answer or refuses.
    """
    return asyncio.run(_ask_all(endpoint, requests, cache, on_done))


async def _ask_all(
    endpoint: Endpoint, requests: Sequence[dict[str, Any]], cache: Path, on_done: Callable[[int, Spent], bool]
) -> tuple[list[Said], Spent]:
    cache.mkdir(parents=True, exist_ok=True)
    spent, started = Spent(), time.monotonic()
    gate = asyncio.Semaphore(endpoint.in_flight)
    key = os.environ.get(endpoint.key_env or "", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    replies: list[Said | None] = [None] * len(requests)
    done = 0
    async with httpx2.AsyncClient(timeout=endpoint.timeout, headers=headers) as client:

        async def one(place: int, body: dict[str, Any]) -> None:
            nonlocal done
            async with gate:
                replies[place] = await _asked(client, endpoint, body, cache, spent)
                done += 1
                spent.seconds = time.monotonic() - started
                if on_done(done, spent):
                    raise Stopped("Stopped while the endpoint was asked; the same command goes on from there.")

        try:
            async with asyncio.TaskGroup() as group:
                for place, body in enumerate(requests):
                    group.create_task(one(place, {"model": endpoint.model, **body}))
        except* (ModelError, Stopped) as errors:
            raise errors.exceptions[0] from None
    return [reply for reply in replies if reply is not None], spent


async def _asked(
    client: httpx2.AsyncClient, endpoint: Endpoint, body: dict[str, Any], cache: Path, spent: Spent
) -> Said:
    url = endpoint.url.rstrip("/") + "/chat/completions"
    digest = hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()
    kept = cache / f"{digest}.json"
    if kept.exists():
        spent.remembered += 1
        return _said(json.loads(kept.read_text(encoding="utf-8")), url)
    answer = await _posted(client, endpoint, url, body, spent)
    said = _said(answer, url)
    part = kept.with_name(kept.name + ".part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(kept)
    spent.asked += 1
    spent.tokens_in += said.tokens_in
    spent.tokens_out += said.tokens_out
    return said


async def _posted(
    client: httpx2.AsyncClient, endpoint: Endpoint, url: str, body: dict[str, Any], spent: Spent
) -> dict[str, Any]:
    """Post until it is answered; waits as long as the endpoint asks, or twice as long each time."""
    problem = ""
    for attempt in range(endpoint.retries + 1):
        wait = min(2.0**attempt / 2, LONGEST_WAIT_S)
        try:
            response = await client.post(url, json=body)
        except httpx2.TransportError as error:
            problem = f"{type(error).__name__} {error}".strip()
        else:
            if response.status_code == 200:
                return _json(response, url)
            problem = f"status {response.status_code}, {response.text[:200]}"
            if response.status_code not in WORTH_ANOTHER_TRY:
                break
            wait = _asked_to_wait(response.headers.get("retry-after"), wait)
        if attempt < endpoint.retries:
            spent.tried_again += 1
            await asyncio.sleep(wait)
    raise ModelError(f"{url} gives no reply ({problem}). Look at url, model and key_env, or try again later.")


def _json(response: httpx2.Response, url: str) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{url} answers {response.text[:100]!r}, no JSON object: is it an OpenAI-compatible address?")
    return found


def _asked_to_wait(header: str | None, otherwise: float) -> float:
    """Seconds of a Retry-After header, a number or a date."""
    if header is None:
        return otherwise
    try:
        seconds = float(header)
    except ValueError:
        when = email.utils.parsedate_to_datetime(header) if header[:1].isalpha() else None
        seconds = when.timestamp() - time.time() if when else otherwise
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


def _said(answer: dict[str, Any], url: str) -> Said:
    try:
        choice = answer["choices"][0]
        message, usage = choice["message"], answer.get("usage") or {}
        text = message.get("content") or ""
        # DeepSeek's API and ours say `reasoning_content`, vLLM says `reasoning`.
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        if reasoning and THINK_OPEN not in text:
            text = render_thinking(reasoning) + text
        reason = "stop" if choice.get("finish_reason") == "stop" else "length"
        return Said(text, reason, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{url} answers what is no chat completion ({error!r} in {str(answer)[:200]}): is it OpenAI-compatible?"
        ) from None
