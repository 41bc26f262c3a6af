"""Two servers in processes of their own, each with a notebook: one lends its models to the other."""

import signal
import time

import pytest

from tests.upstreams.peer_server import MODEL, counted
from uia_lab.domain.errors import BadRequest, NoBackendAvailable
from uia_lab.notebook.peers import WARNING

LOCAL = "SmolLM2-135M-Instruct"
# The protocol gives 15 s; the machine may be busy.
OFFLINE_S = 60.0


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


def befriend(alice, bob):
    """Alice lends to Bob; gives the id of the backend she is there."""
    invite = alice.peers().invite("bob")
    told = bob.peers().accept(invite.link)
    return until(lambda: bob.peers()[told["peer_id"]]["backend_id"])


def test_a_notebook_borrows_and_loses_no_token_when_the_lender_is_killed(start_peer, labs):
    lender, borrower = start_peer(pause_s=0.02), start_peer()
    alice, bob = labs(lender), labs(borrower)
    backend_id = befriend(alice, bob)
    generation = bob.generate("x", MODEL, prefer="p2p", max_tokens=200, wait=False, show=False)
    until(lambda: len(generation.text) > 40)
    assert generation.backend == backend_id
    lender.kill()
    generation.wait(60)
    generation.raise_for_error()
    assert generation.text == counted(200)
    assert [(item.backend_id, item.outcome) for item in generation.attempts] == [
        (backend_id, "failed"),
        ("count", "ok"),
    ]
    until(lambda: bob.backends[backend_id].status == "offline", OFFLINE_S)


@pytest.mark.slow
def test_a_frozen_lender_costs_a_second_and_comes_back(start_peer, labs):
    lender, borrower = start_peer(pause_s=0.02), start_peer()
    alice, bob = labs(lender), labs(borrower)
    backend_id = befriend(alice, bob)
    generation = bob.generate("x", MODEL, prefer="p2p", max_tokens=200, wait=False, show=False)
    until(lambda: len(generation.text) > 40)
    lender.signal(signal.SIGSTOP)
    generation.wait(60)
    generation.raise_for_error()
    assert generation.text == counted(200)
    until(lambda: bob.backends[backend_id].status == "offline", OFFLINE_S)
    lender.signal(signal.SIGCONT)
    until(lambda: bob.backends[backend_id]["routable"], OFFLINE_S)
    assert bob.generate("x", MODEL, backend=backend_id, show=False, max_tokens=8).text == counted(8)
    assert bob.backends[backend_id].status == "healthy"


def test_a_local_model_is_lent_and_what_costs_money_is_not(start_peer, labs, models):
    lender, borrower = start_peer(), start_peer(enable_hf_server=True, default_model=LOCAL)
    alice, bob = labs(lender), labs(borrower)
    backend_id = befriend(alice, bob)
    peer = next(iter(bob.peers().values()))
    lent = {model["name"] for model in peer["offer"]["models"]}
    assert {LOCAL, MODEL} <= lent
    assert "paid-model" not in lent
    answer = bob.generate("Say hello.", LOCAL, prefer="p2p", max_tokens=8, show=False)
    assert (answer.backend, answer.state) == (backend_id, "done")
    assert answer.text
    with pytest.raises(NoBackendAvailable, match="does not serve paid-model"):
        bob.generate("x", "paid-model", backend=backend_id, show=False)
    assert "bob" in repr(alice.peers())


def test_the_table_says_who_reads_the_prompt_and_who_may_what(start_peer, labs):
    lender, borrower = start_peer(), start_peer()
    alice, bob = labs(lender), labs(borrower)
    assert "0 of 0 peers connected" in repr(alice.peers())
    invite = alice.peers().invite("bob", models=["c*"], max_concurrent=2, tokens_per_minute=5000)
    assert invite.link not in repr(invite)
    assert [item["name"] for item in alice.peers().invites] == ["bob"]
    told = bob.peers().accept(invite.link)
    text, html = repr(bob.peers()), bob.peers()._repr_mimebundle_()["text/html"]
    assert WARNING in text
    assert WARNING in html
    assert "<caption>" in html
    until(lambda: "● connected" in repr(alice.peers()))
    row = next(line for line in repr(alice.peers()).splitlines() if line.startswith("bob"))
    assert "c*; 2 at once; 5,000 tokens/min" in row
    assert "nothing" in next(
        line for line in repr(bob.peers()).splitlines() if "connected" in line and "trusted" in line
    )
    changed = alice.peers().trust("bob", models=[], name="robert")
    assert changed["quota"]["models"] == []
    alice.peers().revoke("robert")
    with pytest.raises(BadRequest, match="no peer 'robert'"):
        alice.peers().revoke("robert")
    until(lambda: bob.peers()[told["peer_id"]]["state"] != "connected", OFFLINE_S)
    spare = alice.peers().invite("carol")
    peers = alice.peers()
    peers.withdraw(spare.id)
    assert peers.invites == alice.peers().invites == []
