"""Where configurations are read from, and what Hydra composes of them."""

import copy
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search_r3.cli.describe import key_names
from search_r3.cli.overrides import flat_keys
from search_r3.cli.trust import targets_in
from search_r3.errors import UsageError
from search_r3.shipped import CONF

Composition = TypeVar("Composition")


class MissingChoice(UsageError):
    """A group of which an option must be chosen has none."""


class ReadOnce(ConfigRepository):
    """Hydra's access to config files, each of which is read and parsed once, however often it is composed.

    Hydra changes what it is given, so a parsed file is kept as bytes, of which a copy takes a thirtieth of
    the time of reading. A sweep would read all of its files for every job.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        self._taken: set[str] = set()
        super().__init__(config_search_path)

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self._parsed: dict[str, bytes] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._parsed:
            self._parsed[config_path] = pickle.dumps(super().load_config(config_path))
        found = pickle.loads(self._parsed[config_path])
        if found is not None:  # Hydra looks for `experiment/None` where none is chosen
            self._taken.add(config_path)
        return found

    def has_taken(self, group: str) -> bool:
        """Whether any composition so far had an option of a group."""
        return any(path.startswith(f"{group}/") for path in self._taken)

    def __deepcopy__(self, memo: object) -> "ReadOnce":
        """What Hydra composes with; where that reads from other folders, it keeps what it reads to itself."""
        return copy.copy(self)


class ConfigSource:
    """Composes configurations from conf/ and, before it, a folder of the user's own (`--config-dir`)."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Takes a folder of additional configs, or None.

        Raises:
            UsageError: If the folder does not exist.
        """
        if folder is not None and not Path(folder).is_dir():
            raise UsageError(f"--config-dir: {folder} is not a folder")
        self._folder = None if folder is None else Path(folder).resolve()
        self._groups: dict[str, list[str]] | None = None

    def __enter__(self) -> "ConfigSource":
        search_path = create_config_search_path(str(CONF))
        if self._folder is not None:
            search_path.prepend("command-line", f"file://{self._folder}")
        GlobalHydra.instance().clear()
        hydra.version.setbase("1.3")
        self.loader = Hydra.create_main_hydra2("search-r3", search_path).config_loader
        self.loader.repository = ReadOnce(search_path)
        return self

    def __exit__(self, *error: object) -> None:
        GlobalHydra.instance().clear()

    def own_targets(self, but: Path) -> frozenset[str]:
        """Every `_target_` that the user's folder of configs names; none where that is the folder `but`."""
        folder, other = self._folder, but.resolve()
        if folder is None or folder.is_relative_to(other) or other.is_relative_to(folder):
            return frozenset()
        return targets_in(folder)

    def folders(self) -> list[Path]:
        """Where configurations are read from, what comes first first."""
        return [CONF] if self._folder is None else [self._folder, CONF]

    def key_names(self, config_name: str) -> list[str]:
        """Every key of a command, and of all options of its groups, without composing them."""
        return list(dict.fromkeys(key for folder in self.folders() for key in key_names(folder, config_name)))

    def file_of(self, path: str) -> Path:
        """The file of an option, as "refresh/candidates", or of a command; the user's own comes first."""
        files = [folder / f"{path}.yaml" for folder in self.folders()]
        return next((file for file in files if file.is_file()), files[-1])

    def parts(self, config_name: str, choices: Sequence[str]) -> list[tuple[str, str]]:
        """The files that a command is composed of, each with the key below which its content stands.

        Raises:
            UsageError: As `load`.
        """
        defaults = self._refusing(
            lambda: self.loader.compute_defaults_list(config_name, list(choices), RunMode.RUN)
        )
        found = [(part.config_path or "", part.package or "") for part in defaults.defaults]
        return [(path, package) for path, package in found if path and not path.startswith("hydra")]

    def groups(self) -> dict[str, list[str]]:
        """Options of every config group of ours, as they are when this is first asked."""
        if self._groups is None:
            options = self.loader.repository.get_group_options
            names = [name for name in options("", ObjectType.GROUP) if name != "hydra"]
            self._groups = {name: options(name, ObjectType.CONFIG) for name in names}
        return self._groups

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Overrides as Hydra reads them.

        Raises:
            UsageError: If one is not of the form key=value, or its value does not parse.
        """
        parser = OverridesParser.create(config_loader=self.loader)
        parsed = []
        for text in overrides:
            try:
                parsed.append(parser.parse_override(text))
            except HydraException as error:
                reason = str(error).splitlines()[0]
                named = [f"{group}={text}" for group, options in self.groups().items() if text in options]
                hint = f" Did you mean {', '.join(named)}?" if named else ""
                raise UsageError(
                    f"cannot read {text!r}: {reason}. The form is key=value; quote text.{hint}"
                ) from None
        return parsed

    def load(self, config_name: str, overrides: Sequence[str]) -> DictConfig:
        """The composed configuration, `hydra` node included.

        Raises:
            UsageError: Where Hydra or OmegaConf refuses, with the first line of the reason.
        """
        return self._refusing(
            lambda: self.loader.load_configuration(config_name, list(overrides), RunMode.RUN)
        )

    def with_keys(self, config: DictConfig, overrides: Sequence[Override]) -> DictConfig:
        """What `load` gives with these overrides of keys as well, without composing anew: `config`, changed.

        Raises:
            UsageError: As `load`.
        """

        def applied() -> DictConfig:
            self.loader.validate_sweep_overrides_legal(list(overrides), RunMode.RUN, from_shell=True)
            ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)
            return config

        return self._refusing(applied)

    def _refusing(self, compute: Callable[[], Composition]) -> Composition:
        """What Hydra computes; its refusals in our words."""
        try:
            return compute()
        except (HydraException, OmegaConfBaseException) as error:
            missing = re.search(r"You must specify '(\w+)'", str(error))
            if missing:
                options = (f"{missing[1]}={option}" for option in self.groups()[missing[1]])
                raise MissingChoice(f"{missing[1]}= is missing. Choices: {', '.join(options)}") from None
            raise UsageError("; ".join(str(error.__cause__ or error).strip().splitlines()[:2])) from None

    def keys_of_experiments(self, config_name: str, overrides: Sequence[str]) -> dict[str, str]:
        """Keys that the chosen experiments set themselves, each with the name of the experiment.

        Asked after `load` with the same overrides, by which every experiment that they choose was taken.
        """
        keys: dict[str, str] = {}
        if not self.loader.repository.has_taken("experiment"):
            return keys
        for path, package in self.parts(config_name, overrides):
            group, _, option = path.partition("/")
            if group == "experiment":
                own = self.loader.repository.load_config(path).config
                prefix = f"{package}." if package else ""
                keys |= {f"{prefix}{key}": f"experiment={option}" for key in flat_keys(plain_container(own))}
        return keys


def plain_container(config: DictConfig) -> dict:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}
