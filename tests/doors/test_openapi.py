"""``GET /openapi.yaml``, and what it is made from."""

import re

import pytest
import yaml
from openapi_spec_validator import validate

from tests.doors.test_identity import TAKES
from uia_lab.doors.operations import operations
from uia_lab.doors.routes import routes


@pytest.fixture
async def described(house):
    async with house.call("GET", "openapi.yaml", "infer") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/yaml"
        return yaml.safe_load(await response.text())


async def test_it_is_valid_and_describes_every_door(described):
    validate(described)
    there = {(path, method.upper()) for path, item in described["paths"].items() for method in item}
    wanted = [(pattern, method) for pattern, by in TAKES.items() if pattern != "/(.*)" for method in by]
    assert len(there) == len(wanted)
    for pattern, method in wanted:
        assert any(method == found and re.fullmatch(pattern, path) for path, found in there), pattern


async def test_its_scopes_are_those_of_the_doors(described):
    for pattern, by in TAKES.items():
        for path, item in described["paths"].items():
            if not re.fullmatch(pattern, path) or pattern == "/(.*)":
                continue
            for method, operation in item.items():
                scopes = {scope for way in operation["security"] for scope in way["key"]}
                assert scopes == set(by[method.upper()].split()), (path, method)
        # The first pattern that fits is the door, as in the table.
        described["paths"] = {
            path: item for path, item in described["paths"].items() if not re.fullmatch(pattern, path)
        }


async def test_fields_queries_and_addresses_are_told(described):
    load = described["paths"]["/models/load"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert load["required"] == ["model_id"]
    assert set(load["properties"]) == {"model_id", "device", "options"}
    listed = described["paths"]["/backends"]["get"]["parameters"]
    assert {item["name"] for item in listed} == {"type", "status", "task"}
    assert described["servers"] == [{"url": "/"}]


def test_every_operation_says_what_it_does():
    for operation in operations(routes()):
        assert operation.summary, operation
        assert "(" not in operation.path, operation


async def test_a_door_takes_the_fields_that_its_description_names(house):
    """Doors that refuse unknown fields do not refuse those."""
    for operation in operations(routes()):
        if not operation.body or operation.path.startswith(("/v1/", "/explain", "/replay")):
            continue
        address = re.sub(r"\{\w+\}", "x", operation.path).lstrip("/")
        for name in operation.body:
            # No value of this kind is right anywhere, so nothing is done.
            sent = {name.rstrip("?"): {"no": "value"}}
            async with house.call(operation.method, address, "admin", json=sent) as response:
                text = await response.text()
            assert f"{name.rstrip('?')} is unknown" not in text, (operation, name)
            assert "cannot be changed" not in text, (operation, name)
