"""Says what to do next with a run: one command that fits how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fftmoe.data.roles import LANGUAGE_TASKS
from fftmoe.report.answer import COMMONEST, compared, gains_of_clients
from fftmoe.report.constant import commonest
from fftmoe.report.metric import SHARES
from fftmoe.report.record import RunRecord
from fftmoe.report.sections import account
from fftmoe.report.verdict import ended_badly
from fftmoe.shown import quoted

LOWER = 3.0  # by how much a learning rate that was too high is divided
SITES_START = "fftmoe deploy server SERVER --recipe"  # SERVER is the folder of the server


class NextStep(NamedTuple):
    """Holds a reason as a sentence without its full stop, and the command to type; empty where no command fits."""

    why: str
    command: str


@dataclass(frozen=True)
class _Commands:
    """Writes the commands about one run."""

    run: RunRecord

    def again(self, folder_ending: str, key: str, value: float) -> str:
        """Return a new run with another value of a key, beside this one."""
        start = SITES_START if self.run.over_sites else "fftmoe run"
        output = f"{self.run.folder}{folder_ending}"
        return f"{start} {quoted(self.recipe)} --set {key}={value} --output {quoted(output)}"

    def beside(self, *methods: str) -> str:
        """Return a comparison with other methods on the same data, over several seeds."""
        own = self.run.setting("method", "fft-moe")
        named = ",".join(dict.fromkeys((own, *methods)))
        output = f"{self.run.folder}-comparison"
        return f"fftmoe compare {quoted(self.recipe)} --methods {quoted(named)} --output {quoted(output)}"

    def use(self) -> str:
        """Return an answer of the model, or its metrics where each client has a model of its own."""
        folder, task = self.run.folder, self.run.setting("backbone.task", "sequence-classification")
        personal = self.run.capabilities is not None and self.run.capabilities.personal
        if personal:
            return f"fftmoe evaluate {quoted(folder)}"
        asked = {"image-classification": "photos/", **dict.fromkeys(LANGUAGE_TASKS, "some prompt")}
        given = asked.get(task, "some text")
        return f"fftmoe predict {quoted(folder)} {quoted(given)}"

    @property
    def recipe(self) -> str:
        """Return the resolved recipe of the run."""
        return f"{self.run.folder}/config.yaml"


def next_step(run: RunRecord) -> NextStep:
    """Return what to do next: the first of these that is true of the run.

    It has not finished; it diverged, or is worse than its start or than its head alone; clients, or most of them, are
    better by themselves; every test row is right; it still improves and is not better than what it is compared with; it
    is not clearly better than always the commonest label, than its head alone, or than its start where a head alone
    cannot be measured. Otherwise it is used.
    """
    commands = _Commands(run)
    if not run.summary:
        if run.over_sites:
            return NextStep("the run has not finished: the command that started it continues it", "")
        return NextStep("the run has not finished: continue it", f"fftmoe resume {quoted(run.folder)}")
    found = {each.name: each.result for each in compared(run.summary) if each.value is not None}
    if run.setting("backbone.task") in LANGUAGE_TASKS:  # without a head this is the start, of which the verdict speaks
        found.pop("head_only", None)
    step = _after_harm(run, found, commands)
    if step is None and not _is_perfect(run):
        step = _after_no_gain(run, found, commands)
    return step or NextStep("use the model", commands.use())


def _is_perfect(run: RunRecord) -> bool:
    """Return whether every test row is answered right, so that nothing can become better."""
    return run.metric.name in SHARES and run.summary.get(run.metric.name) == 1


def _after_harm(run: RunRecord, found: Mapping[str, str], commands: _Commands) -> NextStep | None:
    """Return what to do where training has made something worse."""
    if ended_badly(run.summary) or found.get("head_only") == "worse":
        what = "training made the model worse" if ended_badly(run.summary) else "the head alone is better"
        key, rate = _learning_rate(run)
        if rate is None:
            return NextStep(f"{what}: lower {key}", "")
        lower = float(f"{rate / LOWER:.1g}")
        return NextStep(f"{what}: train with a lower {key}", commands.again("-slower", key, lower))
    clients = gains_of_clients(run.summary)
    most_lose = 2 * len(clients.lose) > clients.measured
    if found.get("alone") == "worse" or most_lose:
        what = "most clients are better" if most_lose else "clients are better"
        if run.over_sites:
            return NextStep(f"{what} by themselves: a common model does not help them", "")
        why = f"{what} by themselves: compare with a method that keeps a part of the model at each client"
        return NextStep(why, commands.beside("fedsa-lora"))
    return None


def _after_no_gain(run: RunRecord, found: Mapping[str, str], commands: _Commands) -> NextStep | None:
    """Return what to do where a baseline or a guess is as good, or training in one place is better."""
    is_level = found.get("head_only") == "level"
    gained_nothing = "head_only" not in found and run.summary.get("verdict", {}).get("result") == "level"
    guess = commonest(run.summary) if found.get(COMMONEST) in ("level", "worse") else None
    bound, rounds = found.get("centralized"), run.setting("federation.rounds")
    if (is_level or gained_nothing or guess or bound == "worse") and rounds and _still_improves(run):
        why = "the last round was the best one: train for more rounds"
        if len(_measured(run)) == 2:
            why = "the rounds have improved the model: train for more of them"
        return NextStep(why, commands.again("-longer", "federation.rounds", 2 * rounds))
    if guess and not run.over_sites:
        why = f"the model is not clearly better than always answering {guess.label!r}: see over several seeds what "
        return NextStep(f"{why}training on all rows in one place gains", commands.beside("centralized"))
    if is_level and not run.over_sites:
        why = "it is not clear whether training adds anything to the head alone: compare both over several seeds"
        if _central_training_adds_nothing(run):
            why = "not even training on all rows in one place is better than the head alone: compare both over seeds"
        return NextStep(why, commands.beside("head-only"))
    if gained_nothing and not run.over_sites:
        why = "training made no clear difference: see over several seeds what training on all rows in one place gains"
        return NextStep(why, commands.beside("centralized"))
    return None


def _central_training_adds_nothing(run: RunRecord) -> bool:
    """Return whether the head alone is at least as good as training on the rows of all clients in one place."""
    baselines = run.summary.get("baselines", {})
    head, central = ((baselines.get(name) or {}).get("value") for name in ("head_only", "centralized"))
    return head is not None and central is not None and not run.metric.better(central, head)


def _learning_rate(run: RunRecord) -> tuple[str, float | None]:
    """Return the key of the learning rate of what was trained, and its value; None if it has none in the recipe."""
    key = "federation.learning_rate"
    if run.capabilities is not None and run.capabilities.trains == "head":
        key = "head.learning_rate"
    rate = run.setting(key)
    return key, rate if isinstance(rate, int | float) and rate > 0 else None


def _still_improves(run: RunRecord) -> bool:
    """Return whether the last round is the best one, on the validation rows where there are any, and none was left out.

    A run with a privacy budget does not go on: every round spends more of it.
    """
    if "epsilon" in account(run) or run.summary.get("stopped_early"):
        return False
    values = _measured(run)
    return len(values) > 1 and all(run.metric.better(values[-1], value) for value in values[:-1])


def _measured(run: RunRecord) -> list[float]:
    """Return the metric of each measured round, on the validation rows where there are any."""
    key = f"validation_{run.metric.name}"
    values: list[float] = [row[key] for row in run.rows if row.get(key) is not None]
    return values or list(run.summary.get(f"{run.metric.name}_by_round", {}).values())
