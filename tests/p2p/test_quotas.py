"""What a peer may use: models, requests at once, tokens a minute."""

import pytest

from uia_lab.domain.errors import BadRequest, NotAllowed, RateLimited
from uia_lab.domain.events import Usage
from uia_lab.domain.peers import Offer, OfferedModel, Quota
from uia_lab.domain.requests import InferenceRequest
from uia_lab.p2p.quotas import MOST_AT_ONCE, Quotas

OFFER = Offer(
    models=(
        OfferedModel(name="small", tasks=("text-generation",)),
        OfferedModel(name="large", tasks=("text-generation",)),
        OfferedModel(name="vectors", tasks=("text-embedding",)),
    )
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def quotas(clock):
    return Quotas(clock)


def ask(model="small", task="text-generation", inputs="hello", **parameters):
    return InferenceRequest(task, model, inputs, parameters=parameters)


def test_only_what_is_lent_and_only_for_its_tasks(quotas):
    for request in (ask("unknown"), ask("vectors"), ask("small", "text-embedding"), ask("small*")):
        with pytest.raises(NotAllowed, match="not lent"):
            quotas.take("p", Quota(), OFFER, request)
    with pytest.raises(BadRequest, match="name a model"):
        quotas.take("p", Quota(), OFFER, ask(None))
    quotas.take("p", Quota(), OFFER, ask("vectors", "text-embedding"))


def test_only_the_models_of_the_quota(quotas):
    quota = Quota(models=("s*",))
    quotas.take("p", quota, OFFER, ask("small"))
    with pytest.raises(NotAllowed, match="to you"):
        quotas.take("p", quota, OFFER, ask("large"))
    with pytest.raises(NotAllowed, match="to you"):
        quotas.take("p", Quota(models=()), OFFER, ask("small"))


def test_requests_at_once_are_given_back_once(quotas):
    quota = Quota(max_concurrent=2)
    first, second = (quotas.take("p", quota, OFFER, ask()) for _ in range(2))
    with pytest.raises(RateLimited, match="as many as you may"):
        quotas.take("p", quota, OFFER, ask())
    quotas.take("other", quota, OFFER, ask())
    first.finish(Usage())
    first.finish(Usage())
    assert quotas.running("p") == 1
    quotas.take("p", quota, OFFER, ask())
    second.finish(Usage())
    assert quotas.running("p") == 1


def test_without_a_limit_there_still_is_one(quotas):
    for _ in range(MOST_AT_ONCE):
        quotas.take("p", Quota(max_concurrent=None), OFFER, ask())
    with pytest.raises(RateLimited):
        quotas.take("p", Quota(max_concurrent=None), OFFER, ask())


def test_tokens_are_set_aside_and_charged_as_they_were(quotas, clock):
    quota = Quota(tokens_per_minute=1000)
    taken = quotas.take("p", quota, OFFER, ask(max_tokens=900))
    with pytest.raises(RateLimited, match="tokens a minute") as caught:
        quotas.take("p", quota, OFFER, ask(max_tokens=900))
    assert caught.value.retry_after == pytest.approx(61.0)
    taken.finish(Usage(10, 20))
    quotas.take("p", quota, OFFER, ask(max_tokens=900)).finish(Usage(10, 960))
    with pytest.raises(RateLimited):
        quotas.take("p", quota, OFFER, ask(max_tokens=1))
    clock.now += 61.0
    quotas.take("p", quota, OFFER, ask(max_tokens=900))


def test_what_can_never_be_granted_says_no_time(quotas):
    with pytest.raises(RateLimited) as caught:
        quotas.take("p", Quota(tokens_per_minute=10), OFFER, ask(max_tokens=900))
    assert caught.value.retry_after is None


def test_tokens_are_set_aside_for_each_of_several_answers(quotas):
    quota = Quota(tokens_per_minute=1000)
    for name in ("n", "best_of"):
        with pytest.raises(RateLimited):
            quotas.take("p", quota, OFFER, ask(**{"max_tokens": 100, name: 20}))


@pytest.mark.parametrize("length", [-5, True, "many", 10**9])
def test_lengths_that_are_none_free_nothing(quotas, length):
    quota = Quota(tokens_per_minute=1000)
    if length == 10**9:
        with pytest.raises(RateLimited):
            quotas.take("p", quota, OFFER, ask(max_tokens=length))
    else:
        quotas.take("p", quota, OFFER, ask(max_tokens=length))
        assert 0 < quotas._windows["p"].taken(0.0) <= 1000
