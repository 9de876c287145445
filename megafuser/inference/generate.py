"""`megafuser generate`: one prompt to standard output, or a file of prompts to a file of completions.

Sharing steps is `inference.scheduler`, choosing tokens `inference.sampling`.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megafuser.errors import UserError, explained_paths
from megafuser.inference.open_model import FusedLanguageModel, Opening, open_checkpoint
from megafuser.inference.partial_answers import PartialAnswers, answer_settings
from megafuser.inference.prompt_file import PromptLine, read_prompts
from megafuser.inference.prompts import Ids, Message
from megafuser.inference.request import Call, Request
from megafuser.inference.sampling import SamplingParameters
from megafuser.inference.scheduler import Scheduler
from megafuser.inference.stopping import AskedToStop, leave_it_to_rank_zero, until_asked_to_stop
from megafuser.inference.terminal_colours import coloured, listed, token_texts
from megafuser.runtime.world import detect_world

logger = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Options:
    """What to generate.

    Attributes:
        prompt: one prompt; or
        file: JSONL with a prompt a line, and
        out: the file to write.
        overwrite: replaces `out`.
        raw: the prompts go to all specialists as they are.
        system: system prompt of `prompt`.
        max_new_tokens: most tokens of a completion; None: 256, or what the context has room for.
        sampling: how tokens are chosen.
        stop: strings that end a completion.
        show_gate: whether the gate's weights are wanted.
        max_running: most prompts at once.
    """

    prompt: str | None
    file: Path | None
    out: Path | None
    overwrite: bool
    raw: bool
    system: str | None
    max_new_tokens: int | None
    sampling: SamplingParameters
    stop: tuple[str, ...]
    show_gate: bool
    max_running: int


def run_generate(opening: Opening, options: Options) -> int:
    """Generates; every rank calls it.

    Returns:
        The exit code, 0.

    Raises:
        UserError: something that the user can mend; nothing is written then.
        StoppedEarly: by a signal while a file is answered; on rank 0.
    """
    with explained_paths():
        lines = _lines(options)
        answers = _partial_answers(opening, lines, options)
    with open_checkpoint(opening) as model:
        if answers is not None and detect_world().rank != 0:
            leave_it_to_rank_zero()
        prompts = [_encode(model, line, options) for line in lines]
        calls = [
            _call(model, own, line.where if options.file else "the prompt", options)
            for own, line in zip(prompts, lines, strict=True)
        ]
        with model.engine.following() as leads:
            if leads and answers is None:
                _to_terminal(model, calls[0], options)
            elif leads and answers is not None:
                _until_stopped(model, calls, answers, options)
                records = [line.record | answers[index] for index, line in enumerate(lines)]
                answers.finish("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return 0


def _lines(options: Options) -> list[PromptLine]:
    if options.file is not None:
        assert options.out is not None
        if options.out.exists() and not options.overwrite:
            raise UserError(f"--out {options.out} exists; choose another file or give --overwrite")
        if options.out.resolve() == options.file.resolve():
            raise UserError(f"--out {options.out} is --file; choose another file")
        return read_prompts(options.file, raw=options.raw)
    assert options.prompt is not None
    if not options.prompt.strip():
        raise UserError("--prompt is empty; give a text")
    system = [Message("system", options.system)] if options.system else []
    return [PromptLine({}, "--prompt", (*system, Message("user", options.prompt)))]


def _partial_answers(opening: Opening, lines: Sequence[PromptLine], options: Options) -> PartialAnswers | None:
    """Where the answers to a file are kept as they come, looked at and not touched yet."""
    if options.out is None:
        return None
    settings = answer_settings(
        opening,
        prompts=lines,
        raw=options.raw,
        max_new_tokens=options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        sampling=options.sampling,
        stop=options.stop,
        show_gate=options.show_gate,
    )
    answers = PartialAnswers(options.out, settings)
    answers.check(overwrite=options.overwrite)
    return answers


def _encode(model: FusedLanguageModel, line: PromptLine, options: Options) -> Ids:
    try:
        if options.raw:
            return model.prompts.raw(line.messages[-1].content, len(model.specialists))
        return model.prompts.chat(line.messages)
    except UserError as error:
        raise UserError(f"{line.where}: {error}") from None


def _call(model: FusedLanguageModel, prompts: Ids, where: str, options: Options) -> Call:
    longest = max(map(len, prompts))
    room = model.limit - longest
    if room < 1:
        raise UserError(f"{where} has {longest} tokens, and the context has {model.limit}; shorten it")
    wanted = options.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, room)
    if wanted > room:
        raise UserError(
            f"{where} has {longest} tokens, so that the context of {model.limit} has room for {room} more, not for "
            f"--max-new-tokens {wanted}; lower it"
        )
    return Call(prompts=prompts, max_tokens=wanted, sampling=options.sampling, stop=options.stop, continues=options.raw)


def _to_terminal(model: FusedLanguageModel, call: Call, options: Options) -> None:
    """The completion as it comes, and a newline; the gate's part goes to standard error."""

    def show(_: Request, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    request = Request(call, tokenizer=model.tokenizer, end_id=model.end_id, on_token=show)
    scheduler = Scheduler(model.engine, max_running=1)
    scheduler.add(request)
    try:
        scheduler.run()
        print(flush=True)
    except BrokenPipeError:  # who reads has enough, as `head` has; nothing may be flushed into it at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if options.show_gate:
        texts = _token_texts(model, request)
        shown = coloured if sys.stderr.isatty() else listed
        print(shown(texts, request.predictions, model.specialists), file=sys.stderr)


def _token_texts(model: FusedLanguageModel, request: Request) -> list[str]:
    """What each token adds to the response's text."""
    prompt = request.call.prompts[0] if request.call.continues else ()
    return token_texts(model.tokenizer, request.response, prompt)


def _until_stopped(model: FusedLanguageModel, calls: Sequence[Call], answers: PartialAnswers, options: Options) -> None:
    """Answers what is not answered yet; what is on disk when a signal comes is kept."""

    def told(asked: AskedToStop) -> str:
        kept = f"{asked} was received; {len(answers)} of {len(calls)} answers are in {answers.path}"
        # --overwrite would begin anew
        again = "it without --overwrite, and without a former --out," if options.overwrite else "the same command"
        return f"generating stopped, since {kept}; run {again} to go on"

    with until_asked_to_stop(model.engine, told):
        answers.begin(overwrite=options.overwrite)
        _answer_all(model, calls, answers, options)


def _answer_all(model: FusedLanguageModel, calls: Sequence[Call], answers: PartialAnswers, options: Options) -> None:
    if len(answers):
        logger.info("%d of %d answers are there already, in %s", len(answers), len(calls), answers.path)
    scheduler = Scheduler(model.engine, max_running=options.max_running)
    indices: dict[int, int] = {}
    for index, call in enumerate(calls):
        if index not in answers:
            request = Request(call, tokenizer=model.tokenizer, end_id=model.end_id)
            indices[id(request)] = index
            scheduler.add(request)
    with tqdm(total=len(calls), initial=len(answers), desc="generate", unit="prompt", mininterval=1.0) as bar:

        def keep(request: Request) -> None:
            answers.keep(indices[id(request)], _answer(model, request, options))
            bar.update()

        scheduler.run(keep)


def _answer(model: FusedLanguageModel, request: Request, options: Options) -> dict[str, Any]:
    """What a line of --out has beyond the prompt's."""
    assert request.finish is not None
    answer: dict[str, Any] = {"completion": request.text.text, "finish_reason": request.finish.value}
    if options.show_gate:
        answer["gate"] = {
            "specialists": list(model.specialists),
            "tokens": _token_texts(model, request),
            "weights": [[round(weight, 6) for weight in prediction.gate] for prediction in request.predictions],
        }
    return answer
