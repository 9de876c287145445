"""From the configuration to a stage's sampler, and how often that shows each sample."""

from collections.abc import Sequence

from megafuser.config.data import SourceConfig
from megafuser.config.schema import RunConfig
from megafuser.data.sampler import Draws, Sampler, SourceShares
from megafuser.data.tokenized import TokenizedDomain
from megafuser.errors import UserError


def stage_sampler(config: RunConfig, stage: str, domains: Sequence[TokenizedDomain]) -> Sampler:
    """The sampler of a stage.

    Args:
        config: the run; `data.balanced`, `data.weights` and the sources' weights say how samples are drawn.
        stage: `warmup` or `joint`.
        domains: the tokenized training samples, in the configuration's order.

    Raises:
        UserError: a source with a weight has no sample, or a weight is next to nothing beside the others.
    """
    data = config.data
    settings = config.warmup if stage == "warmup" else config.joint
    return Sampler(
        [len(domain) for domain in domains],
        settings.samples_per_domain,
        data.balanced,
        config.seed,
        stage,
        weights=None if data.weights is None else {f"data.weights.{name}": data.weights[name] for name in data.domains},
        sources=[
            _shares(domain, data.domains[name].sources("train"))
            for name, domain in zip(data.domains, domains, strict=True)
        ],
    )


def repetitions(sampler: Sampler, steps: int, names: Sequence[str]) -> list[str]:
    """What to warn of: the domains, and sources with weights, that have fewer samples than `steps` steps draw.

    Args:
        sampler: the stage's.
        steps: the stage's steps.
        names: of the domains.
    """
    told = []
    for own in sampler.draws(steps):
        if own.draws > own.size:
            place = names[own.domain] if own.source is None else f"{names[own.domain]}, {own.source}"
            told.append(f"domain {place}: {own.size} samples for {own.draws} draws: each is seen {times(own)} times")
    return told


def times(draws: Draws) -> str:
    """How often a sample is drawn, as a number to read: 320, 2.5, 0.031."""
    return f"{draws.draws / draws.size:.3g}" if draws.draws < 1000 * draws.size else f"{draws.draws // draws.size}"


def _shares(domain: TokenizedDomain, sources: Sequence[SourceConfig]) -> SourceShares | None:
    """A domain's sources with their weights; None where they have none."""
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return None
    names = tuple(str(source) for source in sources)
    for name, size in zip(names, domain.source_sizes, strict=True):
        if size == 0:
            raise UserError(
                f"data.domains.{domain.name}: {name} has a weight, but no sample of it is left; "
                "correct it or leave it out"
            )
    return SourceShares(names, domain.source_sizes, tuple(weights))
