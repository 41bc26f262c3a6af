"""The provider table, and the page that shows it."""

from pathlib import Path

import pytest

from uia_lab.backends.providers import PROVIDERS
from uia_lab.dialects.registry import UPSTREAM_DIALECTS, upstream_dialect

PAGE = (Path(__file__).parents[2] / "docs" / "apis.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)
def test_the_page_has_its_row(provider):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {provider.title} |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == [
        ", ".join(f"`{name}`" for name in (provider.name, *provider.aliases)),
        provider.base_url.removeprefix("https://") if provider.base_url else "-",
        ", ".join(provider.keys) or "-",
        f"`{provider.dialect}`",
        "yes" if provider.verified else "no",
    ]


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)
def test_it_is_sound(provider):
    if provider.base_url is not None:
        assert provider.base_url.startswith("https://")
        assert not provider.base_url.endswith("/")
        assert provider.keys
    if provider.dialect in UPSTREAM_DIALECTS:
        assert provider.tasks <= upstream_dialect(provider.dialect).tasks
    assert provider.concurrency > 0
