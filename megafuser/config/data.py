"""The `data` section: sources by domain, what is kept of them, and how steps draw from them.

Reading the sources is `data.sources.reading`; a recipe for building them has `data.recipe.config`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from megafuser.config.values import InvalidValue, Strict, at_least, nearest, not_empty, safe_name

# What a line may hold, by the names that the readers use.
FIELDS = ("instruction", "response", "system", "id", "messages", "role", "content")


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Strict):
    """One source of samples: a file, or a data set of the Hugging Face hub.

    Attributes:
        path: JSONL (also .gz), a JSON array, or Parquet; told by the ending.
        dataset: instead of a path, ORG/NAME on the hub, or a directory that `datasets.load_dataset` takes.
        subset: the data set's configuration, where it has several.
        files: the data set's files, as `data_files` of `load_dataset`.
        split: the data set's split.
        revision: the data set's branch, tag or commit.
        weight: share of this source in its domain's samples, relative to the other sources'; all or none have one.
        fields: names of the fields in this source, where they are not ours: `instruction: problem`.
    """

    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    files: tuple[str, ...] = ()
    split: str = "train"
    revision: str | None = None
    weight: float | None = None
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses none or two places, and weights and field names that cannot be."""
        not_empty("path", self.path)
        not_empty("dataset", self.dataset)
        if (self.path is None) == (self.dataset is None):
            raise InvalidValue("path", "give either `path` or `dataset`")
        if self.path is not None:
            for key in ("subset", "files", "revision"):
                if getattr(self, key):
                    raise InvalidValue(key, "belongs to a `dataset`, not to a `path`; leave it out")
        if self.weight is not None and not self.weight > 0:
            raise InvalidValue("weight", f"must be above 0, not {self.weight}")
        check_fields(self.fields)

    def __str__(self) -> str:
        """As messages name it."""
        return self.path or f"{self.dataset}{f' ({self.subset})' if self.subset else ''}"


@dataclass(frozen=True, kw_only=True)
class LengthConfig(Strict):
    """Which lengths are kept, in tokens.

    Attributes:
        min_tokens: of the longest of a sample's K views.
        max_tokens: likewise.
        min_response_tokens: of its responses together.
        max_response_tokens: likewise.
    """

    min_tokens: int = 0
    max_tokens: int | None = None
    min_response_tokens: int = 0
    max_response_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuses bounds that nothing can meet."""
        for low, high in (("min_tokens", "max_tokens"), ("min_response_tokens", "max_response_tokens")):
            at_least(low, getattr(self, low), 0)
            if (most := getattr(self, high)) is not None:
                at_least(high, most, max(1, getattr(self, low)))


@dataclass(frozen=True)
class DomainConfig(Strict):
    """The samples of one domain.

    Attributes:
        train: sources; a file's path alone, or a mapping with more about it.
        valid: sources of the validation samples; without them `data.valid_fraction` of the training samples is kept
            apart, by a hash of the instruction.
        fields: names of the fields in the sources that do not name them.
        lengths: which samples are kept.
    """

    train: tuple[str | SourceConfig, ...]
    valid: tuple[str | SourceConfig, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)
    lengths: LengthConfig = field(default_factory=LengthConfig)

    def __post_init__(self) -> None:
        """Refuses a domain without training samples, and weights of some sources only."""
        if not self.train:
            raise InvalidValue("train", "must list at least one file")
        for key, sources in (("train", self.train), ("valid", self.valid)):
            for index, source in enumerate(sources):
                not_empty(f"{key}.{index}", source if isinstance(source, str) else None)
        weighted = [isinstance(source, SourceConfig) and source.weight is not None for source in self.train]
        if any(weighted) and not all(weighted):
            index = weighted.index(False)
            raise InvalidValue(
                f"train.{index}", "needs a `weight`, since other sources of the domain have one; give it one"
            )
        for index, source in enumerate(self.valid):
            if isinstance(source, SourceConfig) and source.weight is not None:
                raise InvalidValue(
                    f"valid.{index}.weight", "has no meaning: every validation sample is used; leave it out"
                )
        check_fields(self.fields)

    def sources(self, split: str) -> tuple[SourceConfig, ...]:
        """The sources of `train` or `valid`, each with the names of its fields; none for `valid` that is split off."""
        listed = self.train if split == "train" else self.valid
        sources = [SourceConfig(path=source) if isinstance(source, str) else source for source in listed]
        return tuple(replace(source, fields=source.fields or self.fields) for source in sources)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Strict):
    """What is trained and validated on.

    Attributes:
        domains: sources by domain.
        sequence_length: width of a packed row, in tokens; also the limit of a sample.
        balanced: as many samples of each domain in every step; otherwise in proportion to the domains' sizes.
        weights: each domain's share of the samples, relative to the others'; takes the place of `balanced`.
        end_token: the token that ends a response, where the tokenizers have no common EOS.
        too_long: what becomes of a sample beyond the limit: dropped, or its end cut off.
        on_error: what a bad line does: stops everything, or is skipped and counted.
        valid_fraction: share of the training samples that validates in domains without `valid`.
        cache_dir: directory of the tokenized samples; RUN_DIR/data where it is not given. Several runs may share one.
        workers: processes that tokenize; as many as there are cores where it is not given.
    """

    domains: dict[str, DomainConfig]
    sequence_length: int = 4096
    balanced: bool = True
    weights: dict[str, float] | None = None
    end_token: str | None = None
    too_long: Literal["drop", "truncate"] = "drop"
    on_error: Literal["stop", "skip"] = "stop"
    valid_fraction: float = 0.01
    cache_dir: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuses rows without tokens, names that cannot be part of a metric's name, weights of other domains."""
        at_least("sequence_length", self.sequence_length, 1)
        not_empty("end_token", self.end_token)
        not_empty("cache_dir", self.cache_dir)
        if self.workers is not None:
            at_least("workers", self.workers, 1)
        if not 0 < self.valid_fraction < 1:
            raise InvalidValue("valid_fraction", f"must be above 0 and below 1, not {self.valid_fraction}")
        if not self.domains:
            raise InvalidValue("domains", "must hold at least one domain")
        for name in self.domains:
            safe_name("domains", name)
        if self.weights is not None:
            if set(self.weights) != set(self.domains):
                raise InvalidValue("weights", f"must name every domain once: {', '.join(self.domains)}")
            for name, weight in self.weights.items():
                if not weight > 0:
                    raise InvalidValue(f"weights.{name}", f"must be above 0, not {weight}")


def check_fields(fields: dict[str, str]) -> None:
    """Refuses names of fields that no reader knows."""
    for name, there in fields.items():
        if name not in FIELDS:
            raise InvalidValue(f"fields.{name}", f"unknown field; {nearest(name, FIELDS)}")
        not_empty(f"fields.{name}", there)
