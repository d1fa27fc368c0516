"""What a model folder does with a text, and what a tool that does not know it would do, for people to read.

Lost embed tokens, padding on the wrong side and forgotten prompts give vectors that look right. Each line
here is measured on the folder, not read from what it says of itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from search_r3.models.checksums import DESCRIPTION_FILE, ModelFolderError
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder.loading import load_embedder
from search_r3.models.folder.modules import MODULES_FILE, PLACE, ROUTES
from search_r3.models.prompts import EMBED_TOKEN

QUERY = "how do I read the lines of a file?"
DOCUMENT = "def read_lines(path):\n    return open(path).read().splitlines()"
N_LAST = 6
"""Ids of an end that are shown."""
Line = tuple[str, str]


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder that no training of this project wrote.

    Raises:
        ModelFolderError: With what it is not, and what it looks like.
    """
    if not folder.is_dir():
        raise ModelFolderError(
            f"{folder}: no such folder; give the folder that a training run wrote (…/model)"
        )
    if (folder / DESCRIPTION_FILE).is_file():
        return
    lacks = [f"no {DESCRIPTION_FILE}"]
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        lacks.append("no tokenizer.json")
    elif json.dumps(EMBED_TOKEN) not in tokenizer.read_text(encoding="utf-8", errors="replace"):
        lacks.append(f"no {EMBED_TOKEN} in its tokenizer")
    if not any(folder.glob("*.safetensors")):
        lacks.append("no weights (*.safetensors)")
    kind = "it has a config.json, as a Hugging Face folder" if (folder / "config.json").is_file() else ""
    if (folder / MODULES_FILE).is_file():
        kind = f"it has a {MODULES_FILE}, as a model of sentence-transformers"
    raise ModelFolderError(
        f"{folder}: is not a model folder of this project: {', '.join(lacks)}"
        + (f"; {kind}" if kind else "")
        + ". Prompts, limits and the token that is read are unknown, so nothing can be checked"
    )


def checked(path: str | Path) -> list[Line]:
    """Names and values, in the order in which a text passes through them.

    Raises:
        ModelFolderError: If it is not a model folder of this project, or cannot be used.
    """
    folder = Path(path)
    refuse_foreign(folder)
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
        ("padding", f"on the left, with {embedder.tokenizer.pad_token!r}, masked"),
        ("pooling", f"last hidden state after the final norm, at {EMBED_TOKEN}, length 1"),
        ("alone and in a batch", f"differ by at most {_batch_difference(embedder):.1e}"),
        *_other_tools(folder, embedder),
    ]


def _end(embedder: ReasoningEmbedder, ids: Sequence[int]) -> str:
    last = list(ids[-N_LAST:])
    tokens = " ".join(embedder.tokenizer.convert_ids_to_tokens(last))
    ending = "" if last[-1] == embedder.embed_token_id else f"; WRONG: {EMBED_TOKEN} must be last"
    return f"{last} {tokens} ({len(ids)} tokens{ending})"


def _batch_difference(embedder: ReasoningEmbedder) -> float:
    """The largest difference of a number of a vector between a text alone and beside longer ones."""
    texts = ["a", QUERY, DOCUMENT, " ".join([DOCUMENT] * 4)]
    together = embedder.embed_documents(texts)
    alone = torch.cat([embedder.embed_documents([text]) for text in texts])
    return (together - alone).abs().max().item()


def _other_tools(folder: Path, embedder: ReasoningEmbedder) -> list[Line]:
    ours = torch.cat([embedder.embed_queries([QUERY]), embedder.embed_documents([DOCUMENT])])
    cosines = [float(one @ other) for one, other in zip(ours, last_tokens(embedder), strict=True)]
    plain = (
        f"a tool that takes the last token of the bare text gives other vectors: cosine with ours "
        f"{cosines[0]:.3f} (query), {cosines[1]:.3f} (document)"
    )
    if not (folder / MODULES_FILE).is_file():
        remedy = f"python -m src.upgrade {folder}"
        told = f"WRONG, and it says nothing: there is no {MODULES_FILE}; to have it written: {remedy}"
    elif not all((folder / PLACE / route).is_dir() for route in ROUTES):
        told = f"its {MODULES_FILE} is not ours; compare vectors before you use it"
    else:
        wrong = [route for route in ROUTES if not _has_our_ids(folder, embedder, route)]
        told = "gives our ids for encode_query, encode_document and encode (a document)"
        if wrong:
            told = f"WRONG: other ids than ours for a {wrong[0]}; take the folder from a copy"
    return [("sentence-transformers", told), ("other tools", plain)]


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
    texts = [QUERY, DOCUMENT, "", f"{EMBED_TOKEN} in a text", " ".join([DOCUMENT] * encoder.lengths.document)]
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder / PLACE / route), local_files_only=True, trust_remote_code=False
    )
    expected = encoder.queries(texts) if route == "query" else encoder.documents(texts)
    return tokenizer(texts, truncation="longest_first")["input_ids"] == expected
