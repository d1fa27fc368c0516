"""A small collection in BEIR layout, of docstrings of the standard library, and a small encoder."""

import inspect
import json
import os
import shutil
import statistics
import subprocess
import textwrap
from pathlib import Path

import torch
from plain_folders import byte_tokenizer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from transformers import BertConfig, BertModel

from search_r3.models.vocabulary import give_pad_token

MODULES = (os, shutil, statistics, subprocess, textwrap)
PROMPTS = {"query": "look for: ", "document": "text: "}
LONG = "os.walk"
"""A document that is longer than encoders read."""


def write_collection(folder: Path) -> Path:
    """Writes corpus.jsonl, queries.jsonl and qrels/test.tsv; a third of the queries has a second document."""
    rows = []
    for module in MODULES:
        for name, function in sorted(vars(module).items()):
            first, _, rest = (inspect.getdoc(function) or "").partition("\n")
            if inspect.isfunction(function) and function.__module__ == module.__name__ and rest.strip():
                rows.append((f"{module.__name__}.{name}", first, rest.strip()))
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": name, "title": name.partition(".")[2], "text": rest} for name, _, rest in rows]
    queries = [{"_id": f"q{place}", "text": first} for place, (_, first, _) in enumerate(rows)]
    for file, content in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in content))
    judged = [(f"q{place}", name) for place, (name, _, _) in enumerate(rows)]
    judged += [(f"q{place}", rows[place - 1][0]) for place in range(0, len(rows), 3)]
    lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{name}\t1" for query, name in judged)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_encoder(place: Path) -> Path:
    """Writes an encoder with prompts and a Dense module; it reads little, its vectors have any length."""
    tokenizer = byte_tokenizer()
    give_pad_token(tokenizer)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(place / "bert")
    tokenizer.save_pretrained(place / "bert")
    transformer = Transformer(str(place / "bert"), max_seq_length=24)
    modules = [transformer, Pooling(32, "mean"), Dense(32, 16)]
    SentenceTransformer(modules=modules, prompts=PROMPTS).save_pretrained(str(place / "model"))
    return place / "model"
