import pytest

from benchmarks import pairs


def test_blocks_alternate_and_results_stay_paired() -> None:
    calls: list[str] = []

    def block(name: str) -> str:
        calls.append(name)
        return f"{name}{len(calls)}"

    found = pairs.alternate(lambda: block("a"), lambda: block("b"), 3, settle_s=0)
    assert "".join(calls) == "abbaab"
    assert found == [("a1", "b2"), ("a4", "b3"), ("a5", "b6")]


def test_summary_of_seven_values() -> None:
    found = pairs.summary([5, 1, 4, 2, 9, 3, 8])
    assert found == {"median": 4, "low": 1, "high": 9, "confidence": pytest.approx(1 - 2 * 0.5**7)}


def test_spread_is_a_share_of_the_median() -> None:
    assert pairs.spread([2.0, 1.9, 2.2]) == pytest.approx(0.15)
