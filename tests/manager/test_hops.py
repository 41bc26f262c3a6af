"""A request that comes back to where it was goes round no further."""

import pytest

from uia_lab.domain.errors import LoopDetected
from uia_lab.domain.requests import InferenceRequest
from uia_lab.manager.journey import MOST_HOPS


@pytest.mark.parametrize("via", ["own", "many"])
async def test_a_request_that_went_in_a_circle_is_rejected(manager, scripted, via):
    backend = scripted("a")
    manager.register_backend("b", "gpu", "B", backend)
    passed = ("other", manager.instance_id) if via == "own" else tuple(f"i{n}" for n in range(MOST_HOPS + 1))
    with pytest.raises(LoopDetected, match="leads back"):
        await manager.run(InferenceRequest("generation", inputs="x", via=passed))
    assert (manager.totals.rejected, manager.totals.total) == (1, 1)
    assert backend.closed == 0
    request = InferenceRequest("generation", inputs="x", via=passed[:1])
    assert (await manager.run(request)).text == "a"
