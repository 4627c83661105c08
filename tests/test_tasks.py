"""The kits: what the host does with a task, whatever it is."""

import importlib
import sys

import jax
import numpy as np
import pytest

from meta_rl import data, tasks, tokenizer
from meta_rl.tasks import builder, countdown, traces

# Small options of each task.
COUNTDOWN = {'n': 3, 'high': 6, 'ops': '+-', 'max_answers': 4, 'orders': 2}
OPTIONS = {
  'countdown': COUNTDOWN,
  'countdown_backtrack': COUNTDOWN,
  'hidden': {'n': 5, 'num_problems': 64},
}
SHOWN = {'countdown': 1, 'countdown_backtrack': 1, 'hidden': None}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


def test_every_task_is_here():
  assert {*OPTIONS, 'text'} == set(tasks.TASKS)  # text: tests/test_text.py


@pytest.mark.parametrize('name', OPTIONS)
def test_arrays_fit_the_task(name, data_dir):
  kit, options = tasks.TASKS[name], OPTIONS[name]
  task = kit.make_task(**options)
  assert task.name == name
  hash(task)
  source = kit.load_source(data_dir, 'train', **options)
  batch = next(
    data.problem_iterator(source, record_arrays=kit.record_arrays, batch_size=8)
  )
  rows, length = batch['prompts'].shape
  assert rows == 8
  assert batch['prompt_mask'].shape == (rows, length)
  assert batch['prompt_mask'][:, -1].all()
  assert batch['answers'].shape == batch['answer_mask'].shape
  assert batch['answers'].shape[::2] == (rows, task.answer_length)
  for key in ('prompts', 'answers'):
    assert batch[key].dtype == np.int32
    assert batch[key].max() < task.vocab_size
  assert kit.decode(batch['prompts'][0]).startswith('<bos>')
  # The accepted answers are right, and each ends in EOS.
  per_answer = {k: x[:, None] for k, x in batch.items()}
  real = batch['answer_mask'].any(-1)
  verify = jax.jit(task.verify)
  rewards = verify(batch['answers'], batch['answer_mask'], per_answer)
  np.testing.assert_array_equal(np.asarray(rewards) == 1, real)
  last = batch['answer_mask'].sum(-1) - 1
  ends = np.take_along_axis(batch['answers'], last[..., None], -1)[..., 0]
  assert (ends[real] == task.eos_id).all()


@pytest.mark.parametrize('name', OPTIONS)
def test_no_problem_is_in_two_splits(name, data_dir):
  kit = tasks.TASKS[name]
  train, validation, test = (
    {kit.cluster_key(r) for r in kit.load_source(data_dir, s, **OPTIONS[name])}
    for s in ('train', 'validation', 'test')
  )
  assert len(train) > 10
  assert not train & validation
  assert not train & test
  assert not validation & test


@pytest.mark.parametrize('name', OPTIONS)
def test_traces_are_of_the_task(name, data_dir):
  kit, options = tasks.TASKS[name], OPTIONS[name]
  task = kit.make_task(**options)
  source = kit.load_source(data_dir, 'train', **options)
  problems = kit.trace_problems(source, shown=SHOWN[name], **options)
  rng = np.random.default_rng(0)
  limits = {'ordinary_episodes': 3, 'max_episodes': 5, 'long_share': 0.2}
  drawn = kit.sample_traces(problems, rng, 64, **limits)
  assert len(drawn) == 64
  longest = kit.max_trace_length(problems, **limits)
  lengths = [len(tokens) for tokens, _ in drawn]
  assert max(lengths) <= longest
  # A trace of five episodes is there, and its answer as long as can be.
  assert longest - max(lengths) < task.episode_length
  for tokens, _ in drawn:
    assert tokens[-1] == task.eos_id
    assert (tokens == task.think_end_id).sum() == 1
  data.pack(drawn, longest)


@pytest.mark.parametrize('name', OPTIONS)
def test_unknown_options_are_refused(name, data_dir):
  kit = tasks.TASKS[name]
  for call in (
    kit.make_task,
    lambda **o: kit.load_source(data_dir, 'test', **o),
  ):
    with pytest.raises(ValueError, match=r'unknown .* options \[.colour'):
      call(colour=3)


@pytest.mark.parametrize('name', ['countdown', 'countdown_backtrack'])
def test_every_episode_of_a_warm_start_is_true(name, data_dir):
  kit, options = tasks.TASKS[name], OPTIONS[name]
  source = kit.load_source(data_dir, 'train', **options)
  problems = kit.trace_problems(source, **options)
  drawn = kit.sample_traces(problems, np.random.default_rng(1), 50)
  checks = [kit.check_trace(tokens, **options) for tokens, _ in drawn]
  assert sum(map(len, checks)) > 100
  assert all(check.well_formed and check.valid for c in checks for check in c)
  # As traces of the other form they are not: only first episodes are alike.
  (other,) = {'countdown', 'countdown_backtrack'} - {name}
  for tokens, _ in drawn:
    first, *later = tasks.TASKS[other].check_trace(tokens, **options) or [None]
    assert first is None or first.valid
    assert not any(check.well_formed for check in later)
  # Operators that the dataset does not have are not allowed in a trace.
  none = [kit.check_trace(t, **options | {'ops': '*'}) for t, _ in drawn]
  assert not any(check.well_formed for c in none for check in c)


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_the_form_of_search_changes_no_problem(split, data_dir):
  """Base policies and runs of both forms may be compared problem by problem."""
  both = []
  for name in ('countdown', 'countdown_backtrack'):
    kit = tasks.TASKS[name]
    source = kit.load_source(data_dir, split, **COUNTDOWN)
    both.append([kit.record_arrays(source[i]) for i in range(len(source))])
    assert kit.cluster_key(source[0])
  assert len(both[0]) == len(both[1]) > 10
  for one, other in zip(*both):
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])


# ---- Countdown's own


def test_the_task_of_countdown_reads_its_dataset_options():
  answer = np.array([tokenizer.encode('9 8 + <eos>')], np.int32)
  batch = {'numbers': np.array([[9, 8]]), 'target': np.array([17])}
  for max_value, reward in ((16, 0), (17, 1)):
    options = OPTIONS['countdown'] | {'n': 2, 'max_value': max_value}
    task = tasks.TASKS['countdown'].make_task(**options)
    assert (task.episode_length, task.answer_length) == (6, 4)
    assert task.verify(answer, np.ones(answer.shape, bool), batch) == reward


def test_trace_problems_of_countdown(data_dir):
  options = OPTIONS['countdown']
  source = builder.load_source(data_dir, 'train', **options)
  problems = builder.trace_problems(source, **options)
  assert problems == [builder.record_problem(r, ops='+-') for r in source]
  for record, problem in zip(source, problems):
    assert problem.numbers == tuple(np.asarray(record['numbers']).tolist())
    assert problem == countdown.make_problem(
      problem.numbers, int(record['target']), '+-'
    )
  # Every order of a problem is a record; one is shown.
  one = builder.trace_problems(source, shown=1, **options)
  assert one == countdown.prompt_orders(problems, orders=1)
  assert len(set(one)) < len(set(problems))


def test_longest_trace_of_countdown():
  problems = [
    countdown.make_problem((1, 2, 3), 6, '+-'),
    countdown.make_problem((1, 3, 4, 6), 24, '+-*/'),
  ]
  assert traces.longest(problems) == traces.max_trace_length(4) == 593
  assert traces.longest(problems[:1], max_episodes=2, p_stop=0.5) == (
    traces.max_trace_length(3, 2)
  )


@pytest.fixture
def own_module(tmp_path, monkeypatch):
  """A module of a user's, beside where the command is started."""
  (tmp_path / 'own_kits.py').write_text(
    'from meta_rl import tasks\n'
    "KIT = tasks.TASKS['hidden']\n"
    'made = []\n'
    'def make(**options):\n'
    '  made.append(options)\n'
    '  return KIT\n'
    'def nothing(**options):\n'
    '  return 3\n'
  )
  (tmp_path / 'own_broken.py').write_text('1 / 0\n')
  monkeypatch.syspath_prepend(tmp_path)
  yield importlib.import_module('own_kits')
  for name in ('own_kits', 'own_broken'):
    sys.modules.pop(name, None)


def test_a_path_names_a_kit_of_ones_own(own_module):
  assert tasks.make_kit('own_kits:KIT') is tasks.TASKS['hidden']
  assert tasks.make_kit('own_kits:make', n=5) is own_module.KIT
  assert own_module.made == [{'n': 5}]


@pytest.mark.parametrize(
  'name, said',
  [
    ('own_kit:KIT', "'own_kit' cannot be imported .ModuleNotFoundError"),
    ('own_broken:KIT', 'ZeroDivisionError: division by zero'),
    ('own_kits:KITE', "no TaskKit, .* of the name 'KITE'"),
    ('own_kits:made', "of the name 'made'"),  # a list
    ('own_kits:nothing', 'gave 3: a TaskKit is needed'),
    (':KIT', "module '' cannot be imported"),
    ('own_kits', "is unknown; allowed: .'countdown'.*'module:NAME'"),
  ],
)
def test_a_path_to_no_kit_is_one_line(own_module, name, said):
  with pytest.raises(ValueError, match=said) as error:
    tasks.make_kit(name)
  assert str(error.value).startswith(f'task.name={name!r}')
  assert '\n' not in str(error.value)


def test_how_hard_a_problem_of_countdown_is(data_dir):
  """The share of canonical attempts that reach the target."""
  kit = tasks.TASKS['countdown']
  record = {
    'numbers': np.array([2, 3]),
    'target': np.array(5),
    'answers': np.array([[0, 0, 0]]),
    'num_answers': np.array(1),
  }
  # 3 2 +, and 3 2 -: of two canonical attempts one reaches 5.
  label, value = kit.difficulty(record, n=2, ops='+-', max_answers=1)
  assert label == 'chance that a random attempt is right'
  assert value == 1 / 2
  # With * there are three.
  assert kit.difficulty(record, n=2, ops='+-*', max_answers=1)[1] == 1 / 3
  for name in ('countdown', 'countdown_backtrack'):
    kit, options = tasks.TASKS[name], OPTIONS[name]
    source = kit.load_source(data_dir, 'test', **options)
    for record in (source[i] for i in range(5)):
      problem = builder.record_problem(record, ops=options['ops'])
      found = kit.difficulty(record, **options)
      assert found == (label, countdown.hit_rate(problem))


def test_what_is_known_of_hidden():
  kit = tasks.TASKS['hidden']
  record = {'n': np.array(4), 'hidden': np.array(2), 'index': np.array(0)}
  assert kit.difficulty(record, n=4) == ('options', 4)
  assert kit.optimum(record, 5).tolist() == [0.25, 0.5, 0.75, 1, 1, 1]
  assert tasks.TASKS['countdown'].optimum is None
