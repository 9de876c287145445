"""What each rank found, and what follows from all of it: one line for each thing that is wrong, with its nodes.

The reports travel by `preflight.rendezvous`.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from megafuser.errors import BAD_INPUT, UserError

MACHINE_FAILURE = 1


class MachineFailure(Exception):
    """What a machine does wrong: one line that says what, and what to do."""


@dataclass
class Report:
    """What one rank found.

    Attributes:
        rank: its global rank.
        host: its node.
        facts: what must be equal everywhere, such as versions, by name.
        mistakes: what the user can mend and this node has.
        run_mistakes: what the user can mend and has nothing to do with a node.
        failures: what a machine does wrong.
        warnings: what looks odd on this node and stops nobody.
        run_warnings: what does so and has nothing to do with a node.
        finished: whether the stage has nothing left to do.
    """

    rank: int
    host: str
    facts: dict[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    run_mistakes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    run_warnings: list[str] = field(default_factory=list)
    finished: bool = False

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` made a line of.

        Raises:
            UserError: it is none; another program has connected, or another version of this one.
        """
        try:
            values = json.loads(text)
            return cls(**values)
        except (ValueError, TypeError):
            raise UserError(f"this is not a report of a rank: {text[:80]!r}; submit the job again") from None


@dataclass(frozen=True)
class Verdict:
    """What all reports together mean.

    Attributes:
        code: the exit code: 0, 2 where the user can mend it, 1 where a machine fails.
        errors: a line for each thing that is wrong.
        warnings: lines that stop nobody.
        finished: whether the stage has nothing left to do.
    """

    code: int
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    finished: bool = False


def judge(reports: Sequence[Report]) -> Verdict:
    """Puts all ranks' reports together, rank 0's first.

    What all nodes have is said once; what only some have is said with their names.
    """
    hosts = list(dict.fromkeys(report.host for report in reports))
    mistakes = [text for report in reports for text in dict.fromkeys(report.run_mistakes)]
    mistakes += _with_nodes([(report.host, text) for report in reports for text in report.mistakes], hosts)
    failures = _with_nodes([(report.host, text) for report in reports for text in report.failures], ())
    mistakes += _unequal(reports)
    warnings = [text for report in reports for text in report.run_warnings]
    warnings += _with_nodes([(report.host, text) for report in reports for text in report.warnings], ())
    code = BAD_INPUT if mistakes else MACHINE_FAILURE if failures else 0
    return Verdict(
        code=code,
        errors=tuple(dict.fromkeys(mistakes + failures)),
        warnings=tuple(warnings),
        finished=reports[0].finished,
    )


def _with_nodes(found: Sequence[tuple[str, str]], all_hosts: Sequence[str]) -> list[str]:
    """Texts in order of appearance, each once, with the nodes that have it unless those are `all_hosts`."""
    nodes: dict[str, list[str]] = {}
    for host, text in found:
        if host not in nodes.setdefault(text, []):
            nodes[text].append(host)
    return [text if set(hosts) == set(all_hosts) else f"{', '.join(hosts)}: {text}" for text, hosts in nodes.items()]


def _unequal(reports: Sequence[Report]) -> list[str]:
    """A line for each fact that is not the same on all nodes that know it."""
    lines = []
    for name in dict.fromkeys(name for report in reports for name in report.facts):
        values: dict[str, list[str]] = {}
        for report in reports:
            if name in report.facts and report.host not in values.setdefault(report.facts[name], []):
                values[report.facts[name]].append(report.host)
        if len(values) > 1:
            shown = ", ".join(f"{value} on {' and '.join(hosts)}" for value, hosts in values.items())
            lines.append(f"{name} differs between nodes: {shown}; give all nodes the same environment")
    return lines
