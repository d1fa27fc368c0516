"""A folder of sentence-transformers under the interface of ours: a baseline that is evaluated alike.

Vectors are the library's own, by `encode_query` and `encode_document`, so that prompts, pooling and the limit
of the folder hold. What is ours is that texts are batched by their length in tokens, and that vectors are
brought to unit length in fp32. No code of a folder is run: its modules must be the library's.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from search_r3.models.batching import length_batches
from search_r3.models.checksums import ModelFolderError
from search_r3.models.folder.loading import budget_for
from search_r3.models.folder.modules import MODULES_FILE
from search_r3.models.folder.weights import dtype_named
from search_r3.models.interface import Kind
from search_r3.models.reading import named_damage
from search_r3.progress import Progress

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LIBRARY = "sentence_transformers"
_WEIGHTS = (".safetensors", ".bin")
_SETTINGS = (".json", ".txt", ".model", ".jinja")
_UNREAD = ("onnx", "openvino")
"""Folders of other formats of the same weights."""
_COUNTED_AT_ONCE = 64
"""Texts that are tokenized together where their tokens are counted."""


class SentenceTransformerEmbedder:
    """Embeds with a model of sentence-transformers; it writes nothing.

    Args:
        model: whose vectors are compared by their cosine.
        weights_sha256: of the weights as they were read.
        settings_sha256: of tokenizer, prompts, pooling and limits.
        token_budget: the most tokens, padding included, in one forward.
    """

    can_reason = False

    def __init__(
        self, model: "SentenceTransformer", weights_sha256: str, settings_sha256: str, token_budget: int
    ) -> None:
        self.model = model
        self.weights_sha256 = weights_sha256
        self.settings_sha256 = settings_sha256
        self.token_budget = token_budget

    @cached_property
    def document_key(self) -> dict[str, str]:
        """What a cached document embedding depends on, besides the document."""
        dtype = next(self.model.parameters()).dtype
        return {"weights": self.weights_sha256, "prompts": self.settings_sha256, "dtype": str(dtype)}

    @cached_property
    def width(self) -> int:
        """Dimension `D` of an embedding."""
        return self._encoded([""], "document").shape[1]

    def embed_documents(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """Embeddings `[N, D]` of documents, fp32 on the CPU, unit norm, in the caller's order."""
        return self._embedded(list(texts), "document", progress)

    def embed_documents_and_count(self, texts: Sequence[str], progress: bool = False) -> tuple[Tensor, int]:
        """As `embed_documents`, and how many of the documents are cut."""
        return self.embed_documents(texts, progress), self.truncated_count(texts, "document")

    def embed_queries(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """Embeddings `[N, D]` of queries, fp32 on the CPU, unit norm, in the caller's order."""
        return self._embedded(list(texts), "query", progress)

    def truncated_count(self, texts: Sequence[str], kind: Kind) -> int:
        """How many texts are cut at their end."""
        whole, cut = self._token_counts(texts, kind, is_cut=False), self._token_counts(texts, kind)
        return sum(one > other for one, other in zip(whole, cut, strict=True))

    def query_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that are read of queries."""
        return sum(self._token_counts(texts, "query"))

    def limit(self, kind: Kind) -> str:
        """The most tokens of a text with all that stands around it, as the library calls it."""
        routes = getattr(self.model[0], "sub_modules", {})  # of a Router
        module = routes[kind][0] if kind in routes else self.model[0]
        return f"max_seq_length={module.max_seq_length}"

    def _embedded(self, texts: list[str], kind: Kind, progress: bool) -> Tensor:
        result = torch.empty(len(texts), self.width)
        what = {"query": "queries", "document": "documents"}[kind]
        with Progress(len(texts), "embed", what, progress) as bar:
            for rows in length_batches(self._token_counts(texts, kind), self.token_budget):
                result[rows] = self._encoded([texts[row] for row in rows], kind)
                bar.update(len(rows))
        return result

    def _encoded(self, texts: list[str], kind: Kind) -> Tensor:
        """`[n, D]` of one batch."""
        encode = self.model.encode_query if kind == "query" else self.model.encode_document
        vectors = encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        return normalize(vectors.float().cpu(), dim=-1)

    def _token_counts(self, texts: Sequence[str], kind: Kind, is_cut: bool = True) -> list[int]:
        """Tokens of each text, prompt and special tokens included."""
        options = {} if is_cut else {"processing_kwargs": {"text": {"truncation": False, "verbose": False}}}
        prompt = self.model.prompts.get(kind)
        counts = [0] * len(texts)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(order), _COUNTED_AT_ONCE):
            rows = order[start : start + _COUNTED_AT_ONCE]
            given = self.model.preprocess([texts[row] for row in rows], prompt=prompt, task=kind, **options)
            for row, n in zip(rows, given["attention_mask"].sum(dim=1).tolist(), strict=True):
                counts[row] = n
        return counts


def load_sentence_transformer(
    path: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    token_budget: int | None = None,
    attention: str | None = None,
) -> SentenceTransformerEmbedder:
    """Reads a folder of sentence-transformers.

    Args:
        path: the folder, with its modules.json.
        device: where the weights go.
        dtype: of the weights.
        token_budget: tokens of one forward, padding included; None takes what suits the device.
        attention: attention implementation of transformers; None takes the library's choice.

    Raises:
        ModelFolderError: If it is no such folder, a file of it is damaged, it names code that is not the
            library's, or its vectors are not to be compared by their cosine.
        ImportError: If sentence-transformers is not installed.
    """
    from sentence_transformers import SentenceTransformer

    folder = Path(path)
    if not (folder / MODULES_FILE).is_file():
        raise ModelFolderError(f"{folder}: not a folder of sentence-transformers (it has no {MODULES_FILE})")
    budget = budget_for(device, token_budget)
    with named_damage(folder):
        _refuse_code(folder)
        model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={} if attention is None else {"attn_implementation": attention},
        ).to(dtype_named(dtype))
    _refuse_other_similarity(folder, model)
    weights, settings = (list(_files(folder, endings)) for endings in (_WEIGHTS, _SETTINGS))
    return SentenceTransformerEmbedder(
        model.eval(), _sha256(folder, weights, has_names=False), _sha256(folder, settings), budget
    )


def _refuse_code(folder: Path) -> None:
    """Refuses modules that are not the library's own, which it would import and call.

    Raises:
        ModelFolderError: With the file and the class.
    """
    for file in (folder / MODULES_FILE, *sorted(folder.rglob("router_config.json"))):
        for name in _classes(json.loads(file.read_text(encoding="utf-8"))):
            if not name.startswith(f"{LIBRARY}."):
                raise ModelFolderError(
                    f"{file}: names {name}, which is not of {LIBRARY}; no other code of a folder is run, so "
                    "choose another model"
                )


def _classes(content: list | dict) -> Iterator[str]:
    """Classes that modules.json (a list of modules) or router_config.json (types by name) names."""
    if isinstance(content, list):
        yield from (str(module.get("type")) for module in content)
    else:
        yield from map(str, content.get("types", {}).values())


def _refuse_other_similarity(folder: Path, model: "SentenceTransformer") -> None:
    """Refuses a model whose vectors are compared by more than their direction.

    Raises:
        ModelFolderError: With what it is meant for.
    """
    similarity = str(model.similarity_fn_name)
    has_unit_norm = type(model[-1]).__name__ == "Normalize"
    if similarity != "cosine" and not (has_unit_norm and similarity in ("dot", "euclidean")):
        raise ModelFolderError(
            f"{folder}: its vectors are compared by {similarity}, and documents are ranked by their cosine "
            "here, which would be another ranking; choose a model whose similarity_fn_name is cosine"
        )


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Files of a folder and below with one of the endings, in the order of their paths."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        is_read = parts[0] not in _UNREAD and not any(part.startswith(".") for part in parts)
        if is_read and file.suffix in endings and file.is_file():
            yield file


def _sha256(folder: Path, files: Iterable[Path], has_names: bool = True) -> str:
    """SHA-256 over the contents of files; of one file without its name it is what sha256sum prints."""
    digest = hashlib.sha256()
    for file in files:
        if has_names:
            digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
