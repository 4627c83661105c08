"""Synthetic run folders for the tests of the report."""

import json

import numpy as np

from meta_rl import statistics as stats
from meta_rl import waste

ALGORITHMS = ('base', 'grpo', 'mrt', 'drgrpo', 'star', 'rloo')
HORIZON = 96


def traces_of(algorithm, *, rows=200, seed=0):
  """Returns success, ends, count of made-up search traces of 8 episodes."""
  gain = {'base': 0.1, 'grpo': 0.14, 'mrt': 0.24}.get(algorithm, 0.16)
  rng = np.random.default_rng(seed)
  easy = np.random.default_rng(99).uniform(0.4, 1.6, (rows, 1))
  hits = rng.uniform(size=(rows, 8)) < gain * easy
  found = np.cumsum(hits, 1) > 0
  success = np.concatenate([np.zeros((rows, 1)), found], 1) * 0.9 + 0.05
  ends = np.tile(np.arange(9) * 12, (rows, 1)) + 7
  return success, ends, np.full(rows, 8)


def write_run(
  folder,
  algorithm,
  *,
  rows=200,
  steps=60,
  name=None,
  traces=True,
  anytime=False,
  sections=False,
):
  """Writes a run folder of every file that a report reads."""
  folder.mkdir(parents=True, exist_ok=True)
  success, ends, count = traces_of(algorithm, rows=rows)
  budgets = list(range(0, HORIZON + 1, 6))
  values = stats.success_at_budgets(success, ends, count, budgets=budgets)
  accuracy, low, high = stats.bootstrap_curve(values, num_samples=200)
  regret = stats.regret_at_budgets(
    success, ends, count, budgets=budgets, horizon=HORIZON
  )
  headline = stats.bootstrap_mean(regret[:, -1], num_samples=200)
  name = name or {'base': 'base', 'drgrpo': 'Dr. GRPO'}.get(
    algorithm, algorithm.upper()
  )
  evaluation = {
    'name': name,
    'algorithm': algorithm,
    'num_problems': rows,
    'horizon': HORIZON,
    'machine': '2 cores of a made-up machine',
    'budgets': budgets,
    'accuracy_at_budget': accuracy.tolist(),
    'accuracy_low': low.tolist(),
    'accuracy_high': high.tolist(),
    'regret_at_budget': regret.mean(0).tolist(),
    'scalars': {
      'accuracy': accuracy[-1],
      'regret_token_weighted': headline._asdict(),
      'tokens_mean': 71.5 if algorithm == 'mrt' else 90.25,
      'pass@k': {'1': accuracy[-1], '8': min(1.0, accuracy[-1] + 0.1)},
      'maj@k': {'1': accuracy[-1], '8': min(1.0, accuracy[-1] + 0.05)},
    },
    'per_problem': {
      'regret_token_weighted': regret[:, -1].tolist(),
      'accuracy': values[:, -1].tolist(),
      'tokens': [90.0] * rows,
      'cluster': list(range(rows)),
    },
  }
  found = {'success': success, 'ends': ends, 'count': count}
  found['tokens'] = np.random.default_rng(5).integers(0, 2, (rows, 104)) >> 1
  found['forced'] = np.full(rows, algorithm != 'mrt')
  evaluation['waste'] = waste.summary(
    found, horizon=HORIZON, clusters=np.arange(rows)
  )
  if traces:
    evaluation['traces'] = [_trace(algorithm, i) for i in range(3)]
  if anytime:
    evaluation['anytime'] = anytime_of(accuracy[-1])
    for trace in evaluation.get('traces', ()):
      trace['stops'] = {'progress': 1, 'agreement': len(trace['episodes'])}
  if sections:
    evaluation |= budgets_of(accuracy[-1])
  (folder / 'eval.json').write_text(json.dumps(evaluation))
  if algorithm == 'base':
    return folder
  config = {
    'algorithm': {'name': algorithm, 'alpha': 1.0},
    'num_prompts': 24,
    'group_size': 8,
  }
  (folder / 'config.json').write_text(json.dumps(config))
  rng = np.random.default_rng(1)
  speed = {'mrt': 12, 'grpo': 25}.get(algorithm, 20)
  lines = []
  for step in range(steps):
    share = 1 - np.exp(-step / speed)
    row = {
      'step': step,
      'reward/mean': 0.5 + 0.4 * share + 0.04 * rng.normal(),
      'regret/token_weighted': 0.6 - 0.25 * share + 0.02 * rng.normal(),
      'rollout/tokens_mean': (tokens := 90 - 20 * share + 2 * rng.normal()),
      'rollout/tokens_sum': 192 * tokens,
      'time/step_s': 1.5,
    }
    if step % 15 == 0:
      row['eval/accuracy'] = 0.5 + 0.38 * share
      row['eval/regret_token_weighted'] = 0.61 - 0.24 * share
    lines.append(json.dumps(row))
  (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


def budgets_of(accuracy):
  """Returns the sections about regrets, difficulty and votes."""
  interval = {'mean': accuracy, 'low': accuracy - 0.1, 'high': accuracy + 0.1}
  forms = dict.fromkeys(
    ('cumulative', 'token_weighted', 'normalized'), interval
  )
  figures = {'accuracy': interval, 'regret_token_weighted': interval}
  figures['tokens'] = {'mean': 31.25, 'low': 27.5, 'high': 35.75}
  vote = {
    'accuracy': [0.25, 0.5, 0.625],
    'low': [0.125, 0.375, 0.5],
    'high': [0.375, 0.625, 0.75],
    'tokens': [3.5, 12.5, 20.25],
    'thinking_on': [0.25, 0.5, 0.625],
    'gain': [{'mean': 0.0, 'low': 0.0, 'high': 0.0}] * 3,
  }
  gain = [
    {'mean': m, 'low': m - 0.0625, 'high': m + 0.0625}
    for m in (-0.125, 0.03125, 0.0)
  ]
  more = {'tokens': [7.0, 16.0, 23.75], 'thinking_on': [0.375, 0.46875, 0.625]}
  return {
    'regrets': {
      'one': forms,
      'optimum': forms,
      'best': forms | {'policies': ['base', 'MRT']},
    },
    'difficulty': {
      'label': 'numbers',
      'bins': [
        {'label': '3', 'problems': 5} | figures,
        {'label': '4 to 6', 'problems': 1111} | figures,
      ],
    },
    'votes': {
      'problems': 16,
      'answers': 2,
      'weighted': False,
      'sizes': [1, 2],
      '1': vote,
      '2': vote | more | {'gain': gain},
    },
  }


def anytime_of(accuracy):
  """Returns the section of an eval.json about adaptive stopping."""
  interval = {'mean': accuracy, 'low': accuracy - 0.1, 'high': accuracy + 0.1}
  rule = {
    'rule': 'progress',
    'label': 'progress',
    'threshold': 0.125,
    'forced': False,
    'accuracy': interval,
    'thinking_tokens': 31.25,
    'probe_tokens': 7.75,
    'tokens_mean': 39.0,
    'saved': 0.25,
    'risk': None,
    'calibrated': False,
  }
  curve = {'rule': 'progress', 'label': 'progress', 'forced': False}
  points = {'tokens': [50.0, 20.0, 35.0], 'accuracy': [0.7, 0.4, 0.6]}
  own = {'rule': 'agreement', 'label': 'agreement', 'forced': True}
  return {
    'full': {'accuracy': interval, 'tokens_mean': 52.0},
    'alpha': 0.05,
    'delta': 0.1,
    'rules': [
      rule,
      rule
      | own
      | {'threshold': None, 'risk': 0.0375, 'calibrated': True, 'saved': -0.5},
    ],
    'curves': [
      curve | points,
      curve | own | {'tokens': [60.0, 90.0], 'accuracy': [0.8, 0.85]},
    ],
  }


_ATTEMPTS = (
  ('3 5 + 8 7 - 1 no ;', 0.03),
  ('7 3 - 4 5 + 9 yes ;', 0.62),
  ('5 3 - 2 7 + 9 yes ;', -0.11),
  ('7 5 * 35 3 / no ;', 0.0),
  ('7 5 + 12 3 - 9 yes ;', 0.28),
  ('5 3 * 15 7 - 8 no ;', -0.45),
  ('7 5 - 2 3 + 5 no ;', 0.13),
)


def _trace(algorithm, index):
  order = np.random.default_rng(index + 10 * len(algorithm)).permutation(7)
  if algorithm == 'mrt':
    order = order[:4]
  success, episodes = 0.2, []
  for i in order:
    text, change = _ATTEMPTS[i]
    after = float(np.clip(success + change, 0.0, 0.99))
    episodes.append(
      {
        'text': text,
        'success': after,
        'progress': after - success,
        'tokens': 9,
      }
    )
    success = after
  return {
    'prompt': ('3 7 5 = 9', '2 8 6 = 12', '4 9 1 = 6')[index],
    'episodes': episodes,
    'success_start': 0.2,
    'answer': '7 5 + 3 -',
    'reward': float(success > 0.5),
    'stopped': 'policy' if algorithm == 'mrt' else 'budget',
  }
