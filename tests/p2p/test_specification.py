"""The libp2p sample of the specification runs as it stands, with a bootstrap peer of loopback."""

import re

from tests.p2p.conftest import counted
from tests.test_specification import run, samples
from uia_lab.libp2p_inference import LibP2PInferenceNode


async def test_the_sample(monkeypatch):
    monkeypatch.setattr("uia_lab.inference_backend_manager._shared", None)
    boot = LibP2PInferenceNode({"mode": "open", "enable_mdns": False})
    await boot.start()
    (source,) = samples("register_model('gpt2')")
    (address,) = boot.addresses
    names = await run(re.sub(r"/ip4/104[^']*", address, source))
    try:
        # Nobody was trusted: how that ended is said, and nothing is made up.
        response = names["response"]
        assert (response.success, response.result) == (False, None)
        assert "gpt2" in response.error
        assert [info.found_by for info in names["node"].peers] == [{"bootstrap"}]
    finally:
        await names["node"].stop()
        await boot.stop()


async def test_the_sample_is_answered_where_the_peer_is_trusted(monkeypatch):
    monkeypatch.setattr("uia_lab.inference_backend_manager._shared", None)

    async def handler():
        yield counted(3)

    boot = LibP2PInferenceNode({"mode": "open", "enable_mdns": False})
    boot.register_model("gpt2", handler)
    await boot.start()
    (source,) = samples("register_model('gpt2')")
    (address,) = boot.addresses
    source = re.sub(r"/ip4/104[^']*", address, source)
    # Before anything is asked: in private mode the node uses peers that it was told to trust.
    source = source.replace(
        "# Submit", f"await node.node.trust({boot.node.peer_id!r})\nawait ready(node)\n# Submit"
    )

    async def ready(node):
        import asyncio

        async with asyncio.timeout(30):
            while not await node.find_peers_for_task("text-generation", "gpt2"):
                await asyncio.sleep(0.01)

    names = await run(source, ready=ready)
    try:
        response = names["response"]
        assert (response.success, response.result, response.peer_id) == (True, counted(3), boot.node.peer_id)
    finally:
        await names["node"].stop()
        await boot.stop()
