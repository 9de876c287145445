"""Runs the validation rows through the fused model and brings numbers and excerpts to every rank."""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from tqdm import tqdm

from megafuser.data.loader import validation_rows
from megafuser.data.tokenized import TokenizedDomain
from megafuser.evaluation.scores import Scores, columns, token_values
from megafuser.fusion.batch import PackedRow
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.model import FusedModel
from megafuser.runtime.distributed import is_rank_zero
from megafuser.specialist.fp8 import row_multiple as width_multiple
from megafuser.training.pipeline import row_multiple
from megafuser.training.session import Session
from megafuser.training.validation import evaluate_rows
from megafuser.watching.excerpts import Collector, Excerpt, build_excerpts, choose_samples

# Rows that go through the pipeline at once, per stage: the pipeline is filled and drained once for each lot of them.
_ROWS_PER_STAGE = 8


def measure(
    session: Session, chunks: Sequence[FusedModel], domains: Sequence[TokenizedDomain], max_samples: int | None
) -> tuple[dict[str, Scores], Scores, list[Excerpt]]:
    """Measures a model whose weights are loaded; every rank calls it.

    Args:
        session: what the model was built from.
        chunks: this rank's pieces.
        domains: validation data.
        max_samples: takes the first so many of each domain; None: all.

    Returns:
        The scores by domain, those of all domains together, and the excerpts; the same on every rank.
    """
    names = session.specialist_names
    sizes = [len(domain) if max_samples is None else min(max_samples, len(domain)) for domain in domains]
    collector = Collector(choose_samples(sizes))

    def values(loss: MixtureLoss, row: PackedRow) -> torch.Tensor:
        collector.take(loss, row)
        return token_values(loss)

    rows = validation_rows(
        domains,
        max_samples,
        session.config.data.sequence_length,
        parallel_state.get_data_parallel_world_size(),
        parallel_state.get_data_parallel_rank(),
        row_multiple(session.config.parallel),
        width_multiple(session.config.parallel, session.config.precision),
    )
    sums = torch.zeros(len(domains), columns(len(names)), dtype=torch.float64, device=session.device)
    for chunk in chunks:
        chunk.eval()
    lot = _ROWS_PER_STAGE * session.config.parallel.pipeline if session.config.parallel.pipeline > 1 else 1
    with tqdm(total=len(rows), desc="report", unit="row", disable=not is_rank_zero(), mininterval=1.0) as bar:
        for start in range(0, len(rows), lot):
            chosen = [row.to(session.device) for row in rows[start : start + lot]]
            sums += evaluate_rows(
                chunks, chosen, values, domains=len(domains), columns=columns(len(names)), with_parts=True
            )
            bar.update(len(chosen))
    scores = {
        domain.name: Scores.from_sums(own, size, names) for domain, own, size in zip(domains, sums, sizes, strict=True)
    }
    overall = Scores.from_sums(sums.sum(dim=0), sum(sizes), names)
    return scores, overall, build_excerpts(collector.gather(), domains, session.tokenizers[names[0]])
