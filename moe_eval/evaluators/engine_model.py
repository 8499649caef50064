"""A loaded engine as lm-evaluation-harness's language model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from moe_eval.checkpoint import tokenizer as tokenizers
from moe_eval.data.window import Window, rolling_windows
from moe_eval.engines.base import Completion, Engine, GenerationRequest, WindowScores
from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators import generation
from moe_eval.evaluators.generation import Generation

log = logging.getLogger("lm_eval.moe_eval")  # shown like the harness's own messages

_TEXTS = 256  # encoded at once: a fast tokenizer holds much more of a text than its ids while it works


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A loaded engine, for any task of the harness.

    Attributes:
        scored: tokens scored and requests answered, by task, without answers from the cache.
        answered: answers by the identity of the request, as often as it came.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        *,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: int | str | None = None,
        window: int | None = None,
    ) -> None:
        """Wrap an engine.

        Args:
            max_gen_toks: tokens to generate if a task sets no number.
            add_bos_token: begin every text with the BOS token. None leaves it to the tokenizer.
            prefix_token_id: conditions the first token of a text. None for BOS, or EOS without BOS.
            enable_thinking: passed to the chat template. None leaves the template's default.
            think_end_token: the id or the text of what ends a thought. An answer is what follows the last one.
            window: the most tokens of a text, None for those of the engine.

        Raises:
            UsageError: the tokenizer or a token does not fit the model.
        """
        super().__init__()
        self.engine, self.facts, self.tokenizer = engine, engine.facts, tokenizer
        self.max_gen_toks = max_gen_toks
        self.add_bos_token, self.enable_thinking = add_bos_token, enable_thinking
        self._prefix_token_id, self._window = prefix_token_id, window
        tokenizers.check(tokenizer, self.facts.vocabulary, self.facts.checkpoint)
        for name, token in (("prefix_token_id", self.prefix_token_id), ("think_end_token", think_end_token)):
            if isinstance(token, int) and not 0 <= token < self.facts.vocabulary:
                raise UsageError(f"{name}={token} is not a token of this model. Give 0 to {self.facts.vocabulary - 1}.")
        self._end_of_thought = generation.end_of_thought(tokenizer, think_end_token)
        self._device = torch.device(self.facts.device)
        self._encoded: dict[str, list[int]] = {}
        self.begin(())

    def begin(self, tasks: Iterable[Any]) -> None:
        """Begin an evaluation of these tasks. Their requests are made when the first ones come."""
        self._tasks = tuple(tasks)
        self.scored: dict[str, dict[str, int]] = {}
        self.answered: dict[int, list[Any]] = {}

    def check_requests(self) -> None:
        """Refuse generation arguments of any request of the evaluation, before the first one of any kind."""
        tasks, self._tasks = self._tasks, ()
        instances = (instance for task in tasks for instance in task.instances)
        kinds = {repr(row.args[1]): row.args[1] for row in instances if row.request_type == "generate_until"}
        for arguments in kinds.values():
            self._generation(arguments)

    @property
    def max_length(self) -> int:
        """The window in tokens."""
        return min(self.facts.max_length, self._window or self.facts.max_length)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that conditions the first token of a text: the argument, else BOS, else EOS."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids as the harness's `hf` model makes them: a text that begins with BOS gets no second one."""
        if add_special_tokens is not None:
            return self._encode([string], add_special_tokens)[0]
        if string not in self._encoded:
            return self._encode([string], self._adds_bos(string))[0]
        return self._encoded[string]

    def _adds_bos(self, text: str) -> bool | None:
        return False if text.startswith(self.tokenizer.decode([self.prefix_token_id])) else self.add_bos_token

    def _encode(self, texts: list[str], special: bool | None) -> list[list[int]]:
        options = {} if special is None else {"add_special_tokens": special}
        # documents are longer than a window on purpose, and the tokenizer would warn of it
        ids: list[list[int]] = self.tokenizer(texts, verbose=False, return_attention_mask=False, **options)["input_ids"]
        return ids

    @contextmanager
    def _encoding(self, texts: Iterable[str]) -> Iterator[None]:
        """Encode texts once and many at a time. tok_encode answers from them inside."""
        groups: dict[bool | None, list[str]] = {}
        for text in dict.fromkeys(texts):
            groups.setdefault(self._adds_bos(text), []).append(text)
        try:
            for special, group in groups.items():
                for first in range(0, len(group), _TEXTS):
                    slab = group[first : first + _TEXTS]
                    self._encoded.update(zip(slab, self._encode(slab, special), strict=True))
            yield
        finally:
            self._encoded.clear()

    def tok_decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return tokenizers.render_chat(self.tokenizer, chat_history, add_generation_prompt, self.enable_thinking)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        self.check_requests()
        texts = [request.args[0] for request in requests]
        with self._encoding(texts):
            ids = map(self.tok_encode, texts)
            windows = [rolling_windows(text_ids, self.prefix_token_id, self.max_length) for text_ids in ids]
        answers = [0.0] * len(requests)  # an empty document has no window and counts as 0, as in the harness
        owners = [index for index, text_windows in enumerate(windows) for _ in text_windows]
        unscored = list(map(len, windows))
        bar = tqdm(total=len(owners), desc="Scoring windows", unit="window", disable=disable_tqdm or None)

        def keep(position: int, scores: WindowScores) -> None:
            index = owners[position]
            answers[index] += float(scores.logprobs.sum(dtype="float64"))
            unscored[index] -= 1
            self._count(requests[index], len(scores.logprobs), complete=not unscored[index])
            if not unscored[index]:
                self._keep(requests[index], answers[index])
            bar.update()

        with bar:
            self.engine.score(list(chain.from_iterable(windows)), done=keep)
        for index, text_windows in enumerate(windows):
            if not text_windows:
                self._count(requests[index], 0)
                self._keep(requests[index], 0.0)
        return answers

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As in the harness. A context of white space becomes part of the continuation, as behind an empty context."""
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        return context_ids or [self.prefix_token_id], continuation_ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if not all(map("".join, (request.args for request in requests))):
            raise UsageError("A context and its continuation are both empty. Give a continuation to score.")
        self.check_requests()
        self._scoring = requests
        pairs = [request.args for request in requests]
        # the harness moves white space between the two, and encodes a context for every continuation
        with self._encoding(text for context, rest in pairs for text in (context.rstrip(), context + rest)):
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        windows = [self._fitted(context, continuation) for _, context, continuation in requests]
        cut = sum(len(window.context) < len(row[1]) for window, row in zip(windows, requests, strict=True))
        if cut:
            log.warning(
                "%d of %d contexts do not fit into the window of %d tokens. They were cut on the left.",
                *(cut, len(requests), self.max_length),
            )
        answers = [(0.0, False)] * len(requests)
        bar = tqdm(total=len(requests), desc="Scoring continuations", disable=disable_tqdm or None)

        def keep(index: int, scores: WindowScores) -> None:
            answers[index] = (float(scores.logprobs.sum(dtype="float64")), bool(scores.greedy.all()))
            self._count(self._scoring[index], len(scores.logprobs))
            self._keep(self._scoring[index], answers[index])
            bar.update()

        with bar:
            self.engine.score(windows, done=keep)
        return answers

    def _fitted(self, context: list[int], continuation: list[int]) -> Window:
        """The window of a request. A context that does not fit is cut on the left, as in the harness."""
        if not continuation:
            raise UsageError("A continuation adds no token to its context. Give one with a token to score.")
        if len(continuation) > self.max_length:
            raise UsageError(
                f"A continuation of {len(continuation)} tokens does not fit into the window of {self.max_length}. "
                "Give a larger max_length, or a model with a longer window."
            )
        return Window(tuple(context[len(continuation) - self.max_length - 1 :]), tuple(continuation))

    def _count(self, request: Instance, scored_tokens: int, *, complete: bool = True) -> None:
        task = self.scored.setdefault(str(request.task_name), {"requests": 0, "tokens": 0})
        task["requests"] += complete
        task["tokens"] += scored_tokens

    def _keep(self, request: Instance, answer: Any) -> None:
        self.answered.setdefault(id(request), []).append(answer)
        self.cache_hook.add_partial(request.request_type, request.args, answer)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.check_requests()
        groups: dict[str, list[int]] = {}  # requests of one kind share a batch
        for index, instance in enumerate(requests):
            groups.setdefault(repr(instance.args[1]), []).append(index)
        kinds = [self._generation(requests[indices[0]].args[1]) for indices in groups.values()]
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="Generating", disable=disable_tqdm or None) as bar:
            for kind, indices in zip(kinds, groups.values(), strict=True):
                self._generate(requests, indices, kind, answers, bar.update)
        return answers

    def _generation(self, arguments: Mapping[str, Any]) -> Generation:
        """Read generation arguments, which the engine's library judges too.

        Raises:
            UsageError: they do not suit this model.
        """
        thinks = self._end_of_thought is not None
        kind = generation.read(arguments, self.max_gen_toks, self.facts.name, thinks=thinks)
        if kind.request.max_new_tokens >= self.max_length:
            raise UsageError(
                f"max_gen_toks={kind.request.max_new_tokens} leaves no room for a prompt in the window of "
                f"{self.max_length} tokens. Give a smaller number."
            )
        try:
            self.engine.generate([], kind.request)
        except EngineError as error:
            raise UsageError(f"{error} Give other generation arguments.") from error
        return kind

    def _generate(
        self,
        instances: list[Instance],
        indices: list[int],
        kind: Generation,
        answers: list[str],
        done: Callable[[], object],
    ) -> None:
        """Fill in the answers of instances that share their generation arguments."""

        def keep(position: int, completion: Completion) -> None:
            index = indices[position]
            answers[index] = generation.answer(completion.token_ids, kind, self._end_of_thought, self.tokenizer)
            self._keep(instances[index], answers[index])
            done()

        with self._encoding(instances[index].args[0] for index in indices):
            prompts = [self._prompt(instances[index].args[0], kind.request) for index in indices]
        self.engine.generate(prompts, kind.request, keep)

    def _prompt(self, text: str, request: GenerationRequest) -> list[int]:
        room = self.max_length - request.max_new_tokens
        ids = self.tok_encode(text) or [self.prefix_token_id]  # no model continues nothing
        if len(ids) > room:
            log.warning("A prompt of %d tokens was cut on the left to %d, so that it fits the window.", len(ids), room)
        return ids[-room:]
