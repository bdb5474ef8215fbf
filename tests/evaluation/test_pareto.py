from typing import Any

import numpy as np
import pytest

from aif_jax.evaluation.pareto import COSTS, frontier, labels_apart, pareto_plot


@pytest.mark.parametrize("seed", range(5))
def test_the_frontier_is_what_no_other_point_beats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, qualities = rng.integers(0, 6, 12).tolist(), rng.integers(0, 6, 12).tolist()
    points = list(zip(costs, qualities, strict=True))
    wanted = {
        (c, q) for c, q in points if not any((a <= c and b > q) or (a < c and b >= q) for a, b in points)
    }
    found = frontier(costs, qualities)
    assert {points[i] for i in found} == wanted
    assert [points[i] for i in found] == sorted(wanted)


def test_the_plot_names_what_has_no_such_cost() -> None:
    def variant(cost: Any, mean: float) -> dict[str, Any]:
        return {"frozen_gauc": {"mean": mean, "sd": None}, "cost": cost}

    cost = {"request_ms": (1.0, 2.0, 3.0), "item_bytes": 10, "user_bytes": 20}
    rows = {"request_ms": (10.0, 20.0, 30.0), "item_bytes": None, "user_bytes": None}
    summary = {
        "data": "made up",
        "seeds": 1,
        "frozen_history": 1.0,
        "variants": {"aif": variant(cost, 0.6), "exact": variant(rows, 0.7), "cold": variant(None, 0.5)},
    }
    one = pareto_plot(summary)
    assert one.count("<!-- exact -->") == 1
    assert "without: cold -->" in one
    panels = pareto_plot(summary, costs=tuple(COSTS))
    assert panels.count("without: exact, cold -->") == 2


@pytest.mark.parametrize("seed", range(5))
def test_no_label_covers_another_and_none_moves_without_need(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 300, 20), rng.uniform(0, 200, 20)
    widths, height = rng.uniform(20, 90, 20), 8.0
    found = labels_apart(x.tolist(), y.tolist(), widths.tolist(), height)

    def touch(heights: Any, i: int, j: int) -> bool:
        beside = x[j] < x[i] + widths[i] and x[i] < x[j] + widths[j]
        return bool(beside and abs(heights[i] - heights[j]) < height - 1e-9)

    pairs = [(i, j) for i in range(20) for j in range(i)]
    assert not any(touch(found, i, j) for i, j in pairs)
    assert any(touch(y, i, j) for i, j in pairs)
    assert all(after <= before for after, before in zip(found, y, strict=True))
    highest = int(np.argmax(y))
    assert found[highest] == y[highest]
    assert labels_apart([0.0, 100.0], [5.0, 5.0], [50.0, 50.0], height) == [5.0, 5.0]
    # A dot within the label's width takes its place, one beyond it does not.
    assert labels_apart([0.0], [5.0], [50.0], height, [(30.0, 4.0), (60.0, -4.0)]) == [-4.0]
