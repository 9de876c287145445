"""The harness's `LM`: log-likelihoods and texts of a fused model.

In raw mode every specialist gets the same ids, and these are the ones that the harness's own Hugging Face model makes
of a request. Otherwise a request's context is the user's message; a request without one, so all of
`loglikelihood_rolling`, is raw in either mode, since there is nothing to answer. Templates are put around requests in
`harness.templated_requests`; scoring is `inference.scoring`.
"""

import collections
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from megafuser.errors import UserError
from megafuser.harness.answers import Answers
from megafuser.harness.generation import DEFAULT_MAX_GEN_TOKS, Generation, draws_seed, parse_generation
from megafuser.harness.templated_requests import Templated
from megafuser.inference.open_model import FusedLanguageModel
from megafuser.inference.prompts import Ids
from megafuser.inference.request import Call, Request
from megafuser.inference.scheduler import Scheduler
from megafuser.inference.scoring import Continuation, score
from megafuser.inference.step_messages import Prediction

logger = logging.getLogger(__name__)

_AT_ONCE = 1024  # requests whose ids and predictions are in memory together


class FusedLM(TemplateLM):
    """Runs on the rank that leads, while the others follow the engine."""

    backend = "causal"

    def __init__(
        self, model: FusedLanguageModel, answers: Answers, *, raw: bool, max_running: int, description: str = ""
    ) -> None:
        """Takes an open model.

        Args:
            model: answers requests.
            answers: what is known, and where new answers go.
            raw: the same ids to all specialists.
            max_running: most contexts in a step.
            description: put before what the progress bars say.
        """
        super().__init__()
        self.tokenizer = model.tokenizer
        self._model = model
        self._answers = answers
        self._raw = raw
        self._max_running = max_running
        self._description = description
        self._templated = Templated(model)
        self._cut = 0

    @property
    def eot_token_id(self) -> int:
        """Ends a text."""
        own = self.tokenizer.eos_token_id
        return self._model.end_id if own is None else own

    @property
    def prefix_token_id(self) -> int:
        """Stands in front of a text that has no context."""
        own = self.tokenizer.bos_token_id
        return self.eot_token_id if own is None else own

    @property
    def max_length(self) -> int:
        """Positions of the context window."""
        return self._model.limit

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a response where a task does not say."""
        return DEFAULT_MAX_GEN_TOKS

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's results."""
        return str(self.tokenizer.name_or_path)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness's results say of the model."""
        return {"checkpoint": self._model.name, "specialists": list(self._model.specialists), "raw": self._raw}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The first specialist's ids of a text; a BOS is not doubled where the text begins with one."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        if add_special_tokens is None:
            ids: list[int] = self.tokenizer.encode(string)
            return ids
        ids = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-likelihood, and whether greedy decoding gives it."""
        keys, found = self._scored(
            "loglikelihood", requests, lambda context, continuation: [self._pair(context, continuation)], disable_tqdm
        )
        return [(found[key][0], found[key][1]) for key in keys]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each text: its log-likelihood, in windows of the context's length."""
        keys, found = self._scored("loglikelihood_rolling", requests, self._windows, disable_tqdm)
        return [found[key][0] for key in keys]

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("requests are encoded and scored a few at a time; see loglikelihood")

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Of each (context, settings): the response, without what a stop string cut off."""
        repeats: collections.Counter[str] = collections.Counter()
        keys = []
        wanted: dict[str, tuple[str, Generation]] = {}
        end = self.tokenizer.decode(self.eot_token_id)
        for context, values in (request.args for request in requests):
            first = self._answers.key("generate_until", (context, values))
            generation = parse_generation(values, end=end, seed=draws_seed(context, values, repeats[first]))
            repeat = repeats[first] if generation.sampling.temperature > 0 else 0
            repeats[first] += 1
            keys.append(self._answers.key("generate_until", (context, values), repeat))
            if keys[-1] not in self._answers:
                wanted[keys[-1]] = context, generation
        scheduler = Scheduler(self._model.engine, max_running=self._max_running)
        with self._bar("generate_until", len(keys), len(keys) - len(wanted), disable_tqdm) as bar:
            for part in _batched(wanted.items()):
                names: dict[int, str] = {}
                for key, (context, generation) in part:
                    call = Call(
                        prompts=self._prompt(context, generation.max_tokens),
                        max_tokens=generation.max_tokens,
                        sampling=generation.sampling,
                        stop=generation.stop,
                    )
                    request = Request(call, tokenizer=self.tokenizer, end_id=self._model.end_id)
                    names[id(request)] = key
                    scheduler.add(request)

                def keep(request: Request, names: Mapping[int, str] = names) -> None:
                    self._answers[names[id(request)]] = request.text.text
                    bar.update()

                scheduler.run(keep)
        self._tell_of_cuts()
        return [self._answers[key] for key in keys]

    def _scored(
        self,
        kind: str,
        requests: Sequence[Instance],
        encode: Callable[..., list[Continuation]],
        disable_tqdm: bool,
    ) -> tuple[list[str], Answers]:
        """Scores what is not known yet; gives the requests' keys, and where the answers are."""
        keys = [self._answers.key(kind, request.args) for request in requests]
        wanted = {key: request.args for key, request in zip(keys, requests, strict=True) if key not in self._answers}
        with self._bar(kind, len(keys), sum(key not in wanted for key in keys), disable_tqdm) as bar:
            for part in _batched(wanted.items()):
                pieces = [(key, piece) for key, arguments in part for piece in encode(*arguments)]
                left = collections.Counter(key for key, _ in pieces)
                sums = {key: [0.0, True] for key, _ in part}

                def keep(
                    number: int,
                    predictions: Sequence[Prediction],
                    pieces: Sequence[tuple[str, Continuation]] = pieces,
                    left: collections.Counter[str] = left,
                    sums: dict[str, list[Any]] = sums,
                ) -> None:
                    key = pieces[number][0]
                    sums[key][0] += sum(prediction.logprob for prediction in predictions)
                    sums[key][1] &= all(prediction.is_greedy for prediction in predictions)
                    left[key] -= 1
                    if not left[key]:
                        self._answers[key] = sums[key]
                        bar.update()

                score(
                    self._model.engine,
                    [piece for _, piece in pieces],
                    max_running=self._max_running,
                    on_scored=keep,
                )
                for key, _ in part:
                    if key not in self._answers:  # a text without tokens
                        self._answers[key] = sums[key]
        self._tell_of_cuts()
        return keys, self._answers

    def _pair(self, context: str, continuation: str) -> Continuation:
        """A continuation and what it stands behind, as ids."""
        if not self._raw and context.strip():
            return self._templated.pair(context, continuation)
        if context == "":
            ids = self.tok_encode(continuation, add_special_tokens=False)
            front = [self.prefix_token_id]
            # not twice
            front, ids = (front, ids) if ids[:1] != front else (ids[:1], ids[1:])
        else:
            front, ids = self._encode_pair(context, continuation)
        return self._raw_continuation(front, ids)

    def _windows(self, text: str) -> list[Continuation]:
        """A text in windows: each token is scored once, with as much before it as there is room for."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [self._raw_continuation(*make_disjoint_window(window)) for window in windows]

    def _raw_continuation(self, context: Sequence[int], ids: Sequence[int]) -> Continuation:
        specialists = len(self._model.specialists)
        whole = Continuation((tuple(context),) * specialists, tuple(ids))  # refuses what has no tokens
        if len(ids) > self.max_length:
            raise UserError(
                f"a continuation has {len(ids)} tokens, and the context window {self.max_length}; leave its task out"
            )
        room = self.max_length + 1 - len(ids)  # the last token is not read
        self._cut += len(context) > room
        self._model.prompts.raw_ids(ids, specialists)
        return Continuation(self._model.prompts.raw_ids(context[-room:], specialists), whole.ids)

    def _prompt(self, context: str, max_tokens: int) -> Ids:
        """What is to be answered with so many tokens, as ids."""
        room = self.max_length - max_tokens
        if room < 1:
            raise UserError(
                f"generation_kwargs.max_gen_toks is {max_tokens}, and the context window has {self.max_length} tokens; "
                "give the task a smaller one"
            )
        if not self._raw and context.strip():
            return self._templated.prompt(context, max_tokens)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        self._cut += len(ids) > room
        return self._model.prompts.raw_ids(ids[-room:], len(self._model.specialists))

    def _tell_of_cuts(self) -> None:
        cut, self._cut, self._templated.cut = self._cut + self._templated.cut, 0, 0
        if cut:
            logger.warning(
                "%d requests were longer than the context window of %d tokens and lost their beginning",
                cut,
                self.max_length,
            )

    def _bar(self, kind: str, total: int, known: int, is_off: bool) -> tqdm:
        description = " ".join(filter(None, [self._description, kind]))
        return tqdm(total=total, initial=known, desc=description, unit="request", disable=is_off, mininterval=1.0)


def _batched(items: Iterable[tuple[str, Any]]) -> Iterable[list[tuple[str, Any]]]:
    rest = iter(items)
    while part := list(itertools.islice(rest, _AT_ONCE)):
        yield part
