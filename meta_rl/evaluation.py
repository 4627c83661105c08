"""What an evaluation measures on held-out problems, and its figures.

`meta_rl.evaluate` is the command, `meta_rl.held_out` runs the model. Figures
of their own rooms: `eval_figures`, `eval_regrets` (comparators), `eval_samples`
(pass@k and votes), `eval_difficulty`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from meta_rl import (
  checks,
  env,
  eval_difficulty,
  eval_figures,
  eval_headline,
  eval_partial,
  eval_regrets,
  eval_samples,
  held_out,
  setup_run,
  setup_steps,
  stop_evaluation,
  stop_rules,
  trace_text,
  waste,
)
from meta_rl.eval_problems import Problems
from meta_rl.tasks.base import Task
from meta_rl.types import Model, Params


@dataclasses.dataclass(frozen=True)
class Bench:
  """What the measurements of one evaluation share.

  Attributes:
    config: an RL config.
    params: the policy.
    task, model: of the config.
    problems: held out; `problems.kit` is the task's.
    key: PRNG key of all of it.
    progress: as in `evaluate`.
  """

  config: Any
  params: Params
  task: Task
  model: Model
  problems: Problems
  key: jax.Array
  progress: Callable[[str, int, int], None] | None = None

  @functools.cached_property
  def calls(self) -> dict:
    """The jitted calls of the config's own thinking budget."""
    return held_out.make_calls(self.config, self.model, self.task)

  @functools.cached_property
  def weights(self) -> str:
    """A hash of the policy's parameters."""
    return eval_partial.digest_of(self.params)

  @property
  def horizon(self) -> int:
    """Tokens of the thinking budget."""
    return self.config.rollout.thinking_budget

  def telling(self, what: str) -> Callable[[int, int], None] | None:
    """Returns the `on_batch` of a measurement."""
    return self.progress and functools.partial(self.progress, what)


def evaluate(
  config,
  params,
  *,
  name: str,
  algorithm: str,
  num_problems: int = 2048,
  batch_size: int = 256,
  samples: int = 8,
  sample_problems: int = 128,
  votes: int = 0,
  weighted_votes: bool = False,
  seed: int = 1,
  extrapolate: Sequence[int] = (),
  extrapolate_problems: int = 256,
  base_params=None,
  compare_provers: int = 0,
  rules: stop_rules.StopRules | None = None,
  keep: Callable[[dict], eval_partial.Partial] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
) -> dict:
  """Returns the content of `eval.json` for one policy on the test split.

  Beside the headline figures it holds

    regrets        cumulative, token-weighted and normalised, against 1 and,
                   where the task knows it, its optimum (`eval_regrets`)
    stopping       chances and stops at each boundary, where the trace holds a
                   success (J above 0.5) and where it does not
                   (`eval_figures.stop_rates`)
    difficulty     accuracy, tokens and regret by how hard a problem is
                   (`eval_difficulty`); of tasks that know
    success_rates  how often the traces of pass@k were right, a problem
    votes          [maj@p]_j, answers forced at each boundary that vote, beside
                   thinking on at equal tokens
                   (`eval_samples.votes_at_boundaries`); with `votes` alone
    extrapolation  accuracy and regret at 1x and the factors of the thinking
                   budget, thinking kept going by budget forcing
                   (`eval_figures.extrapolation`); with `extrapolate` alone
    waste          what the thinking tokens went into, and how often
                   (`waste.summary`)
    base_prover    accuracy and regret of the same traces when the frozen base
                   policy answers (`eval_figures.base_prover`); with
                   `base_params` alone
    measured       of what and how: 'weights' (a digest), 'temperature',
                   'top_p' and 'top_k' of the sampling, 'prover' (its kind); the
                   command adds 'which' checkpoint of a run, and its 'step'
    prover         which prover measured J here and which one trains, and how
                   far exact and sampled J differ (`eval_figures.prover_gap`),
                   under 'gap'; that with `compare_provers` alone
    anytime        what adaptive rules do with these problems
                   (`stop_evaluation.section`); with `rules` alone
    traces         some as text (`waste.chosen`), each with its 'classes', and
                   under 'stops' the boundary at which each rule stops it

  Args:
    config: an RL config: task, model, thinking budget, temperature.
    params: the policy.
    name, algorithm: for the report.
    num_problems: held-out problems, one trace each.
    batch_size: traces at a time.
    samples, sample_problems: traces a problem, and problems, of pass@k and
      maj@k.
    votes: answers forced at each boundary, on the `sample_problems`; 0: none.
    weighted_votes: each weighs as much as it is likely.
    seed: of the sampling; the same for policies that are to be compared.
    extrapolate: multiples > 1 of the thinking budget, such as (2, 4).
    extrapolate_problems: how many of the problems these are measured on: traces
      of four times the length cost more than four times as much.
    base_params: of the policy that training started from.
    compare_provers: problems on which the exact prover is compared with one
      that samples `prover.num_branches` answers and asks the verifier; 0: none.
    rules: of stopping, calibrated for this policy; None: none.
    keep: is given what the figures depend on, and returns where finished
      batches are kept, for an evaluation that is killed; None: nowhere.
    progress: is told after each batch what is measured, how many traces of it
      are done, and of how many.
  """
  checks.check_count('compare_provers', compare_provers, low=0)
  checks.check_count('votes', votes, low=0)
  check_factors(extrapolate, extrapolate_problems)
  bench = _make_bench(config, params, num_problems, batch_size, seed, progress)
  if extrapolate:
    setup_run.check_context(config, bench.task, times=max(extrapolate))
  if keep is not None:
    identity = _identity(bench, base_params) | {
      'seed': seed,
      'samples': samples,
      'sample_problems': sample_problems,
      'votes': votes,
      'extrapolate': list(extrapolate),
      'extrapolate_problems': extrapolate_problems,
      'compare_provers': compare_provers,
    }
    problems = dataclasses.replace(bench.problems, partial=keep(identity))
    bench = dataclasses.replace(bench, problems=problems)
  few = bench.problems.first(sample_problems)
  clusters = bench.problems.clusters
  found = bench.problems.measure(
    bench.calls,
    params,
    bench.key,
    stage='traces',
    at_budgets=True,
    base_params=base_params,
    on_batch=bench.telling('J along traces'),
  )
  own = eval_regrets.profile(
    found['success'], found['ends'], found['count'], horizon=bench.horizon
  )
  classes = waste.trace_classes(
    found['success'],
    found['ends'],
    found['count'],
    found['forced'],
    horizon=bench.horizon,
  )
  more = {}
  if extrapolate:
    longer = bench.problems.first(extrapolate_problems)
    more['extrapolation'] = _extrapolation(bench, longer, extrapolate)
  prover = _prover(bench, compare_provers)
  scores, rates = eval_samples.several_samples(
    few,
    bench.calls,
    params,
    jax.random.fold_in(bench.key, 1),
    samples=samples,
    stop_length=len(bench.task.stop_ids),
    on_batch=bench.telling('pass@k'),
  )
  stops = {}
  if rules is not None:
    more['anytime'], stops = stop_evaluation.evaluate(
      config,
      bench.model,
      bench.task,
      params,
      rules,
      bench.problems,
      bench.key,
      on_batch=bench.telling('adaptive rules'),
    )
  if votes:
    calls = held_out.make_calls(config, bench.model, bench.task, votes=votes)
    more['votes'] = eval_samples.votes_at_boundaries(
      few,
      bench.calls | {'votes': calls['votes']},
      params,
      bench.key,
      stop_length=len(bench.task.stop_ids),
      weighted=weighted_votes,
      on_batch=bench.telling('votes at boundaries'),
    )
  if base_params is not None:
    more['base_prover'] = eval_figures.base_prover(
      found['base_success'],
      found['ends'],
      found['count'],
      horizon=bench.horizon,
      clusters=clusters,
      budgets=range(bench.horizon + 1),
    )
  curves = eval_headline.curves(found, own, clusters)
  per_problem = eval_headline.per_problem(found, own, clusters)
  if difficulty := _difficulty(bench, per_problem):
    more['difficulty'] = difficulty
  shares = held_out.episode_shares(found, config)
  shares = {k.removeprefix('eval/'): share for k, share in shares.items()}
  return {
    'name': name,
    'algorithm': algorithm,
    'num_problems': num_problems,
    'num_clusters': len(np.unique(clusters)),
    'horizon': bench.horizon,
    'max_episodes': found['success'].shape[1] - 1,
    'seed': seed,
    'machine': env.machine_description(),
    'measured': _measured(bench),
    **curves,
    'scalars': eval_headline.scalars(found, own, curves, clusters)
    | shares
    | scores,
    'regrets': _regrets(bench, own),
    'success_rates': {
      'samples': samples,
      'cluster': few.clusters.tolist(),
      'rate': rates.tolist(),
    },
    'per_problem': per_problem,
    'stopping': eval_figures.stop_rates(
      found['success'], found['count'], found['forced']
    ),
    'waste': waste.summary(found, horizon=bench.horizon, clusters=clusters),
    'prover': prover,
    **more,
    'traces': [
      trace_text.describe(found, i, bench.problems.kit.decode)
      | {
        'classes': classes[i],
        'stops': {
          label: int(stop[i]) for label, stop in stops.items() if stop[i] >= 0
        },
      }
      for i in waste.chosen(classes)
    ],
  }


def _make_bench(config, params, num_problems, batch_size, seed, progress):
  task = setup_run.make_task(config)
  source = setup_run.load_problems(config, 'test')
  kit = setup_run.task_kit(config)
  return Bench(
    config=config,
    params=params,
    task=task,
    model=setup_run.make_model(config, task),
    problems=Problems(source, kit, num_problems, batch_size),
    key=jax.random.key(seed),
    progress=progress,
  )


def _identity(bench: Bench, base_params: Params | None) -> dict[str, Any]:
  """Returns on what measured numbers depend beside options, as JSON values."""
  frozen = base_params
  if frozen is not None:
    frozen = eval_partial.digest_of(frozen)
  return {
    'config': bench.config.to_dict(),
    'weights': bench.weights,
    'base_prover': frozen,
    'num_problems': bench.problems.number,
    'batch_size': bench.problems.batch_size,
    'problems': bench.problems.digest(),
    **eval_partial.environment(),
  }


def _measured(bench: Bench) -> dict[str, Any]:
  """Returns which weights were measured, and how, as JSON values."""
  rollout = bench.config.rollout
  return {
    'weights': bench.weights,
    'temperature': rollout.temperature,
    'top_p': rollout.top_p,
    'top_k': rollout.top_k,
    'prover': setup_steps.measuring_prover(bench.config),
  }


def _regrets(bench: Bench, own: eval_regrets.Profile) -> dict[str, dict]:
  """Returns the regret in all forms against each comparator that is known."""
  problems, task = bench.problems, bench.task
  found = {'one': eval_regrets.against_one(own, problems.clusters)}
  if problems.kit.optimum is not None:
    episodes = max(
      own.episodes.shape[1] - 1, own.horizon // task.episode_length
    )
    best = eval_regrets.optimum(
      [
        problems.kit.optimum(problems.source[i], episodes)
        for i in range(problems.number)
      ],
      like=own,
      episode_length=task.episode_length,
    )
    found['optimum'] = eval_regrets.against(own, best, problems.clusters)
  return found


def _difficulty(bench: Bench, per_problem: Mapping) -> dict | None:
  """Returns the figures by what the task knows of its problems, if it does."""
  options = setup_run.task_options(bench.config)
  problems = bench.problems
  if problems.kit.difficulty is None:
    return None
  known = [
    problems.kit.difficulty(problems.source[i], **options)
    for i in range(problems.number)
  ]
  return eval_difficulty.by_difficulty(known, per_problem)


def _extrapolation(bench: Bench, longer: Problems, factors) -> dict:
  """Returns `eval_figures.extrapolation` of traces that are kept thinking."""
  found = longer.measure(
    held_out.make_calls(
      bench.config, bench.model, bench.task, factor=max(factors)
    ),
    bench.params,
    bench.key,
    stage='longer',
    on_batch=bench.telling('longer traces'),
  )
  return eval_figures.extrapolation(
    found, horizon=bench.horizon, factors=factors, clusters=longer.clusters
  )


def _prover(bench: Bench, compare_provers: int) -> dict[str, Any]:
  """Returns which prover measures, and how far the two kinds differ."""
  config = bench.config
  kind = setup_steps.measuring_prover(config)
  found = {'kind': kind, 'training': config.prover.kind}
  if compare_provers or kind == 'sampled':
    found['branches'] = config.prover.num_branches
  if compare_provers:
    found['gap'] = compared(
      bench.problems.first(compare_provers),
      bench.calls,
      bench.params,
      bench.key,
      kind=kind,
      on_batch=bench.telling('both provers'),
    )
  return found


def compared(
  problems: Problems,
  calls,
  params,
  key,
  *,
  kind: str = 'exact',
  on_batch: Callable[[int, int], None] | None = None,
) -> dict:
  """Returns `eval_figures.prover_gap` of some problems.

  Args:
    problems: of which at least one lists an answer.
    calls, params, key: as in `held_out.measure`.
    kind: of the prover of `calls`.
    on_batch: as in `held_out.measure`.

  Raises:
    ValueError: none of them lists an answer, so that exact J is 0 throughout.
  """
  batches = problems.batches()
  if not any(batch['answer_mask'].any() for batch in batches):
    raise ValueError(
      f'compare_provers={problems.number}: none of these problems lists an '
      'accepted answer, so there is no exact prover to compare; give 0.'
    )
  # Answers of a key of their own; the traces are those of the headline.
  found = problems.measure(
    calls,
    params,
    key,
    stage='provers',
    other_key=jax.random.fold_in(key, 2),
    on_batch=on_batch,
  )
  provers = found['success'], found['other_success']
  if kind == 'sampled':
    provers = provers[::-1]
  return eval_figures.prover_gap(
    *provers, found['count'], clusters=problems.clusters
  )


def check_factors(factors: Sequence[int], num_problems: int):
  """Raises ValueError unless the factors are integers above 1, of problems."""
  if not all(isinstance(f, int) and f > 1 for f in factors):
    raise ValueError(
      f'extrapolate={tuple(factors)} is given; allowed are integers above 1, '
      'multiples of the thinking budget.'
    )
  if factors and num_problems < 1:
    raise ValueError(
      f'extrapolate_problems={num_problems} is given; allowed is >= 1, or no '
      'extrapolate.'
    )
