"""What a command may ask of a training run: its model, its strategy and where it writes."""

import importlib.util
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.devices import torch_is_cpu_build, visible_gpus
from search_r3.cli.inputs import check_inputs
from search_r3.cli.model_choice import MADE_BY_BASE, read_facts, refuse_reader
from search_r3.cli.overrides import refuse_unknown
from search_r3.cli.ranks import SHARDED, launched, strategy_name
from search_r3.cli.trainer_checks import check_trainer
from search_r3.cli.wandb_run import check_wandb
from search_r3.errors import UsageError
from search_r3.folders import can_be_on_hub, left_by_a_run, refuse_to_replace

FACTORIES = "search_r3.index.backends.faiss_index.FaissIndex"
SAVE_DTYPES = ("float32", "bfloat16", "float16")


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses combinations that make no sense on this machine; see `Entry`.

    Raises:
        UsageError: With the reason and what to write instead.
    """
    refuse_reader(config.model)
    refuse_unknown(f"if_exists={config.if_exists}", config.if_exists, ("refuse", "resume"))
    if config.if_exists == "resume" and not config.output_dir:
        raise UsageError("if_exists=resume needs output_dir=, the folder to go on in")
    if "::" in str(Path(config.output_dir or ".").absolute()):
        raise UsageError(
            f"output_dir={config.output_dir or Path.cwd()}: a path with '::' in it cannot hold checkpoints, "
            "whose writer reads it as a chain of file systems; name another"
        )
    check_trainer(config)
    if config.save_dtype is not None:
        refuse_unknown(f"save_dtype={config.save_dtype}", config.save_dtype, ("null", *SAVE_DTYPES))
    _check_shared_prompts(config)
    if config.stage.get("name") == "rl":
        _check_start_of_rl(config)
    _check_model_folder(config.model.get("path"))
    if config.model.get("path") is None:
        _check_model_name(config.model.get("name"))
    if config.output_dir:
        refuse_to_replace(Path(config.output_dir) / "model")
    _check_strategy(config.strategy, is_sweep)
    _check_measured(config)
    check_inputs(config.data)
    check_wandb(config)


def _check_measured(config: DictConfig) -> None:
    """What is left to a measurement is measured on the CPU, on which the model is opened."""
    if config.strategy.get("accelerator") == "cpu":
        return
    for key, value, instead in (
        ("strategy.precision", config.strategy.get("precision"), "bf16-mixed"),
        ("model.attention", config.model.get("attention"), "sdpa"),
    ):
        if value == "measured":
            raise UsageError(f"{key}=measured is for CPUs; on a GPU give {key}={instead}")


def _check_shared_prompts(config: DictConfig) -> None:
    """SFT's shared prompts need keys and values, and as many forwards as a rank's own texts ask for."""
    if not config.stage.get("module", {}).get("shares_prompts", False):
        return
    if config.model.get("gradient_checkpointing"):
        raise UsageError(
            "stage.module.shares_prompts=true needs the keys and values that recomputing drops; set "
            "model.gradient_checkpointing=false, or leave shares_prompts out"
        )
    strategy = strategy_name(config.strategy.get("strategy"))
    if strategy == SHARDED or any(name in strategy.lower() for name in ("fsdp", "deepspeed")):
        raise UsageError(
            "stage.module.shares_prompts=true: ranks would run unequally many forwards, which a strategy "
            "that shards weights does not allow; use strategy=ddp, or leave shares_prompts out"
        )


def _check_sharding(strategy: DictConfig) -> None:
    """Lightning's own FSDP allows a step one forward; fp16 needs a scaler, which the one here has not."""
    name, precision = strategy_name(strategy.get("strategy")), str(strategy.get("precision"))
    if name.startswith("fsdp"):
        raise UsageError(
            f"strategy.strategy={name}: a step here runs several forwards, which Lightning's FSDP does not "
            "allow; use strategy=fsdp, which shards in another way"
        )
    if name == SHARDED and precision in ("16", "16-mixed", "16-true"):
        raise UsageError(f"strategy=fsdp cannot run in strategy.precision={precision}; use bf16-mixed")


def _check_start_of_rl(config: DictConfig) -> None:
    """RL improves a model that embeds, so it starts from a folder, and from none that nobody named."""
    for key, choices in (("datamodule.index_precision", ("full", "run")), ("module.rank", ("exact", "topk"))):
        value = OmegaConf.select(config.stage, key, default=choices[0])
        refuse_unknown(f"stage.{key}={value}", value, choices)
    path = config.model.get("path")
    if path is None:
        raise UsageError(
            "stage=rl starts from a model folder of this project, such as stage=sft leaves: "
            "model.path=<folder>"
        )
    is_by_default = OmegaConf.is_interpolation(config.model, "path")  # as in conf/model/nano.yaml
    if is_by_default and not config.resume and (facts := read_facts(path)) and facts.stage == "pretrain":
        raise UsageError(
            f"stage=rl: {path} is pretrained only and has not learnt to embed. Train it with `python -m "
            "src.train stage=sft`, then model.path=<its run folder>/model; to start from it all the same, "
            f"name it: model.path={path}"
        )
    if "factory" in (config.get("index") or {}):
        _check_factory(config.index, path)


def _check_factory(index: DictConfig, path: str) -> None:
    """A string of faiss is tried at the model's width, where the folder says it, before anything is read."""
    facts = read_facts(path)
    described = facts.architecture if facts else {}
    width = described.get("hidden_size", (described.get("text_config") or {}).get("hidden_size"))
    if isinstance(width, int) and index.get("_target_") == FACTORIES:
        from search_r3.index.backends.faiss_factory import made

        try:
            made(index.factory, width)
        except ValueError as error:
            raise UsageError(str(error)) from None


def _check_model_folder(path: str | None) -> None:
    if path is not None and not (Path(path) / "search_r3.json").is_file():
        instead = left_by_a_run(path) or (
            "; give the folder that a training run wrote (…/model), or a plain Hugging Face folder as "
            "model.name="
        )
        raise UsageError(f"model.path={path}: not a model folder (it has no search_r3.json){instead}")


def _check_model_name(name: str | None) -> None:
    """Refuses a name that can only be a path and leads nowhere; a name on the hub has one slash at most."""
    if name is None or Path(name).exists():
        return
    if name.endswith(".gguf") or not can_be_on_hub(name):
        made = "; `make base` writes this folder" if Path(name) == MADE_BY_BASE else ""
        raise UsageError(f"model.name={name}: no such folder or file{made}")


def _check_strategy(strategy: DictConfig, is_sweep: bool) -> None:
    _check_sharding(strategy)
    devices = strategy.get("devices", 1)
    if strategy.get("accelerator") in ("gpu", "cuda"):
        gpus = visible_gpus()
        if gpus == 0:
            raise UsageError(
                "this strategy needs a CUDA device; none is visible. Use strategy=cpu or ddp_cpu"
            )
        if torch_is_cpu_build():
            raise UsageError("this strategy needs CUDA and the installed torch is a CPU build")
        if isinstance(devices, int) and devices > gpus:
            raise UsageError(f"strategy.devices={devices}, but {gpus} CUDA devices are visible")
        devices = gpus if devices in ("auto", -1, "-1") else devices
    if (
        str(strategy.get("strategy")).startswith("deepspeed")
        and importlib.util.find_spec("deepspeed") is None
    ):
        raise UsageError(
            "strategy=deepspeed needs the package deepspeed, which is not installed. strategy=fsdp does not"
        )
    ranks = (devices if isinstance(devices, int) else len(devices)) * strategy.get("num_nodes", 1)
    is_counted = not isinstance(devices, str)  # "auto" is as many as there are
    if is_counted and (started := launched()) is not None and started[0] != ranks:
        choice = "ddp_cpu" if strategy.get("accelerator") == "cpu" else "ddp"
        raise UsageError(
            f"torchrun started {started[0]} processes, {started[1]} of them on this machine, and the "
            f"strategy wants {ranks}: give strategy={choice} strategy.devices={started[1]} "
            f"strategy.num_nodes={started[0] // started[1]}"
        )
    if is_sweep and ranks > 1:
        raise UsageError(
            f"a sweep runs its jobs in one process, and this strategy wants {ranks} ranks per job. Use "
            "strategy.devices=1, or a loop: for seed in 1 2 3; do python -m src.train ... seed=$seed; done"
        )
