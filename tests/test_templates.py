"""Chat templates that drop or refuse the system message, write the date or are missing, and their seams."""

import datetime
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from conftest import QUERIES, TEXTS
from plain_folders import (
    ALTERNATES,
    DATED,
    DROPS,
    LENGTHS,
    REFUSES,
    TEMPLATE,
    TEXT_ALONE,
    WORDS,
    byte_tokenizer,
    opened,
    sentencepiece_tokenizer,
    write_plain,
)
from tokenizers import Tokenizer

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.last_resort import run_command
from search_r3.cli.resume import resumed
from search_r3.cli.run import execute
from search_r3.files import write_first
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder import (
    ModelFolderError,
    load_embedder,
    open_embedder,
    save_embedder,
)
from search_r3.models.prompts import EMBED_TOKEN, Lengths, PromptEncoder
from search_r3.models.templates import Prompts, render
from search_r3.models.tuning import FullTuning
from search_r3.train import run
from tests.tiny_stage import write_configs

PROMPTS = Prompts(**WORDS)
UNUSED = {"name": None, "create": None, "prompts": {}, "lengths": {}, "tuning": FullTuning()}


def with_embed_token(tokenizer):
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [EMBED_TOKEN]}, replace_extra_special_tokens=False
    )
    return tokenizer


def rendered(template, prompts=PROMPTS):
    return render(with_embed_token(byte_tokenizer(chat_template=template)), prompts)


def test_a_template_with_a_system_role_is_given_a_system_message():
    prompts = rendered(TEMPLATE)

    assert prompts.document.prefix_text == "<|system|>Represent the text<|end|><|user|>"
    assert prompts.document.suffix_text == f"<|end|><|assistant|>The embedding is{EMBED_TOKEN}"
    assert prompts.reasoning.suffix_text == "<|end|><|assistant|>"


@pytest.mark.parametrize(
    "template",
    [DROPS, REFUSES + TEMPLATE, ALTERNATES + TEMPLATE, DROPS.replace("['content']", "['content'] | trim")],
    ids=["drops", "refuses", "alternates", "trims"],
)
def test_without_a_system_role_the_system_text_stands_in_front_of_the_users_and_the_log_says_so(
    template, caplog
):
    with caplog.at_level(logging.INFO):
        prompts = rendered(template)

    assert prompts.document.prefix_text == "<|user|>Represent the text\n\n"
    assert prompts.direct.prefix_text == "<|user|>Represent the query\n\n"
    assert prompts.reasoning.prefix_text == "<|user|>Enrich the text\n\n"
    assert len({prompts.document.prefix, prompts.direct.prefix, prompts.reasoning.prefix}) == 3
    assert "in front of the user's text" in caplog.text


@pytest.mark.parametrize(
    "place", ["message['content'][0]['text']", "message['content'] | map(attribute='text') | join"]
)
def test_a_template_that_takes_texts_as_parts_of_a_list_is_given_them(place):
    template = TEMPLATE.replace("message['content']", place)
    assert rendered(template) == rendered(TEMPLATE)
    assert rendered(REFUSES + template) == rendered(REFUSES + TEMPLATE)


def test_three_prompts_that_stay_one_though_their_wordings_differ_are_refused():
    from search_r3.models.nano import train_tokenizer

    tokenizer = train_tokenizer(TEXTS, 400)  # reads "Direct!" and "direct" alike
    with pytest.raises(ValueError, match=r"same token ids.*'Read it', 'read it!'.*prompts\.\*_system="):
        render(tokenizer, Prompts("read it!", "read it!", "Read it", "", ""))


def test_a_documents_and_a_querys_wording_may_be_equal_and_so_may_all_three():
    assert rendered(DROPS, Prompts("a", "b", "a")).document.prefix_text == "<|user|>a\n\n"
    same = rendered(TEMPLATE, Prompts("a", "a", "a"))
    assert same.document == same.direct
    assert same.reasoning.prefix == same.direct.prefix


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (TEMPLATE.replace("['content']", "['content'] + message['content']"), "contains it 2 times"),
        (TEMPLATE.replace("['content']", "['content'] | lower"), "contains it 0 times"),
        ("{{ raise_exception('never') }}", "cannot write a single message of a user: never"),
        ("{{ 1 // 0 }}" + TEMPLATE, "cannot write a single message of a user: integer division"),
    ],
)
def test_a_template_that_does_not_carry_the_users_text_once_is_refused(template, rule):
    with pytest.raises(ValueError, match=rule):
        rendered(template)


def test_several_templates_none_of_which_is_the_default_are_refused_with_the_key_that_chooses():
    named = {"rag": TEMPLATE, "tool_use": TEMPLATE}
    with pytest.raises(ValueError, match=r"rag, tool_use and none named default.*model\.chat_template="):
        rendered(named)
    assert rendered(named | {"default": TEMPLATE}) == rendered(TEMPLATE)


def test_a_tokenizer_that_splits_special_tokens_of_texts_does_not_split_those_of_a_prompt():
    expected = render(byte_tokenizer(), PROMPTS)
    assert render(byte_tokenizer(split_special_tokens=True), PROMPTS) == expected


def test_a_prompt_without_a_token_leaves_nothing_to_reason_after():
    with pytest.raises(ValueError, match=r"prompts\.reasoning_system="):
        rendered(TEXT_ALONE, Prompts("direct", "", "document"))


@pytest.mark.parametrize("role", ["bos_token", "cls_token", None])
@pytest.mark.parametrize("start", ["", "<|system|>", "<|system|> <|user|>"])
def test_a_tokenizer_without_a_template_gets_the_plain_one(start, role, caplog):
    """Behind what it puts in front of a text: BOS, or what has another role or none, as GLM's two tokens."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(chat_template=None, **({role: "<|system|>"} if role else {}))
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in [*start.split(), "<|end|>"]]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A <|end|>".strip(), special_tokens=special
    )
    with caplog.at_level(logging.INFO):
        prompts = render(with_embed_token(tokenizer), PROMPTS)

    assert prompts.reasoning.prefix_text == f"{start.replace(' ', '')}Enrich the text\n\n"
    assert prompts.reasoning.prefix[: len(special) - 1] == tuple(place for _, place in special[:-1])
    assert prompts.reasoning.suffix_text == "\n\n"
    assert "no chat template" in caplog.text


@pytest.mark.parametrize("prepends", ["metaspace", "normalizer"])
@pytest.mark.parametrize(
    ("template", "is_exact"),
    [
        ("{{ messages[0]['content'] }} [INST] {{ messages[-1]['content'] }} [/INST]", True),
        ("<{{ messages[0]['content'] }}>\n\n{{ messages[-1]['content'] }} [/", False),  # as Llama 2
    ],
)
def test_a_blank_at_a_seam_is_not_doubled_by_a_tokenizer_that_prepends_one(prepends, template, is_exact):
    tokenizer = with_embed_token(sentencepiece_tokenizer(prepends, chat_template=template))
    encoder = PromptEncoder(tokenizer, PROMPTS, Lengths(**LENGTHS))
    text = "parse a line"
    whole = tokenizer(
        encoder.reasoning.prefix_text + text + encoder.reasoning.suffix_text, add_special_tokens=False
    )["input_ids"]

    (ids,) = encoder.reasoning_prompts([text])

    assert "▁▁" not in "".join(tokenizer.convert_ids_to_tokens(ids))
    assert tuple(whole[-len(encoder.reasoning.suffix) :]) == encoder.reasoning.suffix
    assert (ids == whole) == is_exact


def test_parts_that_are_read_otherwise_than_in_one_piece_are_told(caplog):
    tokenizer = byte_tokenizer(chat_template="{{ messages[0]['content'] }} {{ messages[-1]['content'] }}")
    with caplog.at_level(logging.INFO):
        render(with_embed_token(tokenizer), PROMPTS)  # a blank and the word after it are one token

    assert "in parts" in caplog.text


# A template that writes the date


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    """A plain folder whose template writes the time to the microsecond: no two renderings are equal."""
    return write_plain(tmp_path_factory.mktemp("dated") / "plain", byte_tokenizer(chat_template=DATED))


def test_every_rendering_of_the_dated_template_differs(dated):
    assert (
        opened(dated).encoder.document != opened(dated).encoder.document
    )  # or the tests below prove nothing


@pytest.fixture(scope="module")
def trained(dated, tmp_path_factory):
    """The embedder that trained, and the model folder that it left."""
    embedder = opened(dated)
    return embedder, save_embedder(embedder, tmp_path_factory.mktemp("dated_run") / "model", {})


@pytest.mark.parametrize("read", [load_embedder, lambda path: open_embedder(path=str(path), **UNUSED)])
def test_whoever_opens_the_folder_later_has_the_prompts_that_it_was_trained_with(trained, read):
    embedder, folder = trained

    later = read(folder)

    assert later.encoder.rendered == embedder.encoder.rendered
    torch.testing.assert_close(
        later.embed_documents(TEXTS), embedder.embed_documents(TEXTS), rtol=1e-4, atol=1e-5
    )
    assert later.reason(QUERIES).token_ids == embedder.reason(QUERIES).token_ids


def test_a_folder_made_from_a_folder_keeps_the_prompts(trained, tmp_path):
    embedder, folder = trained

    again = save_embedder(open_embedder(path=str(folder), **UNUSED), tmp_path / "again", {})

    assert load_embedder(again).encoder.fingerprint == embedder.encoder.fingerprint


def test_the_code_of_the_card_does_not_render_again(trained, monkeypatch, capsys):
    embedder, folder = trained
    monkeypatch.chdir(folder)
    _, code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)

    vectors = torch.stack([names["embed_text"]("document", text) for text in TEXTS[:3]])
    torch.testing.assert_close(vectors, embedder.embed_documents(TEXTS[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("read", [load_embedder, lambda path: open_embedder(path=str(path), **UNUSED)])
@pytest.mark.parametrize("kind", ["document", "direct", "reasoning"])
def test_a_folder_with_other_prompts_than_it_was_trained_with_is_refused(trained, tmp_path, read, kind):
    folder = save_embedder(trained[0], tmp_path / "model", {})
    description = json.loads((folder / "search_r3.json").read_text())
    description["rendered"][kind]["prefix_ids"].append(7)
    (folder / "search_r3.json").write_text(json.dumps(description))

    with pytest.raises(ModelFolderError, match="differ from those the model was trained with"):
        read(folder)


@pytest.mark.parametrize("change", [lambda d: d.pop("rendered"), lambda d: d["rendered"].pop("direct")])
def test_a_folder_that_does_not_hold_its_prompts_is_refused(trained, tmp_path, change):
    folder = save_embedder(trained[0], tmp_path / "model", {})
    description = json.loads((folder / "search_r3.json").read_text())
    change(description)
    (folder / "search_r3.json").write_text(json.dumps(description))

    with pytest.raises(ModelFolderError, match=r"search_r3\.json.*(rendered|direct)"):
        load_embedder(folder)


def test_a_run_renders_once_for_its_resumptions_and_its_other_ranks(dated, tmp_path):
    file = tmp_path / "prompts.json"

    first, later = opened(dated, prompts_file=file), opened(dated, prompts_file=file)

    assert first.encoder.rendered == later.encoder.rendered
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.json"]
    with pytest.raises(ModelFolderError, match=r"prompts\.json.*start a new run"):
        opened(dated, prompts_file=file, prompts={**WORDS, "direct_system": "another"})


@pytest.mark.parametrize("kind", [byte_tokenizer, sentencepiece_tokenizer])
def test_a_tokenizer_that_was_saved_with_a_cut_and_padding_has_one_fingerprint(kind, tmp_path):
    folder, file = write_plain(tmp_path / "plain", kind()), tmp_path / "prompts.json"
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(16)
    backend.enable_padding(length=16)
    backend.save(str(folder / "tokenizer.json"))

    words = WORDS | {"lead_in": "", "closing": ""}  # so that nothing else resets it on the second reading
    first, later = (opened(folder, prompts_file=file, prompts=words) for _ in range(2))

    assert first.encoder.fingerprint == later.encoder.fingerprint
    assert len(first.encoder.documents([TEXTS[0]])[0]) > 16
    saved = load_embedder(save_embedder(first, tmp_path / "model", {}))
    assert saved.encoder.fingerprint == first.encoder.fingerprint


def test_a_resumed_run_has_the_prompts_that_it_began_with(dated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def kept(composed):
        execute("train", run, composed, Path("run"))
        description = json.loads(Path("run/model/search_r3.json").read_text())
        return description["rendered"], description["provenance"]["step"]

    with ConfigSource(write_configs(tmp_path / "configs")) as source:
        tiny = ["stage=tiny", "data=tiny", "model=tiny", "model.create=null", f"model.name={dated}"]
        tiny.append("strategy.precision=32-true")  # bf16 is not what is tested
        first, step = kept(compose("train", [*tiny, "stage.trainer.max_steps=3"], source))
        later, later_step = kept(resumed(source, ["stage.trainer.max_steps=6"], Path("run")))

    assert later_step > step
    assert later == first


def test_whoever_comes_second_takes_what_the_first_wrote(tmp_path):
    file = tmp_path / "prompts.json"

    write_first(file, "first")
    write_first(file, "second")

    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.json"]


def test_the_date_is_told(dated, caplog):
    with caplog.at_level(logging.INFO):
        opened(dated)

    assert "writes the date" in caplog.text


# Folders of format 1


def as_format_1(folder, template=None):
    """Turns a folder into what format 1 wrote: wording and the fingerprint without the reasoning prompt."""
    file = folder / "search_r3.json"
    description = json.loads(file.read_text())
    description = {k: v for k, v in description.items() if k not in ("rendered", "pad_token")}
    encoder = load_embedder(folder).encoder
    description |= {"format_version": 1, "prompt_fingerprint": encoder.fingerprint_of_format_1}
    file.write_text(json.dumps(description))
    return folder


@pytest.fixture
def format_1(tmp_path):
    plain = write_plain(tmp_path / "plain", byte_tokenizer())
    return as_format_1(save_embedder(opened(plain), tmp_path / "model", {"seed": 3}))


def test_a_folder_of_format_1_opens_and_is_upgraded_without_changing_a_vector(format_1):
    from search_r3.models.folder import upgrade_folder

    before = load_embedder(format_1)
    weights = (format_1 / "model.safetensors").read_bytes()

    assert upgrade_folder(format_1)
    assert not upgrade_folder(format_1)

    description = json.loads((format_1 / "search_r3.json").read_text())
    assert (description["format_version"], description["provenance"]) == (2, {"seed": 3})
    assert (format_1 / "model.safetensors").read_bytes() == weights
    after = load_embedder(format_1)
    assert after.encoder.rendered == before.encoder.rendered
    assert torch.equal(after.embed_documents(TEXTS), before.embed_documents(TEXTS))
    n_parameters = sum(p.numel() for p in after.model.parameters())
    assert f"{n_parameters / 1e6:,.1f} M parameters" in (format_1 / "README.md").read_text()


@pytest.mark.parametrize("read", [load_embedder, lambda path: open_embedder(path=str(path), **UNUSED)])
def test_format_1_keeps_its_check(format_1, read):
    template = format_1 / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", ""))

    with pytest.raises(ModelFolderError, match="differ from those the model was trained with"):
        read(format_1)


def test_the_fingerprint_of_format_1_is_that_of_the_shipped_base_before_its_upgrade():
    from search_r3.shipped import CONF

    folder = CONF.parent / "experiments" / "nano_base" / "model"
    expected = "1c58399f0934636c868eb309cec1fe6f93fcf026f26f3be697e3414db1f50a85"  # as format 1 wrote it
    assert load_embedder(folder).encoder.fingerprint_of_format_1 == expected


def test_a_dated_folder_of_format_1_says_that_it_will_not_open_another_day(tmp_path, caplog):
    day = TEMPLATE.replace("{% for", "{{ strftime_now('%Y') }}{% for", 1)
    plain = write_plain(tmp_path / "plain", byte_tokenizer(chat_template=day))
    folder = as_format_1(save_embedder(opened(plain), tmp_path / "model", {}))

    load_embedder(folder)

    assert f"python -m src.upgrade {folder}" in caplog.text
    assert str(datetime.date.today().year) in load_embedder(folder).encoder.document.prefix_text


def test_the_command_upgrades_folders_and_names_one_that_is_none(format_1, tmp_path, capsys, monkeypatch):
    from search_r3.upgrade import main

    monkeypatch.setattr("sys.argv", ["upgrade", str(format_1), str(tmp_path / "absent")])

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 2
    told = capsys.readouterr()
    assert f"{format_1}: upgraded" in told.out
    assert f"error: {tmp_path / 'absent'}: no such model folder" in told.err


def test_the_fingerprint_covers_the_reasoning_prompt():
    tokenizer = with_embed_token(byte_tokenizer())
    prints = [
        PromptEncoder(tokenizer, Prompts("a", words, "a"), Lengths(**LENGTHS)).fingerprint
        for words in ("b", "c")
    ]
    assert prints[0] != prints[1]


def test_an_embedder_takes_the_prompts_that_it_is_given(trained):
    embedder = trained[0]
    encoder = embedder.encoder
    other = ReasoningEmbedder(
        embedder.model, embedder.tokenizer, encoder.prompts, encoder.lengths, rendered=encoder.rendered
    )

    assert other.encoder.fingerprint == encoder.fingerprint
