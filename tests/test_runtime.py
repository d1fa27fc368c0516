"""Command line to configuration: quoting and refusals."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from search_r3.cli.compose import compose, resolved_yaml
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.devices import _listed
from search_r3.cli.instantiate import instantiate
from search_r3.cli.overrides import argument_names, nearest, quote_free_text
from search_r3.errors import UsageError
from search_r3.train import check
from tests.command import PYTHONPATH
from tests.tiny_stage import load_tiny, write_configs

ROOT = Path(__file__).resolve().parents[1]
NASTY = [
    "what's a (set), {x}=[1]?",
    "",
    " leading and trailing ",
    "null",
    "1e3",
    "a\\",
    "\\'",
    "\\\\'x\\\\",
    "${oc.env:HOME}",
    "\\${x}",
    "\\\\${x}",
    "'${'",
    "$",
    "'single' \"double\"",
    "tab\tline\nbreak",
    "naïve 検索 🔎",
    "a,b,c",
    "choice(a,b)",
    "~!@#%^&*|;<>?`",
    "[unclosed",
    "{k: v}",
    "key=value=more",
    "C:\\new\\table",
]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = write_configs(tmp_path_factory.mktemp("configs"))
    (folder / "bare.yaml").write_text(
        "data: {columns: {query: null}, test: null, dataset: null, files: [a]}\n"
        "model: {path: null, name: null}\noutput_dir: null\nfiles: []\n"
    )
    return folder


@pytest.fixture
def source(configs):
    with ConfigSource(configs) as source:
        yield source


TINY = ["stage=tiny", "data=tiny", "model=tiny"]


@pytest.mark.parametrize("text", NASTY)
def test_free_text_on_the_command_line_arrives_verbatim(source, text):
    config = compose("bare", quote_free_text([f"data.columns.query={text}"]), source).config

    assert config.data.columns.query == text
    assert OmegaConf.create(resolved_yaml(config)).data.columns.query == text  # and survives config.yaml


@pytest.mark.parametrize("path", ["my runs/a=1, b[2]", "what's/this", "(x)/{y}", "x,y", "123", "${HOME}/x"])
def test_paths_arrive_verbatim(source, path):
    arguments = quote_free_text([f"model.path={path}", f"output_dir={path}"])

    config = compose("bare", arguments, source).config

    assert (config.model.path, config.output_dir) == (path, path)


@pytest.mark.parametrize("key", ["data.test", "data.dataset", "model.name"])
def test_a_folder_that_may_have_another_source_arrives_verbatim_too(source, key):
    for text in ("my sets/a=1, b[2]", "org/name", "12"):
        config = compose("bare", quote_free_text([f"{key}={text}"]), source).config
        assert OmegaConf.select(config, key) == text
    config = compose("bare", quote_free_text([f"{key}=null", "data.files=null"]), source).config
    assert OmegaConf.select(config, key) is None
    assert config.data.files is None


def test_a_sweep_over_names_of_the_hub_is_one_over_each():
    swept = ["model.name=org/a,org/b", "data.dataset=a,b"]
    assert quote_free_text(swept, is_sweep=True) == swept


@pytest.mark.parametrize(
    "argument",
    [
        "output_dir=~/runs",
        "model.path=~",
        "files=~a.jsonl",
        "files=[a, ~/b]",
        "data.test=~/b",
        "model.name=~/b",
    ],
)
def test_a_path_that_begins_with_the_home_sign_is_refused_with_what_to_write(argument):
    with pytest.raises(UsageError, match=r"a shell leaves ~ as it is behind '='"):
        quote_free_text([argument])


def test_several_paths_where_one_is_read_are_refused_with_how_several_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c,d"):
        Path(name).touch()
    with pytest.raises(UsageError, match=re.escape("several are given as 'model.path=choice(a,b)'")):
        quote_free_text(["model.path=a,b"], is_sweep=True)
    for is_sweep in (False, True):
        with pytest.raises(UsageError, match=re.escape("several are given as 'data.files=[a, b]'")):
            quote_free_text(["data.files=a, b"], is_sweep)
    names = ["model.path=c,d", "model.path=a,missing", "data.files=c,d", "output_dir=new,one"]
    quoted = ["model.path='c,d'", "model.path='a,missing'", "data.files=['c,d']", "output_dir='new,one'"]
    assert quote_free_text(names, is_sweep=True) == quoted
    assert quote_free_text(["model.path=a,b"]) == ["model.path='a,b'"]
    assert quote_free_text(["model.path=choice(a,b)"], is_sweep=True) == ["model.path=choice(a,b)"]


def test_names_that_look_like_numbers_are_names():
    given = [
        "split=2020",
        "data.train_split=1e3",
        "data.name=007",
        "benchmarks=[2019, a=b,null]",
        "split=null",
    ]
    assert quote_free_text(given) == [
        "split='2020'", "data.train_split='1e3'", "data.name='007'", "benchmarks=['2019','a=b','null']",
        "split=null",
    ]  # fmt: skip
    swept = [
        "split=2019,2020",
        "benchmarks=[a],[b]",
        "benchmarks=['a,b']",
        "benchmarks=[]",
        "data.n_name=3",
        "data.min_test=1",
    ]
    assert quote_free_text(swept, is_sweep=True) == swept


def test_an_argument_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="not valid UTF-8"):
        quote_free_text([os.fsdecode(b"output_dir=\xff")])


def test_a_path_that_checkpoints_cannot_be_written_to_is_refused(source):
    with pytest.raises(UsageError, match="'::'"):
        check(compose("train", [*TINY, "output_dir=a::b"], source).config, False)


@pytest.mark.parametrize("text", NASTY)
def test_text_is_handed_to_what_is_built_as_it_reads(source, text):
    composed = compose("bare", quote_free_text([f"data.columns.query={text}"]), source).config
    node = {"_target_": "tests.tiny_stage.TinyDataModule", "batch_size": "${data.columns.query}/x"}

    built = instantiate(OmegaConf.merge(composed, {"part": node}).part, data=load_tiny(), embedder=None)

    assert built.batch_size == f"{text}/x"


def test_null_unsets_a_path_and_is_a_word_in_free_text(source):
    arguments = quote_free_text(["model.path=null", "data.columns.query=null"])

    config = compose("bare", arguments, source).config

    assert config.model.path is None
    assert config.data.columns.query == "null"


def test_a_list_of_files_is_quoted_by_item(source):
    several = compose("bare", quote_free_text(["files=[my data/a(1).jsonl, b's.jsonl]"]), source).config
    single = compose("bare", quote_free_text(["files=my data/{a}.jsonl"]), source).config

    assert list(several.files) == ["my data/a(1).jsonl", "b's.jsonl"]
    assert list(single.files) == ["my data/{a}.jsonl"]


def test_only_free_keys_are_quoted_so_that_other_keys_can_be_swept():
    arguments = [
        "seed=1,2",
        "stage.module.path_length=3",
        "--multirun",
        "hydra.sweep.dir=${x}",
        "model.path=choice(a,b)",
    ]

    assert quote_free_text(arguments, is_sweep=True) == arguments
    assert quote_free_text(arguments[-1:]) == ["model.path='choice(a,b)'"]


REFUSED = {
    "no stage": (TINY[1:], ["stage= is missing", "stage=tiny"]),
    "option": (["stage=tinny", *TINY[1:]], ["stage=tinny does not exist", "Did you mean tiny", "Choices:"]),
    "top-level key": ([*TINY, "seeed=1"], ["no key seeed", "seed"]),
    "nested key": ([*TINY, "stage.moduel.learning_rate=1"], ["stage.module.learning_rate"]),
    "key with +": ([*TINY, "+stage.moduel.learning_rate=1"], ["stage.module.learning_rate"]),
    "key with ++": ([*TINY, "++stage.module.learnin_rate=1"], ["stage.module.learning_rate"]),
    "trainer argument": ([*TINY, "stage.trainer.max_stps=1"], ["stage.trainer.max_steps"]),
    "added trainer argument": (
        [*TINY, "+stage.trainer.limit_val_batchs=1"],
        ["stage.trainer.limit_val_batches"],
    ),
    "group of another stage": ([*TINY, "index=flat"], ["index= belongs to stage=rl"]),
    "reward under sft": ([*TINY, "reward=dcg"], ["reward= belongs to stage=rl"]),
    "removed key": ([*TINY, "~seed"], ["~seed", "cannot be removed"]),
    "not key=value": ([*TINY, "seed"], ["cannot read 'seed'"]),
    "sweep without the flag": ([*TINY, "seed=1,2"], ["seed=1,2"]),
    "if_exists": ([*TINY, "if_exists=maybe"], ["Choices: refuse, resume"]),
    "saved dtype": ([*TINY, "save_dtype=bf16"], ["save_dtype=bf16", "float32, bfloat16, float16"]),
    "resume in nowhere": ([*TINY, "if_exists=resume"], ["needs output_dir="]),
    "no option of a group": ([*TINY, "logger=null"], ["logger=null chooses nothing", "Choices: csv, wandb"]),
    "no experiment": ([*TINY, "experiment=null"], ["or leave it out for none"]),
    "clipping by Lightning": ([*TINY, "stage.trainer.gradient_clip_val=1.0"], ["optimization.max_grad_norm"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_command_without_meaning_is_refused_with_what_would_have_one(source, name):
    overrides, words = REFUSED[name]

    with pytest.raises(UsageError) as refusal:
        check(compose("train", overrides, source).config, False)

    for word in words:
        assert word in str(refusal.value)


def test_a_value_that_must_be_given_is_named(configs, source):
    (configs / "data" / "needy.yaml").write_text("_target_: tests.tiny_stage.load_tiny\npath: ???\n")

    with pytest.raises(UsageError, match=r"^data\.path= must be given$"):
        compose("train", ["stage=tiny", "model=tiny", "data=needy"], source)


def test_arguments_that_a_node_accepts_may_be_added_with_or_without_plus(source):
    for mark in ("", "+", "++"):
        config = compose("train", [*TINY, f"{mark}stage.trainer.limit_val_batches=2"], source).config
        assert config.stage.trainer.limit_val_batches == 2


def test_an_empty_mapping_takes_any_name(source):
    whole = compose("train", [*TINY, "data.columns={query: question}"], source).config
    single = compose("train", [*TINY, "data.columns.query=question"], source).config

    assert whole.data.columns == single.data.columns == {"query": "question"}


def test_a_gpu_strategy_is_refused_where_no_gpu_is_visible(source, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    for strategy in ("gpu", "ddp", "fsdp", "deepspeed"):
        with pytest.raises(UsageError, match="CUDA"):
            check(compose("train", [*TINY, f"strategy={strategy}"], source).config, False)


def test_what_the_sharding_strategy_cannot_do_is_refused_with_what_can(source):
    sharded = [*TINY, "strategy=fsdp", "strategy.accelerator=cpu", "strategy.devices=2"]
    check(compose("train", sharded, source).config, False)
    for arguments, message in (
        (["strategy.precision=16-mixed"], r"strategy\.precision=16-mixed; use bf16-mixed"),
        (["strategy.strategy=fsdp"], r"strategy\.strategy=fsdp.*use strategy=fsdp"),
    ):
        with pytest.raises(UsageError, match=message):
            check(compose("train", [*sharded, *arguments], source).config, False)


def test_pitfall_16_several_ranks_per_job_are_refused_in_a_sweep_with_the_alternative(source):
    config = compose("train", [*TINY, "strategy=ddp_cpu"], source).config

    check(config, False)
    with pytest.raises(UsageError, match=r"2 ranks per job.*for seed in"):
        check(config, True)


def test_visible_devices_are_counted_as_cuda_counts_them():
    assert _listed(None, 4) == 4
    assert _listed("", 4) == 0
    assert _listed("-1", 4) == 0
    assert _listed("2,0", 4) == 2
    assert _listed("0,9,1", 4) == 1  # CUDA stops at the first that does not exist


def test_arguments_of_a_target_are_read_from_source_as_inspect_reads_them():
    import inspect

    import pytorch_lightning as pl

    expected = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert argument_names("pytorch_lightning.trainer.trainer.Trainer") == expected
    assert argument_names("tests.tiny_stage.load_tiny") is None  # takes any keyword
    assert argument_names("no_such_package.thing") is None


def test_nearest_names_prefer_the_same_last_part():
    names = ["stage.module.temperature", "stage.trainer.max_steps", "seed"]

    assert nearest("stage.modul.temperatur", names)[0] == "stage.module.temperature"
    assert nearest("max_steps", names) == ["stage.trainer.max_steps"]
    assert nearest("zzzz", names) == []


def test_a_refused_command_never_imports_torch_so_that_it_answers_at_once(configs, tmp_path):
    program = (
        "import sys, runpy\n"
        "sys.argv = ['train', '--config-dir', sys.argv[1], 'stage=tiny', 'data=tiny', 'model=tiny',\n"
        "            '+stage.moduel.x=1']\n"
        "try: runpy.run_module('src.train', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.exit(code if not heavy else 99)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(configs)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
    )

    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: there is no key stage.moduel.x")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
