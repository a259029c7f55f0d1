"""Compares the text that a language model generates after held-out prompts with the true completions.

Three values are usual, and each answers another question. Exact match and ROUGE-L compare what the model writes by
itself. Where a prompt has options (`tasks/options.py`) the model also ranks them, as FLAN, T0 and lm-evaluation-harness
do: the answer is the option with the highest log-likelihood, whatever the model would have written. Here that is the
likelihood of the whole answer with its end, as it was learned; the harness leaves the end out.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fftmoe.backbones import continue_greedily, end_ids_of, load_tokenizer, prompt_text_of, readable_tokens, text_of
from fftmoe.data import Completions, Examples, WithPrefix, continued, tokenize_answers
from fftmoe.evaluate import holdout_rows, log_likelihoods
from fftmoe.tasks import common_completions, exact_match, options_of, rouge_l
from fftmoe.trained.run import GenerationSample

Groups = Sequence[str | None]
OPTIONS_AT_ONCE = 16  # answers that are ranked in a batch
BY_OPTION = "option_accuracy"


def generation_metrics(
    model: Any,
    backbone: str,
    examples: Examples,
    settings: GenerationSample,
    groups: Mapping[str, Groups] | None = None,
    among: Collection[int] | None = None,
) -> dict[str, Any]:
    """Score greedy completions of a fixed sample of held-out examples, and the choice among options.

    Args:
        backbone: the name of the backbone, whose tokenizer is used.
        examples: prompts with completions, from which the sample is drawn.
        groups: by what they divide the examples, such as "client", the group of each example; None for one without.
        among: of the sample only these rows of the examples; None for all.

    Returns:
        `exact_match` and `rouge_l`, means over the sample, and `generated`, the size of the sample; where prompts have
        options, `option_accuracy` and `with_options`, the number of these prompts. For each of `groups`
        `generated_by_...` with the same of each group, by its name. Where prompts are to be shown, `samples` with
        `prompt`, `completion` and `written` of some, of as many tasks as there are. Nothing of an empty sample.
    """
    plain = examples.examples if isinstance(examples, WithPrefix) else examples
    assert isinstance(plain, Completions)
    rows: list[int] = holdout_rows(len(plain), settings.num_examples, settings.seed).tolist()
    rows = [row for row in rows if among is None or row in among]
    if not rows:
        return {}
    tokenizer = load_tokenizer(backbone)
    completions = [text_of(tokenizer, plain.text(row)[1]) for row in range(len(plain))]
    written = _written(model, tokenizer, plain, rows, settings)
    scores = {
        **_compared(written, [completions[row] for row in rows]),
        BY_OPTION: _chosen(model, tokenizer, plain, rows, completions, settings.chat_template),
    }
    found = _means(scores, np.arange(len(rows)))
    for name, members in (groups or {}).items():
        found[f"generated_by_{name}"] = _by_group(scores, [members[row] for row in rows])
    if settings.num_shown:
        places = _shown(plain.labels[rows].tolist(), settings.num_shown)
        prompts = [prompt_text_of(tokenizer, plain.text(rows[place])[0]) for place in places]
        true = [completions[rows[place]] for place in places]
        found["samples"] = _samples(prompts, true, [written[place] for place in places])
    return found


def _samples(prompts: Sequence[str], true: Sequence[str], written: Sequence[str]) -> list[dict[str, str]]:
    """Return what a page shows of each prompt: its text, its completion, and what was written instead."""
    return [
        {"prompt": prompt, "completion": completion, "written": own}
        for prompt, completion, own in zip(prompts, true, written, strict=True)
    ]


def _compared(written: Sequence[str], true: Sequence[str]) -> dict[str, np.ndarray]:
    """Return how far each text that was written agrees with the true one, by metric."""
    measures = {"exact_match": exact_match, "rouge_l": rouge_l}
    return {
        name: np.array([measure(*pair) for pair in zip(written, true, strict=True)])
        for name, measure in measures.items()
    }


def _by_group(scores: Mapping[str, np.ndarray], groups: Groups) -> dict[str, dict[str, Any]]:
    """Return the means of each group, by its name; `groups` names that of each place of the sample."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        if group is not None:
            places[group].append(place)
    return {group: _means(scores, np.array(places[group])) for group in sorted(places)}


def _shown(strata: Sequence[int], number: int) -> list[int]:
    """Return the places of the prompts that are shown: the first of each stratum, then the second of each,
    and so on.
    """
    seen: dict[int, int] = defaultdict(int)
    turns = []
    for place, stratum in enumerate(strata):
        turns.append((seen[stratum], place))
        seen[stratum] += 1
    return sorted(place for _, place in sorted(turns)[:number])


def _means(scores: Mapping[str, np.ndarray], places: np.ndarray) -> dict[str, Any]:
    """Return the means of the scores at these places of the sample, and the number of places."""
    chosen = scores[BY_OPTION][places]
    known = ~np.isnan(chosen)
    return {
        "exact_match": float(scores["exact_match"][places].mean()),
        "rouge_l": float(scores["rouge_l"][places].mean()),
        "generated": len(places),
        **({BY_OPTION: float(chosen[known].mean()), "with_options": int(known.sum())} if known.any() else {}),
    }


def _written(
    model: Any, tokenizer: Any, examples: Completions, rows: Sequence[int], settings: GenerationSample
) -> list[str]:
    """Return what the model writes after the prompts of these rows."""
    generated = continue_greedily(
        model,
        [examples.text(row)[0] for row in rows],
        settings.max_new_tokens,
        end_ids=end_ids_of(model, tokenizer, settings.chat_template),
        pad_id=examples.texts.pad_id,
    )
    return [text_of(tokenizer, ids) for ids in generated]


def _chosen(
    model: Any,
    tokenizer: Any,
    examples: Completions,
    rows: Sequence[int],
    completions: Sequence[str],
    chat_template: bool,
) -> np.ndarray:
    """Return for each row 1 if the most likely of its options is its completion, else 0; NaN for a row without options.

    Args:
        completions: of all examples, which show what completions a task has.
    """
    by_stratum: dict[int, list[str]] = defaultdict(list)
    for stratum, completion in zip(examples.labels.tolist(), completions, strict=True):
        by_stratum[stratum].append(completion)
    common = {stratum: common_completions(own) for stratum, own in by_stratum.items()}
    found, positions = np.full(len(rows), np.nan), readable_tokens(model)
    options: dict[int, list[str]] = {}
    pairs: list[tuple[list[int], list[int]]] = []
    for place, row in enumerate(rows):
        prompt = examples.text(row)[0]
        own = options_of(prompt_text_of(tokenizer, prompt), completions[row], common[int(examples.labels[row])])
        if own:
            options[place] = own
            pairs += answers_after(prompt, tokenize_answers(own, tokenizer, chat_template), positions)
    if not pairs:
        return found
    likelihoods = log_likelihoods(model, continued(pairs, examples.texts.pad_id), OPTIONS_AT_ONCE).numpy()
    start = 0
    for place, own in options.items():
        best = own[int(likelihoods[start : start + len(own)].argmax())]
        found[place], start = float(best == completions[rows[place]].strip()), start + len(own)
    return found


def answers_after(
    prompt: Tensor, answers: Sequence[list[int]], positions: int | None
) -> list[tuple[list[int], list[int]]]:
    """Return a prompt with each of its possible answers; its beginning is cut where the model can read no more."""
    room = len(prompt) if positions is None else positions - max(map(len, answers))
    kept = prompt[max(0, len(prompt) - max(1, room)) :].tolist()
    return [(kept, answer) for answer in answers]
