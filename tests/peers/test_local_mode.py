"""A kernel without a server is in the network too, with the functions of its notebook."""

import time

from uia_lab.config import InferenceServiceConfig
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.unified_inference_service import UnifiedInferenceService


def test_a_function_of_a_notebook_is_lent(start_peer, labs, network, tmp_path):
    config = InferenceServiceConfig(
        **network, enable_hf_server=False, p2p_key_path=str(tmp_path / "mine.key")
    )
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    with Lab(InProcessTransport(service)) as lab:

        @lab.serve(model="shout")
        def shout(inputs):
            yield inputs[-1]["content"].upper()

        friend = labs(start_peer())
        peers = lab.peers()
        assert peers.node["lends"] == ["shout"]
        told = friend.peers().accept(peers.invite("friend").link)
        backend_id = friend.peers()[told["peer_id"]]["backend_id"]
        deadline = time.monotonic() + 30
        while backend_id is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            backend_id = friend.peers()[told["peer_id"]]["backend_id"]
        assert friend.generate("hello", "shout", show=False).text == "HELLO"
        assert shout(inputs=[{"content": "x"}]) is not None
        changed = lab.peers().trust("friend", models=["nothing"], tokens_per_minute=7)
        assert changed["quota"]["tokens_per_minute"] == 7
        spare = lab.peers().invite("spare")
        lab.peers().withdraw(spare.id)
        assert lab.peers().invites == []
        lab.peers().revoke("friend")
        assert "friend" not in [peer["name"] for peer in lab.peers().values() if peer["trusted"]]
    assert service.get_p2p_node() is None
