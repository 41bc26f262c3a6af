"""LibP2PInferenceNode: the specification's face of the peer-to-peer network."""
