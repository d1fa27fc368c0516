"""From options and keys to a configuration that passed every check."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search_r3.cli.config_source import ConfigSource, MissingChoice, plain_container
from search_r3.cli.devices import cpu_dtype, cpu_precision, cpu_ranks
from search_r3.cli.entry import Composed
from search_r3.cli.mixtures import check_mixtures
from search_r3.cli.model_choice import TRAINED, Given, read_facts, refuse_conflicts
from search_r3.cli.names import check_names
from search_r3.cli.number_ranges import check_numbers
from search_r3.cli.overrides import addable_keys, did_you_mean, flat_keys, literal, refuse_unknown
from search_r3.cli.renamed import CHOICES, POLICY, RENAMED, WORDS
from search_r3.cli.trust import calls, checked_trust
from search_r3.errors import UsageError
from search_r3.shipped import shipped

RL_GROUPS = ("index", "refresh", "reward", "normalisation", "kl")
SHIPPED = "${shipped:"
"""Opens a path in conf/ to what lies beside the package; config.yaml keeps it as it is, for any machine."""
CHOICE = "${hydra:runtime.choices."
"""Opens a reference to the option that is taken in a config group; Hydra alone knows it while it composes."""
OmegaConf.register_new_resolver("cpu_dtype", cpu_dtype, replace=True)
OmegaConf.register_new_resolver("cpu_precision", cpu_precision, replace=True)
OmegaConf.register_new_resolver("cpu_ranks", cpu_ranks, replace=True)
OmegaConf.register_new_resolver("shipped", shipped, replace=True)


def mapped_text(node: object, change: Callable[[str, str], str], key: str = "") -> object:
    """A plain container with every text in it changed; `change` is told the text and its dotted key."""
    if isinstance(node, dict):
        below = f"{key}." if key else ""
        return {name: mapped_text(value, change, f"{below}{name}") for name, value in node.items()}
    if isinstance(node, list):
        return [mapped_text(value, change, f"{key}.{place}") for place, value in enumerate(node)]
    return change(node, key) if isinstance(node, str) else node


def compose(
    config_name: str, overrides: Sequence[str], source: ConfigSource, may_lack: bool = False
) -> Composed:
    """Composes a configuration in which every key means something.

    Args:
        config_name: file in conf/.
        overrides: one value each, free text already quoted.
        source: where configs are read from.
        may_lack: whether values may be missing still, as where it is only printed; where some are, the
            values of the others are not checked.

    Raises:
        UsageError: For an unknown group option or key (with `+` as well), a group that the choices do not
            use, a value that is still missing, or a number out of its range.
    """
    parsed = source.parse(overrides)
    groups = source.groups()
    in_groups = [override for override in parsed if override.key_or_group in groups]
    _check_options(in_groups, groups)
    texts = [override.input_line for override in in_groups]
    of_hydra = [override for override in parsed if override.key_or_group.startswith("hydra")]
    try:
        base = _load_choices(config_name, texts, in_groups, source)
    except MissingChoice as error:
        raise _unknown_key(config_name, parsed, source, groups) or error from None
    container = plain_container(base)
    restated = _agreed_with_folder(base, parsed, lambda: source.keys_of_experiments(config_name, texts))
    keys = [
        checked_key(override, container, groups)
        for override in parsed
        if override not in in_groups
        and override not in of_hydra
        and (override.key_or_group not in restated or override.key_or_group in flat_keys(container))
    ]
    full = source.with_keys(base, [*keys, *of_hydra])
    choices = {name: choice for name, choice in full.hydra.runtime.choices.items() if name in groups}
    config = OmegaConf.masked_copy(full, [str(key) for key in full if key != "hydra"])
    config = with_modes(with_choices(config, choices), source)
    if not (may_lack and OmegaConf.missing_keys(config)):
        check_complete(config)
    return Composed(config, choices, [*texts, *(override.input_line for override in keys)])


def with_choices(config: DictConfig, choices: Mapping[str, str | None]) -> DictConfig:
    """The configuration, in which references to the option taken in a group have become that option."""
    for key, value in flat_keys(plain_container(config)).items():
        if isinstance(value, str) and value.startswith(CHOICE):
            OmegaConf.update(config, key, choices[value.removeprefix(CHOICE).removesuffix("}")])
    return config


def with_modes(config: DictConfig, source: ConfigSource) -> DictConfig:
    """The configuration of an evaluation with a node `mode.<name>` for each option of the group `mode`.

    `modes=[direct,mine]` names several options of one group, which Hydra's own choices cannot.
    """
    if "modes" not in config:
        return config
    names = source.groups().get("mode", [])
    nodes = {name: OmegaConf.load(source.file_of(f"mode/{name}")) for name in names}
    return OmegaConf.merge(config, {"mode": nodes})


def _check_options(overrides: Sequence[Override], groups: dict[str, list[str]]) -> None:
    for override in overrides:
        group, value = override.key_or_group, override.value()
        if override.is_delete():
            continue
        if value is None:  # of which Hydra says neither the group nor what to write
            without = ", or leave it out for none" if group == "experiment" else ""
            raise UsageError(f"{group}=null chooses nothing{without}. Choices: {', '.join(groups[group])}")
        if value not in groups[group] and (name := CHOICES.get((group, str(value)))):
            raise UsageError(f"{group}={value} is called {group}={name} now")
        refuse_unknown(f"{group}={value}", value, groups[group])


def _unknown_key(
    config_name: str, parsed: Sequence[Override], source: ConfigSource, groups: dict[str, list[str]]
) -> UsageError | None:
    """The refusal of a key that means nothing, whatever is chosen of the groups; None where there is none.

    So a typo in `stage=` is told, and not that `stage=` is missing.
    """
    keys = source.key_names(config_name)
    beginnings = {key.partition(".")[0] for key in keys} | groups.keys() | {"hydra"}
    for override in parsed:
        key = override.key_or_group
        if re.split("[.@/]", key)[0] not in beginnings:
            return _no_such_key(key, [*beginnings, *keys])
    return None


def _no_such_key(key: str, known: Collection[str]) -> UsageError:
    """The refusal of a key, with those that may be meant, also those of the trainer that conf/ leaves out."""
    if any(name.startswith("stage.") for name in known):
        more = addable_keys({}, "stage.trainer") or ()
        known = [*known, *(f"stage.trainer.{name}" for name in more if "." not in key)]
    return UsageError(f"there is no key {key}.{did_you_mean(key, known)}")


def _load_choices(
    config_name: str, texts: Sequence[str], overrides: Sequence[Override], source: ConfigSource
) -> DictConfig:
    try:
        return source.load(config_name, texts)
    except UsageError as error:
        for override in overrides:
            if override.key_or_group == "experiment" and "Could not override" in str(error):
                text = f"experiment={override.value()} is none of {config_name}'s: {error}"
                raise UsageError(text) from None
            if f"override '{override.key_or_group}'" in str(error):
                if override.key_or_group == "mode" and config_name == "evaluate":
                    raise UsageError(f"mode= takes no choice; modes=[{override.value()}] does") from None
                stage = next((o.value() for o in overrides if o.key_or_group == "stage"), None)
                of = f"stage={stage}" if stage else f"this {config_name}"
                if override.key_or_group in RL_GROUPS and config_name == "train":
                    key = override.key_or_group
                    raise UsageError(f"{key}= belongs to stage=rl; {of} has no {key}") from None
                raise UsageError(
                    f"{override.key_or_group}= has no meaning under {of}: it uses no such group"
                ) from None
        raise


def checked_key(override: Override, config: dict, groups: dict[str, list[str]]) -> Override:
    """The override, marked `++` where it adds a key that the configuration leaves open.

    Raises:
        UsageError: If the key neither exists nor is an argument of the node it stands in.
    """
    key, known = override.key_or_group, flat_keys(config)
    if key in known and not override.is_delete():
        is_open_mapping = known[key] == {} and isinstance(override.value(), dict)
        return _added(override) if is_open_mapping or override.is_add() else override
    if override.is_delete():
        if key in known and "." not in key:
            raise UsageError(f"~{key}: a key of the command cannot be removed, only set")
        if key in known:
            return override
    else:
        parent, _, name = key.rpartition(".")
        addable = addable_keys(config, parent)
        if parent and (addable is None or name in addable):
            return _added(override)
        known = known | {f"{parent}.{other}": None for other in addable or () if parent}
    if key in RL_GROUPS:
        raise UsageError(f"{key}= belongs to stage=rl; the chosen stage has no {key}")
    named = [group for group in groups if group != "mode" or "modes" in config]
    raise _no_such_key(key, [*known, *named])


def _agreed_with_folder(
    base: DictConfig, parsed: Sequence[Override], by_experiment: Callable[[], Mapping[str, str]]
) -> set[str]:
    """Keys given by hand that say what the folder of `model.path` says.

    By hand is what stands on the command line or in an experiment; what a group's option says is a default.

    Args:
        base: composed from the choices alone.
        parsed: the command line, which comes after the experiment.
        by_experiment: gives the keys that the experiment sets, with its name; asked where a folder is read.

    Raises:
        UsageError: If one says something else, or the `model=` choice is for another pretrained model.
    """
    typed = {
        override.key_or_group: override
        for override in parsed
        if override.key_or_group.startswith("model.")
        and not (override.is_delete() or override.is_sweep_override())
    }
    path = value_of(typed["model.path"]) if "model.path" in typed else selected(base, "model.path")
    facts = read_facts(str(path)) if path is not None else None
    if facts is None:
        return set()
    given = {key: (selected(base, key), origin) for key, origin in by_experiment().items()}
    for key, override in typed.items():
        whole = flat_keys({key: plain_value(value_of(override))})
        given |= {name: (value, "") for name, value in whole.items()}
    is_trained_on = selected(base, "model._target_") != TRAINED  # what only reads may read longer texts
    nodes = ("model.prompts.", "model.create.", *(["model.lengths."] if is_trained_on else []))
    decided = {
        key: Given(key.removeprefix("model."), value, origin)
        for key, (value, origin) in given.items()
        if key.startswith(nodes) or key == "model.name"
    }
    leaves = [each for each in decided.values() if not isinstance(plain_value(each.value), (dict, list))]
    name = None if "model.name" in decided else selected(base, "model.name")
    refuse_conflicts(facts, leaves, base.hydra.runtime.choices.get("model"), name)
    return {key for key in typed if key.removeprefix("model.") in facts.values}


def selected(config: DictConfig, key: str) -> object:
    return OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=False)


def plain_value(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _added(override: Override) -> Override:
    """The override as `++` before it makes it."""
    return replace(override, type=OverrideType.FORCE_ADD, input_line=f"++{bare_text(override)}")


def bare_text(override: Override) -> str:
    return override.input_line.lstrip("+") if override.input_line else ""


def check_complete(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UsageError(f"{' and '.join(f'{key}=' for key in missing)} must be given")
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(str(error).splitlines()[0]) from None
    checked_trust(plain.get("trust"))
    _refuse_renamed(plain)
    _refuse_words(plain)
    check_names(plain)
    check_numbers(plain)
    check_mixtures(plain)


def resolved_yaml(config: DictConfig) -> str:
    """The configuration with references replaced by their values, readable back to the same values.

    References to `output_dir` stay, so that a run folder that was moved resumes where it now is, and so do
    those to what is shipped.
    """
    placeholder = "\0output_dir\0"
    resolved = OmegaConf.to_container(
        OmegaConf.merge(config, {"output_dir": placeholder} if "output_dir" in config else {}), resolve=True
    )
    raw = flat_keys(OmegaConf.to_container(config, resolve=False))

    def escaped(text: str, key: str) -> str:
        if str(raw.get(key)).startswith(SHIPPED):
            return raw[key]
        return literal(text).replace(placeholder, "${output_dir}")

    content = mapped_text(resolved, escaped)
    assert isinstance(content, dict)
    if "output_dir" in config:
        content["output_dir"] = None if config.output_dir is None else literal(config.output_dir)
    return OmegaConf.to_yaml(OmegaConf.create(content))


def value_of(override: Override) -> object:
    """The value as it composes: quotes and escapes undone."""
    return OmegaConf.create({"value": override.value()}).value


def last_value(overrides: Sequence[Override], key: str) -> str | None:
    """The last value given for a key; None where it is not given, or is null."""
    values = [value_of(override) for override in overrides if override.key_or_group == key]
    return str(values[-1]) if values and values[-1] is not None else None


def _refuse_renamed(config: Mapping) -> None:
    """Refuses a `_target_` that goes by its name of before, which no folder of ours says by then."""
    for key, target, _ in calls(config):
        if target in RENAMED:
            raise UsageError(f"{key} is {target}, which is called {RENAMED[target]} now")


def _refuse_words(config: Mapping) -> None:
    """Refuses a word where a function stands now, which a config group chooses."""
    known = flat_keys(config)
    for name in WORDS:
        word = known.get(f"{POLICY}.{name}")
        if isinstance(word, str):
            raise UsageError(
                f"{POLICY}.{name}={word} is chosen by a config group now: {name}={word} on the command line, "
                f"or `- override /{name}: {word}` among the defaults of an experiment"
            )
