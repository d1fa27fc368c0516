"""The README.md of a model folder: what the model is, how to load it, where it comes from.

The code in it needs transformers and not this project; a test runs it against the embedder itself.
"""

from collections.abc import Mapping

from search_r3.shipped import as_called

EXAMPLE = """import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

name = "path/to/this/folder"  # or its name on the hub
settings = json.load(open(cached_file(name, "search_r3.json"), encoding="utf-8"))
model = AutoModelForCausalLM.from_pretrained(name)
texts = AutoTokenizer.from_pretrained(name, subfolder="sentence_transformers/document")  # no special token


@torch.no_grad()
def embed(text, kind="document"):  # kind="direct" for a query
    prompt, lengths = settings["rendered"][kind], settings["lengths"]
    ids = texts(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    limit = lengths["document" if kind == "document" else "query"]
    ids = ids[-limit:] if lengths.get("truncation_side") == "left" else ids[:limit]
    ids = torch.tensor([prompt["prefix_ids"] + ids + prompt["suffix_ids"]])
    state = model.get_decoder()(input_ids=ids).last_hidden_state[0, -1]  # of the embed token
    return torch.nn.functional.normalize(state.float(), dim=-1)


query = embed("read the lines of a file", "direct")
print([round(float(query @ embed(text)), 3) for text in ("def read_lines(path): ...", "def add(a, b): ...")])
"""
"""Direct embeddings, by transformers alone, wherever one stands."""

USAGE = '''import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

folder = "."  # this folder
settings = json.loads(Path(folder, "search_r3.json").read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = AutoTokenizer.from_pretrained(Path(folder, "sentence_transformers/document"))
model = AutoModelForCausalLM.from_pretrained(folder).eval()
configured = model.generation_config.eos_token_id
model.generation_config = GenerationConfig()  # some models configure beams, penalties or a least length


def ids_around(kind, text):
    """Token ids of a whole prompt; only the text is cut, and nothing in it is read as a special token."""
    prompt = settings["rendered"][kind]
    limit = settings["lengths"]["document" if kind == "document" else "query"]
    ids = texts(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    ids = ids[-limit:] if settings["lengths"].get("truncation_side") == "left" else ids[:limit]
    return prompt["prefix_ids"] + ids + prompt["suffix_ids"]


@torch.no_grad()
def embed(ids):
    """The hidden state of the last token, which is the embed token, after the final norm; unit norm."""
    state = model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(state.float(), dim=-1)


def embed_text(kind, text):
    """Embedding of a text; `kind` is "document", or "query" for a query without reasoning."""
    return embed(ids_around("document" if kind == "document" else "direct", text))


def reason(text):
    """The embedding of a query that the model has reasoned about, and the reasoning."""
    lengths, token = settings["lengths"], settings["embed_token_id"]
    ids = ids_around("reasoning", text)
    inputs = torch.tensor([ids])
    stops = configured if isinstance(configured, list) else [configured, tokenizer.eos_token_id]
    ends = {token, *stops} - {None}
    n_rows, tokens = model.get_output_embeddings().weight.shape[0], tokenizer.get_vocab().values()
    spare = set(range(n_rows)) - set(tokens)
    marked = {place for place, each in tokenizer.added_tokens_decoder.items() if each.special}
    never = {place for place in {*tokenizer.all_special_ids, *marked} - ends | spare if place < n_rows}
    written = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=lengths["reasoning"],
        eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=sorted(never) or None,
    )[0, len(ids) :].tolist()
    if written and written[-1] in ends:
        written = written[:-1]
    n, said = lengths.get("repeat_ngram", 0), set()
    for end in range(n, len(written) + 1) if n else ():
        ngram = tuple(written[end - n : end])
        if ngram in said:  # a reasoning ends where it would repeat itself
            written = written[: end - 1]
            break
        said.add(ngram)
    return embed(ids + written + [token]), tokenizer.decode(written).strip()


query = embed_text("query", "read the lines of a file")
documents = [embed_text("document", text) for text in ("def read_lines(path): ...", "def add(a, b): ...")]
print([round(float(query @ document), 3) for document in documents])
'''

EVALUATE = as_called("python -m src.evaluate")
HUB = (
    "To a hub: `hf upload <you>/<name> <folder>`, which takes the folder whole. `push_to_hub` of "
    "sentence-transformers takes what gives the direct vectors; that of transformers takes neither prompts "
    "nor limits, and gives other vectors."
)


DECODER = "model.get_decoder()"


def model_card(
    description: Mapping, width: int, n_parameters: int, has_adapter: bool, decoder: str = DECODER
) -> str:
    """The card as Markdown.

    Args:
        description: content of `search_r3.json`.
        width: of an embedding.
        n_parameters: of the model, the embedding matrix counted once where it is tied.
        has_adapter: whether `adapter/` holds the LoRA weights before merging.
        decoder: code that names the transformer below the head of `model`.
    """
    origin = description["provenance"]
    use = (
        f"## Use\n\nDirect embeddings:\n\n```python\n{EXAMPLE.replace(DECODER, decoder)}```\n\n"
        "`SentenceTransformer(name)` of sentence-transformers gives the same, by `encode_query` and "
        "`encode_document`. With this project: "
        f"`SearchR3.load(folder)` of `search_r3`, and `{EVALUATE} model.path=<folder>`.\n\n"
        f"{HUB}\n\n"
        "Reasoning without this project, from within the folder:\n\n```python\n"
        f"{USAGE.replace(DECODER, decoder)}```"
    )
    parts = [_header(origin), _what(description, width, n_parameters, has_adapter), use]
    parts += [_prompts(description), _provenance(origin), _figures(origin), _limits(description)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(origin: Mapping) -> str:
    """The metadata that the hub reads: between two lines of dashes."""
    lines = ["library_name: transformers", "pipeline_tag: feature-extraction", "tags: [search-r3, retrieval]"]
    base = origin.get("base_model")
    if isinstance(base, str) and "/" in base and not base.startswith("/") and " " not in base:
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "---"])


def _what(description: Mapping, width: int, n_parameters: int, has_adapter: bool) -> str:
    origin = description["provenance"]
    base = origin.get("base_model")
    text = (
        "# Search-R3 embedder\n\nA causal language model whose hidden state at the token "
        f"`{description['embed_token']}`, after the final norm, is a search embedding "
        "(Search-R3, [arXiv:2510.07048](https://arxiv.org/abs/2510.07048)). "
        f"{n_parameters / 1e6:,.1f} M parameters, embeddings of {width} numbers, compared by cosine. A query "
        "can be embedded directly, or after the model has reasoned about it; documents are embedded directly."
    )
    if not description["is_trained"]:
        text += " The weights are as they were initialised: nothing was trained."
    lines = [text, f"Base model: {base or 'not recorded'}."]
    if has_adapter:
        lines.append("The weights are merged. `adapter/` holds the LoRA adapter before merging, for PEFT.")
    return "\n\n".join(lines)


def _prompts(description: Mapping) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in description["prompts"].items()]
    limits = dict(description["lengths"])
    ngram = limits.pop("repeat_ngram", 0)
    lengths = ", ".join(f"{name} {value}" for name, value in limits.items())
    lengths += f". A reasoning ends where it would say {ngram} token(s) in a row again" if ngram else ""
    head = "## Prompts and lengths\n\nThey are part of the model; other ones give other embeddings."
    return f"{head} Most tokens of a text: {lengths}.\n\n" + "\n".join(
        ["| prompt | wording |", "|---|---|", *rows]
    )


def _cell(text: object) -> str:
    """Text for a table: no pipe, no line end, and visible where it is empty."""
    words = " ".join(str(text).split()).replace("|", "\\|")
    return words if words else "(none)"


def _provenance(origin: Mapping) -> str:
    names = {"stage": "stage", "data": "data", "step": "optimizer steps", "seed": "seed", "python": "Python"}
    rows = [f"- {label}: {origin[name]}" for name, label in names.items() if origin.get(name) is not None]
    for name in ("command", "commit"):
        if origin.get(name):
            rows.append(f"- {name}: `{origin[name]}`")
    if origin.get("packages"):
        rows.append("- packages: " + ", ".join(f"{name} {v}" for name, v in origin["packages"].items()))
    return "\n".join(["## Where it comes from\n", *rows]) if rows else ""


def _figures(origin: Mapping) -> str:
    """Tables of the last losses and of the validation of the saved weights, as far as they are known."""
    losses, validation = origin.get("losses") or {}, origin.get("validation") or {}
    parts = []
    if validation:
        names = list(dict.fromkeys(name for metrics in validation.values() for name in metrics))
        rows = [
            f"| {mode} | {' | '.join(f'{metrics[name]:.4f}' if name in metrics else '' for name in names)} |"
            for mode, metrics in validation.items()
        ]
        head = [f"| mode | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        parts.append("\n".join(["On a part of the validation split, during training:\n", *head, *rows]))
    if losses:
        rows = [f"| {name} | {value:.4g} |" for name, value in losses.items()]
        parts.append("\n".join(["Losses of the last logged step:\n", "| loss | value |", "|---|---|", *rows]))
    return "\n\n".join(["## Figures", *parts]) if parts else ""


def _limits(description: Mapping) -> str:
    origin = description["provenance"]
    end = "beginning" if description["lengths"].get("truncation_side") == "left" else "end"
    limits = [
        f"Texts beyond the lengths above are cut at their {end}.",
        "What the training data does not hold, such as another language, is outside of what was measured.",
    ]
    if origin.get("validation"):
        limits.append("The figures above are of a small collection and choose the checkpoint;")
        limits.append(f"numbers to report come from `{EVALUATE}`.")
    lines = ["## Limits and licence", " ".join(limits)]
    if origin.get("data_licence"):
        lines.append(f"Licence of the training data: {origin['data_licence']}")
    base = origin.get("base_model")
    terms = "" if base is None or base.startswith("made by ") else f" and of {base}"
    lines.append(f"No licence is stated for the weights; mind the terms of the training data{terms}.")
    return "\n\n".join(lines)
