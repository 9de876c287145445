"""What a build did: counts of each data set and step, licences, and what tells the data sets' contents.

The counting is in `data.recipe.build` and `data.recipe.candidates`.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from megafuser.data.recipe.config import Recipe, RecipeDomain, RecipeSource
from megafuser.figures.text_table import aligned

# In the order in which a row meets them.
STEPS = (
    "read",
    "filtered by column",
    "unusable",
    "filtered by length",
    "filtered by pattern",
    "duplicates",
    "benchmark leaks",
    "near duplicates",
    "not drawn",
    "kept",
)
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass
class SourceReport:
    """One data set's part.

    Attributes:
        source: the recipe's words.
        rows: the data set, for what it knows of its origin.
        content: hash of its rows.
        counts: rows by step.
        bad: unusable rows by kind.
    """

    source: RecipeSource
    rows: Any
    content: str
    counts: Counter[str]
    bad: Counter[str]

    def document(self) -> dict[str, Any]:
        """For `report.json`."""
        return {
            "dataset": self.source.dataset,
            "subset": self.source.subset,
            "split": self.source.split,
            "license": self.source.license,
            "revision": self.source.revision,
            "commit": self._commit(),
            "content": self.content,
            "counts": {step: self.counts[step] for step in STEPS},
            "bad": dict(self.bad),
        }

    def _commit(self) -> str | None:
        """The commit that the hub served; None of a directory."""
        urls = self.rows.info.download_checksums or {}
        return next((found[1] for url in urls if (found := _COMMIT.search(str(url)))), None)


class Report:
    """Everything that `report.json` holds."""

    def __init__(self, recipe: Recipe, benchmarks: list[str], decontaminated: bool) -> None:
        """Begins a report.

        Args:
            recipe: what is built.
            benchmarks: files that were searched for, beside the recipe's data sets.
            decontaminated: whether anything was searched for.
        """
        sets = [benchmark.dataset for benchmark in recipe.benchmarks]
        self._recipe = recipe
        self._benchmarks = [*benchmarks, *sets] if decontaminated else []
        self._domains: dict[str, tuple[RecipeDomain, list[SourceReport]]] = {}

    def add(self, name: str, domain: RecipeDomain, sources: list[SourceReport]) -> None:
        """Takes in a domain that is finished."""
        self._domains[name] = (domain, sources)

    def document(self) -> dict[str, Any]:
        """For `report.json`."""
        domains = {
            name: {
                "asked": domain.samples,
                "kept": sum(source.counts["kept"] for source in sources),
                "sources": [source.document() for source in sources],
            }
            for name, (domain, sources) in self._domains.items()
        }
        return {"recipe": asdict(self._recipe), "benchmarks": self._benchmarks, "domains": domains}

    def warnings(self) -> list[str]:
        """What the user should know: domains with fewer samples than asked, and that nothing was searched for."""
        found = [
            f"{name}: {kept:,} samples where the recipe asks for {domain.samples:,}; the data sets have no more"
            for name, (domain, sources) in self._domains.items()
            if (kept := sum(source.counts["kept"] for source in sources)) < domain.samples
        ]
        return found if self._benchmarks else [*found, "no benchmark was searched for"]

    def table(self) -> str:
        """One line for each data set, one column for each step that left anything out."""
        sources = [(name, one) for name, (_, listed) in self._domains.items() for one in listed]
        always = ("read", "duplicates", "benchmark leaks", "kept")
        steps = [step for step in STEPS if step in always or any(one.counts[step] for _, one in sources)]
        lines = [["domain", "data set", "licence", *steps]]
        for name, one in sources:
            lines.append([name, one.source.dataset, one.source.license, *(f"{one.counts[step]:,}" for step in steps)])
        return "\n".join(aligned(lines, left=3))
