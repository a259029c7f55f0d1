"""Guards a site's door: every request passes its operator's policy and its ledger, or ends here.

The server sends its recipe with every request. So the policy is read from the file again for every request, and a run
keeps the recipe with which it was opened.
"""

import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftmoe.client.example_privacy import sampling_rate
from fftmoe.client.screening import CheckedRequest
from fftmoe.deploy.job import read_job
from fftmoe.deploy.ledger import Pages, SiteLedger, ledger_of
from fftmoe.deploy.ledger_account import FAILED, REFUSED, Account, Cost, RunKey
from fftmoe.engines.failures import CodedError, Failure, failing_as
from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.setup.consent import label_objection, objections
from fftmoe.setup.policy import SitePolicy, parse_policy
from fftmoe.setup.site_request import (
    EVALUATION,
    PROFILE,
    SUMS,
    TASK_NAMES,
    TRAINING,
    SiteRequest,
    SiteRows,
    request_of,
)
from fftmoe.shown import count_of, quoted
from fftmoe.strict import at_most, open_file

POLICY_FILE = "policy.yaml"
HOW_TO_WRITE = "fftmoe deploy site review RECIPE --site"
EPSILON_SLACK = 1e-9  # of epsilon, for rounding


@dataclass(frozen=True)
class Admitted:
    """Holds a job that the policy allows, with the policy as it was read for this request; `server` sent it."""

    policy: SitePolicy
    request: SiteRequest
    server: str
    run: str

    @property
    def key(self) -> RunKey:
        """Return the name of the run in the ledger."""
        return self.server, self.run, self.request.digest

    @property
    def fewest_of_label(self) -> float:
        """Return the rows of a label below which they are in no sum that is made for each label;
        endless if not stated.
        """
        stated = self.policy.fewest_rows_of_label
        return math.inf if stated is None else stated


@dataclass(frozen=True)
class Door:
    """Guards the door of the site in `folder`.

    Attributes:
        own_model: the site was started with a backbone of its own.
        server: the server that sends the requests, by its address.
    """

    folder: Path
    own_model: bool
    server: str = ""

    def admit(self, job: Mapping[str, Any]) -> Admitted:
        """Let a job in if the policy allows all that it asks; a run that is new is written into the ledger.

        Raises:
            CodedError: the job is not valid, or the policy or the ledger does not allow it.
        """
        with self._noting(job):
            with failing_as(Failure.RECIPE):
                job = read_job(job)
            with failing_as(Failure.POLICY):
                policy = read_policy(self.folder)
            with failing_as(Failure.RECIPE):
                request = request_of(job["recipe"])
            with failing_as(Failure.POLICY):
                self._check_policy(policy, request, job["labels"])
                admitted = Admitted(policy, request, self.server, job["run"])
                with self.ledger(policy).locked() as pages:
                    _open_run(pages, admitted)
        return admitted

    def count_profile(self, admitted: Admitted, rows: SiteRows) -> int:
        """Write that a profile leaves; return the number of rows that it may name.

        Raises:
            CodedError: the site has too few rows for a task of the recipe, or could not serve a round after it.
        """
        with self._noting(_job_of(admitted)), failing_as(Failure.POLICY):
            tasks = [task for task in admitted.request.tasks if task != PROFILE]
            _check_rows(admitted, tasks, rows)
            with self.ledger(admitted.policy).locked() as pages:
                for task in tasks:
                    _check_affordable(pages.account, admitted, task, rows.trained)
                pages.answer(admitted.run, PROFILE, 0, 0)
        return rows.total if admitted.policy.name_counts else int(admitted.policy.fewest_rows or 0)

    def count(self, admitted: Admitted, asked: CheckedRequest, rows: SiteRows, size: int) -> None:
        """Count a request for training or statistics that will be carried out.

        Args:
            rows: of the site. size: bytes of the message.

        Raises:
            CodedError: the policy does not allow the task, or what it grants is used up.
        """
        with self._noting(_job_of(admitted), asked), failing_as(Failure.POLICY):
            task = TASK_NAMES[asked.task]
            if task not in admitted.policy.tasks or task not in admitted.request.tasks:
                raise InputError(f"the policy does not allow the task {task} for this recipe; see `tasks`")
            _check_rows(admitted, [task], rows)
            with self.ledger(admitted.policy).locked() as pages:
                cost = _check_affordable(pages.account, admitted, task, rows.trained)
                pages.ask(admitted.key, task, asked.round, size, cost)

    def answered(self, admitted: Admitted, asked: CheckedRequest, size: int) -> None:
        """Write that an answer of this size leaves; it is on the disk when this returns.

        Raises:
            CodedError: it cannot be written, so the answer must not leave.
        """
        with failing_as(Failure.POLICY), self.ledger(admitted.policy).locked() as pages:
            pages.answer(admitted.run, TASK_NAMES[asked.task], asked.round, size)

    @contextmanager
    def failures_noted(self, admitted: Admitted, asked: CheckedRequest | None = None) -> Iterator[None]:
        """Write every failure of the block into the ledger, for work that the door has let in."""
        with self._noting(_job_of(admitted), asked):
            yield

    def ledger(self, policy: SitePolicy) -> SiteLedger:
        """Return the ledger that the policy names."""
        return ledger_of(self.folder, policy)

    def _check_policy(self, policy: SitePolicy, request: SiteRequest, labels: list[str]) -> None:
        reasons = objections(policy, request, own_model=self.own_model)
        if (reason := label_objection(policy, request, labels)) is not None:
            reasons.append(reason)
        if reasons:
            raise InputError(f"{self.folder / POLICY_FILE} does not allow this: {'; '.join(reasons)}")

    @contextmanager
    def _noting(self, job: Mapping[str, Any], asked: CheckedRequest | None = None) -> Iterator[None]:
        """Write into the ledger that the block refused or failed; the error goes on."""
        try:
            yield
        except CodedError as error:
            self._note(job, asked, error)
            raise

    def _note(self, job: Mapping[str, Any], asked: CheckedRequest | None, error: CodedError) -> None:
        try:
            ledger = self.ledger(read_policy(self.folder))
        except InputError:  # without a policy there is no ledger to write to; the site's log has the reason
            return
        event = REFUSED if error.code in (Failure.POLICY, Failure.REFUSED) else FAILED
        run, why = job.get("run"), str(error.__cause__ or error)
        task, round = (TASK_NAMES.get(asked.task), asked.round) if asked else (None, None)
        ledger.note(event, code=str(error.code), run=str(run)[:64], task=task, round=round, why=why)


def read_policy(folder: Path) -> SitePolicy:
    """Return the policy of a site, as its file is now.

    Raises:
        InputError: it is missing or damaged, or other users can change it.
    """
    path = folder / POLICY_FILE
    try:
        with open_file(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o022:
                raise InputError(
                    f"other users can change the policy {path} (mode {mode:04o}); run: chmod go-w {quoted(path)}"
                )
            return parse_policy(at_most(file), str(path))
    except FileNotFoundError as error:
        raise InputError(
            f"this site has no policy, so it would refuse everything: {path} is missing; review the recipe of the "
            f"federation, which writes one: {HOW_TO_WRITE} {quoted(folder)}"
        ) from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"the policy {path} cannot be read: {error}; correct the file") from error


def _check_rows(admitted: Admitted, tasks: Sequence[str], rows: SiteRows) -> None:
    """Check that each of these tasks has an answer over as many rows as the policy states, or over none.

    Raises:
        InputError: the site has fewer rows, or an answer would be a sum over fewer.
    """
    fewest = admitted.policy.fewest_rows
    if fewest is None or rows.total < fewest:
        raise InputError(
            f"the site has {count_of(rows.total, 'row')}, and `fewest_rows` is {fewest}; add rows, or lower it"
        )
    for task in tasks:
        behind = _rows_behind(admitted, task, rows)
        if behind < fewest and not (task == EVALUATION and not behind):  # which then answers zeros
            rare = " (without those of labels with fewer rows than `fewest_rows_of_label`)" if task == SUMS else ""
            raise InputError(
                f"an answer to the task {task} would depend on {behind} of the site's "
                f"{count_of(rows.total, 'row')}{rare}, and `fewest_rows` is {fewest}; add rows, ask for a recipe that "
                "uses more of them, or lower it"
            )


def _rows_behind(admitted: Admitted, task: str, rows: SiteRows) -> int:
    """Return the most rows on which an answer depends; training of a few steps sees few,
    which only noise of its own hides.
    """
    request, behind = admitted.request, rows.behind(task, admitted.fewest_of_label)
    steps = request.values["federation.local_steps"]
    if task != TRAINING or steps is None or request.privacy.mode == "examples":
        return behind
    return min(behind, steps * request.values["federation.batch_size"])


def _open_run(pages: Pages, admitted: Admitted) -> None:
    """Bind the run to its recipe."""
    opened = pages.recipe_of(admitted.server, admitted.run)
    if opened is None:
        pages.open(admitted.key, admitted.request.name)
    elif opened != admitted.request.digest:
        raise InputError(
            f"the server opened the run {admitted.run} with the recipe {opened} and now sends "
            f"{admitted.request.digest}; a run keeps its recipe"
        )


def _check_affordable(account: Account, admitted: Admitted, task: str, num_rows: int) -> Cost:
    """Return what another answer to this task costs, if the policy grants as much."""
    most, rights = admitted.policy.most_rounds, admitted.policy.privacy
    times = account.times.get(task, 0)
    if times >= most + (task != TRAINING):  # statistics and validation are also asked for before the first round
        raise InputError(
            f"the site was asked for {task} {count_of(times, 'time')}, and `most_rounds` is {most}; raise it to go on"
        )
    cost = cost_of(admitted, num_rows)
    if rights.epsilon is not None and rights.delta is not None:
        if cost.release is not None and rights.delta * num_rows >= 1:
            raise InputError(
                f"`privacy.delta` is {rights.delta:g}, which would allow the site to reveal one of its "
                f"{count_of(num_rows, 'row')} entirely; set it well below {1 / num_rows:.2g}"
            )
        after = account.with_one_more(admitted.key, cost).epsilon(rights.delta)
        if after > rights.epsilon + EPSILON_SLACK:
            raise InputError(
                f"another answer would cost the site's rows an epsilon of {after:.4g} at delta {rights.delta:g}, and "
                f"`privacy.epsilon` grants {rights.epsilon:g} over all runs; raise it to go on, or end here"
            )
    return cost


def cost_of(admitted: Admitted, num_rows: int) -> Cost:
    """Return what one answer costs a site with this many rows."""
    asked = admitted.request.privacy
    if asked.mode == "examples":
        rate = sampling_rate(asked.batch_size, num_rows)
        return Cost(asked.mode, Release(rate, asked.noise_multiplier, asked.steps))
    if asked.mode == "clients":
        return Cost(asked.mode, epsilon=asked.epsilon or float("inf"), delta=asked.delta or 0.0)
    return Cost(asked.mode)


def _job_of(admitted: Admitted) -> Mapping[str, Any]:
    return {"run": admitted.run}
