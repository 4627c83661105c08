"""The headline figures of evaluations: one row a policy, as data and as text.

An evaluation is the content of an `eval.json`. Figures that are not there come
out as nan and are shown as a dash; nothing is guessed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meta_rl import statistics

NONE = '–'
# The accuracy at which budgets are compared: J without thinking plus this share
# of what the base gains. The base's last value itself would not do: its curve
# is flat there, and chance decides when it is reached.
LEVEL = 0.95
MIN_GAIN = 0.01  # a base that gains less has no such accuracy
UNKNOWN = statistics.Interval(math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class Headline:
  """One policy's row of the headline table; nan where a figure is missing.

  Attributes:
    name: of the policy.
    accuracy: mean J at the full token budget, with its interval.
    regret: token-weighted, with its interval.
    change: of the regret, relative to the base, paired; nan for the base.
    tokens: mean thinking tokens at the policy's own stop.
    level: the accuracy at which budgets are compared: `LEVEL` of what the base
      gains by thinking; nan if that is less than `MIN_GAIN`.
    tokens_to_base: token budget at which it has reached the level.
    efficiency: the base's budget to get there over its own.
    spent: mean tokens thought at that budget, own stops counted.
    pass_at: (k, pass@k) for the largest k that all runs have.
    maj_at: (k, maj@k) for the largest k that all runs have.
  """

  name: str
  accuracy: statistics.Interval
  regret: statistics.Interval
  change: statistics.Interval
  tokens: float
  level: float
  tokens_to_base: float
  efficiency: float
  spent: float
  pass_at: tuple[int, float]
  maj_at: tuple[int, float]


def headlines(evals: Sequence[Mapping[str, Any]]) -> list[Headline]:
  """Returns the headline row of every evaluation, in the order given."""
  if not evals:
    return []
  reference = evals[reference_index(evals)]
  pass_k, maj_k = (_shared_k(evals, name) for name in ('pass@k', 'maj@k'))
  base_budgets, base_curve = curve(reference, 'accuracy_at_budget')
  level = level_of(base_curve)
  base_tokens = math.nan
  if math.isfinite(level):
    base_tokens = statistics.tokens_to_accuracy(base_budgets, base_curve, level)
  rows = []
  for evaluation in evals:
    budgets, values = curve(evaluation, 'accuracy_at_budget')
    tokens = math.nan
    if len(values) and math.isfinite(level):
      tokens = statistics.tokens_to_accuracy(budgets, values, level)
    regret = _regret(evaluation)
    change = UNKNOWN
    if evaluation is not reference:
      change = _change(evaluation, reference, regret)
    rows.append(
      Headline(
        name=str(evaluation.get('name', 'run')),
        accuracy=_accuracy(evaluation, values),
        regret=regret,
        change=change,
        tokens=scalar(evaluation, 'tokens_mean').mean,
        level=level,
        tokens_to_base=tokens,
        efficiency=base_tokens / tokens if tokens > 0 else math.nan,
        spent=_spent(evaluation, tokens),
        pass_at=(pass_k, _at_k(evaluation, 'pass@k', pass_k)),
        maj_at=(maj_k, _at_k(evaluation, 'maj@k', maj_k)),
      )
    )
  return rows


def level_of(values: np.ndarray) -> float:
  """Returns the accuracy at which budgets are compared, of the base's curve.

  nan if the base gains less than `MIN_GAIN`.
  """
  if not len(values) or values[-1] - values[0] < MIN_GAIN:
    return math.nan
  return float(values[0] + LEVEL * (values[-1] - values[0]))


def cells(row: Headline) -> list[tuple[str, str, str]]:
  """Returns a row as (column, figure, detail), all plain text."""
  efficiency = ''
  if math.isfinite(row.efficiency):
    efficiency = f'{row.efficiency:.2f}× fewer'
    if row.efficiency < 1:
      efficiency = f'{1 / row.efficiency:.2f}× more'
    if row.efficiency == 1:
      efficiency = ''
  reached = fixed(row.tokens_to_base, 1)
  if math.isfinite(row.level + row.accuracy.mean) and reached == NONE:
    reached = 'not reached'
  listed = [
    ('policy', row.name, ''),
    ('accuracy at full budget', *_with_interval(row.accuracy, 3)),
    ('regret', *_with_interval(row.regret, 3)),
    ('change of regret', *_with_interval(row.change, 1, share=True)),
    ('tokens at own stop', fixed(row.tokens, 1), ''),
    ("budget to 95% of the base's gain", reached, efficiency),
    ('tokens spent there', fixed(row.spent, 1), ''),
  ]
  for name, (k, value) in (('pass', row.pass_at), ('maj', row.maj_at)):
    if k:
      listed.append((f'{name}@{k}', fixed(value, 3), ''))
  return listed


def headline_table(evals: Sequence[Mapping[str, Any]]) -> str:
  """Returns the headline figures of some evaluations as a Markdown table.

  Args:
    evals: contents of `eval.json` files, the base policy among them.

  Returns:
    Lines of equal width, one a policy, below the header.
  """
  table = [cells(row) for row in headlines(evals)]
  if not table:
    return (
      'No evaluation to show: run python -m meta_rl.evaluate --workdir=DIR for '
      'each run first.'
    )
  header = [column for column, _, _ in table[0]]
  if not any(is_base(e) for e in evals):
    name = table[0][0][1]
    header = [h.replace('the base', name) for h in header]
  lines = [header, *([f'{f} {d}' for _, f, d in row] for row in table)]
  return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
  """Returns cells, the header's first, as a Markdown table of equal widths."""
  # A name cannot break the table.
  lines = [[' '.join(c.replace('|', '/').split()) for c in l] for l in lines]
  widths = [max(map(len, column)) for column in zip(*lines)]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(
    '| ' + ' | '.join(c.ljust(w) for c, w in zip(line, widths)) + ' |'
    for line in lines
  )


def compare(
  a: Mapping[str, Any],
  b: Mapping[str, Any],
  name: str,
  *,
  statistic: str = 'difference',
) -> statistics.Interval | None:
  """Returns the paired comparison of two evaluations, None if unpaired.

  Args:
    a: the evaluation of the method.
    b: the evaluation that it is compared with.
    name: a key of `per_problem`.
    statistic: 'difference' or 'relative'.

  Returns:
    The interval; None unless both hold the same problems for this key, the
    same horizon, and were measured alike (`setting`).
  """
  left, right = mapping(a.get('per_problem')), mapping(b.get('per_problem'))
  x, y = numbers(left.get(name)), numbers(right.get(name))
  same = left.get('cluster') == right.get('cluster')
  same &= a.get('horizon') == b.get('horizon')
  same &= setting(a) == setting(b)
  if not same or not len(x) or x.shape != y.shape:
    return None
  if not np.isfinite([x, y]).all():
    return None
  if statistic == 'relative' and y.mean() == 0:
    return None
  clusters = numbers(left.get('cluster'))
  return statistics.paired_bootstrap(
    x,
    y,
    statistic=statistic,
    clusters=clusters if clusters.shape == x.shape else None,
  )


def setting(evaluation: Mapping[str, Any]) -> dict[str, Any]:
  """Returns how it was measured: the prover's kind, and the temperature.

  Only what was measured alike is paired. None: it is not known.
  """
  measured = mapping(evaluation.get('measured'))
  kind = mapping(evaluation.get('prover')).get('kind')
  return {
    'prover': measured.get('prover', kind),
    'temperature': measured.get('temperature'),
  }


def is_base(evaluation: Mapping[str, Any], algorithm: str = '') -> bool:
  """Returns whether an evaluation is of the base policy."""
  algorithm = str(evaluation.get('algorithm', algorithm)).lower()
  return algorithm == 'base' or str(evaluation.get('name')).lower() == 'base'


def reference_index(evals: Sequence[Mapping[str, Any]]) -> int:
  """Returns which run the others are compared with: the base or the first."""
  return next((i for i, e in enumerate(evals) if is_base(e)), 0)


def scalar(evaluation: Mapping[str, Any], name: str) -> statistics.Interval:
  """Returns a scalar of an evaluation; without an interval, nan ends."""
  return interval_of(mapping(evaluation.get('scalars')).get(name))


def interval_of(value: Any) -> statistics.Interval:
  """Returns mean, low and high of a JSON object, or a number with nan ends."""
  if isinstance(value, dict):
    return statistics.Interval(
      *(number(value.get(part)) for part in ('mean', 'low', 'high'))
    )
  return statistics.Interval(number(value), math.nan, math.nan)


def curve(
  evaluation: Mapping[str, Any], name: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (budgets, values) of a curve, empty where they do not fit."""
  budgets, values = (
    numbers(evaluation.get('budgets')),
    numbers(evaluation.get(name)),
  )
  bad = budgets.shape != values.shape or not len(budgets)
  if bad or not np.isfinite([budgets, values]).all():
    return np.zeros(0), np.zeros(0)
  if (np.diff(budgets) <= 0).any():
    return np.zeros(0), np.zeros(0)
  return budgets, values


def number(value: Any) -> float:
  """Returns a JSON value as a float; nan if it is no finite number."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return math.nan
  try:
    value = float(value)
  except OverflowError:
    return math.nan
  return value if math.isfinite(value) else math.nan


def numbers(value: Any) -> np.ndarray:
  """Returns a JSON list as f64[N], nan where an entry is no finite number."""
  if not isinstance(value, list):
    return np.zeros(0)
  return np.array([number(entry) for entry in value], np.float64)


def mapping(value: Any) -> dict[str, Any]:
  """Returns a JSON object as it is, and {} for anything else."""
  return value if isinstance(value, dict) else {}


def fixed(value: float, digits: int) -> str:
  """Returns a number for print, with a true minus, and – for no number."""
  if not math.isfinite(value):
    return NONE
  text = f'{value:.{digits}f}'
  if not float(text):
    text = text.lstrip('-')
  return text.replace('-', '−')


def percent(value: float, digits: int = 1) -> str:
  """Returns a share as a signed percentage."""
  text = fixed(100 * value, digits)
  if text == NONE:
    return NONE
  return ('+' if value > 0 and float(text) else '') + text + '%'


def interval_text(
  interval: statistics.Interval, digits: int, *, share: bool = False
) -> str:
  """Returns 'low to high', '' without an interval."""
  if math.isnan(interval.low) or math.isnan(interval.high):
    return ''
  if not math.isfinite(interval.low) or not math.isfinite(interval.high):
    return 'not resolved'
  if share:
    return (
      f'{percent(interval.low, digits)} to {percent(interval.high, digits)}'
    )
  return f'{fixed(interval.low, digits)} to {fixed(interval.high, digits)}'


def _with_interval(interval, digits, *, share=False):
  shown = percent if share else fixed
  text = interval_text(interval, digits, share=share)
  return shown(interval.mean, digits), f'[{text}]' if text else ''


def _spent(evaluation, budget):
  budgets, spent = curve(evaluation, 'tokens_at_budget')
  if not len(spent) or not math.isfinite(budget):
    return math.nan
  return float(np.interp(budget, budgets, spent))


def _accuracy(evaluation, values):
  if not len(values):
    return scalar(evaluation, 'accuracy')
  ends = [
    numbers(evaluation.get(name)) for name in ('accuracy_low', 'accuracy_high')
  ]
  low, high = (e[-1] if e.shape == values.shape else math.nan for e in ends)
  return statistics.Interval(float(values[-1]), float(low), float(high))


def _regret(evaluation):
  stated = scalar(evaluation, 'regret_token_weighted')
  values = numbers(
    mapping(evaluation.get('per_problem')).get('regret_token_weighted')
  )
  if math.isfinite(stated.low) or not len(values):
    return stated
  if not np.isfinite(values).all():
    return stated
  clusters = numbers(mapping(evaluation.get('per_problem')).get('cluster'))
  return statistics.bootstrap_mean(
    values, clusters=clusters if clusters.shape == values.shape else None
  )


def _change(evaluation, reference, regret):
  paired = compare(
    evaluation, reference, 'regret_token_weighted', statistic='relative'
  )
  if paired is not None:
    return paired
  if setting(evaluation) != setting(reference):
    return UNKNOWN
  base = _regret(reference).mean
  change = regret.mean / base - 1 if base else math.nan
  return statistics.Interval(change, math.nan, math.nan)


def _shared_k(evals, name):
  shared = None
  for evaluation in evals:
    table = mapping(mapping(evaluation.get('scalars')).get(name))
    ks = {int(k) for k in table if str(k).isascii() and str(k).isdigit()}
    if ks:
      shared = ks if shared is None else shared & ks
  return max(shared, default=0) if shared else 0


def _at_k(evaluation, name, k):
  table = mapping(mapping(evaluation.get('scalars')).get(name))
  value = table.get(str(k))
  return number(value['mean'] if isinstance(value, dict) else value)
