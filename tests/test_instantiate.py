"""What a node of a configuration builds, and what is said where it cannot."""

import contextlib

import hydra
import pytest
from omegaconf import OmegaConf

from search_r3.cli.config_source import ConfigSource
from search_r3.cli.instantiate import instantiate
from search_r3.errors import UsageError
from tests.tiny_stage import TEXTS, TinyDataModule, load_tiny, write_configs


def test_instantiate_hands_objects_over_as_they_are():
    data = load_tiny()
    node = OmegaConf.create({"_target_": "tests.tiny_stage.TinyDataModule", "batch_size": 2})

    module = instantiate(node, data=data, embedder=None)

    assert isinstance(module, TinyDataModule)
    assert len(module.rows) == len(TEXTS)


def test_pitfall_19_the_version_base_is_set_and_a_whitelist_where_hydra_knows_one(tmp_path, monkeypatch):
    allowed = []

    @contextlib.contextmanager
    def target_whitelist(pattern):
        allowed.append(pattern)
        yield

    with pytest.raises(Exception, match=r"os\.system"):
        instantiate(OmegaConf.create({"_target_": "os.system", "command": "true"}))
    monkeypatch.setattr(hydra.utils, "target_whitelist", target_whitelist, raising=False)  # Hydra 1.4's
    assert instantiate(OmegaConf.create({"_target_": "torch.Size", "_args_": [[2]]})) == (2,)
    assert set(allowed) == {"search_r3.*", "pytorch_lightning.*", "torch.*"}
    instantiate(OmegaConf.create({"_target_": "tests.tiny_stage.load_tiny"}))
    assert "tests.tiny_stage.load_tiny" in allowed  # what one's own command names is built there too
    with ConfigSource(write_configs(tmp_path)):
        assert str(hydra.version.getbase()) == "1.3"


def test_instantiate_raises_what_the_target_raised():
    node = OmegaConf.create({"_target_": "tests.tiny_stage.load_tiny", "is_broken": True})

    with pytest.raises(ValueError, match=r"^rows.jsonl:3: query is empty$"):
        instantiate(node)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_package.rows", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("own_targets.lacking", "ModuleNotFoundError: No module named 'own_targets.lacking'"),
        ("own_targets.Kind.missing", "AttributeError: type object 'Kind' has no attribute 'missing'"),
        ("own_targets_broken.rows", "ValueError: not today"),
    ],
)
def test_a_target_that_cannot_be_imported_is_named_with_what_its_import_raised(
    tmp_path, monkeypatch, target, reason
):
    (tmp_path / "own_targets.py").write_text("class Kind:\n    pass\n")
    (tmp_path / "own_targets_broken.py").write_text("raise ValueError('not today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = OmegaConf.create({"weight": 1.0, "loss": {"_target_": target, "_partial_": True}})
    with pytest.raises(UsageError) as caught:
        instantiate(node)
    assert str(caught.value).startswith(f"loss._target_: {target} cannot be imported ({reason}")
    assert "\n" not in str(caught.value)
