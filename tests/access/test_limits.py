import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.access.test_keys import Clock, Table
from uia_lab.access.keys import KeyRing
from uia_lab.access.limits import Limiter, duration
from uia_lab.access.principals import Principal
from uia_lab.access.windows import WINDOW_S, Window
from uia_lab.dialects.relay import relayed_call
from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import NotAllowed, Overloaded, QuotaExceeded, RateLimited, Unauthenticated
from uia_lab.domain.events import Usage
from uia_lab.domain.keys import GUEST_PRINCIPAL, Limits
from uia_lab.domain.requests import InferenceRequest, Wire


class House:
    def __init__(self, most=100, default="small"):
        self.clock = Clock()
        self.keys = KeyRing(self.clock)
        self.keys.table = Table()
        self.limiter = Limiter(self.keys, most, lambda task: default, self.clock)

    async def key(self, **limits):
        _, key = await self.keys.create("k", ["infer"], Limits(**limits))
        self.principal = key.principal
        return key

    def admit(self, model="m", principal=None, inputs="x" * 40, **parameters):
        principal = principal or self.principal
        return self.limiter.admit(
            InferenceRequest("generation", model, inputs, parameters=parameters, principal=principal)
        )


@pytest.fixture
def house():
    return House()


async def test_requests_a_minute_and_when_the_next_one_may_come(house):
    await house.key(requests_per_minute=3)
    for _ in range(3):
        house.admit().finish(Usage())
        house.clock.now += 10
    with pytest.raises(RateLimited) as caught:
        house.admit()
    wait = caught.value.retry_after
    assert 30 < wait <= 31
    headers = house.limiter.headers(house.principal)
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "51s"
    house.clock.now += wait - 0.001
    with pytest.raises(RateLimited):
        house.admit()
    house.clock.now += 0.002
    house.admit().finish(Usage())
    assert house.limiter.running == 0


async def test_tokens_are_reserved_then_charged_as_they_were(house):
    key = await house.key(tokens_per_minute=100)
    first = house.admit(max_tokens=60)
    assert house.limiter.headers(house.principal)["x-ratelimit-remaining-tokens"] == "30"
    with pytest.raises(RateLimited) as caught:
        house.admit(max_tokens=30)
    assert caught.value.retry_after == 61
    first.finish(Usage(12, 8))
    first.finish(Usage(1000, 1000))
    assert house.limiter.headers(house.principal)["x-ratelimit-remaining-tokens"] == "80"
    house.admit(max_tokens=30).finish(Usage(10, 30))
    assert house.keys.get(key.id).tokens_used == 60
    with pytest.raises(RateLimited, match="Lower max_tokens") as caught:
        house.admit(max_tokens=500)
    assert caught.value.retry_after is None


async def test_a_budget_is_for_life_and_those_under_way_count(house):
    key = await house.key(token_budget=100)
    running = house.admit(max_tokens=50)
    with pytest.raises(QuotaExceeded, match="40 of 100"):
        house.admit(max_tokens=50)
    running.finish(Usage(10, 85))
    house.clock.now += 10_000
    with pytest.raises(QuotaExceeded):
        house.admit(inputs="x" * 24, max_tokens=1)
    house.admit(inputs="x", max_tokens=1).finish(Usage(1, 9))
    assert house.keys.get(key.id).tokens_used == 105
    with pytest.raises(QuotaExceeded) as caught:
        house.admit(inputs="")
    assert (caught.value.code, caught.value.retry_after) == ("insufficient_quota", None)


async def test_an_answer_of_unknown_length_is_reserved_as_a_usual_one(house):
    await house.key(tokens_per_minute=1000, token_budget=1000)
    admitted = [house.admit() for _ in range(3)]
    with pytest.raises((RateLimited, QuotaExceeded)):
        house.admit()
    for admission in admitted:
        admission.finish(Usage(10, 20))
    house.admit().finish(Usage())
    small = House()
    await small.key(tokens_per_minute=50)
    small.admit().finish(Usage(10, 5))


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [
        ({"max_tokens": 5, "n": 3}, 25),
        ({"max_completion_tokens": 1, "max_tokens": 90}, 100),
        ({"max_new_tokens": 40, "best_of": 2}, 90),
        ({"max_tokens": True, "max_completion_tokens": "x", "max_length": 7}, 17),
    ],
)
async def test_the_longest_that_any_name_asks_for_is_reserved(house, parameters, tokens):
    await house.key(tokens_per_minute=1000)
    house.admit(**parameters)
    assert house.limiter.headers(house.principal)["x-ratelimit-remaining-tokens"] == str(1000 - tokens)


async def test_what_is_not_limited_is_not_counted_for_ever(house):
    await house.key(models=("m",))
    for _ in range(100):
        house.admit().finish(Usage(1, 1))
        house.clock.now += 2
    assert not any(used.requests._slots or used.tokens._slots for used in house.limiter._used.values())


def test_a_picture_is_no_million_of_characters():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "x" * 1_000_000}}
    said = [{"role": "user", "content": [{"type": "text", "text": "y" * 400}, picture]}]
    assert 1100 < InferenceRequest("chat", "m", messages=said).prompt_estimate < 1200
    assert InferenceRequest("embedding", "m", inputs=[[1] * 50, "x" * 200]).prompt_estimate == 100


async def test_bytes_as_they_came_are_restricted_where_models_are(house):
    await house.key(models=("m",))
    wire = Wire("openai-chat", b'{"model": "m", "models": ["other"], "messages": [], "service_tier": "x"}')
    request = InferenceRequest("chat", "m", messages=[], wire=wire, principal=house.principal)
    admitted = house.limiter.admit(request).request
    assert set(relayed_call("chat/completions", admitted).body) == {"model", "messages"}
    assert set(relayed_call("chat/completions", request).body) == {
        "model",
        "models",
        "messages",
        "service_tier",
    }


async def test_requests_at_once_of_a_key_and_of_all(house):
    house.limiter.most = 3
    await house.key(max_concurrent=2)
    running = [house.admit(), house.admit()]
    with pytest.raises(RateLimited, match="as many as it may"):
        house.admit()
    other = house.admit(principal="local")
    with pytest.raises(Overloaded) as caught:
        house.admit(principal="local")
    assert (caught.value.http_status, caught.value.code) == (503, "overloaded")
    for admission in (*running, other):
        admission.finish(Usage())
    assert house.limiter.running == 0
    house.admit().finish(Usage())


async def test_models_and_types_that_a_key_permits(house):
    await house.key(models=("gpt-*", "small"), backend_types=("gpu",))
    assert house.admit("gpt-4o").request.permitted_types == {BackendType.GPU}
    assert house.admit(None).request.model == "small"
    with pytest.raises(NotAllowed, match="small"):
        house.admit("other")
    assert house.limiter.permits(house.principal, "gpt-x")
    assert not house.limiter.permits(house.principal, "other")
    assert house.limiter.permits("alice", "other")
    closed = House(default=None)
    await closed.key(models=("a",))
    with pytest.raises(NotAllowed, match="without a model"):
        closed.admit(None)


async def test_a_key_revoked_on_the_way_in_and_one_made_anew(house):
    key = await house.key(requests_per_minute=1)
    running = house.admit()
    await house.keys.revoke(key.id)
    with pytest.raises(Unauthenticated):
        house.admit()
    assert house.limiter.headers(house.principal) == {}
    running.finish(Usage(1, 1))
    await house.key(requests_per_minute=1)
    house.admit().finish(Usage())
    assert house.limiter.running == 0


async def test_what_a_call_asks_for_counts_for_whoever_called(house):
    key = await house.key(models=("m",), backend_types=("cli", "gpu"), token_budget=100)
    first = Principal(f"{GUEST_PRINCIPAL}1", frozenset({"infer"}))
    second = Principal(f"{GUEST_PRINCIPAL}2", frozenset({"infer"}))
    with house.keys.lent(first, house.principal), house.keys.lent(second, first.name):
        for guest in (first.name, second.name):
            admission = house.admit(principal=guest, max_tokens=10)
            assert admission.request.permitted_types == {BackendType.CLI, BackendType.GPU}
            admission.finish(Usage(10, 10))
            with pytest.raises(NotAllowed):
                house.admit("other", principal=guest)
            with pytest.raises(QuotaExceeded):
                house.admit(principal=guest, max_tokens=1000)
            assert not house.limiter.permits(guest, "other")
        assert house.keys.get(key.id).tokens_used == 40
        await house.keys.revoke(key.id)
        with pytest.raises(Unauthenticated):
            house.admit(principal=second.name)
    with house.keys.lent(first, "local"):
        house.admit("other", principal=first.name).finish(Usage())
    # What was let in at the door a moment before the call ended.
    with pytest.raises(Unauthenticated, match="ended"):
        house.admit(principal=first.name)
    assert house.limiter.running == 0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=60))
def test_no_sixty_seconds_ever_have_more_than_the_limit(steps):
    window, now, taken = Window(10), 0.0, []
    for pause, amount in steps:
        now += pause
        wait = window.wait(amount, now)
        if wait:
            assert window.taken(now) + amount > 10
            now += wait + 1e-6
            assert window.wait(amount, now) == 0.0
        window.take(amount, now)
        taken.append((now, amount))
        assert sum(amount for at, amount in taken if at > now - WINDOW_S) <= 10


@given(st.floats(0, 10_000, allow_nan=False))
def test_a_reset_is_never_told_too_early(seconds):
    text = duration(seconds)
    minutes, _, rest = text.rpartition("m") if not text.endswith("ms") else ("", "", text)
    told = float(rest[:-2]) / 1000 if rest.endswith("ms") else float(rest[:-1])
    told += 60 * float(minutes or 0)
    assert seconds - 1e-9 <= told <= seconds + 1.001
    assert math.isfinite(told)
