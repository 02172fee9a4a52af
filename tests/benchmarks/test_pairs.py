import pytest

from benchmarks import pairs


def test_ways_take_turns_and_every_other_round_runs_backwards() -> None:
    calls: list[str] = []

    def block(name: str) -> str:
        calls.append(name)
        return f"{name}{len(calls)}"

    ways = {"a": lambda: block("a"), "b": lambda: block("b"), "c": lambda: block("c")}
    found = pairs.alternate(ways, 3, settle_s=0)
    assert "".join(calls) == "abccbaabc"
    assert found == [
        {"a": "a1", "b": "b2", "c": "c3"},
        {"a": "a6", "b": "b5", "c": "c4"},
        {"a": "a7", "b": "b8", "c": "c9"},
    ]


def test_summary_of_seven_values() -> None:
    found = pairs.summary([5, 1, 4, 2, 9, 3, 8])
    assert found == {"median": 4, "low": 1, "high": 9, "confidence": pytest.approx(1 - 2 * 0.5**7)}


def test_spread_is_a_share_of_the_median() -> None:
    assert pairs.spread([2.0, 1.9, 2.2]) == pytest.approx(0.15)
