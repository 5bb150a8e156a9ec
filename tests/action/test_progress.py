"""How far a command has come, on a terminal and in a file."""

import io

import pytest

from action import progress
from action.progress import track


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_file_gets_a_line_every_so_often(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    items = track(range(100), "stage (1/3)")
    for i in items:
        clock[0] += 1
        items.set_postfix({"loss": f"0.{i:02d}"}, refresh=False)
    lines = log.getvalue().splitlines()
    assert lines[1] == "stage (1/3): 30 of 100, 00:30 elapsed, 01:10 left, loss=0.29"
    assert [line.split(",")[0] for line in lines] == [f"stage (1/3): {n} of 100" for n in (0, 30, 60, 90, 100)]
    assert "\r" not in log.getvalue()


def test_what_leaves_nothing_behind_is_silent_in_a_file_as_long_as_it_is_quick(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    assert list(track(range(5), "reading", leave=False)) == list(range(5))
    assert log.getvalue() == ""
    for _ in track(range(2), "reading", leave=False):
        clock[0] += 1.5 * progress.EVERY
    assert len(log.getvalue().splitlines()) == 2


def test_going_on_counts_what_was_done_before(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    for _ in track(range(90, 100), "stage", initial=90, total=100):
        clock[0] += 20
    counts = [line.split(",")[0] for line in log.getvalue().splitlines()]
    assert counts == [f"stage: {n} of 100" for n in (90, 92, 94, 96, 98, 100)]


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", screen := Screen())
    assert list(track(range(5), "test", "volume")) == list(range(5))
    assert "5/5" in screen.getvalue() and "\r" in screen.getvalue()


def test_nothing_is_shown_where_nothing_is_asked_for(monkeypatch):
    for screen in (io.StringIO(), Screen()):
        monkeypatch.setattr("sys.stderr", screen)
        assert list(track(range(3), "test", disable=True)) == [0, 1, 2] and screen.getvalue() == ""
