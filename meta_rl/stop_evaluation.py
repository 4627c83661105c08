"""Adaptive rules in an evaluation: on the axes of all other figures.

One pass over the test problems at the model's own stop, one kept thinking to
the budget; what each calibrated rule would have done follows from their scores.
"""

from collections.abc import Callable

import numpy as np

from meta_rl import (
  calibration,
  stop_figures,
  stop_rules,
  stop_traces,
)
from meta_rl.eval_figures import interval
from meta_rl.eval_problems import Problems


def evaluate(
  config,
  model,
  task,
  params,
  rules: stop_rules.StopRules,
  problems: Problems,
  key,
  *,
  on_batch: Callable[[int, int], None] | None = None,
) -> tuple[dict, dict[str, np.ndarray]]:
  """Returns 'anytime' of an `eval.json`, and where each trace is stopped.

  Args:
    config, model, task, params: the policy.
    rules: calibrated for it.
    problems: on which they are evaluated. Their finished batches are kept
      where `problems` keeps them: of traces, which no rule changes.
    key: PRNG key: with that of `held_out.measure` the traces are the same.
    on_batch: is told how many rows are done, and of how many.

  Returns:
    The section, as `section` makes it, and label -> i[N], the boundary at which
    a rule stops each trace; of rules that do not go past the own stop.

  Raises:
    ValueError: rules of another policy or thinking budget.
  """
  rules.check(config.rollout.thinking_budget, params)
  found = {}
  for mode in stop_traces.MODES:
    calls = stop_traces.make_calls(config, model, task, forced=mode == 'forced')
    traces = stop_traces.gather(
      calls,
      params,
      problems.batches(),
      key,
      kept=problems.kept(f'rules-{mode}'),
      on_batch=on_batch,
    )
    found[mode] = stop_traces.with_index(traces, rules.heads[mode])
  return section(rules, found, problems.clusters), stops(rules, found['own'])


def section(
  rules: stop_rules.StopRules,
  found: dict[str, dict[str, np.ndarray]],
  clusters: np.ndarray,
) -> dict:
  """Returns the figures of rules on test traces.

  'accuracy' of 'full' and 'rules' is of greedy answers, which the rules give;
  'curves' and 'success' of 'full' are J, as all curves over tokens are.

  Args:
    rules: calibrated on other traces.
    found: mode -> scored traces.
    clusters: i[N], one id a problem.

  Returns:
    'full' (accuracy, success, tokens_mean at the own stop), 'alpha', 'delta',
    'rules' (`stop_figures.row` of each) and 'curves' ('rule', 'label',
    'forced', and `stop_figures.frontier`).
  """
  own = found['own']
  full_right, full_tokens = stop_figures.run_out(own)
  rows = np.arange(len(full_right))
  lines, curves = [], []
  for choice in rules.choices:
    kind, mode = choice['rule'], choice['mode']
    forced, traces = mode == 'forced', found[mode]
    points = {
      'calibrated': choice['threshold'],
      'equal_accuracy': choice['equal_accuracy'],
      'equal_tokens': choice['equal_tokens'] if forced else None,
    }
    given = {k: v for k, v in points.items() if v is not None}
    result = stop_figures.outcome(kind, traces, list(given.values()) or [0])
    lines += [
      stop_figures.row(
        kind,
        result,
        at,
        threshold=threshold,
        forced=forced,
        point=point,
        full_right=full_right,
        full_tokens=full_tokens,
        clusters=clusters,
      )
      for at, (point, threshold) in enumerate(given.items())
    ]
    grid = calibration.grid(kind, stop_figures.scores(kind, traces))
    curves.append(
      {
        'rule': kind,
        'label': stop_figures.label(kind, forced),
        'forced': forced,
        **stop_figures.frontier(
          stop_figures.outcome(kind, traces, grid), traces['success']
        ),
      }
    )
  success = own['success'][rows, own['count']]
  return {
    'full': {
      'accuracy': interval(full_right.astype(float), clusters),
      'success': interval(success, clusters),
      'tokens_mean': float(full_tokens.mean()),
    },
    'alpha': rules.about['alpha'],
    'delta': rules.about['delta'],
    'rules': lines,
    'curves': curves,
  }


def stops(
  rules: stop_rules.StopRules, own: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns label -> i[N], where calibrated rules stop each trace, -1: none."""
  found = {}
  for choice in rules.choices:
    kind = choice['rule']
    if choice['mode'] != 'own' or choice['threshold'] is None:
      continue
    if kind == 'episodes':
      continue
    scores = stop_figures.scores(kind, own)
    stop = calibration.threshold_stops(
      kind, scores, own['count'], [choice['threshold']]
    )[0]
    at = scores[np.arange(len(stop)), stop]
    fires = calibration.fires(kind, at, choice['threshold'])
    found[stop_figures.label(kind, False)] = np.where(fires, stop, -1)
  return found
