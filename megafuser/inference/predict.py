"""The last stage's end of a step: gate, mixed logits of the shared vocabulary, and what was asked about them.

Choosing a token from the logits is `inference.sampling`.
"""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state

from megafuser.fusion.model import FusedModel
from megafuser.fusion.vocabulary_parallel import SharedRows, VocabularyChunk
from megafuser.inference.sampling import choose
from megafuser.inference.step_messages import Ask, Prediction
from megafuser.specialist.inference_linear import product

_CHUNK_BYTES = 64 << 20


class Head:
    """Predicts from hidden states; the same on all tensor-parallel ranks of the last stage."""

    def __init__(self, model: FusedModel, forced: Sequence[float] | None = None) -> None:
        """Takes the model's gate and heads.

        Args:
            model: the last stage's piece.
            forced: K weights for every token, in the gate's place; None: the gate's.
        """
        assert model.gate is not None, "the gate lives on the last pipeline stage"
        self.gate = model.gate
        self.heads = [specialist.head_weight() for specialist in model.specialists]
        self.vocabulary = model.shared_vocabulary
        self.rows = SharedRows.of_this_rank(self.heads[0].shape[0], self.vocabulary)
        self.force(forced)

    def force(self, weights: Sequence[float] | None) -> None:
        """Gives every token these K weights, or the gate's again."""
        self.forced = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    def predict(self, hidden: Sequence[torch.Tensor], asks: Sequence[Ask]) -> list[list[Prediction]]:
        """Answers the asks of a step.

        Args:
            hidden: per specialist, [T, h_k]: the predicting positions of all asks, one ask after the other.
            asks: of the step.

        Returns:
            For each ask, as many predictions as it has outputs.
        """
        weights = self.gate(hidden)
        if self.forced is not None:
            weights = self.forced.to(weights.device).expand_as(weights)
        where = [(index, place) for index, ask in enumerate(asks) for place in range(ask.outputs)]
        found: list[list[Prediction]] = [[] for _ in asks]
        # of all ranks the same, since they gather chunk by chunk
        each = VocabularyChunk.bytes_per_token(self.heads[0].shape[0], len(self.heads), self.heads[0].dtype)
        size = max(1, _CHUNK_BYTES // each)
        for first in range(0, len(where), size):
            part = slice(first, first + size)
            logits = self.logits([states[part] for states in hidden], weights[part])
            own = [(asks[index], place) for index, place in where[part]]
            for (index, _), prediction in zip(where[part], _answers(logits, weights[part], own), strict=True):
                found[index].append(prediction)
        return found

    def logits(self, hidden: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """Σ_k w_k W_k h_k over the shared vocabulary, [T, V] float32, of hidden states [T, h_k] and weights [T, K]."""
        chunk = VocabularyChunk(self.rows, len(self.heads), len(weights), weights.device)
        heads = [head[: self.rows.count] for head in self.heads]
        if heads[0].dtype is torch.float32:
            for k, (states, head) in enumerate(zip(hidden, heads, strict=True)):
                chunk.logits[k] = product(states, head)
            chunk.mix(weights)
        else:
            chunk.fill(hidden, heads, weights)
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() == 1:
            return chunk.mixed
        # all ranks give as many rows, though the last ones hold fewer that count
        padded = torch.nn.functional.pad(chunk.mixed, (0, self.heads[0].shape[0] - self.rows.count))
        parts = [torch.empty_like(padded) for _ in range(group.size())]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat(parts, dim=1)[:, : self.vocabulary]


def _answers(logits: torch.Tensor, weights: torch.Tensor, asks: Sequence[tuple[Ask, int]]) -> list[Prediction]:
    """Of logits [T, V] and weights [T, K]; `asks` says for each position whose and the how-maniest output it is."""
    tokens = [
        ask.targets[place]
        if place < len(ask.targets)
        else choose(logits[row], ask.sampling, ask.prompt, ask.response, ask.drawn)  # type: ignore[arg-type]
        for row, (ask, place) in enumerate(asks)
    ]
    ids = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    normalizers = logits.logsumexp(dim=1)
    own = logits.gather(1, ids[:, None])[:, 0]
    greedy = (own >= logits.amax(dim=1)).tolist()
    logprobs, gates = (own - normalizers).tolist(), weights.tolist()
    most = max(ask.top for ask, _ in asks)
    top_ids: list[list[int]] = []
    top_logprobs: list[list[float]] = []
    if most:
        values, indices = logits.topk(min(most, logits.shape[1]), dim=1)
        top_ids, top_logprobs = indices.tolist(), (values - normalizers[:, None]).tolist()
    return [
        Prediction(
            token=tokens[row],
            logprob=logprobs[row],
            is_greedy=greedy[row],
            top=tuple(zip(top_ids[row][: ask.top], top_logprobs[row][: ask.top], strict=True)) if ask.top else (),
            gate=tuple(gates[row]),
            logits=logits[row].tolist() if ask.with_logits else (),
        )
        for row, (ask, _) in enumerate(asks)
    ]
