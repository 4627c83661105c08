"""The pool of verifiers: a row that fails costs itself alone."""

import itertools
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from verifier_graders import Unreadable

from meta_rl.verifiers import VerifierError, pool

HOSTILE = 'verifier_graders:hostile'
GOOD = {'answer': 'good'}
# A machine that is busy with other things may hold up a good row for as long.
TIMEOUT_S = 2.5


@pytest.fixture(scope='module')
def hostile():
  """Three workers that do what their answers say."""
  with pool.Pool(
    HOSTILE, workers=3, timeout_s=TIMEOUT_S, memory_mb=512
  ) as found:
    yield found


def rows(answers):
  return answers, [dict(GOOD) for _ in answers]


def gone(pid, seconds=20):
  """Returns whether a process ends in time; a zombie has ended."""
  limit = time.monotonic() + seconds
  while time.monotonic() < limit:
    try:
      stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except (FileNotFoundError, ProcessLookupError):
      return True
    if stat.rpartition(')')[2].split()[0] == 'Z':
      return True
    time.sleep(0.02)
  return False


STATUS = {
  'sleep': 'timeout',
  'hang with the lock held': 'timeout',
  'stop': 'timeout',
  'exit': 'crash',
  'segfault': 'crash',
  'sys.exit': 'error',
  'memory': 'error',
  'many pages': 'error',
  'recursion': 'error',
  'raise': 'error',
  'half': 'error',
}
# These end their worker, all others leave it.
ENDING = ('sleep', 'hang with the lock held', 'stop', 'exit', 'segfault')
ENDING += ('memory', 'many pages', 'recursion')


def test_each_kind_of_failure_costs_one_row(hostile):
  answers = []
  for bad in STATUS:
    answers += ['good', 'bad', bad, 'print', 'good']
  began = time.monotonic()
  grades = hostile.grade(*rows(answers))
  seconds = time.monotonic() - began
  expected = [STATUS.get(answer, 'ok') for answer in answers]
  assert list(grades.statuses) == expected
  for answer, value in zip(answers, grades.values):
    assert value == (None if answer in STATUS else float(answer == 'good'))
  assert grades.restarts == len(ENDING)
  # Three hangs and three workers: about one time limit, never three.
  assert seconds < 2.9 * TIMEOUT_S
  details = dict(zip(answers, grades.details))
  assert details['good'] == ''
  assert details['sleep'] == 'no answer within 2.5 s'
  assert details['exit'] == 'the worker ended, exit code 0'
  assert details['segfault'] == 'the worker ended, signal SIGSEGV'
  assert details['raise'] == 'RuntimeError: of two lines and a lone ?'
  assert details['memory'].startswith('MemoryError')
  assert details['half'].endswith('returned 0.5: 0.0 or 1.0 is allowed')
  # 55 rows: 3 of them 1/55 = 0.0182.
  metrics = grades.metrics()
  assert metrics['verifier/timeout_share'] == 3 / 55
  assert metrics['verifier/crash_share'] == 2 / 55
  assert metrics['verifier/error_share'] == 6 / 55
  assert metrics['verifier/too_long_share'] == 0
  assert metrics['verifier/restarts'] == 8
  assert 0 < metrics['time/verify_s'] <= seconds
  scores = grades.scores()
  assert sum(scores) == 22
  assert grades.scores(failed=None).count(None) == 11
  # The next batch knows nothing of it.
  grades = hostile.grade(*rows(['good'] * 20))
  assert grades.scores() == [1.0] * 20
  assert grades.restarts == 0


def test_only_what_was_not_answered_is_run_again(tmp_path):
  """The rows before a hang have their values, those behind had not begun."""
  log = tmp_path / 'log'
  log.touch()
  records = [GOOD | {'id': i, 'log': str(log)} for i in range(20)]
  answers = ['good'] * 20
  answers[3], answers[11] = 'exit', 'sleep'
  with pool.Pool(HOSTILE, workers=1, timeout_s=TIMEOUT_S) as one:
    grades = one.grade(answers, records)
  assert log.read_text().split() == [str(i) for i in range(20)]
  assert grades.statuses.count('ok') == 18
  assert (grades.statuses[3], grades.statuses[11]) == ('crash', 'timeout')
  assert one.totals == {'ok': 18, 'crash': 1, 'timeout': 1, 'restarts': 2}


def test_a_failure_is_logged_once_a_batch(hostile, caplog):
  caplog.set_level('WARNING', logger='absl')
  hostile.grade(*rows(['good', 'raise', 'half', 'exit']))
  lines = [r.getMessage() for r in caplog.records if 'verifier' in r.msg]
  assert len(lines) == 1
  assert (
    '3 of 4 answers not graded: 1 crash, 2 error; the first is row 1'
    in (lines[0])
  )
  assert 'more than 10% of a batch' in lines[0]
  caplog.clear()
  hostile.grade(*rows(['good'] * 10 + ['raise']))
  assert 'more than 10%' not in caplog.text  # 1 of 11
  caplog.clear()
  hostile.grade(*rows(['good', 'bad']))
  assert not caplog.records


def test_what_never_reaches_a_worker(hostile):
  """No str, a record that cannot be pickled, or not be read there."""
  answers = ['good', None, b'good', 'good', 'good', 'good']
  records = [
    GOOD,
    GOOD,
    GOOD,
    {'x': lambda: 0},
    GOOD | {'x': Unreadable()},
    GOOD,
  ]
  grades = hostile.grade(answers, records)
  assert list(grades.statuses) == ['ok'] + ['error'] * 4 + ['ok']
  assert 'answer has type NoneType: give a str' in grades.details[1]
  assert 'the record cannot be pickled' in grades.details[3]
  assert 'RuntimeError: not here' in grades.details[4]
  assert hostile.grade([], []).values == ()
  assert hostile.grade([], []).metrics()['verifier/error_share'] == 0
  with pytest.raises(ValueError, match='2 answers and 1 records'):
    hostile.grade(['good', 'good'], [GOOD])


def test_long_answers_and_the_stop_string():
  answers = [
    'good</think>' + 'x' * 101,
    'x' * 1_000_000 + '</think>good',  # the thought may be of any length
    'good',  # never came to an end
    'bad</think>good',
    'good</think>bad',
    'x</think>good</think>good',
  ]
  with pool.Pool(
    HOSTILE, workers=1, max_chars=100, stop='</think>', timeout_s=30
  ) as one:
    grades = one.grade(*rows(answers))
  assert grades.values == (None, 1.0, 0.0, 1.0, 0.0, 0.0)
  assert list(grades.statuses) == ['too_long'] + ['ok'] * 5
  assert grades.details[0] == '101 characters, at most 100 are graded'


def test_rows_larger_than_a_pipe(hostile):
  """A worker reads while it is written to: neither waits for the other."""
  answers = ['x' * 19_000 + str(i) for i in range(400)]
  records = [{'answer': answer} for answer in answers]
  assert hostile.grade(answers, records).scores() == [1.0] * 400


@pytest.mark.timeout(60)
def test_rows_larger_than_a_pipe_for_a_worker_that_reads_nothing():
  """Writing must not wait for it either: the row times out, the rest is run."""
  answers = ['x' * 19_000 + str(i) for i in range(40)]
  with pool.Pool(HOSTILE, workers=1, timeout_s=TIMEOUT_S) as one:
    os.kill(one._workers[0]._process.pid, signal.SIGSTOP)
    grades = one.grade(answers, [{'answer': answer} for answer in answers])
  assert grades.statuses == ('timeout',) + ('ok',) * 39


def test_a_worker_that_was_killed_while_idle_costs_nothing(hostile):
  for each in hostile._workers:
    os.kill(each._process.pid, signal.SIGKILL)
  for each in hostile._workers:
    assert gone(each._process.pid)
  grades = hostile.grade(*rows(['good'] * 30))
  assert grades.scores(failed=None) == [1.0] * 30
  assert grades.restarts == 3


def test_a_worker_that_fills_its_memory_is_replaced_in_time():
  """30 rows that keep 30 MiB each, within 512: nobody runs out of it. What
  this process itself takes does not count, though the system starts there."""
  taken = bytearray(os.urandom(1 << 20)) * 300
  with pool.Pool(HOSTILE, workers=1, timeout_s=30, memory_mb=512) as one:
    grades = one.grade(*rows(['leak'] * 30))
    assert grades.scores(failed=None) == [1.0] * 30
    assert 2 <= grades.restarts <= 6
    one.grade(*rows(['good'] * 10))
    grades = one.grade(*rows(['good'] * 100))
  assert grades.restarts == 0
  assert len(taken) == 300 << 20


def test_what_a_verifier_has_started_dies_with_it(tmp_path):
  file = tmp_path / 'pid'
  with pool.Pool(HOSTILE, workers=1, timeout_s=TIMEOUT_S) as one:
    grades = one.grade(['child'], [GOOD | {'pids': str(file)}])
  assert grades.statuses == ('timeout',)
  assert gone(int(file.read_text()))


def test_an_interrupt_leaves_a_pool_that_works(hostile, monkeypatch):
  real, calls = hostile._selector.select, itertools.count()

  def select(timeout):
    if next(calls) == 2:
      raise KeyboardInterrupt
    return real(timeout)

  monkeypatch.setattr(hostile._selector, 'select', select)
  with pytest.raises(KeyboardInterrupt):
    hostile.grade(*rows(['good', 'sleep'] * 40))
  monkeypatch.undo()
  grades = hostile.grade(*rows(['bad', 'good'] * 10))
  assert grades.scores(failed=None) == [0.0, 1.0] * 10


def test_two_threads_take_turns(hostile):
  found = {}

  def run(answer):
    found[answer] = hostile.grade(*rows([answer] * 200)).scores()

  threads = [threading.Thread(target=run, args=(a,)) for a in ('good', 'bad')]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {'good': [1.0] * 200, 'bad': [0.0] * 200}


# ---- start and end


@pytest.mark.parametrize(
  'verifier, options, line',
  [
    ('maths', {}, 'must be one of .*did you mean math'),
    (7, {}, 'verifier 7 must be one of'),
    ('os.path.join', {}, 'package.module:function'),
    ('no_such_module:grade', {}, "'no_such_module' cannot be imported"),
    ('verifier_graders:nothing', {}, "has no function 'nothing'"),
    (HOSTILE, {'workers': 0}, 'workers=0: allowed is >= 1'),
    (HOSTILE, {'timeout_s': 0}, 'timeout_s=0: allowed is'),
    (HOSTILE, {'timeout_s': math.nan}, 'timeout_s=nan: allowed is'),
    (HOSTILE, {'memory_mb': 16}, 'memory_mb=16: allowed is >= 256'),
    (
      'verifier_slow_start:grade',
      {'start_timeout_s': 0.3},
      'a worker was not ready within 0.3 s',
    ),
  ],
)
def test_a_pool_that_cannot_be(verifier, options, line):
  with pytest.raises(VerifierError, match=line) as error:
    pool.Pool(verifier, **{'workers': 1} | options)
  assert '\n' not in str(error.value)


def test_a_missing_package_is_said_at_once(tmp_path, monkeypatch):
  (tmp_path / 'math_verify.py').write_text('raise ImportError("none")')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(VerifierError, match=r"pip install 'meta-rl\[llm\]'"):
    pool.Pool('math', workers=1)


def test_a_verifier_that_cannot_be_started_again(tmp_path, monkeypatch):
  """It is gone when its worker is to be replaced: an error, no endless loop."""
  module = tmp_path / 'passing.py'
  module.write_text('import os\ndef grade(answer, record): os._exit(3)')
  monkeypatch.syspath_prepend(tmp_path)
  with pool.Pool('passing:grade', workers=1) as one:
    module.write_text('raise RuntimeError("gone")')
    with pytest.raises(VerifierError, match='RuntimeError: gone'):
      one.grade(*rows(['a'] * 3))


def test_a_closed_pool():
  one = pool.Pool('text', workers=2)
  pids = [each._process.pid for each in one._workers]
  one.close()
  one.close()
  assert all(map(gone, pids))
  with pytest.raises(VerifierError, match='the pool is closed'):
    one.grade(['a'], [GOOD])


PROGRAM = """
import sys, threading
from meta_rl.verifiers import pool
one = pool.Pool('verifier_graders:pid', workers=2, timeout_s=1000)
record = {'answer': 'good', 'pids': sys.argv[1]}
one.grade(['good'], [record])
if sys.argv[2] == 'hang':
  answers = ['hang with the lock held', 'sleep']
  threading.Thread(target=one.grade, args=(answers, [record] * 2)).start()
print('began', flush=True)
"""


@pytest.mark.parametrize('how', ['end', 'hang'])
def test_no_worker_outlives_the_program(how, tmp_path):
  """Not one that ends without closing, nor one that is killed at work.

  The program is no module and has no guard: its workers do not import it.
  """
  file = tmp_path / 'pids'
  path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
  process = subprocess.Popen(
    [sys.executable, '-c', PROGRAM, str(file), how],
    env=os.environ | {'PYTHONPATH': path},
    stdout=subprocess.PIPE,
    stdin=subprocess.DEVNULL,
  )
  with process:
    assert process.stdout.readline() == b'began\n'
    if how == 'end':
      assert process.wait(30) == 0
    else:
      limit = time.monotonic() + 30
      while len(set(file.read_text().split())) < 2:
        assert time.monotonic() < limit
        time.sleep(0.02)
      process.kill()
  pids = file.read_text().split()
  assert all(map(gone, pids))


PIECES = st.sampled_from(
  [
    *('\\boxed{', '}', '{', '\\frac', '^', '_', '$', '**', '(', '9' * 40),
    *('1/0', '\\sqrt', 'e', '\\int', '=', ',', '\n', '\x00', '\ud800', '####'),
    *('lambda:', '__import__("os")', '\\begin{matrix}', '10^10^10', '-', '.'),
  ]
)
HOSTILE_TEXT = st.lists(PIECES | st.text(max_size=3), max_size=12).map(''.join)


@pytest.fixture(scope='module')
def pools():
  """One pool a verifier that ships, started when it is first asked for."""
  found = {}

  def of(verifier):
    if verifier not in found:
      found[verifier] = pool.Pool(verifier, workers=2, timeout_s=10.0)
    return found[verifier]

  yield of
  for each in found.values():
    each.close()


@pytest.mark.full
@pytest.mark.parametrize(
  'verifier, record, right',
  [
    ('math', {'answer': '1/2'}, '\\boxed{\\frac{1}{2}}'),
    ('integer', {'answer': '7'}, '\\boxed{7}'),
    ('text', {'answer': 'Paris'}, '\\boxed{Paris}'),
    ('expression', {'numbers': [3, 5], 'target': 8}, '\\boxed{3 + 5}'),
  ],
)
@settings(max_examples=15, deadline=None)
@given(texts=st.lists(HOSTILE_TEXT, max_size=6))
def test_hostile_answers_cost_themselves_alone(
  pools, verifier, record, right, texts
):
  # One of a megabyte among them, and right ones on either side.
  answers = [right, *texts, '\\boxed{' + 'x' * 1_000_000 + '}', right]
  grades = pools(verifier).grade(answers, [record] * len(answers))
  assert grades.values[0] == grades.values[-1] == 1.0
  assert set(grades.statuses) <= set(pool.STATUSES)
  for value, status in zip(grades.values, grades.statuses):
    assert (value is None) == (status != 'ok')
    assert value in (None, 0.0, 1.0)
