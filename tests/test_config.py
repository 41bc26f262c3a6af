"""Where a setting comes from, and what happens to a wrong one."""

import pytest
from traitlets.config import Config

from uia_lab.config import ConfigError, InferenceServiceConfig


def test_order_of_sources(monkeypatch):
    assert InferenceServiceConfig().backend_health_check_interval == 60
    monkeypatch.setenv("BACKEND_HEALTH_CHECK_INTERVAL", "20")
    assert InferenceServiceConfig().backend_health_check_interval == 20
    file = Config({"InferenceServiceConfig": {"backend_health_check_interval": 30}})
    assert InferenceServiceConfig(config=file).backend_health_check_interval == 30
    keyword = InferenceServiceConfig(config=file, backend_health_check_interval=40)
    assert keyword.backend_health_check_interval == 40


def test_environment_of_each_kind(monkeypatch):
    monkeypatch.setenv("LIBP2P_BOOTSTRAP_PEERS", "/ip4/127.0.0.1/tcp/1, /ip4/127.0.0.1/tcp/2")
    monkeypatch.setenv("HF_AUTO_DISCOVER", "false")
    monkeypatch.setenv("HF_SERVER_PORT", "0")
    config = InferenceServiceConfig()
    assert config.libp2p_bootstrap_peers == ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"]
    assert config.hf_auto_discover_skills is False
    assert config.hf_server_port == 0


@pytest.mark.parametrize(
    ("variable", "value", "setting"),
    [
        ("HF_SERVER_PORT", "eighty", "hf_server_port"),
        ("HF_SERVER_PORT", "70000", "hf_server_port"),
        ("HF_AUTO_DISCOVER", "perhaps", "hf_auto_discover_skills"),
        ("UIA_EXTERNAL_POLICY", "sometimes", "external_policy"),
    ],
)
def test_a_bad_environment_names_variable_setting_and_value(monkeypatch, variable, value, setting):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        InferenceServiceConfig()
    assert variable in str(caught.value)
    assert setting in str(caught.value)
    assert value in str(caught.value)


def test_unknown_settings_are_errors_with_a_suggestion():
    with pytest.raises(ConfigError, match="Did you mean 'queue_size'"):
        InferenceServiceConfig(queue_sise=3)
    with pytest.raises(ConfigError, match="Did you mean 'queue_size'"):
        InferenceServiceConfig(config=Config({"InferenceServiceConfig": {"queue_sise": 3}}))


@pytest.mark.parametrize(
    "bad", [{"queue_size": "many"}, {"max_attempts": 0}, {"enable_backend_manager": False}]
)
def test_a_bad_value_names_the_setting(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        InferenceServiceConfig(**bad)
    with pytest.raises(ConfigError, match=next(iter(bad))):
        InferenceServiceConfig(config=Config({"InferenceServiceConfig": bad}))


def test_every_setting_has_help():
    for name, trait in InferenceServiceConfig.class_traits(config=True).items():
        assert trait.help.endswith("."), name
