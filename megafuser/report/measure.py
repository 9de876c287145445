"""Runs the validation rows through the fused model and brings numbers and excerpts to every rank.

The means are `report.scores`, the intervals `report.comparison`, the conclusions `report.analysis`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core import parallel_state
from tqdm import tqdm

from megafuser.data.loader import validation_rows
from megafuser.data.tokenized import TokenizedDomain
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow
from megafuser.report import calibration
from megafuser.report.analysis import Analysis, analyse
from megafuser.report.calibration import Calibration
from megafuser.report.comparison import compare
from megafuser.report.extreme_tokens import ExtremeCollector, build_extremes
from megafuser.report.sample_sums import SampleSums
from megafuser.report.scores import Scores, columns, token_values
from megafuser.runtime.distributed import is_rank_zero
from megafuser.specialist.fp8 import width_multiple
from megafuser.training.pipeline import row_multiple
from megafuser.training.session import Session
from megafuser.training.validation import Values, evaluate_rows
from megafuser.watching.excerpts import Collector, Excerpt, build_excerpts, choose_samples

# Rows that go through the pipeline at once, per stage: the pipeline is filled and drained once for each lot of them.
_ROWS_PER_STAGE = 8


@dataclass(frozen=True)
class Measurement:
    """What was measured; the same on every rank.

    Attributes:
        scores: by domain.
        overall: of all domains together.
        analysis: what follows.
        excerpts: samples to show, in the order of the domains.
    """

    scores: dict[str, Scores]
    overall: Scores
    analysis: Analysis
    excerpts: list[Excerpt]


def measure(
    session: Session, chunks: Sequence[FusedModel], domains: Sequence[TokenizedDomain], max_samples: int | None
) -> Measurement:
    """Measures a model whose weights are loaded; every rank calls it.

    Args:
        session: what the model was built from.
        chunks: this rank's pieces.
        domains: validation data.
        max_samples: takes the first so many of each domain; None: all.
    """
    names, tokenizer = session.specialist_names, session.tokenizers[session.specialist_names[0]]
    sizes = [len(domain) if max_samples is None else min(max_samples, len(domain)) for domain in domains]
    collector, extremes = Collector(choose_samples(sizes)), ExtremeCollector()
    by_sample = SampleSums(sizes, columns(len(names)), session.device)

    def values(loss: MixtureLoss, row: PackedRow) -> torch.Tensor:
        collector.take(loss, row)
        extremes.take(loss, row)
        by_sample.add(token_values(loss), row)
        return calibration.token_columns(loss)

    calibrated = _run(session, chunks, _rows(session, domains, max_samples), values, len(domains)).tolist()
    tables = {domain.name: table for domain, table in zip(domains, by_sample.gather(), strict=True)}
    scores = {name: Scores.from_sums(table.sum(axis=0), len(table), names) for name, table in tables.items()}
    comparisons = compare(tables, names, session.config.seed)
    best = [names.index(comparisons.domains[domain.name].best) for domain in domains]
    analysis = analyse(
        scores,
        comparisons,
        {domain.name: Calibration.from_sums(own) for domain, own in zip(domains, calibrated, strict=True)},
        Calibration.from_sums([sum(column) for column in zip(*calibrated, strict=True)]),
        build_extremes(extremes.gather(), best, domains, tokenizer, names),
    )
    total = sum(table.sum(axis=0) for table in tables.values())
    overall = Scores.from_sums(np.asarray(total), sum(sizes), names)
    return Measurement(scores, overall, analysis, build_excerpts(collector.gather(), domains, tokenizer))


def _rows(session: Session, domains: Sequence[TokenizedDomain], max_samples: int | None) -> list[PackedRow]:
    """This rank's."""
    return validation_rows(
        domains,
        max_samples,
        session.config.data.sequence_length,
        parallel_state.get_data_parallel_world_size(),
        parallel_state.get_data_parallel_rank(),
        row_multiple(session.config.parallel),
        width_multiple(session.config.parallel, session.config.precision),
    )


def _run(
    session: Session, chunks: Sequence[FusedModel], rows: Sequence[PackedRow], values: Values, domains: int
) -> torch.Tensor:
    """Adds up calibration's columns over the rows, [domains, columns]; `values` looks at all else."""
    sums = torch.zeros(domains, calibration.COLUMNS, dtype=torch.float64, device=session.device)
    for chunk in chunks:
        chunk.eval()
    lot = _ROWS_PER_STAGE * session.config.parallel.pipeline if session.config.parallel.pipeline > 1 else 1
    with tqdm(total=len(rows), desc="report", unit="row", disable=not is_rank_zero(), mininterval=1.0) as bar:
        for start in range(0, len(rows), lot):
            chosen = [row.to(session.device) for row in rows[start : start + lot]]
            sums += evaluate_rows(
                chunks, chosen, values, domains=domains, columns=calibration.COLUMNS, with_diagnostics=True
            )
            bar.update(len(chosen))
    return sums
