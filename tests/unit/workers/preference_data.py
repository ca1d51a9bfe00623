"""A few hand-made pairs, their tokenized form, and stock TRL on the same pairs."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from prefsweep.sweeps.grid import TrialSpec
from prefsweep.sweeps.records import PreferencePair, TokenizedPair, prompt_id
from prefsweep.sweeps.spec import TrainingSpec
from prefsweep.workers.batches import RowSampler, row_sampler
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.losses import trl_arguments
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.reference import reference_pairs

TEXTS = [
    ("I watched this film", " and it was wonderful.", " and it was awful, a waste."),
    ("I watched this film", " and loved every minute of it.", " twice."),
    ("My brother and I", " laughed a lot.", " left early, bored and sad."),
    ("The second half", " is moving and clever.", " drags."),
    ("We saw it", ", a great evening!", "."),
    ("The plot", " surprised me, in a good way.", " is thin."),
    ("A friend told me", " to see it and was right.", " lies."),
    ("On a rainy day", " this is the film to see.", " I would rather sleep."),
]


def preference_pairs(num_test: int = 0) -> list[PreferencePair]:
    """The texts as pairs; the last `num_test` are in the test split."""
    return [
        PreferencePair(
            pair_id=f"p{i}-0-1",
            prompt_id=prompt_id(prompt),
            split="test" if i >= len(TEXTS) - num_test else "train",
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            chosen_score=1.0,
            rejected_score=0.0,
            chosen_finish_reason="eos",
            rejected_finish_reason="length",
        )
        for i, (prompt, chosen, rejected) in enumerate(TEXTS)
    ]


def tokenized_pairs(
    source: ModelSource, num_test: int = 0, spec: TrainingSpec | None = None
) -> list[TokenizedPair]:
    """The pairs with the reference's log-probabilities."""
    return reference_pairs(
        preference_pairs(num_test),
        load_policy(source),
        load_tokenizer(source),
        spec or TrainingSpec(),
    )


class InOurOrder(DPOTrainer):
    """Stock TRL, given the order in which our trainer takes the rows."""

    spec: TrainingSpec

    def _get_train_sampler(self, train_dataset: Any = None) -> RowSampler:
        assert isinstance(self.train_dataset, Dataset)
        prompts = [str(ids) for ids in self.train_dataset["prompt_ids"]]
        return row_sampler(prompts, self.spec, self.args.seed)


def stock_trainer(
    source: ModelSource, trial: TrialSpec, spec: TrainingSpec, folder: Path, **arguments: Any
) -> DPOTrainer:
    """TRL's own trainer on the same texts in the same order, with a reference model."""
    trainer = InOurOrder(
        model=load_policy(source),
        ref_model=load_policy(source),
        args=DPOConfig(
            output_dir=str(folder),
            learning_rate=trial.learning_rate,
            max_steps=spec.max_steps or -1,
            per_device_train_batch_size=spec.per_device_train_batch_size,
            gradient_accumulation_steps=spec.gradient_accumulation_steps,
            seed=trial.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            max_length=spec.max_length,
            save_strategy="no",
            bf16=False,
            activation_checkpointing=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
            **trl_arguments(trial),
            **arguments,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TEXTS]
        ),
        processing_class=load_tokenizer(source),
    )
    trainer.spec = spec
    trainer.remove_callback(PrinterCallback)
    return trainer
