"""The pages on images and on language models do what they say, with small data and a small model in place of theirs.

Every command and every block of Python runs in order. A command that chooses the model gets a tiny one.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fftmoe.rng import numpy_generator
from language import CHAT, WORDS, save_language_model
from pictures import save_vision_model
from shared_fixtures import Cli

ROOT = Path(__file__).parents[2]
SHARES = {"north": 31, "south": 17}  # pictures of each class
FEW = ("federation.rounds=2", "federation.local_steps=2", "engine.workers=1")


def save_photos(folder: Path) -> None:
    """Pictures in `photos/CLIENT/CLASS/`: cats are rather red, dogs rather green."""
    random = numpy_generator(7, "photos")
    for client, number in SHARES.items():
        for channel, label in enumerate(("cat", "dog")):
            (folder / "photos" / client / label).mkdir(parents=True)
            for place in range(1, number + 1):
                pixels = random.integers(0, 200, (13, 11, 3), dtype=np.uint8)
                pixels[:, :, channel] += 50
                Image.fromarray(pixels).save(folder / "photos" / client / label / f"{place}.jpg")


ADDED = {"run": [part for setting in FEW for part in ("--set", setting)]}


def follow(name: str, cli: Cli, model: Path) -> None:
    """Run all of a page in the current folder, with this model."""
    text = (ROOT / "docs" / f"{name}.md").read_text()
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL):
        if language == "python":
            exec(compile(block, name, "exec"), {"__name__": "__main__"})
            continue
        for line in block.splitlines():
            program, verb, *words = shlex.split(line)
            assert program == "fftmoe"
            outcome = cli(verb, *words, *(["--model", model] if verb == "init" else ADDED.get(verb, [])))
            assert outcome.status == 0, f"{line}\n{outcome.out}{outcome.err}"


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_the_page_on_images_leads_from_a_folder_to_an_adapter(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path)
    follow("images", cli, save_vision_model(tmp_path / "vit"))
    names = [answer["image"] for answer in answers(tmp_path)]
    assert len(names) == 2 * sum(SHARES.values())
    assert names == sorted(names)
    found = {Path(name).parts[:3] for name in names}  # a folder stands for the folders below it as well
    assert found == {("photos", client, label) for client in SHARES for label in ("cat", "dog")}
    assert json.loads((tmp_path / "runs" / "photos" / "summary.json").read_text())["accuracy"] > 0.9
    assert (tmp_path / "photo-adapter" / "preprocessor_config.json").is_file()


def test_the_page_on_instructions_leads_from_a_table_to_a_served_model(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("language.POSITIONS", 101)  # room for 64 new tokens
    follow("instructions", cli, save_language_model(tmp_path / "llama", chat_template=CHAT))
    assert len(answers(tmp_path)) == 120
    assert all(answer["completion"] is not None for answer in answers(tmp_path))
    assert json.loads((tmp_path / "runs" / "instructions" / "summary.json").read_text())["perplexity"] > 1
    assert (tmp_path / "adapter-of-client-0" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "instruction-lora" / "adapter_model.safetensors").is_file()
    assert capsys.readouterr().out.count(" -> ") == 2


def test_the_page_on_preferences_leads_from_pairs_to_an_adapter(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    follow("preference", cli, save_language_model(tmp_path / "llama", chat_template=CHAT))
    assert answers(tmp_path)[0]["completion"] is not None
    summary = json.loads((tmp_path / "runs" / "pairs" / "summary.json").read_text())
    assert summary["preference_accuracy_by_round"]["0"] == 0.5
    assert summary.get("last", summary)["reward_margin"] > 0  # which round is kept is decided by a few pairs
    assert (tmp_path / "preference-adapter" / "adapter_model.safetensors").is_file()


def test_what_the_page_says_of_other_names_and_chats_is_so(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`response` and `instruction` are found, a chat template is used, and lists of messages are no prompts."""
    monkeypatch.chdir(tmp_path)
    model = save_language_model(tmp_path / "llama", chat_template=CHAT)
    rows = [{"instruction": f"say {WORDS[n % 5]}", "response": WORDS[n % 5]} for n in range(40)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    begun = cli("init", "chat.jsonl", "--model", model, "--output", "chat.yaml")
    assert begun.status == 0, begun.err
    assert "prompt in column 'instruction', completion in column 'response'" in begun.out
    chat = ["--set", "data.chat_template=true", "--set", "federation.rounds=1", "--set", "engine.workers=1"]
    assert cli("run", "chat.yaml", *chat, "--output", "run").status == 0
    messages = [{"messages": [{"role": "user", "content": row["instruction"]}]} for row in rows]
    (tmp_path / "messages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    assert cli("init", "messages.jsonl", "--model", model, "--output", "messages.yaml").status == 2
