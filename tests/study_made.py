"""Made-up cells of a study, for the tests of its report."""

import json

import numpy as np

from meta_rl import study_files

# How much better than the base each method gets, by dose.
GAINS = {
  'base': 0.0,
  'grpo': 0.10,
  'length_penalty': 0.04,
  'mrt_rl': 0.11,
  'mrt_sampled': 0.12,
  'mrt_exact': 0.16,
}


def make_cell(study, key, *, gain=None, luck=0.004, spec=None):
  """Returns a cell as `study_cell.sum_up` gives it.

  Args:
    study: the config.
    key: which cell.
    gain: of its accuracy over the base; None: that of GAINS.
    luck: standard deviation of a seed's, for all and for this method alone.
    spec: whose settings it has; None: none.
  """
  dose, method = study.doses[key.dose], study.methods[key.method]
  gain = GAINS.get(key.method, 0.08) if gain is None else gain
  # What a seed does to all methods, and what it does to this one.
  shared = np.random.default_rng(key.seed).normal() * luck
  own = np.random.default_rng([key.seed, len(key.method)]).normal() * luck
  gain += (shared + own) * method.get('train', True)
  horizon = (
    9
    * dose.overrides.to_dict().get('prover', {'max_episodes': 3})[
      'max_episodes'
    ]
  )
  budgets = np.arange(horizon + 1)
  curve = lambda t: 0.25 + (0.4 + gain) * (1 - np.exp(-2.5 * t / horizon))
  accuracy = curve(budgets)
  regret = float(1 - accuracy.mean())
  problems = 40
  factors = [1, *dose.get('extrapolate', ())]
  long = np.arange(0, factors[-1] * horizon + 1, 9)
  value = lambda x: {'mean': round(float(x), 5), 'low': 0.0, 'high': 1.0}
  boundaries = horizon // 9 + 1
  stop = lambda stops: {
    'stops': [stops] * boundaries,
    'chances': [100] * boundaries,
    'rate': stops / 100,
  }
  points = np.linspace(0.1, 1, 10)
  held_out = {
    'step': [10 * i for i in range(1, 11)],
    'cost': (points * dose.total_cost).tolist(),
    'seconds': (300 * points).tolist(),
    'accuracy': (0.6 + gain * points).tolist(),
    'regret': (regret + 0.1 * (1 - points)).tolist(),
    'tokens': [40.0] * 10,
  }
  trained = method.get('train', True)
  if not trained:
    held_out = {name: [] for name in held_out}
  train = {k: held_out[k] for k in ('step', 'cost', 'seconds', 'tokens')}
  result = {
    'format': 1,
    **key._asdict(),
    'label': method.label,
    'train': trained,
    'config': spec['config'] if spec else {},
    'evaluation': spec['evaluation'] if spec else {},
    'machine': '2 cores of a made-up machine',
    'horizon': horizon,
    'num_problems': problems,
    'steps': 100 * trained,
    'cost': dose.total_cost * trained,
    'tokens': 4e5 * trained,
    'seconds': {'train': 300.0 * trained, 'evaluate': 60.0},
    'scalars': {
      'accuracy': value(accuracy[-1]),
      'reward': value(accuracy[-1]),
      'regret_token_weighted': value(regret),
      'regret_normalized': value(regret),
      'tokens_to_accuracy': {},
      'tokens_mean': 40.0 - 50 * gain,
      'forced_rate': 0.1,
      'pass@k': {'1': 0.5},
      'maj@k': {'1': 0.5},
    },
    'stopping': {
      'solved_above': 0.5,
      'solved': stop(80),
      'unsolved': stop(5),
    },
    'budgets': budgets.tolist(),
    'accuracy_at_budget': accuracy.tolist(),
    'learning': {
      'held_out': held_out,
      'train': {**train, 'reward': held_out['accuracy']},
    },
    'problems': 12345,
    'extrapolation': {
      'num_problems': problems,
      'factors': factors,
      'horizons': [f * horizon for f in factors],
      'budgets': long.tolist(),
      'accuracy_at_budget': curve(long).tolist(),
      'accuracy': [value(curve(f * horizon)) for f in factors],
      'regret_token_weighted': [value(regret * 0.9**f) for f in factors],
      'regret_normalized': [value(regret * 0.95**f) for f in factors],
      'per_problem': [[0.5] * problems] * len(factors),
    },
    'base_prover': {
      'accuracy': value(accuracy[-1] - 0.02),
      'regret_token_weighted': value(regret + 0.02),
      'accuracy_at_budget': accuracy.tolist(),
    },
  }
  return json.loads(json.dumps(result))


def write_cells(study, folder, keys, **options):
  """Writes the made-up cells of some keys into a study's folder."""
  for key in keys:
    path = study_files.path_of(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(make_cell(study, key, **options)))


def make_variance(rows=((1, 9.0), (4, 2.0), (None, 0.0)), between=5.0):
  """Returns the content of a variance/<dose>.json."""
  return {
    'dose': 'u4',
    'batches': 8,
    'draws': 4,
    'traces': 192,
    'machine': 'made up',
    'rows': [
      {
        'prover': f'{m} branches' if m else 'exact',
        'branches': m,
        'between': between,
        'within': within,
        'total': between + within,
        'mean_norm': 1.0,
        'cost': 50_000.0 + 1000 * (m or 5),
      }
      for m, within in rows
    ],
  }
