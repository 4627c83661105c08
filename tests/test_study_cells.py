"""Tests of meta_rl.study_cells: which cells there are, and what each trains."""

import json

import pytest

from meta_rl import study_cells, workdir
from meta_rl.configs import study_countdown
from meta_rl.study_cells import Key


@pytest.fixture
def study():
  return study_countdown.get_config('tiny')


# ---- which there are


def test_the_core_comes_first_round_by_round():
  whole = study_countdown.get_config()
  keys = study_cells.keys(whole)
  assert len(set(keys)) == len(keys)
  # 6 doses: the base once, 5 methods of the core and 6 more with 5 seeds, the
  # others with 3.
  others = len(whole.rest) - 6
  assert len(keys) == 6 * (1 + 5 * 5 + 6 * 5 + others * 3)
  first = keys[: 6 * 6]
  assert {key.seed for key in first} == {0}
  assert [key.path for key in first[:7]] == [
    'u03/base/0',
    'u03/grpo/0',
    'u03/length_penalty/0',
    'u03/mrt_rl/0',
    'u03/mrt_sampled/0',
    'u03/mrt_exact/0',
    'u1/base/0',
  ]
  # Then the second seed, without the base, and the rest at last.
  assert keys[36] == Key('u03', 'grpo', 1)
  assert {key.method for key in keys[6 + 6 * 25 :]} == set(whole.rest)


def test_names_of_a_key():
  key = Key('u4', 'mrt_exact', 3)
  assert key.path == 'u4/mrt_exact/3'
  assert key.name == 'u4_mrt_exact_3'


@pytest.mark.parametrize(
  'only, wanted',
  [
    ('', {(m, s) for m in 'ab' for s in (0, 1)}),
    ('x', {(m, s) for m in 'ab' for s in (0, 1)}),
    ('x/a', {('a', 0), ('a', 1)}),
    ('*/*/1', {('a', 1), ('b', 1)}),
    ('x/a/0, x/b/1', {('a', 0), ('b', 1)}),
    ('?/[b-z]/*', {('b', 0), ('b', 1)}),
  ],
)
def test_select(only, wanted):
  keys = [Key('x', m, s) for s in (0, 1) for m in 'ab']
  chosen = study_cells.select(keys, only)
  assert {key[1:] for key in chosen} == wanted
  # The order of the study, not of the patterns.
  assert chosen == [key for key in keys if key in chosen]


@pytest.mark.parametrize('only', ['y', 'x/c', 'x/a/7', 'x/a/0/0', 'x,x/c'])
def test_a_pattern_that_matches_nothing(only):
  keys = [Key('x', m, s) for s in (0, 1) for m in 'ab']
  with pytest.raises(ValueError, match='matches no cell: give .*a, b and a se'):
    study_cells.select(keys, only)


# ---- studies that do not fit together


def test_the_shipped_studies_fit():
  for arg in ('', 'tiny'):
    study_cells.check(study_countdown.get_config(arg))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'core': ('base', 'grpo')}, 'list every method once'),
    ({'rest': ('grpo',)}, 'list every method once'),
    ({'hero': 'ppo'}, "hero='ppo': allowed are base"),
    ({'base': 'grpo'}, "base='grpo' is trained"),
    ({'variance.method': 'x'}, "variance.method='x'"),
    ({'predictions.p1.dose': 'u9'}, "predictions.p1.dose='u9'.*tiny"),
    ({'predictions.p1.expect': 'more'}, 'lower, higher, none'),
  ],
)
def test_a_study_that_does_not_fit_together(study, change, message):
  study.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message):
    study_cells.check(study)


def test_wrong_entries_are_refused(study):
  study.methods.grpo.seed = 3
  with pytest.raises(ValueError, match=r"methods.grpo has .*\['seed'\]"):
    study_cells.check(study)
  del study.methods.grpo.seed, study.methods.grpo.config
  with pytest.raises(ValueError, match=r"\['config'\].*must be there"):
    study_cells.check(study)
  study = study_countdown.get_config('tiny')
  study.methods['x_grpo'] = study.methods.grpo
  study.core = (*study.core, 'x_grpo')
  study.doses['tiny_x'] = study.doses.tiny
  with pytest.raises(
    ValueError, match='tiny/x_grpo and tiny_x/grpo would share their files'
  ):
    study_cells.check(study)
  study = study_countdown.get_config('tiny')
  study.doses['a/b'] = study.doses.tiny
  with pytest.raises(ValueError, match="the name 'a/b'"):
    study_cells.check(study)
  with pytest.raises(ValueError, match='it is no study'):
    study_cells.check(study_cells.load_config('mrt_countdown', 'tiny'))
  study = study_countdown.get_config('tiny')
  del study.seeds.rest
  with pytest.raises(ValueError, match=r'seeds\.rest is not given'):
    study_cells.check(study)
  del study.seeds, study.hero
  with pytest.raises(ValueError, match='the study lacks hero, seeds: start'):
    study_cells.check(study)
  study = study_countdown.get_config('tiny')
  study.doses.tiny.u = -1.0
  with pytest.raises(ValueError, match=r'^doses.tiny.u must be > 0, got -1.0'):
    study_cells.check(study)
  study = study_countdown.get_config('tiny')
  del study.predictions.p1.text
  with pytest.raises(ValueError, match='predictions.p1 has the keys'):
    study_cells.check(study)


# ---- what each trains


def test_a_cell_differs_from_its_config_where_the_study_says(study):
  study.methods.mrt_exact.overrides = {'algorithm': {'price': 0.5}}
  study.overrides.eval.every = 3
  config = study_cells.cell_config(study, 'tiny', 'mrt_exact')
  plain = study_cells.load_config('mrt_countdown', 'tiny')
  assert workdir.difference(plain.to_dict(), config.to_dict()) == {
    'algorithm.price': (0.0, 0.5),
    'eval.every': (2, 3),
    'task.high': (14, 8),
    'total_cost': (None, 5500.0),
  }
  with pytest.raises((AttributeError, KeyError)):
    config.optimizer.lr = 1.0


def test_the_method_has_the_last_word(study):
  study.doses.tiny.overrides = {'prover': {'num_branches': 2}}
  study.methods.mrt_exact.overrides = {'prover': {'num_branches': 3}}
  config = study_cells.cell_config(study, 'tiny', 'mrt_exact')
  assert config.prover.num_branches == 3
  config = study_cells.cell_config(study, 'tiny', 'grpo')
  assert config.prover.num_branches == 2


def test_arguments_are_joined(study):
  study.methods.grpo.arg = 'dr'
  config = study_cells.cell_config(study, 'tiny', 'grpo')
  assert config.name == 'Dr. GRPO'
  assert config.model.num_layers == 1


@pytest.mark.parametrize(
  'change, message',
  [
    (
      {'methods.grpo.config': 'grpo_cuontdown'},
      "cell tiny/grpo: no config 'grpo_cuontdown': did you mean grpo_countdown",
    ),
    ({'doses.tiny.arg': 'tinny'}, 'cell tiny/grpo: unknown argument .*tinny'),
    (
      {'methods.grpo.overrides.prover.kind': 'oracle'},
      'cell tiny/grpo: prover kind .*oracle',
    ),
    ({'doses.tiny.total_cost': -1.0}, 'cell tiny/grpo: total_cost=-1.0'),
    ({'doses.tiny.extrapolate': (1,)}, 'integers above 1'),
    (
      {'methods.grpo.overrides.total_tokens': 9.0},
      'total_tokens=9.0: cells end by total_cost',
    ),
  ],
)
def test_a_cell_that_cannot_work_is_one_line(study, change, message):
  study.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message) as caught:
    study_cells.cell_config(study, 'tiny', 'grpo')
  assert '\n' not in str(caught.value)


def test_an_unknown_key_is_named(study):
  study.methods.grpo.overrides = {'optimzer': {'learning_rate': 1.0}}
  with pytest.raises(ValueError, match='did you mean optimizer.learning_rate'):
    study_cells.cell_config(study, 'tiny', 'grpo')
  study.methods.grpo.overrides = {'optimizer': {'learning_rate': 'fast'}}
  with pytest.raises(ValueError, match="optimizer.learning_rate='fast'"):
    study_cells.cell_config(study, 'tiny', 'grpo')


@pytest.mark.parametrize(
  'dose, episodes, near, parts',
  [
    ('u03', 4, 9, (9, 18, 36)),
    ('u1', 12, 18, (27, 54, 108)),
    ('u2', 8, 18, (18, 36, 72)),
    ('u4', 15, 27, (27, 63, 135)),
  ],
)
def test_every_method_of_the_study_can_be_used(dose, episodes, near, parts):
  study = study_countdown.get_config()
  total = 9 * episodes
  for method in (*study.core, *study.rest):
    config = study_cells.cell_config(study, dose, method)
    assert config.rollout.thinking_budget == total
    assert config.prover.max_episodes == episodes
    # Nothing pays for a prover that it doesn't use.
    own = config.algorithm
    unused = own.name in ('outcome', 'prefix') or own.get('select') == 'any'
    assert (config.prover.kind == 'none') == unused, method
    if config.prover.boundaries == 'budgets' or method == 'brpo':
      assert max(config.prover.budgets) == total, method
    if method == 'dapo':
      assert (own.max_length, own.cache_length) == (total, near)
    if method.startswith('lcpo'):
      length = own.get('max_length') or own.target_length
      assert length == total // 2
      assert own.alpha * total == pytest.approx(1.08)
    if method == 'e3':
      assert config.curriculum.budgets == parts
    if method == 'control_variate':  # something is left for its branches
      assert config.prover.num_enumerated == 1


def test_a_method_without_a_config_is_named():
  study = study_countdown.get_config()
  study.methods.grpo.config = 'none_countdown'
  with pytest.raises(ValueError, match='u4/grpo: no config .none_countdown'):
    study_cells.cell_config(study, 'u4', 'grpo')


def test_which_doses_think_beyond_what_the_warm_start_saw():
  study = study_countdown.get_config()
  longest = {}
  for name, dose in study.doses.items():
    budget = dose.overrides.rollout.thinking_budget
    config = study_cells.cell_config(study, name, 'mrt_exact')
    # Every episode that the budget holds has a boundary of its own.
    if config.task.name == 'countdown':
      assert budget == 9 * config.prover.max_episodes
    else:
      assert budget <= 9 + 6 * (config.prover.max_episodes - 1)
    longest[name] = max(dose.extrapolate) * budget
  # It saw 48 episodes, and 52 where it backtracks.
  saw = {'u4b': 52}
  beyond = {
    name: tokens // 9
    for name, tokens in longest.items()
    if tokens > 9 * saw.get(name, 48)
  }
  assert beyond == {'u4': 60, 'u4p': 60}


# ---- specs and results


def test_a_spec_is_json_and_comes_back_as_the_config(study):
  keys = study_cells.keys(study)
  specs = study_cells.make_specs(study, keys)
  assert list(specs) == keys
  spec = specs[Key('tiny', 'grpo', 1)]
  assert json.loads(json.dumps(spec)) == spec
  assert (spec['label'], spec['train']) == ('GRPO', True)
  assert spec['evaluation']['extrapolate'] == [2]
  config = study_cells.to_config(spec)
  wanted = study_cells.cell_config(study, 'tiny', 'grpo').to_dict()
  # Tuples too: they may be static arguments of a jitted call.
  assert config.to_dict() == {**wanted, 'seed': 1}
  assert config.is_locked
  assert not specs[Key('tiny', 'base', 0)]['train']


def test_a_config_without_an_argument(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('def get_config():\n  return 3\n')
  assert study_cells.load_config(str(path)) == 3


def test_specs_of_the_variance(study):
  spec = study_cells.make_variance_specs(study, ['tiny'])['tiny']
  assert spec['variance'] == {'branches': [1, 2], 'batches': 2, 'draws': 2}
  assert study_cells.to_config(spec).algorithm.name == 'mrt'
