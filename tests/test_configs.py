"""The shipped configs: each argument builds, runs, and says what it is."""

import math
import re

import ml_collections
import numpy as np
import pytest
from conftest import ROOT

from meta_rl import data, env, setup_run, signals, workdir
from meta_rl.configs import (
  external_countdown,
  grpo_countdown,
  mrt_countdown,
  sft_countdown,
)

pytest_plugins = ['small_runs']

FILES = sorted(f for f in (ROOT / 'configs').glob('*.py') if f.stem[0] != '_')
BUILT = [
  *((mrt_countdown, arg) for arg in ('', 'hard', 'tiny')),
  *(
    (grpo_countdown, arg)
    for arg in ('', 'hard', 'tiny', 'dr', 'rloo', 'dr,hard', 'rloo,tiny')
  ),
  *((sft_countdown, arg) for arg in ('', 'hard', 'tiny')),
  *((external_countdown, arg) for arg in ('', 'grpo', 'row,hard', 'tiny')),
]


@pytest.mark.parametrize('module, arg', BUILT)
def test_built_locked_and_of_one_piece(module, arg):
  config = workdir.lock_and_check(module.get_config(arg))
  assert isinstance(config, ml_collections.ConfigDict)
  with pytest.raises((AttributeError, KeyError)):
    config.optimizer.lr = 1.0
  setup_run.check(config)
  task = setup_run.make_task(config)
  # Every episode of a full budget is one of the prover's.
  episodes = config.rollout.thinking_budget / task.episode_length
  assert episodes == config.prover.max_episodes
  # Two calls share nothing.
  config.rollout.thinking_budget += 1
  assert module.get_config(arg).rollout.thinking_budget % 9 == 0


@pytest.mark.parametrize(
  'module',
  [mrt_countdown, grpo_countdown, sft_countdown, external_countdown],
)
def test_an_unknown_argument_is_refused(module):
  with pytest.raises(ValueError, match='unknown argument .*hard'):
    module.get_config('tinny')


def test_all_configs_are_here():
  names = {module.__name__.split('.')[-1] for module, _ in BUILT}
  assert names == {file.stem for file in FILES} == set(env.config_names())


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_the_header_runs_its_own_file(file):
  doc = file.read_text('utf-8').split('"""')[1]
  assert set(re.findall(r'--config=(\S+)', doc)) == {f'configs/{file.name}'}
  assert 'python -m meta_rl.train' in doc
  assert '--workdir=' in doc


def test_the_controls_differ_in_credit_alone():
  """A comparison compares what it says."""
  mrt, grpo = mrt_countdown.get_config(), grpo_countdown.get_config()
  changed = workdir.difference(mrt.to_dict(), grpo.to_dict())
  rest = {key for key in changed if not key.startswith('algorithm.')}
  assert rest == {'name', 'loss.aggregate'}
  dr = grpo_countdown.get_config('dr')
  changed = workdir.difference(grpo.to_dict(), dr.to_dict())
  assert set(changed) == {'name', 'algorithm.baseline', 'loss.aggregate'}
  rloo = grpo_countdown.get_config('rloo')
  changed = workdir.difference(grpo.to_dict(), rloo.to_dict())
  assert set(changed) == {'name', 'algorithm.baseline'}


def test_the_base_policy_fits_what_starts_from_it():
  for arg in ('', 'hard'):
    rl, sft = mrt_countdown.get_config(arg), sft_countdown.get_config(arg)
    assert rl.model.to_dict() == sft.model.to_dict()
    assert rl.task.to_dict() == sft.task.to_dict()
    assert rl.init_from.startswith('asset:')
    assert sft.init_from == {'': '', 'hard': 'asset:countdown_easy'}[arg]


@pytest.mark.parametrize('name', ['mrt', 'grpo', 'sft', 'external'])
def test_no_key_is_dead(name, small):
  """Each key is read by the package: by itself, or with its whole group.

  A group that is taken whole (`config.loss.to_dict()`) goes into a function as
  keyword arguments, where an unknown key raises.
  """
  text = '\n'.join(
    f.read_text('utf-8') for f in sorted((ROOT / 'meta_rl').rglob('*.py'))
  )
  dead = [
    key
    for key in workdir.flatten(small.config(name).to_dict())
    if not is_read(key, text)
  ]
  assert dead == []


def is_read(key, text):
  """Whether source text reads a dotted key, or a group that holds it."""
  parts = key.split('.')
  # `rollout = config.rollout` is a habit of the code: the first part may stand
  # alone.
  own = (
    rf'\b(?:config\.)?{re.escape(key)}\b' if parts[1:] else rf'config\.{key}\b'
  )
  whole = [
    rf'config\.{re.escape(".".join(parts[:n]))}\.(?:to_dict|items)\('
    for n in range(1, len(parts))
  ]
  return any(re.search(pattern, text) for pattern in (own, *whole))


def test_is_read_tells_dead_from_alive():
  text = 'x = config.loss.to_dict()\ny = rollout.top_p\nz = config.seed\n'
  assert is_read('loss.chunk', text)
  assert is_read('rollout.top_p', text)
  assert is_read('seed', text)
  assert not is_read('rollout.top', text)
  assert not is_read('lossy.chunk', text)
  assert not is_read('see', text)


# ---- they run

VARIANTS = {
  'grpo': ('grpo', 'tiny', {}),
  'Dr. GRPO': ('grpo', 'dr,tiny', {}),
  'RLOO': ('grpo', 'rloo,tiny', {}),
  'immediate': ('mrt', 'tiny', {'algorithm__credit': 'immediate'}),
  'return to go': ('mrt', 'tiny', {'algorithm__credit': 'return_to_go'}),
  'sampled': (
    'mrt',
    'tiny',
    {'prover__kind': 'sampled', 'prover__num_branches': 2},
  ),
  'KL and entropy': (
    'mrt',
    'tiny',
    {'loss__kl_coef': 0.01, 'loss__entropy_coef': 0.01, 'loss__chunk': 16},
  ),
}


# Beyond these, an update of its own compiles: several seconds each.
SHORT = ('grpo', 'sampled')


@pytest.mark.parametrize(
  'variant',
  [
    pytest.param(name, marks=[] if name in SHORT else pytest.mark.full)
    for name in VARIANTS
  ],
)
def test_two_steps(variant, small, tmp_path):
  """`mrt:tiny` itself, and `sft:tiny`, run in test_train and test_sft."""
  name, arg, changes = VARIANTS[variant]
  config = small.config(name, arg, total_steps=2, **changes)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  assert [row['step'] for row in result.rows] == [1, 2]
  for row in result.rows:
    assert all(math.isfinite(value) for value in row.values())
    # generate, prove, update, summarize, score where there is a KL term, and
    # from the evaluation of step 2 on its own generate and prove.
    calls = 4 + (variant == 'KL and entropy') + 2 * (row['step'] == 2)
    assert row['compile/count'] == calls
    assert ('loss/kl' in row) == (variant == 'KL and entropy')
    # Measured on the rollout, whatever trains.
    assert 0 <= row['regret/token_weighted'] <= 1
  assert 'eval/regret_token_weighted' in result.rows[-1]


@pytest.mark.full
def test_a_config_without_a_prover_logs_no_regret(small, tmp_path):
  config = small.config('grpo', prover__kind='none', total_steps=1)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  assert not [k for k in result.rows[0] if k.startswith(('regret', 'progress'))]
  # The held-out evaluation has its own exact prover.
  assert 'eval/regret_token_weighted' in result.rows[0]


def test_mrt_and_grpo_see_the_same_problems(small):
  batches = []
  for name in ('mrt', 'grpo'):
    config = small.config(name)
    source = setup_run.load_problems(config, 'train')
    iterator = data.problem_iterator(source, batch_size=4, seed=config.seed)
    batches.append([next(iterator)['prompts'] for _ in range(3)])
  assert np.array_equal(*batches)
