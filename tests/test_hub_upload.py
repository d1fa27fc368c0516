"""A model folder on a hub: what `hf upload` sends is used by name, and is the folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from local_hub import local_hub
from test_model_card import blocks_of

from search_r3 import SearchR3

EXAMPLE_ENDS = """
print(json.dumps([embed("a query", "direct").tolist(), embed("a document").tolist()]))
"""


def run(environment, *arguments):
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def uploaded(nano_folder, tmp_path_factory):
    """The hub after `hf upload me/model <folder>`, and the variables with which it is found."""
    with local_hub() as hub:
        environment = hub.environment(tmp_path_factory.mktemp("home"))
        run(environment, "-m", "huggingface_hub.cli.hf", "upload", "me/model", str(nano_folder))
        yield hub, environment


def test_the_whole_folder_is_sent_and_opens_from_a_snapshot(uploaded, nano_folder, tmp_path):
    hub, _ = uploaded
    whole = {
        file.relative_to(nano_folder).as_posix(): file.read_bytes()
        for file in nano_folder.rglob("*")
        if file.is_file()
    }
    assert hub.files["me/model"] == whole

    folder = snapshot_download("me/model", endpoint=hub.address, cache_dir=tmp_path / "snapshots")

    ours = SearchR3.load(nano_folder).embed_queries(["a query"])
    assert (SearchR3.load(Path(folder)).embed_queries(["a query"]) == ours).all()


def test_the_example_of_the_card_runs_by_name(uploaded, nano_folder, loaded_embedder):
    _, environment = uploaded
    example = blocks_of(nano_folder)[0].replace("path/to/this/folder", "me/model") + EXAMPLE_ENDS

    query, document = torch.tensor(json.loads(run(environment, "-c", example).splitlines()[-1]))

    torch.testing.assert_close(query, loaded_embedder.embed_queries(["a query"])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        document, loaded_embedder.embed_documents(["a document"])[0], atol=1e-5, rtol=0
    )
