"""The prediction for a bank that GPUs share: what it must say by its own assumptions."""

import pytest

from tools.estimates.shared_bank import FEATURES, QUERIES, RATE, SHORTEST, crossover, main, seconds


@pytest.mark.parametrize(("processes", "on_the_way"), [(8, 0.21e-3), (64, 9.5e-3), (256, 38e-3), (1024, 154e-3)])
def test_visits_cost_what_travels_and_the_whole_bank_nothing(processes: int, on_the_way: float) -> None:
    found = seconds(processes, 10**7)
    assert found.whole == pytest.approx(QUERIES * 1e7 * FEATURES / RATE)
    assert found.visits - found.whole == pytest.approx(on_the_way, rel=0.05)


def test_a_bank_that_does_not_fit_is_not_whole() -> None:
    assert seconds(8, 6 * 10**7).whole is not None and seconds(8, 7 * 10**7).whole is None


def test_rotation_is_bound_by_its_calls_until_parts_are_long() -> None:
    assert seconds(1024, 10**6).rotation == 2 * 1024 * SHORTEST
    rows = crossover(64)
    before, after = seconds(64, 64 * (rows - 1000)), seconds(64, 64 * rows)
    assert before.rotation >= before.visits and after.rotation < after.visits
    assert 26_000 < rows < 68_000


def test_it_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    shown = capsys.readouterr().out
    assert shown.startswith("A prediction, not a measurement") and "no room" in shown
