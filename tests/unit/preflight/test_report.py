"""What all reports together mean."""

import pytest

from megafuser.errors import UserError
from megafuser.preflight.report import Report, judge


def reports(**by_rank: dict[str, object]) -> list[Report]:
    """Four ranks on two nodes, with what some of them say more."""
    ranks = [Report(rank=rank, host=f"node{1 + rank // 2}") for rank in range(4)]
    for name, values in by_rank.items():
        for key, value in values.items():
            setattr(ranks[int(name[1:])], key, value)
    return ranks


def test_all_is_well() -> None:
    verdict = judge(reports(r0={"facts": {"torch": "2.8"}}, r2={"facts": {"torch": "2.8"}}))
    assert (verdict.code, verdict.errors, verdict.warnings, verdict.finished) == (0, (), (), False)


def test_what_all_nodes_lack_is_said_once_and_what_one_lacks_with_its_name() -> None:
    verdict = judge(
        reports(
            r0={"mistakes": ["no a"]}, r1={"mistakes": ["no c"]}, r2={"mistakes": ["no a", "no b"]},
            r3={"mistakes": ["no b"]},
        )
    )  # fmt: skip
    assert (verdict.code, verdict.errors) == (2, ("no a", "node1: no c", "node2: no b"))


def test_a_mistake_of_the_run_has_no_node_and_comes_first() -> None:
    verdict = judge(reports(r0={"run_mistakes": ["too many"], "mistakes": ["no a"]}, r3={"run_mistakes": ["too many"]}))
    assert (verdict.code, verdict.errors) == (2, ("too many", "node1: no a"))


def test_a_warning_of_the_run_has_no_node() -> None:
    verdict = judge(reports(r0={"run_warnings": ["slow"]}, r3={"warnings": ["full"]}))
    assert (verdict.code, verdict.warnings) == (0, ("slow", "node2: full"))


def test_a_machine_that_fails_is_named_even_if_all_do() -> None:
    verdict = judge(reports(**{f"r{rank}": {"failures": ["hangs"]} for rank in range(4)}))
    assert (verdict.code, verdict.errors) == (1, ("node1, node2: hangs",))


def test_a_mistake_counts_more_than_a_failure() -> None:
    assert judge(reports(r0={"failures": ["hangs"]}, r2={"mistakes": ["no a"]})).code == 2


def test_versions_that_differ() -> None:
    """Ranks that do not know a fact do not count."""
    verdict = judge(
        reports(
            r0={"facts": {"torch": "2.8", "GPU": "H100"}},
            r1={"facts": {"GPU": "H100"}},
            r3={"facts": {"torch": "2.9"}},
        )
    )
    line = "torch differs between nodes: 2.8 on node1, 2.9 on node2; give all nodes the same environment"
    assert (verdict.code, verdict.errors) == (2, (line,))


def test_warnings_stop_nobody() -> None:
    verdict = judge(reports(r3={"warnings": ["full"]}))
    assert (verdict.code, verdict.warnings) == (0, ("node2: full",))


def test_rank_0_says_whether_the_stage_is_finished() -> None:
    assert judge(reports(r0={"finished": True})).finished
    assert not judge(reports(r1={"finished": True})).finished


def test_a_report_is_one_line_and_comes_back() -> None:
    report = Report(3, "node2", {"torch": "2.8"}, ["a\nb"], ["c"], ["d"], ["é"], True)
    assert "\n" not in report.to_json()
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("text", ["", "GET / HTTP/1.1", "{}", "[1]", '{"rank": 1, "host": "a", "else": 2}'])
def test_what_is_no_report(text: str) -> None:
    with pytest.raises(UserError, match="not a report of a rank"):
        Report.from_json(text)
