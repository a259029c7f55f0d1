"""Talks with the language model of a finished run, and with its backbone alone."""

from contextlib import nullcontext
from dataclasses import dataclass

from fftmoe.backbones import load_tokenizer, readable_tokens
from fftmoe.data import prompt_of, tokenize_prompts
from fftmoe.errors import InputError
from fftmoe.trained.complete import Writing, completions
from fftmoe.trained.run import FinishedRun, TrainedModel


def check_talks(run: FinishedRun) -> None:
    """Refuse a run whose model writes no text.

    Raises:
        InputError: its task is another one than causal-lm.
    """
    if not run.is_language_model:
        raise InputError(
            f"the run in {run.folder} is of task {run.task}, so its model writes no text; ask it with fftmoe predict"
        )


@dataclass(frozen=True)
class Talk:
    """Holds what has been said so far.

    Attributes:
        messages: of user and assistant in turns, the oldest first.
        dropped: how many older messages had no room in what the run reads.
    """

    messages: tuple[dict[str, str], ...] = ()
    dropped: int = 0

    def asked(self, text: str) -> "Talk":
        """Return the same with a message of the user."""
        return Talk((*self.messages, {"role": "user", "content": text}), self.dropped)

    def answered(self, text: str) -> "Talk":
        """Return the same with an answer."""
        return Talk((*self.messages, {"role": "assistant", "content": text}), self.dropped)


def fitted(trained: TrainedModel, talk: Talk, max_new_tokens: int) -> Talk:
    """Return the same without its oldest questions and answers, if the run or the model reads no more; the last message
    stays.

    A run without a chat template reads that message only.

    Args:
        max_new_tokens: for which there must be room.
    """
    form, kept = trained.run.inputs, list(talk.messages)
    if not form.chat_template:
        return Talk(tuple(kept[-1:]))
    tokenizer, positions = load_tokenizer(trained.run.backbone.model), readable_tokens(trained.model)
    most = form.max_length if positions is None else min(form.max_length, positions - max_new_tokens + 1)
    while len(kept) > 1 and tokenize_prompts([prompt_of(kept)], tokenizer, max(2, most), chat_template=True)[1]:
        kept = kept[2:]
    return Talk(tuple(kept), talk.dropped + len(talk.messages) - len(kept))


def reply(trained: TrainedModel, talk: Talk, writing: Writing, *, tuned: bool) -> str:
    """Return the answer to the last message of a conversation.

    Args:
        tuned: of the model of the run; otherwise of its backbone, with the adapter switched off.

    Raises:
        InputError: the conversation with its answer is longer than the model can read. RunError: an output is not
            finite.
    """
    (*_, last) = messages = list(talk.messages)
    prompt = prompt_of(messages) if trained.run.inputs.chat_template else last["content"]
    with nullcontext() if tuned else trained.model.disable_adapter():
        (row,) = completions(trained, [prompt], writing)
    return str(row["completion"])  # an only prompt without one is an error
