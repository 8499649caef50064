"""What a server of OpenAI's interface says of itself, and whether it answers: every wait has an end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import requests

from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen
from moe_eval.records import disk

KEY = "OPENAI_API_KEY"  # the only place of a key: it is never an option, and never recorded
_LIST_SECONDS, _ANSWER_SECONDS = 10.0, 60.0
_NO_LIST = (404, 405, 501)  # of servers that do not name their models
_REFUSED = (401, 403)


@frozen
class Server:
    """A model of a server.

    Attributes:
        base_url: without the path of a request, such as http://127.0.0.1:8000/v1.
        chat: whether it is asked by chats, else by texts or token ids.
    """

    base_url: str
    model: str
    chat: bool = False

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"{self.base_url}/{'chat/' * self.chat}completions"

    @property
    def place(self) -> str:
        """Its address for messages and records."""
        return disk.without_credentials(self.base_url)

    def window(self) -> int | None:
        """Tokens that its model reads, as vLLM and SGLang tell. None where it does not.

        Raises:
            UsageError: it does not answer, refuses the key, or has no such model.
        """
        response = self._asked("GET", f"{self.base_url}/models", _LIST_SECONDS)
        if response.status_code in _NO_LIST:
            return None
        self._check(response)
        models = self._content(response).get("data")
        names = (
            {str(row.get("id")): row for row in models if isinstance(row, Mapping)} if isinstance(models, list) else {}
        )
        if names and self.model not in names:
            fix = mended(self.model, names, f"It has {', '.join(list(names)[:5])}.")
            raise UsageError(f"The endpoint {self.place} has no model {self.model}. {fix}")
        length = names.get(self.model, {}).get("max_model_len")
        return length if isinstance(length, int) else None

    def check_answers(self) -> None:
        """Ask for one token.

        Raises:
            UsageError: why there is none.
        """
        prompt: dict[str, object] = {"prompt": "Hello"}
        if self.chat:
            prompt = {"messages": [{"role": "user", "content": "Hello"}]}
        self._answer({**prompt, "max_tokens": 1, "temperature": 0})

    def check_scores(self) -> None:
        """Ask for the log-probabilities of a prompt, which tasks of choices and perplexity need.

        Raises:
            UsageError: it does not give them.
        """
        needs = "Evaluate tasks that generate, or start a server that returns logprobs with echo, such as vllm serve."
        if self.chat:
            raise UsageError(f"A chat endpoint returns no log-probabilities of a prompt. {needs}")
        body = {"prompt": "The sun rises", "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        choices = self._answer(body).get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        scores = first.get("logprobs") if isinstance(first, Mapping) else None
        values = scores.get("token_logprobs") if isinstance(scores, Mapping) else None
        if not isinstance(values, list) or len(values) < 3:
            raise UsageError(f"The endpoint {self.place} returns no log-probabilities of a prompt. {needs}")

    def _answer(self, body: Mapping[str, object]) -> Mapping[str, Any]:
        response = self._asked("POST", self.url, _ANSWER_SECONDS, {"model": self.model, **body})
        self._check(response)
        return self._content(response)

    def _asked(self, method: str, url: str, seconds: float, body: Mapping[str, object] | None = None) -> Any:
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            return requests.request(method, url, json=body, headers=headers, timeout=seconds)
        except requests.Timeout:
            raise UsageError(
                f"The endpoint {self.place} did not answer within {seconds:g} s. Start it again."
            ) from None
        except requests.RequestException as error:
            raise UsageError(
                f"The endpoint {self.place} cannot be reached ({type(error).__name__}). Start it, or mend base_url."
            ) from None

    def _check(self, response: Any) -> None:
        if response.status_code in _REFUSED:
            state = "refuses the key of" if os.environ.get(KEY) else "wants a key in"
            raise UsageError(f"The endpoint {self.place} {state} {KEY}. Set the variable to one that it takes.")
        if not response.ok:
            reason = disk.without_credentials(" ".join(str(response.text).split()))[:200]
            raise UsageError(
                f"The endpoint {self.place} answers {response.status_code} ({reason or response.reason}). Look into "
                "its log, or mend base_url and model."
            )

    def _content(self, response: Any) -> Mapping[str, Any]:
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, Mapping):
            raise UsageError(
                f"{self.place} is no OpenAI-compatible server. Give its base_url, which often ends with /v1."
            )
        return content
