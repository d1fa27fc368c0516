"""A step of GRPO against TRL's trainer: same weights, prompts, rewards and settings.

Neither searches: the reward is of the text alone, since the peer has no index. Everything else of a step is
run on both sides: prompts to ids, sampling, rewards, advantages, log-probabilities, loss, backward, clipping,
AdamW. TRL runs its own training loop in a thread, one step at a time, so that nothing of it is left out.
"""

import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from search_r3.benchmarks.peers.comparison import Comparison, Cost, Equal, gradient_difference, gradient_of
from search_r3.benchmarks.peers.rollouts import causal_models, decoding_cost, sampled
from search_r3.benchmarks.peers.subjects import Subject, Texts
from search_r3.index.exact_rank import Positives
from search_r3.stages.gradient_cache import ChunkOutput, backward_with_cache
from search_r3.stages.optimization import OptimizationSettings, build_optimizer
from search_r3.stages.rl.policy import Learnt, learnt_from, rows_loss
from search_r3.stages.rl.rollouts import Rollouts, group_batches
from search_r3.stages.rl.settings import PolicySettings

if TYPE_CHECKING:
    from trl import GRPOTrainer

RATE, CLIP, MAX_NORM = 1e-6, 0.2, 1.0
MICRO_BATCHES = (1, 4)
"""Parts of a batch that the peer runs forward and backward at a time; the fastest is compared."""


def reward(completions: Sequence[str], **_: object) -> list[float]:
    """What a text earns: its different words by ten and its length by a hundred: a group has spread."""
    return [len(set(text.split())) / 10 + len(text.strip()) / 100 for text in completions]


class Ours:
    """The RL stage without index: the reward is of the text.

    Args:
        subject: its embedder is trained, at a rate that moves nothing that matters.
        texts: the queries.
        n_tokens: the most of a rollout.
        group_size: `G`.
    """

    def __init__(self, subject: Subject, texts: Texts, n_tokens: int, group_size: int) -> None:
        subject.writes_anything()
        self.subject, self.texts = subject, texts
        self.n_tokens, self.group_size = n_tokens, group_size
        self.settings = PolicySettings(clip_low=CLIP, clip_high=CLIP, std_floor=0.0)
        self.optimizer = build_optimizer(
            subject.embedder.named_parameters(), OptimizationSettings(RATE, weight_decay=0.0)
        )

    def sample(self) -> Rollouts:
        return sampled(self.subject, self.texts.queries, self.n_tokens, self.group_size)

    def learnt(self, rollouts: Rollouts) -> Learnt:
        """Advantages of the rewards, and the parts that a forward takes."""
        rewards = torch.tensor([reward(group) for group in rollouts.texts])
        nothing = torch.full((len(rollouts.prompts), 1), -1)
        learnt = learnt_from(rollouts, rewards, Positives(nothing, nothing.float()), None, self.settings)
        learnt.batches = group_batches(rollouts, self.subject.embedder.token_budget, learnt.teaches)
        return learnt

    def backward(self, learnt: Learnt) -> Tensor:
        """Fills the gradients; the loss."""

        def part(rows: Sequence[int]) -> ChunkOutput:
            loss, metrics = rows_loss(self.subject.embedder, learnt, rows, self.settings, True, True)
            return ChunkOutput(extra_loss=loss, metrics=metrics)

        with self.subject.autocast():
            return backward_with_cache(learnt.batches, part, None, Tensor.backward)[0]

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(self.learnt(self.sample()))
        nn.utils.clip_grad_norm_(self.subject.embedder.parameters(), MAX_NORM)
        self.optimizer.step()
        torch.clear_autocast_cache()


def trainer(
    subject: Subject, texts: Texts, n_tokens: int, group_size: int, n_parts: int, work: Path
) -> "GRPOTrainer":
    """TRL's trainer on the same weights, with rollouts that end at the embed token as ours do.

    Args:
        subject: the peer reads its folder.
        texts: the queries; every step takes all of them.
        n_tokens: the most of a rollout.
        group_size: `G`.
        n_parts: forwards and backwards of a step.
        work: where it writes.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    encoder, tokenizer = subject.embedder.encoder, subject.embedder.tokenizer
    prompts = tokenizer.batch_decode(encoder.reasoning_prompts(list(texts.queries)))
    n_rollouts = len(prompts) * group_size
    settings = GRPOConfig(
        output_dir=str(work), per_device_train_batch_size=n_rollouts // n_parts,
        gradient_accumulation_steps=n_parts, num_generations=group_size, max_completion_length=n_tokens,
        temperature=1.0, top_p=1.0, top_k=0, beta=0.0, epsilon=CLIP, loss_type="dapo", scale_rewards="group",
        learning_rate=RATE, weight_decay=0.0, adam_beta2=0.98, max_grad_norm=MAX_NORM,
        lr_scheduler_type="constant", optim="adamw_torch_fused", bf16=subject.precision == "bf16",
        fp16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, max_steps=10**6, shuffle_dataset=False, seed=0,
        dataloader_num_workers=0, dataloader_pin_memory=False,
    )  # fmt: skip
    model = causal_models(subject, ("sdpa",))["sdpa"]
    embed = subject.embedder.embed_token_id
    model.generation_config.eos_token_id = embed
    tokenizer = type(tokenizer).from_pretrained(subject.folder)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(embed)
    return GRPOTrainer(
        model,
        reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )


class Stepwise:
    """A trainer of transformers whose loop waits before each step until it is let on.

    Args:
        trainer: has not begun.
    """

    def __init__(self, trainer: "GRPOTrainer") -> None:
        from transformers import TrainerCallback

        outer = self
        self.trainer, self.error = trainer, None
        self.may_go, self.is_done, self.is_over = threading.Semaphore(0), threading.Semaphore(0), False

        class Gate(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs) -> None:
                outer.may_go.acquire()

            def on_step_end(self, args, state, control, **kwargs) -> None:
                control.should_training_stop = outer.is_over
                outer.is_done.release()

        trainer.add_callback(Gate())
        self.thread: threading.Thread | None = None

    def step(self) -> None:
        """One step of the loop, from sampling to the optimizer.

        Raises:
            RuntimeError: If the loop failed.
        """
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()
        self.may_go.release()
        self.is_done.acquire()
        if self.error is not None:
            raise RuntimeError("the peer's training loop failed") from self.error

    def close(self) -> None:
        """Ends the loop behind one more step."""
        if self.thread is not None and self.error is None:
            self.is_over = True
            self.step()
            self.thread.join()

    def _run(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:  # told by the thread that waits
            self.error = error
            self.is_done.release()


def grpo(subject: Subject, texts: Texts, n_tokens: int, group_size: int, work: Path) -> Comparison:
    """One step over all queries, `G` rollouts each."""
    ours = Ours(subject, texts, n_tokens, group_size)
    ways: dict[str, Callable[[], None]] = {}
    equal: list[Equal] = []
    for n_parts in MICRO_BATCHES:
        theirs = trainer(subject, texts, n_tokens, group_size, n_parts, work)
        equal = equal or compared(ours, theirs)
        ways[f"sdpa, {n_parts} parts"] = Stepwise(theirs).step
    return Comparison(
        unit="milliseconds per step",
        amount=1,
        peer=f"trl {version('trl')} GRPOTrainer",
        ours=ours.step,
        theirs=ways,
        equal=equal,
        cost=step_cost(subject, ours.sample()),
        is_latency=True,
    )


def compared(ours: Ours, theirs: "GRPOTrainer") -> list[Equal]:
    """Ids of the prompts, rewards' advantages, loss and gradient on rollouts that ours drew."""
    embedder = ours.subject.embedder
    rollouts = ours.sample()
    learnt = ours.learnt(rollouts)
    ids, _, _ = theirs._tokenize_prompts(list(theirs.train_dataset["prompt"]))
    n_other = sum(list(one) != list(other) for one, other in zip(ids, rollouts.prompts, strict=True))
    inputs = peer_inputs(theirs, rollouts, learnt.advantages)
    loss = ours.backward(learnt)
    model = theirs.model.train()
    theirs.current_gradient_accumulation_steps = 1
    theirs.args.steps_per_generation, kept = 1, theirs.args.steps_per_generation
    with ours.subject.autocast():
        their_loss = theirs.compute_loss(model, inputs)
    their_loss.backward()
    theirs.args.steps_per_generation = kept
    theirs._metrics["train"].clear()
    difference = gradient_difference(gradient_of(embedder.causal_lm), gradient_of(model))
    embedder.zero_grad(set_to_none=True)
    model.zero_grad(set_to_none=True)
    limit = 0.1 if ours.subject.precision == "bf16" else 1e-3
    return [
        Equal("ids of prompts, how many differ", float(n_other), 0.0),
        Equal("advantages", _advantages(theirs, rollouts, learnt), 1e-5),
        Equal("loss", float((loss - their_loss).detach().abs()), limit / 10),
        Equal("gradient", difference, limit),
    ]


def peer_inputs(theirs: "GRPOTrainer", rollouts: Rollouts, advantages: Tensor) -> dict[str, Tensor]:
    """Rollouts that ours drew, as the peer's loss takes them."""
    pad = theirs.processing_class.pad_token_id
    repeated = [prompt for prompt in rollouts.prompts for _ in range(rollouts.group_size)]
    width = max(map(len, repeated))
    prompt_ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in repeated])
    lengths = torch.tensor([len(prompt) for prompt in repeated])
    mask = rollouts.completion_mask.flatten(0, 1)
    n = int(mask.sum(1).max())
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": (torch.arange(width) >= width - lengths[:, None]).long(),
        "completion_ids": rollouts.token_ids.flatten(0, 1)[:, :n],
        "completion_mask": mask[:, :n].long(),
        "advantages": advantages.flatten(),
        "num_items_in_batch": mask.sum(),
    }


def _advantages(theirs: "GRPOTrainer", rollouts: Rollouts, learnt: Learnt) -> float:
    """Largest difference of an advantage from the peer's formula, `(reward - mean) / (std + 1e-4)`.

    The 1e-4 that ours has not is set off.
    """
    rewards = torch.tensor([theirs.reward_funcs[0](group) for group in rollouts.texts]).double()
    std = rewards.std(1, keepdim=True)
    by_hand = (rewards - rewards.mean(1, keepdim=True)) / (std + 1e-4)
    return float((by_hand - learnt.advantages * std / (std + 1e-4)).abs().max())


def step_cost(subject: Subject, rollouts: Rollouts) -> Cost:
    """Decoding, then forward and backward over each prompt once and each token once, the head included."""
    decoding = decoding_cost(subject, rollouts)
    n_written = int(rollouts.completion_mask.sum())
    shared = subject.embedder.prefix_of(rollouts.prompts).n_ids
    n_read = int(rollouts.prompt_lengths.sum()) - shared * (len(rollouts.prompts) - 1)
    learning = 6.0 * (subject.n_weights * (n_read + n_written) + subject.n_head * n_written)
    return Cost(decoding.flops + learning, decoding.bytes)
