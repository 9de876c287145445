"""Steps without a finite loss or gradient: where it is, and when to give up."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megafuser.data.tokenized import TokenizedDomain
from megafuser.fusion.batch import PackedRow
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.training.engine import Engine, StepResult
from megafuser.training.metrics import training_columns, training_values
from megafuser.training.validation import evaluate_rows

_NAMED = 5  # samples; where weights are spoilt, all of them are


def where_not_finite(
    engine: Engine, rows: Sequence[PackedRow], result: StepResult, domains: Sequence[TokenizedDomain]
) -> str:
    """Says which ranks, domains and samples have no finite loss, or which parts of the model no finite gradient.

    Every rank calls it. The rows are run once more, forward only, with the weights of the skipped step.

    Args:
        engine: of the stage, after the step.
        rows: this rank's of the step.
        result: of the step.
        domains: tokenized training data, by domain.

    Returns:
        A part of a sentence, the same on every rank.
    """
    own: list[tuple[int, int]] = []

    def values(output: MixtureLoss, row: PackedRow) -> torch.Tensor:
        spoilt = row.samples[~output.fused.isfinite()].unique().tolist()
        own.extend((int(row.references[sample][0]), int(row.references[sample][1])) for sample in spoilt)
        return training_values(output)

    engine.gather_parameters()
    columns = training_columns(len(engine.model.names))
    evaluate_rows(engine.chunks, rows, values, domains=len(domains), columns=columns)
    found: list[list[tuple[int, int]]] = [[] for _ in range(dist.get_world_size())]
    # Ranks of one tensor-parallel group see the same rows.
    says = parallel_state.get_tensor_model_parallel_rank() == 0
    dist.all_gather_object(found, own if says else [])
    parts = []
    for rank, samples in enumerate(found):
        by_domain: dict[int, list[int]] = {}
        for domain, sample in samples:
            by_domain.setdefault(domain, []).append(sample)
        for domain, numbers in sorted(by_domain.items()):
            names = ", ".join(domains[domain].sample_id(number) for number in numbers[:_NAMED])
            more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
            parts.append(f"rank {rank}, domain {domains[domain].name}, {names}{more}")
    if parts:
        return f"the loss of {'; '.join(parts)}"
    groups = [name for name, norm in result.group_norms.items() if not math.isfinite(norm)]
    return f"the gradient of {', '.join(groups)}" if groups else "the loss, but not when it was computed again"
