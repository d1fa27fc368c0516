"""Tokenizer and weights of a folder or a hub name, as transformers reads them; no code of theirs is run."""

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from search_r3.errors import first_line
from search_r3.models.checksums import ModelFolderError
from search_r3.models.folder.published import as_published
from search_r3.models.prompts import check_tokenizer
from search_r3.models.reading import named_damage
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.models.twin import ArchitectureError, check_architecture

log = logging.getLogger(__name__)

_ADAPTER_FILE = "adapter_config.json"
OF_OURS = {"local_files_only": True, "use_safetensors": True}
"""How the weights of a model folder are read. Those of a hub name may be pickles, which torch reads without
running anything (`weights_only`)."""
_STATES_ALONE = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
"""What a forward returns, whatever a config.json asks for besides, as one that was saved for a picture."""


def dtype_named(name: str) -> torch.dtype:
    """`torch.float32` for "float32", and so on for bfloat16 and float16."""
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in choices:
        raise ModelFolderError(f"dtype must be one of {', '.join(choices)}, got {name!r}")
    return choices[name]


def read_tokenizer(source: str | Path, **options: object) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a hub name, as published; code of its own is never run.

    Raises:
        ModelFolderError: If transformers cannot read it, it has no tokenizer.json, or a folder is an adapter.
    """
    if (Path(source) / _ADAPTER_FILE).is_file():
        _refuse_adapter(source)
    try:
        with named_damage(source):
            options = {"padding_side": "left", "trust_remote_code": False, **options}
            tokenizer = as_published(AutoTokenizer.from_pretrained(str(source), **options), source, options)
    except ModelFolderError:
        raise
    except Exception as error:  # whatever a class of tokenizers raises of a file that it does not know
        _refuse_own_code(source, error)
        if isinstance(error, OSError) and not Path(source).is_dir():
            raise  # of the hub, in its own words
        read = "its config.json" if _is_of_config(source, error) else "its tokenizer"
        raise ModelFolderError(f"{source}: transformers cannot read {read}: {first_line(error)}") from error
    try:
        check_tokenizer(tokenizer)
    except ValueError as error:
        raise ModelFolderError(f"{source}: {error}") from error
    return tokenizer


def _is_of_config(source: str | Path, error: Exception) -> bool:
    """Whether what was raised of a tokenizer is said of config.json, which is read before its own files."""
    try:
        AutoConfig.from_pretrained(str(source), trust_remote_code=False, local_files_only=True)
    except Exception as other:  # as above
        return str(other) == str(error)
    return False


def _refuse_adapter(source: str | Path) -> None:
    raise ModelFolderError(
        f"{source}: is, or holds, an adapter of PEFT ({_ADAPTER_FILE}), which is no whole model; merge it "
        "into its base (PEFT's merge_and_unload, then save_pretrained) and give that folder"
    )


def _refuse_own_code(source: str | Path, error: Exception) -> None:
    """Says of a model that needs its own code what transformers answers with advice to run it."""
    if "trust_remote_code" in str(error):
        raise ModelFolderError(
            f"{source}: is of no kind that transformers knows and brings code of its own (auto_map), which "
            "is never run here; choose another model"
        ) from error


def read_model(source: str | Path, dtype: str, attention: str | None, **options: object) -> PreTrainedModel:
    """The causal language model of a folder or a hub name.

    Raises:
        ModelFolderError: If transformers cannot read it, it is an adapter, it lacks weights, it is of more
            than text, its weights are packed in an unknown way, or the architecture does not have this
            attention, with the one that every one has.
    """
    chosen = {} if attention is None else {"attn_implementation": attention}
    packing = _refuse_by_config(source, bool(options.get("local_files_only")))
    try:
        with named_damage(source):
            model, info = AutoModelForCausalLM.from_pretrained(
                str(source), dtype=dtype_named(dtype), trust_remote_code=False, output_loading_info=True,
                ignore_mismatched_sizes=True, **_STATES_ALONE, **chosen, **options,
            )  # fmt: skip
    except (ModelFolderError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # a quantiser's are of any class
        refusals = (ValueError, ImportError, OSError, NotImplementedError, AssertionError, KeyError)
        if packing is None and not isinstance(error, refusals):
            raise
        _refuse_own_code(source, error)
        if isinstance(error, OSError) and not Path(source).is_dir():
            raise  # of the hub, in its own words
        raise _named(source, error, attention, packing) from error
    if getattr(model, "_hf_peft_config_loaded", False):  # a hub name of an adapter: its base was read as well
        _refuse_adapter(source)
    _check_complete(source, model, info)
    _note_untied_head(source, model)
    _forget_packing(model)
    return model


def _named(
    source: str | Path, error: Exception, attention: str | None, packing: str | None
) -> ModelFolderError:
    """What transformers says of a model that it cannot read, in a line with the key that it is about."""
    reason = first_line(error)
    if "Padding_idx" in reason:
        return ModelFolderError(
            f"{source}: config.json has a pad_token_id that is none of the vocab_size rows; take it out of "
            "there: padding is masked here, whatever its token"
        )
    if attention is not None and re.search("attention|attn", reason):
        return ModelFolderError(
            f"model.attention={attention} cannot be had for {source}: {reason.split('. ')[0]}. "
            "Set model.attention=eager"
        )
    if packing is not None:
        return ModelFolderError(
            f"{source}: config.json says quantization_config.quant_method={packing}, and transformers cannot "
            f"unpack these weights here: {reason.rstrip('.')}. Take a copy that is not quantized"
        )
    return ModelFolderError(f"{source}: transformers cannot read it: {reason}")


def _refuse_by_config(source: str | Path, is_local: bool) -> str | None:
    """Refuses, before any weight is read, what transformers would read wrongly or as another kind of model.

    What cannot be read is left to it: an adapter has no config.json, and of a damaged one it says more.

    Returns:
        How the weights are packed, by its name; None where they are plain.
    """
    try:
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False, local_files_only=is_local)
    except Exception:  # whatever a class of configurations raises of a file that it does not know
        return None
    packing = _known_packing(source, config)
    _refuse_more_than_text(source, config)
    _refuse_ends(source, is_local)
    return packing


def _known_packing(source: str | Path, config: PreTrainedConfig) -> str | None:
    """The name of a packing that transformers knows; another one it would read as it stands."""
    stated = getattr(config, "quantization_config", None)
    if not isinstance(stated, Mapping):
        return None
    if stated.get("load_in_4bit") or stated.get("load_in_8bit"):  # which transformers knows bitsandbytes by
        return "bitsandbytes"
    method = stated.get("quant_method")
    if method is not None and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ModelFolderError(
            f"{source}: config.json says quantization_config.quant_method={method}, which transformers does "
            "not know: it would read packed weights as plain numbers. Take a copy that is not quantized; if "
            "its weights are plain, take quantization_config out of config.json"
        )
    return method


def _refuse_more_than_text(source: str | Path, config: PreTrainedConfig) -> None:
    """Refuses a model with a text part among others, such as images, where not that part would be opened."""
    kind = type(config)
    opened = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    if "text_config" not in kind.sub_configs or len(kind.sub_configs) == 1:
        return
    if opened is not None and opened.config_class is not kind:
        return
    name, text = (config.architectures or [kind.__name__])[0], config.get_text_config()
    remedy = "save its text part as a folder and give that: docs/models.md#the-text-part-of-a-larger-model"
    if MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None) is None:
        remedy = f"transformers has no model of text alone for its {type(text).__name__}: choose another one"
    raise ModelFolderError(f"{source}: {name} is no model of text alone; {remedy}")


def _refuse_ends(source: str | Path, is_local: bool) -> None:
    """Refuses a generation_config.json that names the tokens that end a text otherwise than by their ids."""
    try:
        stated = GenerationConfig.from_pretrained(str(source), local_files_only=is_local).eos_token_id
    except Exception:  # there is none, or one of which transformers says more
        return
    ends = stated if isinstance(stated, list) else [stated]
    if any(not isinstance(each, int | None) for each in ends):
        raise ModelFolderError(
            f"{source}: generation_config.json: eos_token_id must be the id of a token or a list of ids, got "
            f"{stated!r}"
        )


def _check_complete(source: str | Path, model: PreTrainedModel, info: Mapping[str, Collection]) -> None:
    """Refuses weights that transformers made at random, since the files have none of such a name and shape.

    A head alone may be missing, as in folders of models that only embed: it is told. So are weights that are
    none of the model's and stay unread, as those of a layer more than config.json counts.

    Raises:
        ModelFolderError: With the first of them.
    """
    head = model.get_output_embeddings()
    of_head = set() if head is None else {id(each) for each in head.parameters()}
    in_head = {name for name, each in model.named_parameters() if id(each) in of_head}
    shapes = {str(each[0] if isinstance(each, tuple) else each) for each in info["mismatched_keys"]}
    random = sorted((set(info["missing_keys"]) - in_head) | shapes)
    unread = sorted(info["unexpected_keys"])
    if random:
        beside = f"; it has {unread[0]}, which is none of its weights" if unread else ""
        raise ModelFolderError(
            f"{source}: {len(random)} weights of {type(model).__name__}, as config.json describes it, are "
            f"missing or of another shape: {random[0]}{beside}"
        )
    weights = {name for name, _ in model.named_parameters()}
    for name in unread:
        if name.rpartition("_scale")[0] in weights:
            raise ModelFolderError(
                f"{source}: has {name}, so that its weights are packed, and config.json does not say how "
                "(quantization_config); take a copy that is not quantized"
            )
    if unread:
        log.warning(
            "%s: %d of its weights are none of %s, as config.json describes it, and stay unread: %s",
            source, len(unread), type(model).__name__, unread[0],
        )  # fmt: skip
    if info["missing_keys"]:
        log.warning(
            "%s: has no %s: its head is random, and what it writes means nothing before it is trained",
            source, sorted(info["missing_keys"])[0],
        )  # fmt: skip


def _note_untied_head(source: str | Path, model: PreTrainedModel) -> None:
    """Has the configuration say of a head that the files hold apart from the embeddings that it is not tied.

    transformers reads such a head as it is, and would replace it by the embeddings once a row is added.
    """
    head = model.get_output_embeddings()
    is_tied = head is None or head.weight is model.get_input_embeddings().weight
    if not is_tied and getattr(model.config, "tie_word_embeddings", False):
        model.config.tie_word_embeddings = False
        log.info(
            "%s: config.json says tie_word_embeddings=true, and its head differs from its embeddings: it is "
            "kept, untied", source,
        )  # fmt: skip


def _forget_packing(model: PreTrainedModel) -> None:
    """Lets weights that were unpacked on reading, as from fp8, be saved as the plain numbers that they are.

    transformers would pack them again, and config.json, which it has cleared, would not say so.
    """
    conversions = getattr(model, "_weight_conversions", None) or ()
    operations = (each for one in conversions for each in getattr(one, "operations", ()))
    if any(getattr(each, "hf_quantizer", None) is not None for each in operations):
        model._weight_conversions = None  # saving then takes those of the class


def refuse_untrusted(
    model: PreTrainedModel, source: str, tuning: FullTuning | LoraTuning | None = None
) -> None:
    """Refuses an architecture whose results would depend on how they are computed.

    So would those of an adapter on weights that stay packed, as BitNet's, which every forward rounds: merged
    into them it is rounded as well.
    """
    is_lora = isinstance(tuning, LoraTuning)
    packing = getattr(model.config, "quantization_config", None)
    if is_lora and packing is not None:
        raise ModelFolderError(
            f"{source}: its weights stay packed ({packing.quant_method.value}), so that a LoRA adapter is "
            "merged into another model than is trained; take a copy that is not quantized, or train all "
            "weights: model.tuning._target_=search_r3.models.tuning.FullTuning"
        )
    try:
        check_architecture(model, tuning.apply if is_lora else None, repr(tuning) if is_lora else "")
    except ArchitectureError as error:
        raise ModelFolderError(f"{source}: {error}") from error
