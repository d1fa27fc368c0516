import pytest
import torch
from conftest import QUERIES, TEXTS

from search_r3.models.threads import PAYS_FROM, threads_for


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _threads_of_forwards(embedder, call):
    seen = []
    hook = embedder.decoder.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        call()
    finally:
        hook.remove()
    return set(seen)


@pytest.mark.parametrize(
    "call",
    [
        lambda embedder: embedder.embed_queries(QUERIES[:1]),
        lambda embedder: embedder.reason(QUERIES[:1]),
        lambda embedder: embedder.embed_cuts(QUERIES[0], [5, 6, 7], [0, 2]),
    ],
    ids=["direct", "reasoning", "cuts"],
)
def test_a_single_query_of_a_small_model_runs_on_one_thread(embedder, two_threads, call):
    assert _threads_of_forwards(embedder, lambda: call(embedder)) == {1}
    assert torch.get_num_threads() == 2


def test_many_texts_run_on_all_threads(embedder, two_threads):
    layer = sum(each.numel() for each in embedder.decoder.layers[0].parameters())
    many = TEXTS * int(PAYS_FROM / layer / len(TEXTS) + 1)
    assert _threads_of_forwards(embedder, lambda: embedder.embed_documents(many)) == {2}


def test_the_embedding_of_one_thread_is_that_of_several(embedder, two_threads):
    alone = torch.cat([embedder.embed_documents([text]) for text in TEXTS])
    layer = embedder.__dict__["_layer_weights"]
    embedder.__dict__["_layer_weights"] = PAYS_FROM  # of a large model: several threads
    try:
        torch.testing.assert_close(alone, torch.cat([embedder.embed_documents([text]) for text in TEXTS]))
    finally:
        embedder.__dict__["_layer_weights"] = layer


def test_threads_come_back_after_an_error(two_threads):
    def fails():
        with threads_for(0.0):
            assert torch.get_num_threads() == 1
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fails()
    assert torch.get_num_threads() == 2
