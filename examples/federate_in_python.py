"""Run a federation from Python, read its metrics, and use the resulting adapter.

python examples/federate_in_python.py [recipe] [section.key=value ...]
"""

import json
import sys
import tempfile

from peft import PeftModel

import fftmoe

if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:] or ["quickstart", "federation.rounds=3", "evaluation.local_only_clients=3"]
    with tempfile.TemporaryDirectory() as folder:
        result = fftmoe.run(recipe, f"{folder}/run", overrides)

        # metrics.jsonl has one line for every round; the summary covers the whole run.
        for line in (result.folder / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            print({name: row[name] for name in ("round", "accuracy", "train_loss") if name in row})
        print(f"accuracy {result.summary['accuracy']:.3f}")

        # The adapter is a PEFT folder with the names of the labels. PEFT loads it onto the backbone of the recipe.
        labels = json.loads((result.folder / "adapter" / "labels.json").read_text())["labels"]
        used = fftmoe.load_recipe(recipe, overrides)
        backbone = fftmoe.load_backbone(
            used.backbone.model, num_labels=len(labels), fourier_features=used.fourier_features
        )
        model = PeftModel.from_pretrained(backbone, str(result.folder / "adapter"))
        experts = sum(p.numel() for name, p in model.named_parameters() if ".moe_experts." in name)
        print(f"{experts} parameters in experts and routers, for {len(labels)} labels")
