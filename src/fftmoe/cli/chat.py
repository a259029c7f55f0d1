"""`fftmoe chat` talks with the language model of a finished run,
and shows what its backbone says without the adapter.
"""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fftmoe.cli.arguments import (
    AcceptUseOption,
    ClientOption,
    NewTokensOption,
    RoundOption,
    RunArgument,
    SeedOption,
    TemperatureOption,
    TopPOption,
)
from fftmoe.cli.lines import say, say_prompt_form
from fftmoe.errors import FftmoeError, InputError
from fftmoe.report.console import Console
from fftmoe.shown import count_of, shown

if TYPE_CHECKING:
    from fftmoe.trained.converse import Talk

LEAVE = ("exit", "quit")
Answering = Callable[["Talk"], "Talk"]


def chat(
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question, and end.")] = None,
    client: ClientOption = None,
    max_new_tokens: NewTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    which_round: RoundOption = "kept",
    accept_changes: AcceptUseOption = False,
) -> None:
    """Talk with the tuned model; the answer of its backbone without the adapter stands below each of its own."""
    from fftmoe.backbones import Decoding
    from fftmoe.setup.asked import load_asked
    from fftmoe.setup.finished import finished_run
    from fftmoe.trained.complete import Writing
    from fftmoe.trained.converse import Talk, check_talks, fitted, reply

    found = finished_run(run, accept_changes, which_round)
    check_talks(found)
    writing = Writing(Decoding(max_new_tokens, temperature, top_p, seed), batch_size=1)
    trained = load_asked(found, client, round=which_round)
    console, form = Console(stderr=True), found.inputs
    say_prompt_form(console, form.prompt_column or form.text_column, form.chat_template, found.backbone.model)
    if not form.chat_template and prompt is None:
        say(console, "each message is continued by itself: without a chat template there is no conversation")

    def ask(talk: Talk) -> Talk:
        kept = fitted(trained, talk, max_new_tokens)
        if kept.dropped > talk.dropped:
            say(
                console,
                f"the oldest part, {count_of(kept.dropped, 'message')}, is not read any more, because there is no room",
            )
        tuned = _spoken("tuned", lambda on_text: reply(trained, kept, writing.to(on_text), tuned=True))
        _spoken("untuned", lambda on_text: reply(trained, kept, writing.to(on_text), tuned=False))
        return kept.answered(tuned)

    if prompt is not None:
        ask(Talk().asked(_checked(prompt)))
    else:
        _talk(ask, Talk(), console)


def _talk(ask: Answering, talk: "Talk", console: Console) -> None:
    """Answer messages until there are no more; on a terminal one that cannot be answered is forgotten."""
    if sys.stdin.isatty():
        say(console, "type a message; exit, or the end of the input (Ctrl-D), ends the conversation")
    for text in _messages():
        try:
            talk = ask(talk.asked(_checked(text)))
        except FftmoeError as error:
            if not sys.stdin.isatty():
                raise
            say(console, f"fftmoe: {error}")


def _messages() -> Iterator[str]:
    """Yield what a person types, or the lines of standard input, without empty ones."""
    while (line := _typed()) is not None and line.strip().lower() not in LEAVE:
        if line.strip():
            yield line.strip()


def _typed() -> str | None:
    """Return the next line; None at the end of the input."""
    if not sys.stdin.isatty():
        return sys.stdin.buffer.readline().decode(errors="surrogateescape") or None
    try:
        return input("you: ")
    except EOFError:
        sys.stdout.write("\n")
        return None
    except UnicodeDecodeError:
        return "\udcff"  # refused below


def _checked(text: str) -> str:
    """Return the text, which holds something and is UTF-8."""
    if not text.strip():
        raise InputError("the message is empty; type a question")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("the message holds bytes that are no text in UTF-8; correct it") from error
    return text


def _spoken(name: str, answer: Callable[[Callable[[str], None]], str]) -> str:
    """Print an answer as it is written, with the name of who says it; no character of it acts on the terminal."""
    said = ""

    def on_text(piece: str) -> None:
        nonlocal said
        sys.stdout.write(("" if said else f"{name}: ") + shown(piece))
        sys.stdout.flush()
        said += piece

    text = answer(on_text)
    if text.startswith(said):
        on_text(text.removeprefix(said) or ("" if said else "(nothing)"))
    else:  # the tokenizer has written the beginning in another way once it knew the rest
        sys.stdout.write(f"\n{name}: {shown(text)}")
    sys.stdout.write("\n")
    sys.stdout.flush()
    return text
