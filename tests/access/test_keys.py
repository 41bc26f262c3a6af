import pytest

from uia_lab.access.credentials import bearer
from uia_lab.access.keys import KeyRing
from uia_lab.access.principals import Principal
from uia_lab.domain.errors import BadRequest, NotAllowed


def test_a_key_opens_for_its_principal_until_it_is_revoked():
    ring = KeyRing()
    key = ring.create("script", ["infer"])
    other = ring.create("other", ["read"])
    assert key.startswith("uia-")
    assert len(key) > 44
    assert ring.verify(key) == Principal("script", frozenset({"infer"}))
    assert ring.verify(key + "x") is None
    assert ring.verify("") is None
    assert ring.verify("\udcff" * 20) is None
    assert ring.revoke("script")
    assert not ring.revoke("script")
    assert ring.verify(key) is None
    assert ring.verify(other) is not None


def test_no_secret_is_kept_or_shown():
    ring = KeyRing()
    key = ring.create("script", ["admin"])
    assert key not in repr(ring)
    assert key not in str(vars(ring))
    assert "script" in repr(ring)
    with pytest.raises(ValueError, match="16") as caught:
        ring.add("short-one", Principal("p", frozenset({"read"})))
    assert "short-one" not in str(caught.value)


def test_scopes_are_checked_and_admin_implies_the_others():
    with pytest.raises(BadRequest, match="Known: admin, infer, read"):
        KeyRing().create("x", ["write"])
    with pytest.raises(BadRequest, match="at least one"):
        KeyRing().create("x", [])
    admin, reader = Principal("a", frozenset({"admin"})), Principal("r", frozenset({"read"}))
    admin.require("infer")
    reader.require("read")
    with pytest.raises(NotAllowed, match="'infer'"):
        reader.require("infer")


@pytest.mark.parametrize(
    ("headers", "token", "key"),
    [
        ({"Authorization": "Bearer k"}, None, "k"),
        ({"Authorization": "bearer  k "}, None, "k"),
        ({"Authorization": "Basic k"}, None, None),
        ({"Authorization": "Basic k", "x-api-key": "a"}, None, "a"),
        ({"x-api-key": "a"}, "t", "a"),
        ({}, "t", "t"),
        ({}, None, None),
    ],
)
def test_where_a_key_is_looked_for(headers, token, key):
    assert bearer(headers, token) == key
