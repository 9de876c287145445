"""The examples' tables: cells."""

from examples.shared.measures import Row
from examples.shared.tables import format_rows
from tests.unit.examples.measured import measure


def test_cells_have_mean_and_spread_over_seeds_and_an_interval_over_samples() -> None:
    two = Row("fused", {1: measure(1.0, 2, 2, response_tokens=10), 2: measure(1.2, 2, 2, response_tokens=30)})
    table = format_rows(
        [two, Row("worse", {1: measure(3, 3, 3)}), Row("oracle", {1: measure(0, 0, 0)}, contender=False), Row("none")]
    )
    assert table[2].startswith("| fused | **1.100** ± 0.141 (1.000–1.200) | **2.000** ± 0.000 (1.900–2.100) |")
    assert table[2].endswith("|  | 20 |")
    assert table[3].startswith("| worse | 3.000 (2.900–3.100)") and "**" not in table[4] and len(table) == 5
