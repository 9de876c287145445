"""Samples to ids: K prompts and one shared response each.

The ids of a sample: prompt_k is specialist k's tokenizer on the prompt in that specialist's template, behind the
special tokens that this tokenizer puts in front by default. The response is tokenized by itself, so its ids do not
depend on the template, and the end id follows it. Templates are `data.templates`; keeping control tokens out of texts
is `data.control_tokens`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megafuser.config.builtin_templates import Template
from megafuser.config.data import LengthConfig
from megafuser.config.specialists import TemplateConfig
from megafuser.data.control_tokens import Protection, TextTokenizer, has_reserved, shows_marks
from megafuser.data.sources.records import BadRecord
from megafuser.data.sources.samples import Sample
from megafuser.data.templates import JinjaTemplate, TemplateRefusal, get_template
from megafuser.errors import UserError, first_line

RESPONSE_DIFFERS = "the tokenizers give the response different ids"
RESPONSE_UNSHARED = "the response has tokens outside the shared vocabulary"
PROMPT_EMPTY = "a prompt has no token that could predict the response"
PROMPT_UNKNOWN = "a prompt has tokens without an embedding"
CONTROL_TOKEN = "a text spells out a control token"
_PROBE = "a"
RESERVED = "a text has noncharacters of Unicode, from U+FDD0 to U+FDEF"


def load_tokenizers(directories: Mapping[str, Path]) -> dict[str, Any]:
    """Loads the tokenizer of each specialist from its Hugging Face directory; no code of the directory runs.

    Raises:
        UserError: a directory has no tokenizer that loads.
    """
    from transformers import AutoTokenizer

    tokenizers = {}
    for name, directory in directories.items():
        if not Path(directory).is_dir():
            raise UserError(f"specialist {name}: {directory} is not a directory; give one that has a tokenizer")
        try:
            tokenizers[name] = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            # The Rust tokenizers raise bare Exception on a damaged file, and transformers half a dozen types.
            raise UserError(
                f"specialist {name}: the tokenizer in {directory} does not load ({first_line(error)}); download "
                "it again"
            ) from error
        if not isinstance(getattr(tokenizers[name], "added_tokens_decoder", None), Mapping):
            # as that of mistral-common, which transformers takes for tekken.json where it is installed
            kind = type(tokenizers[name]).__name__
            raise UserError(
                f"specialist {name}: the tokenizer in {directory} loads as {kind}, which does not tell its tokens; add "
                "a tokenizer.json, or uninstall mistral-common"
            )
    return tokenizers


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder needs to know, apart from the tokenizers; the same ids follow from it in any process.

    Attributes:
        templates: of the K specialists, as the configuration has them.
        end_id: the id that ends every response.
        shared_vocabulary: response ids are below this.
        limit: longest view that is kept, in positions.
        rows: embedding rows of the K specialists; a prompt with an id beyond them is refused.
        too_long: `drop` or `truncate`, for samples beyond the limit.
        lengths: which lengths are kept.
    """

    templates: tuple[str | TemplateConfig, ...]
    end_id: int
    shared_vocabulary: int
    limit: int
    rows: tuple[int, ...]
    too_long: str = "drop"
    lengths: LengthConfig = field(default_factory=LengthConfig)


@dataclass
class Encoded:
    """Samples as ids, in order.

    Attributes:
        samples: the kept ones.
        prompts: of each specialist, by sample and turn, the prompt's ids, special tokens in front included.
        responses: by sample and turn, the response's ids; the end id is the last, but not where a response was cut.
        refused: those that cannot be fused over, as (reason, place).
        failed: those that a template cannot put.
        truncated: places of the kept ones that were cut.
        spelled_out: places of those with a text that spells out a control token, which stays text, kept or not.
    """

    samples: list[Sample]
    prompts: list[list[list[list[int]]]]
    responses: list[list[list[int]]]
    refused: list[tuple[str, str]]
    failed: list[BadRecord]
    truncated: set[str]
    spelled_out: set[str]


class Encoder:
    """Tokenizes samples for K specialists; those that cannot be fused over are refused.

    Attributes:
        spec: what was given.
        tokenizers: of the K specialists.
        templates: theirs.
        fronts: the special tokens that each tokenizer puts in front of a text by default.
    """

    def __init__(self, spec: EncoderSpec, tokenizers: Sequence[Any]) -> None:
        """Makes the templates and looks at what the tokenizers do by default.

        Raises:
            UserError: a template does not work.
        """
        self.spec = spec
        self.tokenizers = list(tokenizers)
        self.templates = [
            get_template(own, tokenizer) for own, tokenizer in zip(spec.templates, tokenizers, strict=True)
        ]
        self.fronts = [front_tokens(tokenizer) for tokenizer in tokenizers]
        self._end_text = tokenizers[0].convert_ids_to_tokens(spec.end_id)
        self._encoders = [
            TextTokenizer(tokenizer, [self._end_text, *_probes(template)])
            for tokenizer, template in zip(tokenizers, self.templates, strict=True)
        ]
        # Of users' own templates: what they write where there is no control token in the texts.
        self._expected: list[dict[tuple[bool, bool], list[str]]] = [{} for _ in tokenizers]
        self._protection = Protection(self._encoders)
        self._all_exact = all(encoder.exact for encoder in self._encoders)
        keys = [encoder.key for encoder in self._encoders]
        # Of tokenizers that cannot differ on a text, the first one stands for all.
        self._distinct = [encoder for index, encoder in enumerate(self._encoders) if keys.index(keys[index]) == index]

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Makes ids of a few samples at once."""
        found = Encoded([], [[] for _ in self.tokenizers], [], [], [], set(), set())
        chunk, prompts = self._render(samples, found)
        responses = [response for sample in chunk for _, response in sample.turns]
        response_ids = [encoder.encode_texts(responses) for encoder in self._distinct]
        prompt_ids = [
            encoder.encode_prompts(rendered) for encoder, rendered in zip(self._encoders, prompts, strict=True)
        ]
        turn = 0
        for sample in chunk:
            turns = range(turn, turn + len(sample.turns))
            turn = turns.stop
            if any(encoded[index] != response_ids[0][index] for encoded in response_ids[1:] for index in turns):
                found.refused.append((RESPONSE_DIFFERS, sample.where))
                continue
            own_prompts = [
                list(_with_front([encoded[index] for index in turns], front, template.repeats_bos))
                for encoded, front, template in zip(prompt_ids, self.fronts, self.templates, strict=True)
            ]
            self._keep_or_refuse(
                sample, own_prompts, [[*response_ids[0][index], self.spec.end_id] for index in turns], found
            )
        return found

    def _keep_or_refuse(
        self, sample: Sample, prompts: list[list[list[int]]], responses: list[list[int]], found: Encoded
    ) -> None:
        reason = self._refusal(prompts, responses)
        cut = False
        if reason is None and _longest(prompts, responses) > self.spec.limit:
            cut = self.spec.too_long == "truncate"
            if cut:
                prompts, responses = truncate(prompts, responses, self.spec.limit)
            if not cut or not responses:
                reason = f"longer than {self.spec.limit} positions"
        reason = reason or self._length_refusal(prompts, responses)
        if reason is not None:
            found.refused.append((reason, sample.where))
            return
        found.samples.append(sample)
        found.responses.append(responses)
        if cut:
            found.truncated.add(sample.where)
        for column, own in zip(found.prompts, prompts, strict=True):
            column.append(own)

    def _refusal(self, prompts: Sequence[Sequence[list[int]]], responses: Sequence[list[int]]) -> str | None:
        """Why a sample of these ids cannot be fused over, or None."""
        if max(map(max, responses)) >= self.spec.shared_vocabulary:
            return RESPONSE_UNSHARED
        if any(not own[0] for own in prompts):
            return PROMPT_EMPTY
        if any(max(ids, default=0) >= bound for own, bound in zip(prompts, self.spec.rows, strict=True) for ids in own):
            return PROMPT_UNKNOWN
        return None

    def _length_refusal(self, prompts: Sequence[Sequence[list[int]]], responses: Sequence[list[int]]) -> str | None:
        """Which of `lengths` a sample is outside of, or None."""
        kept = self.spec.lengths
        whole, response = _longest(prompts, responses), sum(map(len, responses))
        for name, length, least, most in (
            ("tokens", whole, kept.min_tokens, kept.max_tokens),
            ("response tokens", response, kept.min_response_tokens, kept.max_response_tokens),
        ):
            if length < least:
                return f"fewer than {least} {name}"
            if most is not None and length > most:
                return f"more than {most} {name}"
        return None

    def _render(self, samples: Sequence[Sample], found: Encoded) -> tuple[list[Sample], list[list[str]]]:
        """The samples that every template can put, and per specialist their prompts, turn after turn."""
        kept: list[Sample] = []
        spelled_out = found.spelled_out
        prompts: list[list[str]] = [[] for _ in self.templates]
        for sample in samples:
            texts = [sample.system or "", *(text for turn in sample.turns for text in turn)]
            if any(map(has_reserved, texts)):
                found.refused.append((RESERVED, sample.where))
                continue
            if any(map(self._protection.spelled_out, texts)):
                if not self._all_exact:
                    found.refused.append((CONTROL_TOKEN, sample.where))
                    continue
                spelled_out.add(sample.where)
            system, *rest = map(self._protection.protect, texts)
            turns = list(zip(rest[::2], rest[1::2], strict=True))
            try:
                own = [template.prompts(turns, system or None, self._end_text) for template in self.templates]
            except TemplateRefusal as refusal:
                found.failed.append(BadRecord(sample.where, str(refusal), "template fails"))
                continue
            if any(self._writes_others(specialist, rendered, bool(system)) for specialist, rendered in enumerate(own)):
                found.refused.append((CONTROL_TOKEN, sample.where))
                continue
            kept.append(sample)
            for column, rendered in zip(prompts, own, strict=True):
                column.extend(rendered)
        return kept, prompts

    def _writes_others(self, specialist: int, rendered: Sequence[str], has_system: bool) -> bool:
        """Whether a user's template made control tokens of what it was given, as by changing its case."""
        template, encoder = self.templates[specialist], self._encoders[specialist]
        if any(map(shows_marks, rendered)):
            return True
        if not isinstance(template, JinjaTemplate):
            return False
        for index, text in enumerate(rendered):
            key = (index == 0, has_system and index == 0)
            expected = self._expected[specialist]
            if key not in expected:
                expected[key] = encoder.control_in(template.turn(_PROBE, _PROBE if key[1] else None, key[0]))
            if encoder.control_in(text) != expected[key]:
                return True
        return False


def _probes(template: Template) -> list[str]:
    """What a template writes around texts without control tokens, in a chat with a system prompt and without."""
    found = []
    for system in (None, _PROBE):
        # A template may refuse a system prompt, or a second turn.
        with contextlib.suppress(TemplateRefusal):
            found += template.prompts([(_PROBE, _PROBE), (_PROBE, _PROBE)], system, "")
        with contextlib.suppress(TemplateRefusal):
            found += template.prompts([(_PROBE, _PROBE)], system, "")
    return found


def truncate(
    prompts: Sequence[Sequence[list[int]]], responses: Sequence[list[int]], limit: int
) -> tuple[list[list[list[int]]], list[list[int]]]:
    """Cuts a sample behind the last position that all views have room for; a response that is cut has no end id.

    Args:
        prompts: by specialist and turn.
        responses: by turn, end ids included.
        limit: positions of a view.

    Returns:
        The prompts and responses that are left; none where no response token fits.
    """
    used = [0] * len(prompts)
    for turn, response in enumerate(responses):
        used = [before + len(own[turn]) for before, own in zip(used, prompts, strict=True)]
        room = limit - max(used)
        if room < len(response):
            # without the end id, which would teach to stop in the middle, at least one token must be left
            kept = turn + (room > 0)
            left = [*responses[:turn], response[: max(room, 0)]][:kept]
            return [list(own[:kept]) for own in prompts], left
        used = [before + len(response) for before in used]
    return [list(own) for own in prompts], list(responses)


def front_tokens(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts in front of a text by default; those it appends are left out.

    Raises:
        UserError: its ids of a text depend on whether it adds them.
    """
    probe = "a"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full = tokenizer(probe)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            in_front: list[int] = full[:start]
            return in_front
    raise UserError(
        f"the tokenizer in {tokenizer.name_or_path} changes a text's ids when it adds special tokens; give another "
        "specialist"
    )


def _with_front(prompts: Sequence[list[int]], front: list[int], repeats: bool) -> Iterator[list[int]]:
    """A sample's prompts with the front before the first, once; later ones are left without it unless it `repeats`."""
    for index, ids in enumerate(prompts):
        written = bool(front) and ids[: len(front)] == front
        if index == 0:
            yield ids if written else front + ids
        else:
            yield ids[len(front) :] if written and not repeats else ids


def _longest(prompts: Sequence[Sequence[list[int]]], responses: Sequence[list[int]]) -> int:
    """Positions of a sample's longest view."""
    return sum(map(len, responses)) + max(sum(map(len, own)) for own in prompts)
