"""Work on several threads: order, notes, errors, and PyTorch's threads."""

import threading
import time
import warnings

import pytest
import torch

from action import workers
from action.data.notes import keeping, note, tell


@pytest.fixture(params=[1, 4])
def threads(monkeypatch, request):
    monkeypatch.setattr(workers, "_most", lambda: request.param)
    return request.param


def test_results_and_notes_come_in_the_order_of_the_items(threads):
    def work(item):
        time.sleep(0.02 * (item % 3 == 0))
        note(f"note {item}")
        return item * item

    with keeping() as notes:
        assert list(workers.in_parallel(work, range(12))) == [item * item for item in range(12)]
    assert notes == [f"note {item}" for item in range(12)]
    assert list(workers.in_parallel(work, [])) == []


def test_as_many_threads_as_may_be_each_with_one_of_pytorch(monkeypatch):
    monkeypatch.setattr(workers, "_most", lambda: 3)
    meeting = threading.Barrier(3)  # three at once, or this fails
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = list(workers.in_parallel(lambda _: (meeting.wait(20), torch.get_num_threads()), range(3)))
        assert [threads for _, threads in seen] == [1, 1, 1]
        assert torch.get_num_threads() == 2
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_the_work_and_starts_nothing_new(threads):
    begun = []

    def work(item):
        begun.append(item)
        if item == 0:
            raise OSError("disk")
        time.sleep(0.05)

    with pytest.raises(OSError, match="disk"):
        list(workers.in_parallel(work, range(100)))
    assert len(begun) <= 2 * threads


def test_notes_are_warnings_unless_they_are_kept():
    with pytest.warns(UserWarning, match="odd") as caught:
        tell(["odd"])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with keeping() as outer:
            note("one")
            with keeping() as inner:
                note("two")
            note("three")
    assert (outer, inner) == (["one", "three"], ["two"])
