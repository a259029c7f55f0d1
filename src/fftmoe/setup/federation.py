"""Makes the parts of a run from its experiment: the policy, the exchange, the head, and what is measured."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fftmoe.engines.base import Engine
from fftmoe.evaluate import holdout
from fftmoe.head import HeadSums, bounded_total
from fftmoe.rounds.before_and_after import StartOfClients
from fftmoe.rounds.closed_form import ClosedFormHead, SolveHead, keep_head
from fftmoe.rounds.evaluation import Evaluation
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.journal import Journal
from fftmoe.rounds.loop import Federation
from fftmoe.rounds.measure import ModelMeasure
from fftmoe.rounds.patience import Patience, Stopper, endless
from fftmoe.rounds.personal import PersonalModels
from fftmoe.rounds.policy import PlainMerging, Policy, UniformCohort
from fftmoe.rounds.population import Population
from fftmoe.rounds.private import NoisySums, PrivateMerging
from fftmoe.rounds.validation import VALIDATION_ERROR, VALIDATION_PREFIX, Validate, Validation, no_validation
from fftmoe.server.cohort import quorum_of
from fftmoe.setup.baselines import make_head_alone
from fftmoe.setup.described import generation_sample
from fftmoe.setup.expected import expectations
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import make_answers
from fftmoe.setup.tiers import schedule_of
from fftmoe.store import Ranking
from fftmoe.trained.generate import generation_metrics


def make_federation(
    experiment: Experiment, engine: Engine, journal: Journal, clients_per_batch: int, private: PrivateMerging | None
) -> Federation:
    """Make the parts of a run of this experiment."""
    recipe = experiment.recipe
    exchange = Exchange(
        engine=engine,
        expect=expectations(experiment),
        ledger=journal.ledger,
        clients_per_batch=clients_per_batch,
        client_done=journal.progress.client_done,
    )
    return Federation(
        method=experiment.method,
        budgets=experiment.budgets,
        training=experiment.training,
        schedule=schedule_of(recipe),
        num_rounds=recipe.federation.rounds,
        seed=recipe.seed,
        policy=make_policy(experiment, engine, private),
        exchange=exchange,
        solve_head=_solve_head(experiment, _without_progress(exchange)),
        evaluate=make_evaluation(experiment, journal, _without_progress(exchange)),
        patience=make_patience(experiment),
    )


def _without_progress(exchange: Exchange) -> Exchange:
    """Return the same exchange without the progress of a round's clients."""
    return replace(exchange, client_done=lambda _: None)


def make_policy(experiment: Experiment, engine: Engine, private: PrivateMerging | None) -> Policy:
    """Make the policy of a plain, private, robust, averaged or unreliable run, as the recipe and the engine ask."""
    federation = experiment.recipe.federation
    size = federation.clients_per_round
    averaging = {"average_decay": federation.ema_decay, "last_round": federation.rounds}
    if isinstance(private, NoisySums):
        # No substitutes and no quorum: noise hides who took part only where their number decides nothing.
        return Policy(private.sample, private, quorum=0, enough=None, **averaging)
    cohort = UniformCohort(experiment.num_clients, size, experiment.recipe.seed, engine, federation.over_selection)
    quorum = 0 if engine.reliable else quorum_of(size, federation.quorum)
    merging = private or PlainMerging(experiment.method)
    return Policy(cohort, merging, quorum=quorum, enough=size, **averaging)


def ranking_of(experiment: Experiment) -> Ranking:
    """Return how the rounds of this experiment are ordered: by the metric on the rows that clients have set aside."""
    return Ranking(VALIDATION_PREFIX + experiment.task.metric, experiment.task.higher_is_better, VALIDATION_ERROR)


def kept_ranking(experiment: Experiment) -> Ranking | None:
    """Return how rounds are ordered, where the best one is kept; None where the last one is."""
    return ranking_of(experiment) if experiment.recipe.evaluation.keep == "best" else None


def make_patience(experiment: Experiment) -> Patience:
    """Make what ends a run that does not become better any more."""
    most = experiment.recipe.federation.patience
    return endless if most is None else Stopper(ranking_of(experiment), most)


def make_validation(experiment: Experiment, exchange: Exchange) -> Validate:
    """Make what validates on the rows that clients have set aside."""
    recipe = experiment.recipe
    if recipe.data.validation is None:
        return no_validation
    every, last = recipe.validated_every, recipe.federation.rounds
    return Validation(
        exchange=exchange,
        method=experiment.method,
        task=experiment.task,
        due=lambda round: round % every == 0 or round == last,
        budget=experiment.largest,
        budgets=experiment.budgets,
        training=experiment.training,
        clients=experiment.held_out.clients,
        seed=recipe.seed,
        fewest=1 if recipe.privacy is None else recipe.privacy.min_contributors,
    )


def _solve_head(experiment: Experiment, exchange: Exchange) -> SolveHead:
    recipe = experiment.recipe
    head, rounds = recipe.head, recipe.federation.rounds
    if head is None:
        return keep_head
    return ClosedFormHead(
        exchange=exchange,
        method=experiment.method,
        due=lambda round: head.solved_after(round, rounds),
        budget=experiment.largest,
        training=experiment.training,
        sizes=experiment.sizes,
        seed=recipe.seed,
        hides_sizes=recipe.privacy is not None,
        fewest=1 if recipe.privacy is None else recipe.privacy.min_contributors,
        # Plain, it holds the statistics of one client at a time; bounded, those of all.
        total=HeadSums.total if recipe.robustness is None else bounded_total,
        answers=make_answers(recipe),
    )


def make_measure(experiment: Experiment) -> ModelMeasure:
    """Make what measures models on the experiment's test examples."""
    num_strata, privacy = len(experiment.strata), experiment.recipe.privacy
    # Exact measurements on each client's own mix of labels are no part of a differentially private release.
    hidden = experiment.remote or experiment.recipe.differential
    shares = None if hidden else _label_shares(experiment, num_strata)
    return ModelMeasure(
        model=experiment.model,
        method=experiment.method,
        task=experiment.task,
        test=experiment.test,
        num_strata=num_strata,
        population=Population(experiment.budgets, experiment.tiers, shares, experiment.client_names),
        show_clients=privacy is None,
        fewest=1 if privacy is None else max(2, privacy.min_contributors),
        own_test=experiment.own_test,
        own_labels=experiment.own_labels,
    )


def _label_shares(experiment: Experiment, num_strata: int) -> Callable[[range], Any]:
    def shares(clients: range) -> Any:
        # The array is taken at each call: when workers start, torch moves the labels into shared memory, and an array
        # from before would read memory that is in use for something else.
        labels = experiment.train.labels.numpy()
        return experiment.partition.label_distribution(labels, num_strata, clients)

    return shares


def _groups_of_tests(experiment: Experiment) -> dict[str, Sequence[str | None]]:
    """Return the task of each test row, and the client whose row it is, where the data says it."""
    test, own = experiment.test, experiment.own_test
    groups: dict[str, Sequence[str | None]] = {}
    if len(experiment.strata) > 1:
        groups["label"] = [experiment.strata[number] for number in test.labels.tolist()]
    if own is not None:
        owners: list[str | None] = [None] * len(test)
        names = experiment.named_clients
        for client in range(len(own)):
            for row in own[client]:
                owners[int(row)] = names[client]
        groups["client"] = owners
    return groups


def make_evaluation(experiment: Experiment, journal: Journal, exchange: Exchange) -> Evaluation:
    """Make what decides when and on what the run is measured."""
    recipe, measure = experiment.recipe, make_measure(experiment)
    settings, test = recipe.evaluation, experiment.test
    personal = None
    if settings.personal or experiment.method.capabilities.personal:
        personal = PersonalModels(
            measure=measure,
            sample=holdout(test, settings.personal_examples, recipe.seed),
            training=experiment.training,
            seed=recipe.seed,
            num_clients=settings.personal_clients,
        )
    generate, more = None, dict
    if (asked := generation_sample(recipe)) is not None:
        groups = _groups_of_tests(experiment) if measure.show_clients else None
        shown = asked if measure.show_clients else replace(asked, num_shown=0)
        generate = partial(generation_metrics, experiment.model, recipe.backbone.model, test, shown, groups)
        more = StartOfClients(measure, generate, () if measure.own_test is None else experiment.named_clients)
    return Evaluation(
        measure=measure,
        sample=holdout(test, settings.max_examples, recipe.seed),
        every=settings.every,
        num_rounds=recipe.federation.rounds,
        states=journal.folder.client_states,
        personal=personal,
        generate=generate,
        validate=make_validation(experiment, exchange),
        before=make_head_alone(experiment, measure, exchange, more),
    )
