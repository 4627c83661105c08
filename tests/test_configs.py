"""The shipped configs: each argument builds, runs, and says what it is."""

import functools
import importlib
import json
import math
import re

import ml_collections
import numpy as np
import pytest
from conftest import ROOT

from meta_rl import (
  check_config,
  data,
  env,
  setup_run,
  sft,
  signals,
  tokenizer,
  weights,
  workdir,
)
from meta_rl.configs import (
  brpo_countdown,
  cispo_countdown,
  dapo_countdown,
  e3_countdown,
  external_countdown,
  grpo_countdown,
  gspo_countdown,
  lcpo_countdown,
  length_penalty_countdown,
  mrt_countdown,
  mrt_hidden,
  mrt_rl_countdown,
  pav_countdown,
  ppo_countdown,
  reinforce_countdown,
  rl2_countdown,
  sft_countdown,
  star_countdown,
  vineppo_countdown,
)
from meta_rl.tasks import backtrack, countdown

pytest_plugins = ['small_runs']

_OWN = ('countdown', 'hidden')
FILES = sorted(
  f for f in (ROOT / 'configs').glob('[!_]*.py') if 'study' not in f.stem
)
BUILT = [
  *((mrt_countdown, arg) for arg in ('', 'hard', 'tiny')),
  *(
    (grpo_countdown, arg)
    for arg in ('', 'hard', 'tiny', 'dr', 'rloo', 'dr,hard', 'rloo,tiny')
  ),
  *(
    (module, arg)
    for module in (
      cispo_countdown,
      dapo_countdown,
      gspo_countdown,
      length_penalty_countdown,
      sft_countdown,
    )
    for arg in ('', 'hard', 'tiny')
  ),
  *(
    (reinforce_countdown, arg)
    for arg in ('', 'hard', 'tiny', 'plain', 'plain,hard', 'plain,tiny')
  ),
  *(
    (lcpo_countdown, arg)
    for arg in ('', 'hard', 'tiny', 'exact', 'max', 'exact,hard', 'max,tiny')
  ),
  *((ppo_countdown, arg) for arg in ('', 'hard', 'tiny', 'plain,tiny')),
  *(
    (mrt_rl_countdown, arg)
    for arg in ('', 'hard', 'tiny', 'difference', 'difference,tiny')
  ),
  *(
    (external_countdown, arg) for arg in ('', 'grpo', 'row', 'row,hard', 'tiny')
  ),
  *((star_countdown, arg) for arg in ('', 'hard', 'tiny', 'mrt', 'mrt,tiny')),
  *(
    (brpo_countdown, arg)
    for arg in ('', 'hard', 'tiny', 'linear', 'base', 'base,tiny')
  ),
  *(
    (module, arg)
    for module in (vineppo_countdown, pav_countdown)
    for arg in ('', 'hard', 'tiny')
  ),
  *((rl2_countdown, arg) for arg in ('', 'all,hard', 'last', 'last,tiny')),
  *((e3_countdown, arg) for arg in ('', 'hard', 'tiny', 'mrt', 'mrt,tiny')),
  *((mrt_hidden, arg) for arg in ('', 'sft', 'tiny', 'sft,tiny')),
]
MODULES = sorted({module for module, _ in BUILT}, key=lambda m: m.__name__)
BUILT += [
  (module, 'backtrack,tiny') for module in MODULES if module is not mrt_hidden
]
BUILT += [
  (module, arg)
  for module in (mrt_countdown, sft_countdown)
  for arg in ('backtrack', 'hard,backtrack')
]
BUILT += [(sft_countdown, arg) for arg in ('patient', 'patient,tiny')]


@pytest.mark.parametrize('module, arg', BUILT)
def test_built_locked_and_of_one_piece(module, arg):
  config = workdir.lock_and_check(module.get_config(arg))
  assert isinstance(config, ml_collections.ConfigDict)
  with pytest.raises((AttributeError, KeyError)):
    config.optimizer.lr = 1.0
  check_config.check(config)
  task = setup_run.make_task(config)
  # Every episode of a full budget is one of the prover's.
  budget = config.rollout.thinking_budget
  episodes = budget / task.episode_length
  if 'backtrack' in arg:
    shortest = backtrack.shortest_episode()
    episodes = 1 + math.ceil((budget - 3 * config.task.n) / shortest)
  assert episodes == config.prover.max_episodes
  # Two calls share nothing.
  config.rollout.thinking_budget += 1
  again = module.get_config(arg).rollout.thinking_budget
  assert again == config.rollout.thinking_budget - 1


@pytest.mark.parametrize('module', MODULES)
def test_an_unknown_argument_is_refused(module):
  with pytest.raises(ValueError, match='unknown argument .*tiny'):
    module.get_config('tinny')


def test_all_configs_are_here():
  names = {module.__name__.split('.')[-1] for module, _ in BUILT}
  # Those of language models: tests/test_llm_configs.py.
  here = [f.stem for f in FILES if set(f.stem.split('_')) & set(_OWN)]
  assert names == set(here)
  every = {f.stem for f in FILES} | {'study_countdown'}
  assert every == set(env.config_names())


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_the_header_runs_its_own_file(file):
  doc = file.read_text('utf-8').split('"""')[1]
  named = re.findall(r'--config=([^\s:]+)(?::(\S+))?', doc)
  assert {name for name, _ in named} == {f'configs/{file.name}'}
  for _, arg in named:
    importlib.import_module(f'meta_rl.configs.{file.stem}').get_config(arg)
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
  assert set(changed) == {'name', 'algorithm.baseline', 'loss.aggregate'}
  # Sums over a trace's tokens in all three: they differ in the baseline alone.
  reinforce = reinforce_countdown.get_config()
  for other in (dr, reinforce):
    changed = workdir.difference(rloo.to_dict(), other.to_dict())
    assert set(changed) == {'name', 'algorithm.baseline'}
  ppo = ppo_countdown.get_config()
  changed = workdir.difference(mrt.to_dict(), ppo.to_dict())
  groups = {key.partition('.')[0] for key in changed}
  assert groups == {'name', 'algorithm', 'critic'}


@pytest.mark.parametrize(
  'base, own, groups',
  [
    (mrt_countdown, rl2_countdown, {'algorithm'}),
    (mrt_countdown, vineppo_countdown, {'algorithm', 'prover'}),
    (vineppo_countdown, pav_countdown, {'algorithm'}),
    (grpo_countdown, e3_countdown, {'curriculum'}),
  ],
)
@pytest.mark.parametrize('scale', ['', 'hard', 'tiny'])
def test_what_a_config_changes_in_another(base, own, groups, scale):
  one, other = base.get_config(scale), own.get_config(scale)
  changed = workdir.difference(one.to_dict(), other.to_dict())
  assert {key.partition('.')[0] for key in changed} == groups | {'name'}


# What each outcome-reward config changes in GRPO's, and nothing more.
OWN_KEYS = {
  (reinforce_countdown, ''): {'algorithm.baseline', 'loss.aggregate'},
  (reinforce_countdown, 'plain'): {'algorithm.baseline', 'loss.aggregate'},
  (dapo_countdown, ''): {
    'algorithm.shaping',
    'algorithm.max_length',
    'algorithm.cache_length',
    'loss.clip_high',
    'loss.aggregate',
    'rollout.dynamic_sampling.max_rounds',
  },
  (gspo_countdown, ''): {'loss.ratio', 'loss.clip_low', 'loss.clip_high'},
  (cispo_countdown, ''): {
    'loss.surrogate',
    'loss.clip_low',
    'loss.clip_high',
    'loss.aggregate',
  },
  (lcpo_countdown, ''): {
    'algorithm.shaping',
    'algorithm.target_length',
    'algorithm.alpha',
  },
  (lcpo_countdown, 'max'): {
    'algorithm.shaping',
    'algorithm.max_length',
    'algorithm.alpha',
  },
  (length_penalty_countdown, ''): {
    'algorithm.baseline',
    'algorithm.shaping',
    'algorithm.alpha',
  },
}


@pytest.mark.parametrize('module, arg', OWN_KEYS)
@pytest.mark.parametrize('scale', ['', 'hard'])
def test_outcome_configs_are_grpo_but_for_their_own_keys(module, arg, scale):
  grpo = grpo_countdown.get_config(scale)
  own = module.get_config(','.join(a for a in (arg, scale) if a))
  changed = workdir.difference(grpo.to_dict(), own.to_dict())
  assert set(changed) == OWN_KEYS[module, arg] | {'name'}


def test_lengths_follow_the_thinking_budget():
  for scale, budget in {'': 108, 'hard': 90, 'tiny': 27}.items():
    assert dapo_countdown.get_config(scale).algorithm.max_length == budget
    exact = lcpo_countdown.get_config(f'exact,{scale}').algorithm
    assert exact.target_length == budget // 2
    at_most = lcpo_countdown.get_config(f'max,{scale}').algorithm
    assert at_most.max_length == budget // 2
    # A right answer always beats a wrong one, whose reward is 0.
    assert (1 - at_most.alpha * (budget - budget // 2)) / 2 > 0.2


def test_names_tell_runs_apart():
  names = {
    module.get_config(arg).name
    for module, arg in BUILT
    if not {'hard', 'tiny', 'backtrack'} & set(arg.split(','))
  }
  # One name a file and one more a variant; `exact` is LCPO's default.
  variants = ['dr', 'rloo', 'plain', 'max']
  variants += ['difference', 'mrt', 'linear', 'base', 'grpo', 'row']
  variants += ['last', 'mrt']  # of RL^2 and e3
  variants += ['sft']  # of the task hidden
  assert len(names) == len(MODULES) + len(variants)


@pytest.mark.parametrize(
  'module, arg, allowed',
  [
    (grpo_countdown, 'dr,rloo', 'dr and rloo'),
    (brpo_countdown, 'linear,base', 'uniform, linear and base'),
    (lcpo_countdown, 'exact,max,tiny', 'exact and max'),
    (mrt_countdown, 'hard,tiny', 'hard and tiny'),
    (grpo_countdown, 'hard,tiny,dr', 'hard and tiny'),
  ],
)
def test_words_that_exclude_each_other(module, arg, allowed):
  """No mixture: a name would say one of them and the rest another."""
  with pytest.raises(ValueError, match=f'give one of {allowed}'):
    module.get_config(arg)


def test_rl2_is_one_of_its_two():
  with pytest.raises(ValueError, match='give one of all and last'):
    rl2_countdown.get_config('all,last')


def test_mrt_rl_differs_from_mrt_in_its_algorithm_alone():
  mrt = mrt_countdown.get_config()
  offline = mrt_rl_countdown.get_config()
  changed = workdir.difference(mrt.to_dict(), offline.to_dict())
  rest = {key for key in changed if not key.startswith('algorithm.')}
  assert rest == {'name'}


def test_the_base_policy_fits_what_starts_from_it():
  for arg in ('', 'hard'):
    rl, base = mrt_countdown.get_config(arg), sft_countdown.get_config(arg)
    assert rl.model.to_dict() == base.model.to_dict()
    assert rl.task.to_dict() == base.task.to_dict()
    assert rl.init_from.startswith('asset:')
    assert base.init_from == {'': '', 'hard': 'asset:countdown_easy'}[arg]
  for arg, start, result in (
    ('backtrack', 'asset:countdown_easy', 'asset:countdown_backtrack'),
    ('hard,backtrack', 'asset:countdown_hard', 'runs/sft_backtrack_hard'),
  ):
    rl, base = mrt_countdown.get_config(arg), sft_countdown.get_config(arg)
    assert rl.model.to_dict() == base.model.to_dict()
    assert rl.task.to_dict() == base.task.to_dict()
    assert (base.init_from, rl.init_from) == (start, result)


@pytest.mark.parametrize('name', weights.asset_names())
def test_an_asset_says_how_it_came_to_be(name):
  arg = {'countdown_easy': ''}.get(name, name.removeprefix('countdown_'))
  path = ROOT / 'meta_rl' / 'assets' / f'{name}.safetensors'
  config = sft_countdown.get_config(arg)
  _, metadata = weights.load_safetensors(
    path, setup_run.abstract_params(config)
  )
  recorded = json.loads(metadata['config'])
  assert recorded['task']['name'] == config.task.name
  assert recorded['data']['traces'] == config.data.traces.to_dict()
  assert int(metadata['step']) == recorded['total_steps'] == config.total_steps
  assert json.loads(metadata['scores'])['eval/accuracy'] > 0.2


@pytest.mark.parametrize('scale', ['', 'hard'])
def test_another_search_is_all_that_backtracking_changes(scale):
  plain = mrt_countdown.get_config(scale)
  other = mrt_countdown.get_config(f'{scale},backtrack'.strip(','))
  changed = workdir.difference(plain.to_dict(), other.to_dict())
  assert set(changed) == {'init_from', 'task.name', 'prover.max_episodes'}


@pytest.mark.parametrize('arg', ['', 'backtrack'])
def test_warm_start_traces_reach_four_times_the_budget(arg, small):
  """Budget forcing then meets no position that was never trained."""
  config = small.config('sft', arg)
  batches = sft.make_batches(config)
  drawn = [next(batches) for _ in config.data.pattern]
  prompt = config.task.n + 4
  last = prompt + 4 * config.rollout.thinking_budget
  assert max(batch['positions'].max() for batch in drawn) >= last
  assert all((batch['positions'] >= 0).mean() > 0.75 for batch in drawn)
  found = {tokenizer.BACKTRACK in batch['tokens'] for batch in drawn}
  assert found == {arg == 'backtrack'}


@pytest.mark.parametrize(
  'name, arg',
  [
    *((file.stem.removesuffix('_countdown'), 'tiny') for file in FILES),
    ('mrt_hidden', 'sft,tiny'),
  ],
)
def test_no_key_is_dead(name, arg, small):
  """Each key is read by the package: by itself, or with its whole group.

  A group that is taken whole (`config.loss.to_dict()`) goes into a function as
  keyword arguments, where an unknown key raises.
  """
  dead = [
    key
    for key in workdir.flatten(small.config(name, arg).to_dict())
    if not is_read_anywhere(key)
  ]
  assert dead == []


@functools.cache
def sources():
  """The text of the package."""
  files = sorted((ROOT / 'meta_rl').rglob('*.py'))
  return '\n'.join(f.read_text('utf-8') for f in files)


@functools.cache
def is_read_anywhere(key):
  """Whether the package reads a key; configs share most of theirs."""
  return is_read(key, sources())


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
  'RLOO': ('grpo', 'rloo,tiny', {}),
  'Dr. GRPO': ('grpo', 'dr,tiny', {}),
  'REINFORCE': ('reinforce', 'tiny', {}),
  'REINFORCE, one trace a prompt': (
    'reinforce',
    'plain,tiny',
    {'rollout__group_size': 1},
  ),
  'DAPO': ('dapo', 'tiny', {}),
  'GSPO': ('gspo', 'tiny', {}),
  'CISPO': ('cispo', 'tiny', {}),
  'LCPO-exact': ('lcpo', 'exact,tiny', {}),
  'LCPO-max': ('lcpo', 'max,tiny', {}),
  'length penalty': ('length_penalty', 'tiny', {}),
  'immediate': (
    'mrt',
    'tiny',
    {'algorithm__credit': 'immediate', 'algorithm__decay': 1.0},
  ),
  'return to go': ('mrt', 'tiny', {'algorithm__credit': 'return_to_go'}),
  'BRPO': ('brpo', 'tiny', {}),
  'BRPO without rows': ('brpo', 'tiny', {'algorithm__summary': 'own'}),
  'sampled': (
    'mrt',
    'tiny',
    {'prover__kind': 'sampled', 'prover__num_branches': 2},
  ),
  'VinePPO': ('vineppo', 'tiny', {}),
  'PAV': ('pav', 'tiny', {}),
  'RL^2': ('rl2', 'tiny', {}),
  'E-RL^2': ('rl2', 'last,tiny', {}),
  'control variate': (
    'mrt',
    'tiny',
    {
      'prover__kind': 'control_variate',
      'prover__num_branches': 2,
      'prover__num_enumerated': 1,
    },
  ),
  'backtrack': ('mrt', 'backtrack,tiny', {}),
  'MRT-RL': ('mrt_rl', 'tiny', {}),
  'MRT-RL, current': (
    'mrt_rl',
    'difference,tiny',
    {
      'algorithm__prefix_policy': 'current',
      'algorithm__prefix_success': 'direct',
    },
  ),
  'hidden': ('mrt_hidden', 'tiny', {}),
  'STaR': ('star', 'tiny', {}),
  'MRT-STaR': ('star', 'mrt,tiny', {'batching__epochs': 1}),
  'KL and entropy': (
    'mrt',
    'tiny',
    {'loss__kl_coef': 0.01, 'loss__entropy_coef': 0.01, 'loss__chunk': 16},
  ),
}


# A config of which another variant runs.
SECOND = (
  *('RLOO', 'Dr. GRPO', 'REINFORCE, one trace a prompt', 'LCPO-max'),
  *('immediate', 'return to go', 'BRPO without rows', 'E-RL^2'),
  *('MRT-RL, current', 'MRT-STaR', 'KL and entropy'),
)


def marks_of(variant):
  """Returns which tests a variant is run with; each compiles an update."""
  soak = [pytest.mark.soak] if variant in SECOND else []
  return [pytest.mark.full, *soak]


@pytest.mark.parametrize(
  'variant',
  [pytest.param(name, marks=marks_of(name)) for name in VARIANTS],
)
def test_two_steps(variant, small, tmp_path):
  """`:tiny` of mrt, sft, ppo and e3 runs in the tests of their modules."""
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
    calls += variant == 'DAPO'  # the merging of rounds
    assert row['compile/count'] == calls
    # Forced answers that are trained on are scored as they were sampled too.
    assert row['policy/log_prob_gap'] < 1e-4
    assert ('loss/kl' in row) == (variant == 'KL and entropy')
    # Measured on the rollout, whatever trains; values of thinking on tell
    # nothing of it.
    if config.prover.kind == 'continued':
      assert 'regret/token_weighted' not in row
    else:
      assert 0 <= row['regret/token_weighted'] <= 1
  assert 'eval/regret_token_weighted' in result.rows[-1]


@pytest.mark.full
def test_the_warm_start_of_hidden_is_what_its_config_starts_from(
  small, tmp_path
):
  """The two commands of its header."""
  sft = small.config('mrt_hidden', 'sft,tiny', total_steps=2)
  result = small.run(sft, tmp_path / 'sft')
  assert result.code == signals.EXIT_OK, result.err
  assert 'eval/regret_token_weighted' in result.rows[1]
  rl = small.config('mrt_hidden', init_from=str(tmp_path / 'sft'))
  assert rl.model.to_dict() == sft.model.to_dict()
  assert rl.task.to_dict() == sft.task.to_dict()
  params = setup_run.initial_params(rl)
  assert not small.equal(
    params, setup_run.initial_params(small.config('mrt_hidden'))
  )


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
    iterator = data.problem_iterator(
      source,
      record_arrays=countdown.record_arrays,
      batch_size=4,
      seed=config.seed,
    )
    batches.append([next(iterator)['prompts'] for _ in range(3)])
  assert np.array_equal(*batches)
