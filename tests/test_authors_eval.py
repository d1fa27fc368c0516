"""A checkpoint of others, a plain Hugging Face folder with prompts beside it, is evaluated as meant."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import pytrec_eval
import torch
from conftest import TEXTS
from plain_folders import byte_tokenizer, write_plain
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.errors import UsageError
from search_r3.evaluate import check, run
from search_r3.models.folder.plain import load_plain, plain_prompts
from search_r3.models.prompts import EMBED_TOKEN, Lengths, Prompts

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen2.5-Instruct's, which the authors left unchanged: without a system message it brings its own."""
WORDING = {"direct_system": "Represent the meaning.", "reasoning_system": "Enrich it, then end."}
DOCUMENTS = [text.partition("\n")[2] for text in TEXTS[:5]]
QUERIES = [text.partition("\n")[0] for text in TEXTS[:5]]


def write_checkpoint(folder: Path, special=("<|im_start|>", "<|im_end|>", EMBED_TOKEN), **named) -> Path:
    """A tiny Qwen2 with random weights in bf16, laid out as the authors' checkpoint is."""
    tokenizer = byte_tokenizer(special, chat_template=CHATML, eos_token="<|im_end|>", **named)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 17, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
        dtype="bfloat16",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "prompts.json").write_text(json.dumps(WORDING))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("theirs") / "Search-R3.0-Small")


@pytest.fixture(scope="module")
def beir(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("beir")
    (root / "tiny" / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        rows = [{"_id": f"{name[0]}{n}", "title": "", "text": text} for n, text in enumerate(texts)]
        (root / "tiny" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = "".join(f"q{n}\tc{n}\t1\n" for n in range(5))
    (root / "tiny" / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return root


@pytest.fixture(scope="module")
def source():
    with ConfigSource() as source:
        yield source


def evaluate(source, beir: Path, output: Path, *overrides: str) -> list[dict]:
    """Rows after `python -m src.evaluate experiment=authors_eval ...`."""
    places = [f"beir_dir={beir}", f"output_dir={output}", f"cache_dir={output / 'cache'}"]
    config = compose(
        "evaluate", ["experiment=authors_eval", "benchmarks=[tiny]", *places, *overrides], source
    ).config
    check(config, False)
    run(config)
    return json.loads((output / "metrics.json").read_text())["rows"]


def by_hand(folder: Path, texts: list[str], system: str) -> torch.Tensor:
    """`[N, D]` by transformers alone: the conversation as one string, the state at its last token."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)  # AutoTokenizer would take Qwen2's own rules
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for text in texts:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(f"{asked}The embedding is{EMBED_TOKEN}", return_tensors="pt")["input_ids"]
        assert ids[0, -1] == tokenizer.convert_tokens_to_ids(EMBED_TOKEN)
        with torch.no_grad():
            rows.append(model.model(ids).last_hidden_state[0, -1])
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def test_the_command_evaluates_a_checkpoint_with_the_prompts_beside_it(checkpoint, beir, source, tmp_path):
    rows = evaluate(source, beir, tmp_path, f"model.name={checkpoint}", "model.lengths.reasoning=6")

    assert [row["mode"] for row in rows] == ["bm25", "direct", "reasoning"]
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert {row["weights_sha256"] for row in rows[1:]} == {weights}
    assert rows[1]["model"] == str(checkpoint)
    system = WORDING["direct_system"]  # documents have it too
    expected = by_hand(checkpoint, QUERIES, system) @ by_hand(checkpoint, DOCUMENTS, system).T
    with (tmp_path / "tiny" / "direct" / "run.trec").open() as file:
        run = pytrec_eval.parse_run(file)
    for query in range(5):
        for document in range(5):
            found = run[f"q{query}"][f"c{document}"]
            assert found == pytest.approx(float(expected[query, document]), rel=2e-5)


def test_another_wording_is_another_row_and_a_key_comes_before_the_file(checkpoint, beir, source, tmp_path):
    given = [f"model.name={checkpoint}", "modes=[direct]"]
    first = evaluate(source, beir, tmp_path, *given)
    both = evaluate(source, beir, tmp_path, *given, "model.prompts.direct_system=Find what helps.")
    elsewhere = tmp_path / "words.json"
    elsewhere.write_text(json.dumps({**WORDING, "direct_system": "Find what helps."}))
    again = evaluate(source, beir, tmp_path, *given, f"model.prompts_file={elsewhere}")

    assert len(first) == 1
    assert len(both) == 2
    assert again == both  # the same wording, read back


def test_a_changed_configuration_does_not_read_vectors_of_before(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    prompts, lengths = Prompts("a", "b", "a"), Lengths(8, 8, 4)
    before = load_plain(folder, prompts, lengths).document_key
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    after = load_plain(folder, prompts, lengths).document_key

    assert before["weights"] == after["weights"]
    assert before != after


def test_the_left_is_cut_from_the_text_and_never_from_the_template(checkpoint):
    long = " ".join(DOCUMENTS)
    left = load_plain(checkpoint, Prompts(**WORDING, document_system="d"), Lengths(8, 12, 4, 0, "left"))
    right = load_plain(checkpoint, Prompts(**WORDING, document_system="d"), Lengths(8, 12, 4))
    ids = left.tokenizer(long, add_special_tokens=False)["input_ids"]
    document = left.encoder.document
    assert len(ids) > 12

    assert left.encoder.documents([long]) == [[*document.prefix, *ids[-12:], *document.suffix]]
    assert right.encoder.documents([long]) == [[*document.prefix, *ids[:12], *document.suffix]]
    assert left.encoder.reasoning_prompts([long]) == [left.encoder.reasoning.wrap(ids[-8:])]
    assert left.encoder.reasonings([long]) == right.encoder.reasonings([long]) == [ids[:4]]
    assert left.truncated_count([long, "sum"], "document") == 1
    assert left.document_key["prompts"] != right.document_key["prompts"]


def test_a_plain_folder_without_the_token_is_refused_and_evaluated_by_another_one(beir, source, tmp_path):
    folder = write_plain(tmp_path / "plain", byte_tokenizer())
    given = [
        f"model.name={folder}", "modes=[direct,reasoning]", "model.prompts.direct_system=a",
        "model.prompts.reasoning_system=b", "model.lengths={query: 24, document: 48, reasoning: 5}",
    ]  # fmt: skip

    with pytest.raises(UsageError, match=r"has no <\|embed_token\|>.*model\.embed_token="):
        evaluate(source, beir, tmp_path / "out", *given)
    rows = evaluate(source, beir, tmp_path / "out", *given, "model.embed_token='<|end|>'")
    assert [row["mode"] for row in rows] == ["direct", "reasoning"]
    embedder = load_plain(folder, Prompts("a", "b", "a"), Lengths(24, 48, 5), "<|end|>")
    assert embedder.encoder.queries(["sum"])[0][-1] == embedder.tokenizer.convert_tokens_to_ids("<|end|>")
    assert embedder.embed_token_id not in embedder.special_ids.stops


def test_prompts_that_begin_with_a_byte_order_mark_are_read(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(WORDING), encoding="utf-8-sig")
    assert plain_prompts(tmp_path, {}) == Prompts(**{"document_system": WORDING["direct_system"], **WORDING})


def broken(checkpoint: Path, folder: Path, how: str) -> Path:
    shutil.copytree(checkpoint, folder)
    if how == "no prompts":
        (folder / "prompts.json").unlink()
    elif how == "another prompt":
        (folder / "prompts.json").write_text(json.dumps({**WORDING, "query_system": "a"}))
    elif how == "no object":
        (folder / "prompts.json").write_text("[]")
    elif how == "an adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif how == "pickled":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"")
    elif how == "in pieces":
        text = (folder / "tokenizer.json").read_text()
        content = json.loads(text)
        content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] != EMBED_TOKEN]
        (folder / "tokenizer.json").write_text(json.dumps(content))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("added_tokens_decoder", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no prompts", r"nothing says its direct_system: give model\.prompts\.direct_system="),
        ("another prompt", "prompts.json: unknown key 'query_system'"),
        ("no object", "prompts.json"),
        ("an adapter", "adapter_config.json: is an adapter"),
        ("pickled", r"no \*\.safetensors file \(pytorch_model\.bin is pickled"),
        ("in pieces", r"reads <\|embed_token\|> as \d+ tokens"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_line(
    how, message, checkpoint, beir, source, tmp_path
):
    folder = broken(checkpoint, tmp_path / "broken", how)

    with pytest.raises(UsageError, match=message) as caught:
        evaluate(source, beir, tmp_path / "out", f"model.name={folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name={folder}", "model.path={folder}"], "give one of them"),
        (["model.path={folder}"], r"not a model folder.*experiment=authors_eval model\.name="),
        (["model.name=org/a-hub-name"], "no local Hugging Face folder"),
        (["model.name={folder}", "model.lengths.query=null"], r"model\.lengths\.query= is needed"),
        (["model.name={folder}", "model.lengths.query=0"], r"model\.lengths\.query=0: must be"),
        (["model.name={folder}", "model.lengths.truncation_side=middle"], "must be left or right"),
        (["model.name={folder}", "model.prompts_file=nowhere.json"], "no such file"),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides, message, checkpoint, beir, source, tmp_path):
    given = [text.format(folder=checkpoint) for text in overrides]
    with pytest.raises((UsageError, ValueError), match=message):
        evaluate(source, beir, tmp_path, *given)


def test_an_experiment_of_another_command_is_called_so(source):
    with pytest.raises(UsageError, match="experiment=quickstart is none of evaluate's"):
        compose("evaluate", ["experiment=quickstart"], source)
