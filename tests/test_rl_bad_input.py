"""What the RL stage refuses: one clear error each, before the corpus is encoded and most before the model."""

import json
from pathlib import Path

import pytest
from rl_runs import likely_folder

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.overrides import quote_free_text
from search_r3.errors import UsageError
from search_r3.stages.rl.environment import EnvironmentDataError
from search_r3.train import check, run

QUERIES = {f"q{i}": f"add number {i}" for i in range(4)}
DOCUMENTS = {f"d{i}": f"def add_{i}(x): return x + {i}" for i in range(6)}
QRELS = [(f"q{i}", f"d{i}", 1) for i in range(4)]


def write_beir(folder, documents=DOCUMENTS, qrels=QRELS):
    """A collection in BEIR layout."""
    (folder / "qrels").mkdir(parents=True)
    rows = ({"_id": i, "title": "", "text": text} for i, text in documents.items())
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = ({"_id": i, "text": text} for i, text in QUERIES.items())
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in qrels)
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return likely_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def broken_model(tmp_path):
    """Looks like a model folder from outside and cannot be opened: whoever reads it says so."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "search_r3.json").write_text("{}")
    return folder


def composed(data, model, place, *more):
    """The command's configuration, checked, as `python -m src.train` makes it."""
    arguments = [
        "stage=rl",
        "data=beir",
        f"data.path={data}",
        f"model.path={model}",
        "data.validation_share=0",
        "strategy.precision=32-true",
        f"output_dir={place / 'run'}",
        f"stage.datamodule.cache_dir={place / 'cache'}",
        "stage.datamodule.batch_size=2",
        "stage.module.rollouts.group_size=2",
        "stage.module.completions.every_n_steps=1",
        "stage.callbacks.checkpoint.monitor=null",
        "stage.trainer.max_steps=2",
        "stage.trainer.val_check_interval=null",
        *more,
    ]
    with ConfigSource() as source:
        config = compose("train", quote_free_text(arguments), source).config
    check(config, False)
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "provenance.json").write_text(
        json.dumps({"command": "test", "commit": "0", "seed": 1, "python": "3", "packages": {}})
    )
    return config


def message_of(config, kind):
    with pytest.raises(kind) as caught:
        run(config)
    return str(caught.value)


def test_an_unknown_precision_of_the_index_is_refused(broken_model, tmp_path):
    with pytest.raises(UsageError, match=r"index_precision=half does not exist\. Choices: full, run"):
        composed(tmp_path, broken_model, tmp_path, "stage.datamodule.index_precision=half")


BAD_DATA = {
    "a judged document that is not in the corpus": (
        {"qrels": [*QRELS, ("q3", "d9", 1)]},
        ["train.tsv", "6", "document 'd9' is not in the corpus"],
    ),
    "no query with a positive": (
        {"qrels": [(query, document, 0) for query, document, _ in QRELS]},
        ["train.tsv", "no training row is left", "min_grade=1"],
    ),
    "one query without a positive": (
        {"qrels": [*QRELS[:3], ("q3", "d3", 0)]},
        ["train.tsv", "query 'q3' has judgements and no positive", "1 of 4 queries", "take its lines out"],
    ),
    "an empty corpus": ({"documents": {}}, ["corpus.jsonl", "holds no documents"]),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_named_with_its_file_before_the_model_is_opened(name, broken_model, tmp_path):
    arguments, words = BAD_DATA[name]
    config = composed(write_beir(tmp_path / "data", **arguments), broken_model, tmp_path)
    message = message_of(config, ValueError)
    for word in words:
        assert word in message
    assert not (tmp_path / "cache").exists()


OUT_OF_RANGE = [
    "stage.module.rollouts.group_size=1",
    "stage.module.rollouts.max_new_tokens=0",
    "stage.module.rollouts.temperature=0",
    "stage.module.rollouts.top_p=0",
    "stage.module.policy.clip_low=1.5",
    "stage.module.policy.kl_weight=-1",
    "stage.module.policy.std_floor=-1",
    "stage.module.policy.contrastive_temperature=0",
    "stage.module.policy.n_updates=0",
    "stage.datamodule.max_documents=1",
    "stage.datamodule.batch_size=0",
    "refresh.budget=-1",
    "refresh.background=2",
    "refresh.rule.k=0",
    "normalisation.max_tokens=7",
]


@pytest.mark.parametrize("setting", OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused_when_the_command_is_read(setting, broken_model, tmp_path):
    with pytest.raises(UsageError) as refusal:
        composed(tmp_path / "no such data", broken_model, tmp_path, setting)
    assert str(refusal.value).startswith(f"{setting}: must be ")


def test_a_way_to_rank_that_there_is_not_is_refused_when_the_command_is_read(broken_model, tmp_path):
    with pytest.raises(UsageError, match=r"^stage\.module\.rank=best does not exist\. Choices: exact, topk$"):
        composed(tmp_path / "no such data", broken_model, tmp_path, "stage.module.rank=best")


BAD_SETTINGS = {
    "certified without audits": (
        ["refresh=certified", "refresh.audit_every_n_steps=0"],
        "audit_every_n_steps must be at least 1",
    ),
}


@pytest.mark.parametrize(("group", "word"), [("normalisation", "dr_grpo"), ("kl", "k1")])
def test_a_word_where_a_group_chooses_a_function_is_answered_with_what_to_type(
    group, word, broken_model, tmp_path
):
    with pytest.raises(
        UsageError, match=rf"stage\.module\.policy\.{group}={word} is chosen by .*: {group}={word} "
    ):
        composed(tmp_path / "no such data", broken_model, tmp_path, f"stage.module.policy.{group}={word}")
    with pytest.raises(UsageError, match=rf"{group}=mean does not exist.*{word}"):
        composed(tmp_path / "no such data", broken_model, tmp_path, f"{group}=mean")


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_without_meaning_is_refused_before_data_and_model_are_read(name, broken_model, tmp_path):
    setting, words = BAD_SETTINGS[name]
    settings = [setting] if isinstance(setting, str) else setting
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.jsonl").write_text("cannot be read")
    config = composed(tmp_path / "data", broken_model, tmp_path, *settings)
    assert words in message_of(config, ValueError)
    assert not (tmp_path / "run" / "data_card.json").exists()


def test_a_corpus_of_one_document_is_refused_before_it_is_encoded(model, tmp_path):
    data = write_beir(tmp_path / "data", {"d0": "def add(x): return x"}, [("q0", "d0", 1)])
    message = message_of(composed(data, model, tmp_path), EnvironmentDataError)
    assert "the corpus has one document to query" in message
    assert "add documents that are not relevant" in message
    assert not (tmp_path / "cache").exists()


def test_documents_and_budget_are_bounds_which_may_exceed_the_corpus(model, tmp_path):
    large = ["stage.datamodule.max_documents=1000", "refresh.budget=1000", "refresh=full"]
    rows = []
    for number, settings in enumerate((["refresh=full", "refresh.budget=null"], large)):
        place = tmp_path / str(number)
        config = composed(write_beir(place / "data"), model, place, *settings)
        run(config)
        assert json.loads((place / "run" / "data_card.json").read_text())["documents"] == len(DOCUMENTS)
        rows.append((place / "run" / "index" / "shard-0-of-1" / "rows.f32").read_bytes())
    assert rows[0] == rows[1]
    assert len(rows[0]) == len(DOCUMENTS) * 32 * 4  # every document is searched


@pytest.mark.parametrize("given", [["model=nano_scratch"], ["model.path=null"]])
def test_the_stage_wants_a_model_folder_and_says_what_leaves_one(given, tmp_path):
    with ConfigSource() as source:
        config = compose("train", ["stage=rl", "data=pydocs", *given], source).config
    with pytest.raises(UsageError, match=r"stage=rl starts from a model folder.*stage=sft.*model\.path="):
        check(config, False)


def test_a_base_that_has_not_learnt_to_embed_is_started_from_only_where_it_is_named():
    with ConfigSource() as source:
        config = compose("train", ["stage=rl"], source).config
        with pytest.raises(
            UsageError, match=r"pretrained only.*src\.train stage=sft.*model\.path="
        ) as refusal:
            check(config, False)
        named = str(refusal.value).rpartition(" ")[2]
        check(compose("train", ["stage=rl", named], source).config, False)
        check(compose("train", ["stage=sft"], source).config, False)


@pytest.mark.parametrize("what", ["no folder", "a plain Hugging Face folder"])
def test_a_folder_that_is_none_of_ours_is_refused_with_its_path(what, tmp_path):
    folder = tmp_path / "model"
    if what != "no folder":
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UsageError, match=r"not a model folder \(it has no search_r3\.json\)") as refusal:
        composed(Path("data"), folder, tmp_path)
    assert str(folder) in str(refusal.value)


def test_a_model_folder_without_weights_is_refused_before_anything_is_encoded(broken_model, tmp_path):
    config = composed(write_beir(tmp_path / "data"), broken_model, tmp_path)
    assert str(broken_model) in message_of(config, ValueError)
    assert not (tmp_path / "cache").exists()
