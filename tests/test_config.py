"""Where a setting comes from, and what happens to a wrong one."""

import pytest
from traitlets.config import Config

from uia_lab import config_files
from uia_lab.config import ConfigError, InferenceServiceConfig
from uia_lab.domain.errors import NotAllowed
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService


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
    monkeypatch.setenv("LIBP2P_ENABLE", "true")
    monkeypatch.setenv("LIBP2P_MODE", "open")
    monkeypatch.setenv("LIBP2P_NETWORK", "lab")
    monkeypatch.setenv("LIBP2P_LISTEN", "/ip4/127.0.0.1/tcp/4001")
    monkeypatch.setenv("LIBP2P_KEY_PATH", "/x/p2p.key")
    monkeypatch.setenv("LIBP2P_ENABLE_MDNS", "false")
    monkeypatch.setenv("LIBP2P_DISCOVERY_INTERVAL", "5")
    config = InferenceServiceConfig()
    assert (config.enable_libp2p, config.p2p_mode, config.p2p_network) == (True, "open", "lab")
    assert (config.p2p_listen, config.p2p_key_path) == (["/ip4/127.0.0.1/tcp/4001"], "/x/p2p.key")
    assert (config.libp2p_enable_mdns, config.libp2p_discovery_interval) == (False, 5.0)
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
        ("LIBP2P_MODE", "public", "p2p_mode"),
        ("LIBP2P_DISCOVERY_INTERVAL", "0", "libp2p_discovery_interval"),
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


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A folder that stands for the system-wide one, and one for the user's."""
    folders = {name: tmp_path / name for name in ("system", "user")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setattr("jupyter_core.paths.SYSTEM_CONFIG_PATH", [str(folders["system"])])
    monkeypatch.delenv("JUPYTER_NO_CONFIG", raising=False)
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(folders["user"]))
    return folders


def write(folder, **settings):
    text = "\n".join(f"c.InferenceServiceConfig.{name} = {value!r}" for name, value in settings.items())
    (folder / "jupyter_server_config.py").write_text(text)


def test_a_server_alone_reads_jupyters_files(system, monkeypatch):
    write(system["user"], queue_size=7, queue_timeout=3)
    (system["user"] / "jupyter_uia_lab_server_config.json").write_text(
        '{"InferenceServiceConfig": {"queue_size": 8}, "ServerApp": {"port": 1}}'
    )
    monkeypatch.setenv("LOAD_BALANCING_STRATEGY", "round_robin")
    config = InferenceServiceConfig.from_files(queue_timeout=4)
    assert (config.queue_size, config.queue_timeout) == (8, 4)
    assert config.load_balancing_strategy == "round_robin"
    write(system["user"], queue_sizes=7)
    with pytest.raises(ConfigError, match="queue_size"):
        InferenceServiceConfig.from_files()


def test_what_the_systems_administrator_locked_stays(system, monkeypatch, caplog):
    write(
        system["system"],
        external_policy="never",
        queue_size=5,
        locked_settings=["external_policy", "load_balancing_strategy"],
        load_balancing_strategy="round_robin",
    )
    write(system["user"], external_policy="any", queue_size=9, locked_settings=["queue_size"])
    monkeypatch.setenv("UIA_EXTERNAL_POLICY", "any")
    config = InferenceServiceConfig.from_files(external_policy="any")
    assert (config.external_policy, config.queue_size) == ("never", 9)
    assert "external_policy: locked" in caplog.text
    with pytest.raises(ConfigError, match="locked"):
        config.external_policy = "any"
    config.external_policy = "never"
    config.queue_size = 3
    manager = BackendManager(config)
    manager.configure({"load_balancing": "least_loaded"})
    assert manager.strategy_name == "round_robin"


async def test_a_locked_strategy_cannot_be_changed_while_it_runs(system):
    write(
        system["system"], load_balancing_strategy="round_robin", locked_settings=["load_balancing_strategy"]
    )
    config = InferenceServiceConfig(enable_hf_server=False)
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    await service.start(listen=False)
    with pytest.raises(NotAllowed, match="locked"):
        await service.kept.set_strategy("least_loaded")
    assert service.get_backend_manager().strategy_name == "round_robin"
    await service.stop()


def test_a_broken_system_file_locks_nothing_open(system):
    (system["system"] / "jupyter_server_config.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="cannot be read"):
        InferenceServiceConfig()


def test_a_lock_without_a_value_locks_the_default_and_a_wrong_one_opens_nothing(system, monkeypatch):
    monkeypatch.setenv("UIA_EXTERNAL_POLICY", "any")
    write(system["system"], locked_settings=["external_policy"])
    assert InferenceServiceConfig.from_files().external_policy == "named"
    config_files._locked.cache_clear()
    write(system["system"], locked_settings="external_policy")
    with pytest.raises(ConfigError, match="list of names"):
        InferenceServiceConfig.from_files()


def test_the_environment_moves_the_systems_folders_nowhere(system, monkeypatch):
    monkeypatch.setattr("uia_lab.config_files._SYSTEM", (str(system["system"]),))
    monkeypatch.setattr("jupyter_core.paths.SYSTEM_CONFIG_PATH", ["/nowhere/at/all"])
    write(system["system"], external_policy="never", locked_settings=["external_policy"])
    assert InferenceServiceConfig.from_files().external_policy == "never"
