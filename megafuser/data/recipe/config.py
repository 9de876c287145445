"""What a recipe may say: data sets by domain, what is kept of them, and the benchmarks that must not be in them.

Reading a recipe is `data.recipe.load`; the sources of a run are `config.data`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megafuser.config.data import SourceConfig, check_fields
from megafuser.config.values import InvalidValue, Strict, at_least, not_empty, safe_name


@dataclass(frozen=True, kw_only=True)
class RecipeSource(Strict):
    """One data set that a domain is made of.

    Attributes:
        dataset: ORG/NAME on the hub.
        license: the data set's licence, written into every line.
        subset: the data set's configuration, where it has several.
        files: the data set's files, as `data_files` of `load_dataset`.
        split: the data set's split.
        revision: the data set's branch, tag or commit.
        fields: names of the fields in this data set, where they are not ours: `response: output`.
        turns: of a chat, all turns or only the first one.
        samples: at most so many samples are taken of this data set.
        columns: rows are kept whose column, so named, has a match of the regular expression.
        not_columns: rows are left out whose column has a match of the regular expression.
    """

    dataset: str
    license: str
    subset: str | None = None
    files: tuple[str, ...] = ()
    split: str = "train"
    revision: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    turns: Literal["all", "first"] = "all"
    samples: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    not_columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses empty names, numbers below 1 and what is not a regular expression."""
        not_empty("dataset", self.dataset)
        not_empty("license", self.license)
        check_fields(self.fields)
        if self.samples is not None:
            at_least("samples", self.samples, 1)
        for key in ("columns", "not_columns"):
            for column, pattern in getattr(self, key).items():
                _regular_expression(f"{key}.{column}", pattern)


@dataclass(frozen=True, kw_only=True)
class RecipeBenchmark(Strict):
    """A benchmark that is a data set; its texts must not be in the samples.

    Attributes:
        dataset: ORG/NAME on the hub.
        texts: columns whose texts are searched for.
        subset: the data set's configuration, where it has several.
        files: the data set's files, as `data_files` of `load_dataset`.
        split: the data set's split.
        revision: the data set's branch, tag or commit.
    """

    dataset: str
    texts: tuple[str, ...]
    subset: str | None = None
    files: tuple[str, ...] = ()
    split: str = "test"
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuses a benchmark of no text."""
        not_empty("dataset", self.dataset)
        if not self.texts:
            raise InvalidValue("texts", "must list at least one column")


@dataclass(frozen=True, kw_only=True)
class Lengths(Strict):
    """Bounds in characters.

    Attributes:
        min_characters: of all texts of a sample together, at least.
        max_characters: at most; without a bound where this is null.
        min_response_characters: of its responses together, at least.
        max_response_characters: at most; without a bound where this is null.
    """

    min_characters: int = 0
    max_characters: int | None = None
    min_response_characters: int = 0
    max_response_characters: int | None = None

    def __post_init__(self) -> None:
        """Refuses bounds that nothing can meet."""
        for low, high in (
            ("min_characters", "max_characters"),
            ("min_response_characters", "max_response_characters"),
        ):
            at_least(low, getattr(self, low), 0)
            if (most := getattr(self, high)) is not None:
                at_least(high, most, max(1, getattr(self, low)))


@dataclass(frozen=True, kw_only=True)
class RecipeDomain(Strict):
    """What becomes the files of one domain.

    Attributes:
        samples: how many are drawn, training and validation together; where there are fewer, all are taken.
        sources: the data sets.
        lengths: which lengths are kept.
        reject: a sample in any text of which one of these regular expressions has a match is left out.
    """

    samples: int
    sources: tuple[RecipeSource, ...]
    lengths: Lengths = field(default_factory=Lengths)
    reject: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses a domain of nothing, one data set twice, and what is not a regular expression."""
        at_least("samples", self.samples, 1)
        if not self.sources:
            raise InvalidValue("sources", "must list at least one data set")
        seen: dict[tuple[object, ...], int] = {}
        for index, source in enumerate(self.sources):
            first = seen.setdefault((source.dataset, source.subset, source.files, source.split), index)
            if first != index:
                raise InvalidValue(f"sources.{index}", f"is the same as sources.{first}; remove one of them")
        for index, pattern in enumerate(self.reject):
            _regular_expression(f"reject.{index}", pattern)


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """How the files of all domains are made.

    Attributes:
        domains: by name; the files are named after them.
        seed: what the draw depends on, besides the data sets.
        valid_fraction: share of the samples that validates, told by a hash of the first instruction.
        ngram: a sample that has so many consecutive words of a benchmark's text is left out.
        near_duplicates: of samples whose word 5-grams are alike to at least this share, one stays; none is sought
            where this is null.
        benchmarks: data sets of which nothing may be in the samples.
    """

    domains: dict[str, RecipeDomain]
    seed: int = 1234
    valid_fraction: float = 0.01
    ngram: int = 13
    near_duplicates: float | None = None
    benchmarks: tuple[RecipeBenchmark, ...] = ()

    def __post_init__(self) -> None:
        """Refuses names that cannot name files, and numbers that cannot be."""
        if not self.domains:
            raise InvalidValue("domains", "must hold at least one domain")
        for name in self.domains:
            safe_name("domains", name)
        at_least("seed", self.seed, 0)
        at_least("ngram", self.ngram, 1)
        if not 0 < self.valid_fraction < 1:
            raise InvalidValue("valid_fraction", f"must be above 0 and below 1, not {self.valid_fraction}")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise InvalidValue("near_duplicates", f"must be above 0 and at most 1, not {self.near_duplicates}")


def as_source(part: RecipeSource | RecipeBenchmark, local: str | None) -> SourceConfig:
    """What the readers take: the data set of the hub, or LOCAL/ORG/NAME with the same contents."""
    dataset = part.dataset if local is None else str(Path(local) / part.dataset)
    return SourceConfig(
        dataset=dataset,
        subset=part.subset,
        files=part.files,
        split=part.split,
        # A directory has no revisions.
        revision=part.revision if local is None else None,
        fields=part.fields if isinstance(part, RecipeSource) else {},
    )


def _regular_expression(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InvalidValue(key, f"{pattern!r} is not a regular expression ({error}); correct it") from None
