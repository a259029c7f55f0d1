"""Train the adapter with the Trainer of transformers: all-MiniLM-L6-v2 learns the chapters of Python's documentation.

    python examples/trainer.py [number of training texts]

`balance_strength` and `z_strength` add the router losses to the loss that the model returns in training mode. So the
Trainer needs no code for the experts.
"""

import sys
import tempfile
from typing import Any

import numpy as np
import transformers

import fftmoe
from fftmoe.backbones import load_tokenizer
from fftmoe.data.stdlib_docs import stdlib_docs

MODEL = "builtin:minilm"


def accuracy(predicted: transformers.EvalPrediction) -> dict[str, float]:
    """Return the share of texts whose chapter has the highest score."""
    return {"accuracy": float((np.asarray(predicted.predictions).argmax(-1) == predicted.label_ids).mean())}


if __name__ == "__main__":
    num_texts = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    splits = {name: np.random.default_rng(0).permutation(rows) for name, rows in stdlib_docs().items()}
    chapters = sorted(set(splits["train"][:, 1]))
    tokenizer = load_tokenizer(MODEL)

    def rows(split: str, count: int) -> Any:
        """Return token ids of texts, each with the index of its chapter."""
        chosen = splits[split][:count]
        ids = tokenizer(chosen[:, 0].tolist(), truncation=True, max_length=40)["input_ids"]
        return [{"input_ids": own, "label": chapters.index(row[1])} for own, row in zip(ids, chosen, strict=True)]

    backbone = fftmoe.load_backbone(MODEL, num_labels=len(chapters), pooling="native")
    experts = fftmoe.MoeAdapterConfig(
        num_experts=8, expert_dim=16, top_k=2, blocks="last-3", balance_strength=0.01, z_strength=0.001
    )
    model = fftmoe.attach_adapter(backbone, experts)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                num_train_epochs=1,
                learning_rate=5e-3,
                per_device_train_batch_size=16,
                dataloader_pin_memory=False,
                disable_tqdm=True,
                report_to=[],
                seed=0,
            ),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            train_dataset=rows("train", num_texts),
            eval_dataset=rows("test", 300),
            compute_metrics=accuracy,
        )
        before = trainer.evaluate()["eval_accuracy"]
        trainer.train()
        after = trainer.evaluate()["eval_accuracy"]
        trainer.save_model(f"{folder}/adapter")  # a PEFT folder
    print(f"accuracy over {len(chapters)} chapters: {before:.3f} before, {after:.3f} after")
