"""What a model folder does with a text, and what a tool that does not know it would do, for people to read.

Lost embed tokens, padding on the wrong side and forgotten prompts give vectors that look right. Each line
here is measured on the folder, not read from what it says of itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from search_r3.files import removal
from search_r3.models.checksums import DESCRIPTION_FILE, ModelFolderError
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder.foreign import DOCUMENT, N_LAST, QUERY, Line, by_batch, checked_foreign
from search_r3.models.folder.loading import load_embedder
from search_r3.models.folder.modules import MODULES_FILE, PLACE, ROUTES, SETTINGS, write_modules
from search_r3.models.prompts import EMBED_TOKEN
from search_r3.shipped import as_called


def is_foreign(folder: Path) -> bool:
    """Whether a folder with tokenizer and weights was written by others.

    Raises:
        ModelFolderError: If it has neither our description nor what can be looked at, with what it lacks.
    """
    if not folder.is_dir():
        raise ModelFolderError(
            f"{folder}: no such folder; give the folder that a training run wrote (…/model)"
        )
    if (folder / DESCRIPTION_FILE).is_file():
        return False
    lacks = [f"no {name}" for name in ("tokenizer.json", "config.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        lacks.append("no weights (*.safetensors)")
    if lacks:
        told = ", ".join([f"no {DESCRIPTION_FILE}", *lacks])
        raise ModelFolderError(
            f"{folder}: is not a model folder: {told}; give the folder that a training run wrote (…/model), "
            "or one of sentence-transformers"
        )
    return True


def checked(path: str | Path) -> list[Line]:
    """Names and values, in the order in which a text passes through them.

    Raises:
        ModelFolderError: If it is not a model folder, or cannot be used.
    """
    folder = Path(path)
    if is_foreign(folder):
        return checked_foreign(folder)
    embedder = load_embedder(folder)
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    encoder = embedder.encoder
    long = " ".join([DOCUMENT] * (1 + encoder.lengths.document))
    lines = [
        (
            "weights",
            f"SHA-256 {embedder.weights_sha256[:12]}, saved in {saved.get('dtype')}, D={embedder.width}",
        ),
        ("embed token", f"{EMBED_TOKEN} is id {embedder.embed_token_id}"),
        ("limits", f"query {encoder.lengths.query}, document {encoder.lengths.document} tokens of the text"),
    ]
    for name, template in (("query", encoder.direct), ("document", encoder.document)):
        lines.append((f"prompt of a {name}", f"{template.prefix_text!r} + text + {template.suffix_text!r}"))
    for name, ids in (
        ("a query ends", encoder.queries([QUERY])[0]),
        ("a document ends", encoder.documents([DOCUMENT])[0]),
        ("a cut document ends", encoder.documents([long])[0]),
    ):
        lines.append((name, _end(embedder, ids)))
    return [
        *lines,
        ("padding", _padding(folder, embedder)),
        ("pooling", f"last hidden state after the final norm, at {EMBED_TOKEN}, length 1"),
        ("alone and in a batch", by_batch(embedder.embed_documents)),
        *_other_tools(folder, embedder),
    ]


def _end(embedder: ReasoningEmbedder, ids: Sequence[int]) -> str:
    last = list(ids[-N_LAST:])
    tokens = " ".join(embedder.tokenizer.convert_ids_to_tokens(last))
    ending = "" if last[-1] == embedder.embed_token_id else f"; WRONG: {EMBED_TOKEN} must be last"
    return f"{last} {tokens} ({len(ids)} tokens{ending})"


def _padding(folder: Path, embedder: ReasoningEmbedder) -> str:
    """Where we pad, and where a tool does that reads the folder's own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    ours, side = embedder.tokenizer, tokenizer.padding_side
    told = f"on the {ours.padding_side}, with {ours.pad_token!r}, masked"
    if side == ours.padding_side:
        return told
    return (
        f"{told}; WRONG: its tokenizer_config.json says padding_side {side!r}, so that a tool that takes the "
        f"last place of a batch reads padding; write {ours.padding_side!r} there"
    )


def _other_tools(folder: Path, embedder: ReasoningEmbedder) -> list[Line]:
    ours = torch.cat([embedder.embed_queries([QUERY]), embedder.embed_documents([DOCUMENT])])
    cosines = [float(one @ other) for one, other in zip(ours, last_tokens(embedder), strict=True)]
    plain = (
        f"a tool that takes the last token of the bare text gives other vectors: cosine with ours "
        f"{cosines[0]:.3f} (query), {cosines[1]:.3f} (document)"
    )
    return [("sentence-transformers", _sentence_transformers(folder, embedder)), ("other tools", plain)]


def _sentence_transformers(folder: Path, embedder: ReasoningEmbedder) -> str:
    """What that library does with the folder, by the files that it reads."""
    remedy = as_called("python -m src.upgrade", folder)
    if not (folder / MODULES_FILE).is_file():
        return f"WRONG, and it says nothing: there is no {MODULES_FILE}; to have it written: {remedy}"
    again = f"to have it written again: {removal(folder / MODULES_FILE)} && {remedy}"
    if difference := next(_differences(folder, embedder), None):
        return f"WRONG: {difference}; {again}"
    wrong = [route for route in ROUTES if not _has_our_ids(folder, embedder, route)]
    if wrong:
        return f"WRONG: other ids than ours for a {wrong[0]}; {again}"
    return "gives our ids for encode_query, encode_document and encode (a document)"


def _differences(folder: Path, embedder: ReasoningEmbedder) -> Iterator[str]:
    """Settings of that library that are not as training writes them, in words; further ones do not count."""
    with TemporaryDirectory() as written:
        write_modules(Path(written), embedder.encoder, embedder.width, "float32")
        for name in SETTINGS:
            expected = json.loads(Path(written, name).read_text(encoding="utf-8"))
            try:
                found = json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                yield f"{name} is missing or cannot be read"
            else:
                yield from (f"{name} {words}" for words in _unlike(found, expected))


def _unlike(found: object, expected: Mapping | list) -> Iterator[str]:
    """What a settings file says other than expected; the versions that it asks for do not count."""
    if isinstance(expected, list):
        if found != expected:
            yield f"names {_kinds(found)}, ours {_kinds(expected)}"
        return
    for key, value in expected.items():
        other = found.get(key) if isinstance(found, Mapping) else found
        if key != "requirements" and other != value:
            yield f"has {key} {json.dumps(other)}, ours has {json.dumps(value)}"


def _kinds(modules: object) -> str:
    """Class and folder of each module, as "Pooling in pooling"."""
    try:
        return ", ".join(f"{m['type'].rpartition('.')[2]} in {m['path'] or '.'}" for m in modules)
    except (TypeError, KeyError, AttributeError):
        return "no modules"


@torch.no_grad()
def last_tokens(embedder: ReasoningEmbedder) -> torch.Tensor:
    """`[2, D]`, unit norm: state at the last token of `QUERY` and of `DOCUMENT`, bare of prompt and token."""
    states = []
    for text in (QUERY, DOCUMENT):
        ids = torch.tensor([embedder.tokenizer(text)["input_ids"]], device=embedder.device)
        states.append(embedder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1].float())
    return normalize(torch.stack(states), dim=-1).cpu()


def _has_our_ids(folder: Path, embedder: ReasoningEmbedder, route: str) -> bool:
    encoder = embedder.encoder
    names = [f"{name} in a text" for name in (EMBED_TOKEN, *encoder.tokenizer.all_special_tokens)]
    texts = [QUERY, DOCUMENT, "", *names, " ".join([DOCUMENT] * encoder.lengths.document)]
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder / PLACE / route), local_files_only=True, trust_remote_code=False
    )
    expected = encoder.queries(texts) if route == "query" else encoder.documents(texts)
    return tokenizer(texts, truncation="longest_first")["input_ids"] == expected
