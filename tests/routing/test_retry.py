"""Retries are a bounded share of the traffic."""

import random

from uia_lab.routing.retry import MOST, RetryBudget, pause


def test_the_budget_is_a_share_of_requests_and_a_trickle():
    budget = RetryBudget()
    taken = 0
    for _ in range(1000):
        budget.requested(0.0)
        taken += budget.take(0.0)
    assert 200 <= taken <= 200 + MOST
    assert not budget.take(0.0)
    assert [budget.take(1.0) for _ in range(3)] == [True, True, False], "two a second"


def test_it_does_not_save_up_without_bound():
    budget = RetryBudget()
    budget.requested(0.0)
    assert sum(budget.take(1e6) for _ in range(100)) == MOST


def test_pauses_begin_with_the_third_attempt():
    rng = random.Random(1)
    assert pause(1, rng) == pause(2, rng) == 0.0
    for number, most in ((3, 0.2), (4, 0.4), (5, 0.8), (30, 5.0)):
        seen = [pause(number, rng) for _ in range(200)]
        assert 0 <= min(seen) < most / 4
        assert most * 0.75 < max(seen) <= most
