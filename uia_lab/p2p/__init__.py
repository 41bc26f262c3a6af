"""The libp2p node: a trio thread, its bridge to asyncio, protocols, discovery, trust."""
