"""Tokenized samples in flat arrays: K prompts and one shared response each, without an object per token or turn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Lists of ids, end to end.

    Attributes:
        values: all ids, int32.
        offsets: `[lists + 1]` int64, where each list begins, and the end.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        """List `index`, without a copy."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> np.ndarray:
        """Length of each list, int64."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class TokenizedDomain:
    """One domain's samples of one split, N samples for K specialists.

    Attributes:
        name: the domain.
        sample_ids: N identities, as the sources give them.
        lengths: `[N, K]` int32, full length of each view: prompts and responses of all turns, end ids included.
        response_lengths: `[N]` int32, response tokens T of all turns, end ids included.
        refused: samples left out, by reason.
        turn_offsets: `[N + 1]` int64, the turns of each sample.
        prompts: per specialist the prompt ids of every turn.
        responses: the response ids of every turn, end id included; they are the same for all specialists.
    """

    name: str
    sample_ids: list[str]
    lengths: np.ndarray
    response_lengths: np.ndarray
    refused: dict[str, int]
    turn_offsets: np.ndarray
    prompts: tuple[Ragged, ...]
    responses: Ragged

    def __len__(self) -> int:
        """Number of samples, N."""
        return len(self.sample_ids)

    def sample_id(self, sample: int) -> str:
        """Identity of a sample, as its source gives it."""
        return self.sample_ids[sample]

    def view(self, sample: int, specialist: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample as one specialist sees it.

        Returns:
            Input ids `[L_k]` int32, and the positions `[T]` int32 that predict the response tokens: the last prompt
            position predicts the first of them.
        """
        ids, positions = [], []
        length = 0
        for turn in self._turns(sample):
            prompt, response = self.prompts[specialist][turn], self.responses[turn]
            ids += [prompt, response]
            start = length + len(prompt) - 1
            positions.append(np.arange(start, start + len(response), dtype=np.int32))
            length += len(prompt) + len(response)
        return np.concatenate(ids), np.concatenate(positions)

    def targets(self, sample: int) -> np.ndarray:
        """Response ids `[T]` int32 of all turns, the end id of each included."""
        return np.concatenate([self.responses[turn] for turn in self._turns(sample)])

    def _turns(self, sample: int) -> range:
        return range(int(self.turn_offsets[sample]), int(self.turn_offsets[sample + 1]))


class TokenStore:
    """Collects the kept samples; ids become arrays at once, since a Python list of them takes ten times the room."""

    def __init__(self, specialists: int):
        """Starts empty, for K `specialists`."""
        self.sample_ids: list[str] = []
        self.turns: list[int] = []
        self.prompts: list[list[np.ndarray]] = [[] for _ in range(specialists)]
        self.responses: list[np.ndarray] = []

    def add(self, sample_id: str, prompts: Sequence[Sequence[list[int]]], responses: Sequence[list[int]]) -> None:
        """Adds a sample: prompts by specialist and turn, responses by turn."""
        self.sample_ids.append(sample_id)
        self.turns.append(len(responses))
        self.responses.extend(np.array(ids, dtype=np.int32) for ids in responses)
        for column, own in zip(self.prompts, prompts, strict=True):
            column.extend(np.array(ids, dtype=np.int32) for ids in own)

    def freeze(self, name: str, refused: dict[str, int]) -> TokenizedDomain:
        """The collected samples in flat arrays."""
        turn_offsets = np.concatenate([[0], np.cumsum(self.turns, dtype=np.int64)]).astype(np.int64)
        responses = _ragged(self.responses)
        prompts = tuple(_ragged(column) for column in self.prompts)

        def per_sample(lengths: np.ndarray) -> np.ndarray:
            return np.diff(np.concatenate([[0], np.cumsum(lengths)])[turn_offsets]).astype(np.int32)

        response_lengths = per_sample(responses.lengths())
        prompt_lengths = np.stack([per_sample(column.lengths()) for column in prompts], axis=1)
        return TokenizedDomain(
            name=name,
            sample_ids=self.sample_ids,
            lengths=prompt_lengths + response_lengths[:, None],
            response_lengths=response_lengths,
            refused=refused,
            turn_offsets=turn_offsets,
            prompts=prompts,
            responses=responses,
        )


def _ragged(lists: Sequence[np.ndarray]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])]).astype(np.int64)
    values = np.concatenate([np.empty(0, dtype=np.int32), *lists])
    return Ragged(values=values, offsets=offsets)
