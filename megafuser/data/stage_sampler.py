"""From the configuration to a stage's sampler, and how often that shows each sample.

The drawing itself is `data.sampler`.
"""

from collections.abc import Sequence

from megafuser.config.data import DataConfig, SourceConfig
from megafuser.config.schema import RunConfig
from megafuser.data.sampler import Sampler, SourceShares
from megafuser.data.tokenized import TokenizedDomain
from megafuser.data.weighted_draws import Mixture
from megafuser.errors import UserError


def check_weights(data: DataConfig) -> None:
    """Refuses weights of domains or sources that are next to nothing beside the others, before anything is read.

    Raises:
        UserError: names the weight.
    """
    if data.weights is not None:
        Mixture([f"data.weights.{name}" for name in data.weights], list(data.weights.values()))
    for name, domain in data.domains.items():
        sources = domain.sources("train")
        weights = [source.weight for source in sources if source.weight is not None]
        if weights:
            Mixture([f"data.domains.{name}.train.{index}" for index in range(len(sources))], weights)


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
    settings = config.stage(stage)
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
            often = times(own.draws / own.size)
            told.append(f"domain {place}: {own.size} samples for {own.draws} draws: each is seen {often} times")
    return told


def times(value: float) -> str:
    """How often, as a number to read: 0.031, 2.46, 320."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


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
