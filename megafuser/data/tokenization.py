"""Samples to ids: K prompts and one shared response each.

The ids of a sample: prompt_k is specialist k's tokenizer on the prompt in that specialist's template, behind the
special tokens that this tokenizer puts in front by default. The response is tokenized by itself, so its ids do not
depend on the template, and the end id follows it.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megafuser.config.data import DomainConfig
from megafuser.config.schema import RunConfig
from megafuser.data.sources.samples import Sample, read_samples
from megafuser.data.sources.split import in_valid
from megafuser.data.templates import Template, TemplateRefusal, get_template
from megafuser.data.tokenized import TokenizedDomain, TokenStore
from megafuser.data.vocabulary import end_id, shared_vocabulary
from megafuser.errors import UserError

CHUNK = 1024  # samples encoded at once: enough for the tokenizers' batches, and few enough to hold as Python lists

RESPONSE_DIFFERS = "the tokenizers give the response different ids"
RESPONSE_UNSHARED = "the response has tokens outside the shared vocabulary"
PROMPT_EMPTY = "a prompt has no token that could predict the response"
PROMPT_UNKNOWN = "a prompt has tokens without an embedding"

logger = logging.getLogger(__name__)


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
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"specialist {name}: the tokenizer in {directory} does not load: {reason}") from error
    return tokenizers


def load_data(
    config: RunConfig,
    tokenizers: Mapping[str, Any],
    rows: Mapping[str, int],
    max_positions: Mapping[str, int],
    split: str,
) -> list[TokenizedDomain]:
    """Reads and tokenizes one split of every domain, in the order of the configuration.

    Args:
        config: the run.
        tokenizers: by specialist name, as `load_tokenizers` gives them.
        rows: embedding rows of each specialist.
        max_positions: `max_position_embeddings` of each specialist.
        split: "train" or "valid".

    Raises:
        UserError: the vocabularies or end ids do not agree, a template or a data file is wrong, or nothing is left of
            a domain.
    """
    if split not in ("train", "valid"):
        raise ValueError(f"split must be 'train' or 'valid', not {split!r}")
    names = [specialist.name for specialist in config.specialists]
    ordered = {name: tokenizers[name] for name in names}
    shared = shared_vocabulary(ordered, rows)
    end = end_id(ordered, config.data.end_token, shared)
    templates = _templates(config, ordered)
    domains = []
    for name, domain in config.data.domains.items():
        tokenized = tokenize_domain(
            name,
            _read_split(domain, split, config.data.valid_fraction),
            tokenizers=list(ordered.values()),
            templates=templates,
            end_id=end,
            shared_vocabulary=shared,
            limit=min(config.data.sequence_length, *(max_positions[specialist] for specialist in names)),
            rows=[rows[specialist] for specialist in names],
        )
        told = _told(tokenized.refused)
        logger.info("%s %s: %d samples%s", name, split, len(tokenized), f", refused {told}" if told else "")
        if not len(tokenized):
            raise UserError(f"no {split} sample of domain {name} is left: {told}; correct data.domains.{name}.{split}")
        domains.append(tokenized)
    return domains


def _read_split(domain: DomainConfig, split: str, fraction: float) -> list[Sample]:
    """A domain's samples of one split; where there is no `valid`, a share of `train` is kept apart for it."""
    if domain.valid:
        return read_samples(domain.sources(split))
    return [
        sample for sample in read_samples(domain.sources("train")) if in_valid(sample, fraction) == (split == "valid")
    ]


def tokenize_domain(
    name: str,
    samples: Sequence[Sample],
    *,
    tokenizers: Sequence[Any],
    templates: Sequence[Template],
    end_id: int,
    shared_vocabulary: int,
    limit: int,
    rows: Sequence[int] | None = None,
) -> TokenizedDomain:
    """Tokenizes samples for K specialists; those that cannot be fused over are refused and counted.

    Args:
        name: the domain.
        samples: as `read_samples` gives them.
        tokenizers: K tokenizers.
        templates: K templates.
        end_id: the id that ends every response.
        shared_vocabulary: response ids are below this.
        limit: longest view that is kept, in positions.
        rows: embedding rows of the K specialists; a prompt with an id beyond them is refused. None: not checked.
    """
    end_text = tokenizers[0].convert_ids_to_tokens(end_id)
    fronts = [_front(tokenizer) for tokenizer in tokenizers]
    bounds = [np.iinfo(np.int32).max] * len(tokenizers) if rows is None else list(rows)
    store = TokenStore(len(tokenizers))
    refused: Counter[str] = Counter()
    for start in range(0, len(samples), CHUNK):
        chunk, prompts = _render(samples[start : start + CHUNK], templates, end_text, refused)
        responses = [response for sample in chunk for _, response in sample.turns]
        response_ids = [_encode(tokenizer, responses) for tokenizer in tokenizers]
        prompt_ids = [_encode(tokenizer, texts) for tokenizer, texts in zip(tokenizers, prompts, strict=True)]
        turn = 0
        for sample in chunk:
            turns = range(turn, turn + len(sample.turns))
            turn = turns.stop
            own_responses = [[*response_ids[0][index], end_id] for index in turns]
            own_prompts = [
                list(_with_front([encoded[index] for index in turns], front, template.repeats_bos))
                for encoded, front, template in zip(prompt_ids, fronts, templates, strict=True)
            ]
            differ = any(encoded[index] != response_ids[0][index] for encoded in response_ids[1:] for index in turns)
            reason = (
                RESPONSE_DIFFERS if differ else _refusal(own_prompts, own_responses, shared_vocabulary, bounds, limit)
            )
            if reason is None:
                store.add(sample.id, own_prompts, own_responses)
            else:
                refused[reason] += 1
    return store.freeze(name, dict(refused))


def _templates(config: RunConfig, tokenizers: Mapping[str, Any]) -> list[Template]:
    """The specialists' templates; what is wrong with one is told with its specialist's name."""
    templates = []
    for specialist in config.specialists:
        try:
            templates.append(get_template(specialist.template, tokenizers[specialist.name]))
        except UserError as error:
            raise UserError(f"specialist {specialist.name}: {error}") from error
    return templates


def _render(
    samples: Sequence[Sample], templates: Sequence[Template], end_text: str, refused: Counter[str]
) -> tuple[list[Sample], list[list[str]]]:
    """The samples that every template can put, and per specialist their prompts, turn after turn."""
    kept: list[Sample] = []
    prompts: list[list[str]] = [[] for _ in templates]
    for sample in samples:
        try:
            own = [template.prompts(sample.turns, sample.system, end_text) for template in templates]
        except TemplateRefusal as refusal:
            refused[str(refusal)] += 1
            continue
        kept.append(sample)
        for column, texts in zip(prompts, own, strict=True):
            column.extend(texts)
    return kept, prompts


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of each text, without the special tokens that the tokenizer adds."""
    if not texts:
        return []
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return encoded["input_ids"]


def _front(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts in front of a text by default; those it appends are left out."""
    probe = "a"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full = tokenizer(probe)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    raise UserError(f"the tokenizer in {tokenizer.name_or_path} changes a text's ids when it adds special tokens")


def _with_front(prompts: Sequence[list[int]], front: list[int], repeats: bool) -> Iterator[list[int]]:
    """A sample's prompts with the front before the first, once; later ones are left without it unless it `repeats`."""
    for index, ids in enumerate(prompts):
        written = bool(front) and ids[: len(front)] == front
        if index == 0:
            yield ids if written else front + ids
        else:
            yield ids[len(front) :] if written and not repeats else ids


def _refusal(
    prompts: Sequence[Sequence[list[int]]],
    responses: Sequence[list[int]],
    shared_vocabulary: int,
    bounds: Sequence[int],
    limit: int,
) -> str | None:
    """Why a sample of these ids cannot be used, or None."""
    if max(map(max, responses)) >= shared_vocabulary:
        return RESPONSE_UNSHARED
    if any(not own[0] for own in prompts):
        return PROMPT_EMPTY
    if any(max(ids, default=0) >= bound for own, bound in zip(prompts, bounds, strict=True) for ids in own):
        return PROMPT_UNKNOWN
    length = sum(map(len, responses)) + max(sum(map(len, own)) for own in prompts)
    return f"longer than {limit} positions" if length > limit else None


def _told(refused: Mapping[str, int]) -> str:
    """The counts by reason, on one line."""
    return ", ".join(f"{count} ({reason})" for reason, count in refused.items())
