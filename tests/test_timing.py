"The one timer of the package: turns, failures and time limits."
import numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.deploy.timing import MIN_ROUNDS, call_each, call_timer, speed_ratio, time_interleaved, time_runs


def constant(seconds): return lambda n: [seconds]*n


def failing(n): raise PPClsError('out  of\nmemory')


def test_turns_alternate():
    order = []
    def timer(name): return lambda n: order.append(name) or [1.]*n
    times = time_interleaved({name: timer(name) for name in 'abc'}, rounds=2, runs=4)
    assert ''.join(order) == 'abccba'
    assert {name: t.shape for name, t in times.items()} == {name: (2, 4) for name in 'abc'}


def test_a_timer_that_fails_is_dropped_with_its_reason():
    failed = {}
    assert list(time_interleaved({'dies': failing, 'a': constant(.002)}, 4, 2, failed=failed)) == ['a']
    assert failed == {'dies': 'out of memory'}


def test_without_a_place_for_failures_they_are_raised():
    with pytest.raises(PPClsError, match='out of memory'):
        time_interleaved({'dies': failing})


def test_limits():
    assert time_interleaved({}, rounds=2) == {}
    assert len(time_interleaved({'a': constant(.002)}, 50, 1, seconds=1e-9)['a']) == MIN_ROUNDS == 3


def test_call_each_names_exceptions_without_text():
    items, failed = {'a': 1, 'b': 0}, {}
    def divide(name, value):
        if not value: raise ZeroDivisionError
    call_each(items, failed, divide)
    assert items == {'a': 1}
    assert failed == {'b': 'ZeroDivisionError'}


def test_call_timer_counts_calls_and_uses_its_clock():
    calls = []
    ticks = iter(range(0, 100, 2))
    assert call_timer(lambda: calls.append(1), lambda: next(ticks))(3) == [2, 2, 2]
    assert len(calls) == 3


def test_numbers_of_one_and_of_two_functions():
    calls = []
    measured = time_runs(calls.append, np.zeros((4, 3)), warmup=2, runs=5)
    assert len(calls) == 7
    assert measured['p99'] >= measured['p90'] >= measured['median'] > 0
    assert measured['images/s']*measured['median'] == pytest.approx(4000)
    with pytest.raises(PPClsError, match='warmup -1'):
        time_runs(calls.append, np.zeros(1), warmup=-1)
    low, middle, high = speed_ratio(calls.append, calls.append, np.zeros(1), runs=9)
    assert 0 < low <= middle <= high
    assert len(calls) == 7 + 2*(9 + 5)
