"""A request that has been here, or came through too many instances, is refused at every door alike."""

import pytest

from uia_lab.domain.errors import LoopDetected
from uia_lab.domain.requests import InferenceRequest


@pytest.mark.parametrize("via", [("a", "here"), ("a", "b", "c", "d", "e")])
async def test_a_loop_is_refused(manager, scripted, via):
    manager.register_backend("a", "gpu", "A", scripted("x"))
    via = tuple(manager.instance_id if item == "here" else item for item in via)
    with pytest.raises(LoopDetected) as caught:
        await manager.run(InferenceRequest("generation", inputs="x", via=via))
    assert (caught.value.http_status, caught.value.retryable) == (508, False)
    report = manager.get_backend_status_report()
    assert (report["total_requests"], report["total_rejected"], report["in_flight"]) == (1, 1, 0)
    assert report["backends"][0]["metrics"]["total_requests"] == 0


async def test_four_others_are_fine(manager, scripted):
    manager.register_backend("a", "gpu", "A", scripted("x"))
    await manager.run(InferenceRequest("generation", inputs="x", via=("a", "b", "c", "d")))
