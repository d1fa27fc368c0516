"""What makes a model folder a model of sentence-transformers too: its standard modules, and no code.

`SentenceTransformer(folder)` then gives the direct vectors: `encode_query` those of queries,
`encode_document` and plain `encode` those of documents. `modules.json` names four modules:

- a Router, whose routes "query" and "document" differ in one thing, the tokenizer in
  `sentence_transformers/query` and `sentence_transformers/document`. Each tokenizes the user's text alone and
  puts the ids of the prompt around it (`TemplateProcessing`), so that no seam and no special token in a text
  can change them (`literals`); and it cuts the text to what is left of `model_max_length`, never the prompt.
- the Transformer, which is the model folder itself: no weight is there twice.
- Pooling at the last token, which is the embed token, and Normalize.

A route must begin with a module that has weights, as sentence-transformers knows no tokenizer without. So
each of the two folders holds a model of four numbers (`_write_carrier`), of which nothing is computed.

The folder's own tokenizer stays as it is. Padding is on the right, where causal attention does not see it and
learned positions stay those of a text alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from search_r3.folders import same_rights
from search_r3.models.literals import renamed, spelled
from search_r3.models.prompts import PromptEncoder
from search_r3.models.templates import Template

PLACE = "sentence_transformers"
ROUTES = ("document", "query")
"""Folders in `PLACE`, and the tasks that they serve. The first one serves plain `encode`."""
MODULES_FILE = "modules.json"
_LIBRARY = "sentence_transformers"
_TYPES = {
    "Router": f"{_LIBRARY}.base.modules.router.Router",
    "Transformer": f"{_LIBRARY}.base.modules.transformer.Transformer",
    "Pooling": f"{_LIBRARY}.sentence_transformer.modules.pooling.Pooling",
    "Normalize": f"{_LIBRARY}.base.modules.normalize.Normalize",
}
_PATHS = {
    "Router": PLACE,
    "Transformer": "",
    "Pooling": f"{PLACE}/pooling",
    "Normalize": f"{PLACE}/normalize",
}
SETTINGS = (
    MODULES_FILE,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    f"{PLACE}/router_config.json",
    *(f"{PLACE}/{route}/sentence_bert_config.json" for route in ROUTES),
    f"{PLACE}/pooling/config.json",
    f"{PLACE}/normalize/config.json",
)
"""Files that `write_modules` writes and that say what is computed, tokenizers left out."""
NEEDS = ">=6.2"
"""Versions of sentence-transformers that have these modules."""


def write_modules(folder: Path, encoder: PromptEncoder, width: int, dtype: str) -> None:
    """Writes the files of sentence-transformers into a model folder whose weights and tokenizer are there.

    Args:
        folder: of the model.
        encoder: its prompts, limits and tokenizer.
        width: `D` of an embedding.
        dtype: of the saved weights, as "float32".
    """
    modules = [
        {"idx": place, "name": str(place), "path": _PATHS[name], "type": kind}
        for place, (name, kind) in enumerate(_TYPES.items())
    ]
    _write(folder / MODULES_FILE, modules)
    _write(folder / "config_sentence_transformers.json", _settings())
    _write(folder / "sentence_bert_config.json", _transformer("forward", "last_hidden_state"))
    pooling = {"embedding_dimension": width, "pooling_mode": "lasttoken", "include_prompt": True}
    _write(folder / _PATHS["Pooling"] / "config.json", pooling)
    _write(folder / _PATHS["Normalize"] / "config.json", {"module_input_name": "sentence_embedding"})
    _write(folder / PLACE / "router_config.json", _router())
    templates = {"document": encoder.document, "query": encoder.direct}
    limits = {"document": encoder.lengths.document, "query": encoder.lengths.query}
    for route in ROUTES:
        place = folder / PLACE / route
        length = templates[route].n_tokens + limits[route]
        _write_carrier(place, length, dtype)
        _write_tokenizer(place, encoder, templates[route], length)


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _settings() -> dict:
    """What holds for the model as a whole: no prompt is text, the tokenizers hold them as ids."""
    return {
        "model_type": "SentenceTransformer",
        "requirements": {
            "sentence-transformers": {"specifier": NEEDS, "reason": "its prompts are kept in a Router"}
        },
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }


def _transformer(method: str, output: str, max_length: int | None = None) -> dict:
    """A Transformer module that takes text, and what it calls of its model."""
    text = {"method": method, "method_output_name": output if method == "forward" else [output]}
    module = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": text},
        "module_output_name": "token_embeddings",
    }
    return module if max_length is None else {**module, "max_seq_length": max_length}


def _router() -> dict:
    kinds = dict.fromkeys(ROUTES, _TYPES["Transformer"])
    parameters = {"default_route": ROUTES[0], "allow_empty_key": True, "route_mappings": {}}
    return {
        "types": kinds,
        "structure": {route: [route] for route in ROUTES},
        "parameters": parameters,
    }


def _write_carrier(place: Path, length: int, dtype: str) -> None:
    """A model without a layer, of which only the parameters' presence and dtype matter."""
    config = {
        "architectures": ["LlamaModel"], "model_type": "llama", "vocab_size": 1, "hidden_size": 2,
        "intermediate_size": 1, "num_hidden_layers": 0, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": 2, "max_position_embeddings": length, "bos_token_id": None, "eos_token_id": None,
        "pad_token_id": None, "dtype": dtype,
    }  # fmt: skip
    _write(place / "config.json", config)
    # The model's method gives its table of embeddings whole, whatever the ids: the next module replaces it.
    _write(place / "sentence_bert_config.json", _transformer("get_input_embeddings", "weight", length))
    kind = getattr(torch, dtype)
    weights = {"embed_tokens.weight": torch.zeros(1, 2, dtype=kind), "norm.weight": torch.ones(2, dtype=kind)}
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    same_rights(place, place / "config.json")


def _write_tokenizer(place: Path, encoder: PromptEncoder, template: Template, length: int) -> None:
    """The tokenizer that writes a whole prompt around a text and cuts the text alone."""
    backend = encoder.tokenizer.backend_tokenizer
    names = spelled(backend)
    content = renamed(json.loads(backend.to_str()), names)
    content |= {"truncation": None, "padding": None, "post_processor": _around(encoder, template)}
    (place / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "padding_side": "right",
        "truncation_side": encoder.lengths.truncation_side,
        "pad_token": names.get(encoder.tokenizer.pad_token, encoder.tokenizer.pad_token),
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    _write(place / "tokenizer_config.json", settings)


def _around(encoder: PromptEncoder, template: Template) -> Mapping:
    """A post-processor that puts the ids of a prompt around a text, or around two."""
    parts = {"<prefix>": list(template.prefix), "<suffix>": list(template.suffix)}
    special = {
        name: {"id": name, "ids": ids, "tokens": encoder.tokenizer.convert_ids_to_tokens(ids)}
        for name, ids in parts.items()
        if ids
    }
    before, after = ([{"SpecialToken": {"id": name, "type_id": 0}}] * (name in special) for name in parts)
    one, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*before, one, *after],
        "pair": [*before, one, other, *after],
        "special_tokens": special,
    }
