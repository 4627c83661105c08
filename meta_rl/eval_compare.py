"""Evaluations side by side: the best of them, and paired differences.

All of it is made from the contents of `eval.json` files, so that what was
measured long ago can stand beside what was measured now.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meta_rl import eval_difficulty, eval_regrets, headline
from meta_rl.headline import NONE, fixed, interval_text, mapping

# Column, where it stands, digits.
_COLUMNS = (
  ('accuracy', ('scalars', 'accuracy'), 3),
  ('regret', ('scalars', 'regret_token_weighted'), 4),
  ('normalized', ('scalars', 'regret_normalized'), 4),
  ('cumulative', ('regrets', 'one', 'cumulative'), 2),
  ('against the optimum', ('regrets', 'optimum', 'token_weighted'), 4),
  ('against the best', ('regrets', 'best', 'token_weighted'), 4),
  ('tokens', ('scalars', 'tokens_mean'), 1),
)
_DIFFERENCES = (('accuracy', 3), ('regret_token_weighted', 4), ('tokens', 1))


def profile_of(evaluation: Mapping[str, Any]) -> eval_regrets.Profile | None:
  """Returns the profile of an evaluation's traces, None where it has none."""
  own = mapping(evaluation.get('per_problem'))
  horizon, episodes = (
    evaluation.get(name) for name in ('horizon', 'max_episodes')
  )
  rows = own.get('boundary_success'), own.get('boundary_tokens')
  try:
    count = np.asarray([len(row) - 1 for row in rows[0]])
    width = episodes + 1
    success, ends = (
      np.asarray([row + row[-1:] * (width - len(row)) for row in part])
      for part in rows
    )
    return eval_regrets.profile(success, ends, count, horizon=horizon)
  except (TypeError, ValueError, IndexError):
    return None


def best_regrets(evals: Sequence[Mapping[str, Any]]) -> list[dict | None]:
  """Returns each one's regret against the best of those it is comparable with.

  That is: of the same problems, horizon and number of episodes, measured alike
  (`headline.setting`). Of several such groups the largest is compared, the
  first of those that are equally large, whatever order the others stand in.

  Returns:
    As `eval_regrets.against`, and 'policies', the names of those compared; None
    for an evaluation of others, and throughout where fewer than two are left.
  """
  profiles = [profile_of(each) for each in evals]
  settings = [
    None if profile is None else _setting(each)
    for each, profile in zip(evals, profiles)
  ]
  known = [each for each in settings if each is not None]
  largest = max(known, key=known.count, default=None)  # the first of equals
  if known.count(largest) < 2:
    return [None] * len(evals)
  same = [each == largest for each in settings]
  best = eval_regrets.best_of([p for p, s in zip(profiles, same) if s])
  names = [str(each.get('name')) for each, s in zip(evals, same) if s]
  clusters = np.asarray(evals[same.index(True)]['per_problem']['cluster'])
  return [
    eval_regrets.against(profile, best, clusters) | {'policies': names}
    if alike
    else None
    for profile, alike in zip(profiles, same)
  ]


def difficulty_by(
  reference: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> dict | None:
  """Returns the figures of an evaluation by how often another policy was right.

  Args:
    reference: content of an eval.json, whose traces of pass@k say how hard the
      problems are; they are others than the traces of its own figures.
    evaluation: content of the eval.json that is divided.

  Returns:
    As `eval_difficulty.by_difficulty`; None where the two share no problem.
  """
  rates = mapping(reference.get('success_rates'))
  found: dict[int, list[float]] = {}
  for cluster, rate in zip(rates.get('cluster', ()), rates.get('rate', ())):
    found.setdefault(cluster, []).append(rate)
  label = f'success rate of {reference.get("name")}'
  own = evaluation['per_problem']
  return eval_difficulty.by_difficulty(
    [
      (label, float(np.mean(found[cluster]))) if cluster in found else None
      for cluster in own['cluster']
    ],
    own,
  )


def table(evals: Sequence[Mapping[str, Any]]) -> str:
  """Returns evaluations side by side as Markdown: figures, then differences.

  Differences are from the base, or else from the first, and paired problem by
  problem; where the problems are not the same, or not measured alike, they are
  left out, which a line below the tables says.
  """
  columns = [c for c in _COLUMNS if any(_at(e, c[1]) for e in evals)]
  lines = [['policy', *(name for name, _, _ in columns)]]
  for each in evals:
    cells = [_cell(_at(each, path), digits) for _, path, digits in columns]
    lines.append([str(each.get('name')), *cells])
  shown = headline.markdown(lines)
  index = headline.reference_index(evals)
  reference = evals[index]
  lines = [
    ['less ' + str(reference.get('name')), 'accuracy', 'regret', 'tokens']
  ]
  unpaired, otherwise = [], []
  for each in (e for i, e in enumerate(evals) if i != index):
    pairs = [
      headline.compare(each, reference, name) for name, _ in _DIFFERENCES
    ]
    if unlike := _unlike(each, reference):
      otherwise.append(f'{each.get("name")} ({unlike})')
    elif None in pairs:
      unpaired.append(str(each.get('name')))
    lines.append(
      [
        str(each.get('name')),
        *(
          NONE if pair is None else _cell(pair._asdict(), digits)
          for pair, (_, digits) in zip(pairs, _DIFFERENCES)
        ),
      ]
    )
  shown += f'\n\n{headline.markdown(lines)}'
  if otherwise:
    shown += (
      f'\n\nNot paired with {reference.get("name")}, measured otherwise: '
      f'{", ".join(otherwise)}.'
    )
  if unpaired:
    shown += (
      f'\n\nNot paired with {reference.get("name")}, being of other problems '
      f'or another budget: {", ".join(unpaired)}.'
    )
  return shown


def _unlike(evaluation: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
  """Returns what differs in how they were measured, or ''."""
  own, others = headline.setting(evaluation), headline.setting(reference)
  said = lambda value: 'unknown' if value is None else value
  return '; '.join(
    f'{name} {said(own[name])}, not {said(others[name])}'
    for name in own
    if own[name] != others[name]
  )


def _setting(evaluation: Mapping[str, Any]) -> tuple:
  own = mapping(evaluation.get('per_problem'))
  rest = (evaluation.get(name) for name in ('horizon', 'max_episodes'))
  return (own.get('cluster'), *rest, headline.setting(evaluation))


def _at(evaluation: Mapping[str, Any], path: Sequence[str]) -> Any:
  value = evaluation
  for key in path:
    value = mapping(value).get(key)
  return value


def _cell(value: Any, digits: int) -> str:
  if isinstance(value, Mapping):
    ends = headline.statistics.Interval(
      *(headline.number(value.get(part)) for part in ('mean', 'low', 'high'))
    )
    text = interval_text(ends, digits)
    return f'{fixed(ends.mean, digits)}{f" [{text}]" if text else ""}'
  return fixed(headline.number(value), digits)
