"""`fftmoe chat`: the tuned and the untuned answer to the same conversation."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.backbones import load_tokenizer, logits
from fftmoe.data import prompt_of, tokenize_prompts
from fftmoe.setup.finished import load_client, load_run
from finished import Finished
from language import CHAT, END, language_recipe, save_language_model, save_prompts
from shared_fixtures import Cli, Outcome, assert_refused


@pytest.fixture(scope="module")
def folders(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a model with a chat template, and of one without."""
    folder = tmp_path_factory.mktemp("talks")
    data = save_prompts(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("language.POSITIONS", 53)
        models = {
            name: save_language_model(folder / f"model-{name}", chat_template=template)
            for name, template in {"chats": CHAT, "plain": None}.items()
        }
    for name, model in models.items():
        values = language_recipe(model, data)
        values["federation"] |= {"rounds": 2, "learning_rate": 0.1}
        values["data"] |= {"max_length": 31}
        (folder / f"{name}.yaml").write_text(json.dumps(values))
        assert cli("run", folder / f"{name}.yaml", "--output", folder / name).status == 0
    return {name: folder / name for name in models}


def answers(outcome: Outcome, asked: int) -> list[tuple[str, str]]:
    """The tuned and the untuned answer to each message."""
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert len(lines) == 2 * asked, outcome.out
    assert all(line.startswith(("tuned: ", "untuned: ")[place % 2]) for place, line in enumerate(lines))
    texts = [line.partition(": ")[2] for line in lines]
    return list(zip(texts[::2], texts[1::2], strict=True))


def most_likely(model: Any, tokenizer: Any, messages: list[tuple[str, str]], most: int, chat: bool) -> str:
    """The answer to a conversation, token by token."""
    written = [{"role": role, "content": text} for role, text in messages]
    prompt = prompt_of(written) if chat else messages[-1][1]
    ((ids,), cut) = tokenize_prompts([prompt], tokenizer, 31, chat)
    assert cut == 0
    new: list[int] = []
    with torch.inference_mode():
        while len(new) < most:
            scores = logits(model, {"input_ids": torch.tensor([[*ids.tolist(), *new]])})[0, -1]
            if (token := int(scores.argmax())) == END:
                break
            new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True) or "(nothing)"


def both(folder: Path, messages: list[tuple[str, str]], most: int, chat: bool = True) -> tuple[str, str]:
    trained = load_run(folder)
    tokenizer: Any = load_tokenizer(trained.run.backbone.model)
    tuned = most_likely(trained.model, tokenizer, messages, most, chat)
    with trained.model.disable_adapter():
        return tuned, most_likely(trained.model, tokenizer, messages, most, chat)


def test_one_question_gets_the_tuned_and_the_untuned_answer(cli: Cli, folders: dict[str, Path]):
    outcome = cli("chat", folders["chats"], "--prompt", "say ash once", "--max-new-tokens", 7)
    found = answers(outcome, 1)
    assert found == [both(folders["chats"], [("user", "say ash once")], 7)]
    assert found[0][0] != found[0][1]
    assert outcome.err.startswith("prompts: messages, written with the chat template of")


def test_a_conversation_is_kept_and_both_read_the_same_one(cli: Cli, folders: dict[str, Path]):
    outcome = cli("chat", folders["chats"], "--max-new-tokens", 3, stdin="say ash\n\n  say bay \nexit\nsay cod\n")
    first, second = answers(outcome, 2)
    assert first == both(folders["chats"], [("user", "say ash")], 3)
    said = [("user", "say ash"), ("assistant", first[0]), ("user", "say bay")]
    assert second == both(folders["chats"], said, 3)


def test_the_oldest_messages_go_where_there_is_no_room(cli: Cli, folders: dict[str, Path]):
    long, shorter = " ".join(["say"] * 26), " ".join(["say"] * 20)
    outcome = cli("chat", folders["chats"], "--max-new-tokens", 3, stdin=f"say ash\n{long}\nsay bay\n")
    found = answers(outcome, 3)
    assert "the oldest part, 2 messages, is not read any more" in outcome.err
    assert "the oldest part, 4 messages, is not read any more" in outcome.err
    assert found[1] == both(folders["chats"], [("user", long)], 3)
    again = cli("chat", folders["chats"], "--max-new-tokens", 30, stdin=f"say ash\n{shorter}\n")
    assert answers(again, 2)[1] == both(folders["chats"], [("user", shorter)], 30)  # 53 places less 30


def test_without_a_template_each_message_is_continued_by_itself(cli: Cli, folders: dict[str, Path]):
    outcome = cli("chat", folders["plain"], "--max-new-tokens", 3, stdin="say ash\nsay bay\n")
    assert "has no chat template" in outcome.err
    assert "each message is continued by itself" in outcome.err
    alone = [both(folders["plain"], [("user", text)], 3, chat=False) for text in ("say ash", "say bay")]
    assert answers(outcome, 2) == alone


def test_a_client_answers_with_its_own_model(cli: Cli, folders: dict[str, Path]):
    own = load_client(folders["chats"], 3).trained
    tokenizer: Any = load_tokenizer(own.run.backbone.model)
    outcome = cli("chat", folders["chats"], "--client", 3, "--prompt", "say ash once", "--max-new-tokens", 7)
    ((tuned, untuned),) = answers(outcome, 1)
    assert tuned == most_likely(own.model, tokenizer, [("user", "say ash once")], 7, chat=True)
    assert untuned == both(folders["chats"], [("user", "say ash once")], 7)[1]
    assert cli("chat", folders["chats"], "--client", 9, "--prompt", "say ash").status == 2


def test_draws_follow_their_seed(cli: Cli, folders: dict[str, Path]):
    warm = ("chat", folders["chats"], "--prompt", "say ash", "--max-new-tokens", 11, "--temperature", 2)
    found = [cli(*warm, "--seed", seed).out for seed in (3, 3, 5)]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_run_that_writes_no_text_is_refused(cli: Cli, tiny_run: Finished):
    assert_refused(cli("chat", tiny_run.folder, "--prompt", "red"), "sequence-classification", "fftmoe predict")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prompt", " "), "the message is empty"),
        (("--prompt", "\udcff"), "no text in UTF-8"),
        (("--prompt", "say ash", "--max-new-tokens", 99), "beyond the 53 tokens"),
        (("--prompt", "say ash", "--temperature", -1), "temperature=-1"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    cli: Cli, folders: dict[str, Path], options: tuple[object, ...], words: str
):
    outcome = cli("chat", folders["chats"], *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert words in outcome.err


class Keyboard:
    """The module sys of a person who types."""

    stdin: Any = type("Stdin", (), {"isatty": lambda self: True})()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def test_a_message_that_cannot_be_answered_ends_a_pipe_and_not_a_talk(
    cli: Cli, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    few = ("chat", folders["chats"], "--max-new-tokens", 3)
    long = " ".join(["say"] * 60)
    assert answers(cli(*few, stdin="say ash\nsay \x00\n"), 2)
    piped = cli("chat", folders["plain"], "--max-new-tokens", 52, stdin=f"say ash\n{long}\nsay bay\n")
    assert piped.status == 2
    assert piped.err.splitlines()[-1].startswith("fftmoe: a prompt of")
    typed = iter(["\udcff", "", "say ash", "exit", "say bay"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    monkeypatch.setattr("fftmoe.cli.chat.sys", Keyboard())
    found = cli(*few)
    assert answers(found, 1) == answers(cli(*few, "--prompt", "say ash"), 1)
    assert "fftmoe: the message holds bytes that are no text in UTF-8" in found.err
    assert "type a message; exit" in found.err


def test_no_character_of_an_answer_acts_on_the_terminal(
    cli: Cli, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    evil = "\x1b]0;title\x07 \x9b31m \u202e bay\r\x08"
    text = lambda tokenizer, ids: evil[: len(ids) * 3]  # noqa: E731
    monkeypatch.setattr("fftmoe.trained.complete.text_of", text)
    monkeypatch.setattr("fftmoe.backbones.answers.text_of", text)
    outcome = cli("chat", folders["chats"], "--prompt", "say ash", "--max-new-tokens", 11)
    assert outcome.status == 0
    assert not {letter for letter in outcome.out if letter < " " and letter != "\n"} & set(outcome.out)
    assert not {"\x9b", "\u202e", "\x1b"} & set(outcome.out)
    assert "\\x1b]0;" in outcome.out
