import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fmcache.runtime.prefetch import WriteBehind, prefetch


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def test_results_come_in_order_whatever_takes_longest(pool):
    waits = [0.03, 0.0, 0.02, 0.0, 0.01]
    assert list(prefetch(pool, lambda i: (time.sleep(waits[i]), i)[1], range(5), 4)) == [0, 1, 2, 3, 4]


def test_no_more_than_the_window_is_begun_and_not_taken(pool):
    begun = []
    results = prefetch(pool, begun.append, range(100), 4)
    for taken in range(1, 20):
        next(results)
        assert len(begun) <= taken + 4
    assert next(results) is None


def test_an_error_is_raised_where_its_result_would_have_been(pool):
    def half(i):
        if i == 3:
            raise ValueError("three")
        return i

    results = prefetch(pool, half, range(6), 6)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_handing_over_waits_when_the_window_is_full(pool):
    gate, done = threading.Event(), []
    behind = WriteBehind(pool, 2)
    for _ in range(2):
        behind.hand_over(gate.wait)
    third = threading.Thread(target=lambda: (behind.hand_over(int), done.append(True)))
    third.start()
    third.join(0.05)
    assert not done
    gate.set()
    third.join(5)
    assert done
    behind.finish()


def test_an_error_behind_is_raised_at_the_next_call_or_at_the_end(pool):
    behind = WriteBehind(pool, 5)
    behind.hand_over(int, "no number")
    time.sleep(0.05)
    with pytest.raises(ValueError, match="no number"):
        behind.hand_over(int)
    behind.hand_over(int, "none either")
    with pytest.raises(ValueError, match="none either"):
        behind.finish()
