"""The engine's thread: queue, rows, giving up, failing, ending."""

import dataclasses
import threading
import time

import jax
import pytest
import serving
import toys

from meta_rl import models
from meta_rl.serving import engine, ticks
from meta_rl.serving.tickets import CANCELLED, ERROR, LENGTH, STOP

LONG = {'thinking_budget': None, 'min_thinking': 40, 'max_new_tokens': 40}


@pytest.fixture(scope='module')
def made():
  one = serving.make(max_queue=4)
  one.start(warm=False)
  yield one
  one.stop()


@pytest.fixture
def fresh():
  """A function that makes an engine; it is stopped at the end."""
  all_made = []

  def make(**options):
    all_made.append(serving.make(**options))
    return all_made[-1]

  yield make
  for one in all_made:
    one.stop()


def wait_for(condition):
  """Waits until something holds."""
  until = time.monotonic() + serving.WAIT_S
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.002)


def slowly(one, seconds=0.05):
  """Makes each round of an engine take at least so long."""
  tick = one._tick

  class Slow:
    traces = 0

    def __call__(self, *args):
      time.sleep(seconds)
      return tick(*args)

  one._tick = Slow()


def test_pieces_and_their_counts(made):
  tokens, kinds, _, last = serving.Inbox(made, serving.request(seed=3)).all()
  usage = last.usage
  assert usage.thinking == kinds.count(ticks.THOUGHT)
  assert usage.thinking + usage.answer == len(tokens)
  assert usage.forced == (usage.stopped_by == 'budget')
  assert last.finish in (STOP, LENGTH)
  assert (last.finish == STOP) == (tokens[-1] == serving.EOS)


def test_a_response_that_runs_out_of_tokens(made):
  asked = serving.request(**LONG)
  tokens, kinds, _, last = serving.Inbox(made, asked).all()
  assert len(tokens) == 40
  assert last.finish == LENGTH
  assert kinds == [ticks.THOUGHT] * 40
  assert last.usage.stopped_by is None
  assert not last.usage.forced


def test_pieces_come_while_it_is_decoded(made):
  inbox = serving.Inbox(made, serving.request(**LONG))
  first = inbox.next()
  assert 1 <= len(first.tokens) <= 2  # steps of a round
  assert first.finish == ''
  inbox.all()


def test_a_cancelled_request_frees_its_row(fresh):
  one = fresh(rows=1)
  one.start(warm=False)
  slowly(one)
  first = serving.Inbox(one, serving.request(**LONG))
  first.next()
  second = serving.Inbox(one, serving.request(seed=1))
  third = serving.Inbox(one, serving.request(seed=2))
  assert one.queued == 2
  one.cancel(second.ticket)  # it waits
  assert one.queued == 1
  one.cancel(first.ticket)  # it is under way
  tokens, *_ = third.all()
  assert tokens == serving.alone(serving.request(seed=2))
  assert second._pieces.empty()
  wait_for(lambda: one.active == 0)
  assert one.stats['cancelled'] == 2


def test_a_full_queue(fresh):
  one = fresh(rows=1, max_queue=2)
  one.start(warm=False)
  slowly(one)
  under_way = serving.Inbox(one, serving.request(**LONG))
  under_way.next()
  waiting = [serving.Inbox(one, serving.request(seed=i)) for i in range(2)]
  with pytest.raises(engine.QueueFull):
    serving.Inbox(one, serving.request())
  one.cancel(waiting[0].ticket)
  serving.Inbox(one, serving.request())  # there is room again


def test_several_requests_wait_or_none(fresh):
  one = fresh(rows=1, max_queue=2)
  one.start(warm=False)
  slowly(one)
  serving.Inbox(one, serving.request(**LONG)).next()
  pair = (serving.request(), print)
  first = one.submit_all([pair])
  with pytest.raises(engine.QueueFull):
    one.submit_all([pair] * 2)
  assert one.queued == 1  # not half of them
  assert len(one.submit_all([pair])) == len(first)
  assert one.queued == 2


def test_it_sleeps_when_idle(made):
  serving.Inbox(made, serving.request()).all()
  wait_for(lambda: made.active == 0)
  time.sleep(0.05)
  before, spent = made.stats['rounds'], time.process_time()
  time.sleep(0.3)
  assert made.stats['rounds'] == before
  assert time.process_time() - spent < 0.2


def test_an_error_of_the_device_fails_its_requests_alone(fresh, capsys):
  one = fresh(rows=2)
  one.start(warm=False)
  serving.answers(one, [serving.request()])
  tick, left = one._tick, [1]

  def broken(*args):
    if left:
      left.pop()
      raise RuntimeError('no memory')
    return tick(*args)

  broken.traces = 0
  one._tick = broken
  gate = threading.Event()
  one._let_in, let_in = lambda: (gate.wait(), let_in())[1], one._let_in
  inboxes = [serving.Inbox(one, serving.request(seed=i)) for i in range(3)]
  gate.set()
  found = [inbox.all() for inbox in inboxes]
  finishes = [last.finish for *_, last in found]
  assert finishes.count(ERROR) == 2  # those in rows
  assert [last.message for *_, last in found if last.finish == ERROR] == [
    'the engine failed: RuntimeError'
  ] * 2
  # The one that waited, and those after it, are served.
  asked = serving.request(seed=9)
  assert serving.Inbox(one, asked).all()[0] == serving.alone(asked)
  assert one.stats['errors'] == 1
  assert 'no memory' in capsys.readouterr().err


def fail(*_, **__):
  raise RuntimeError('lost')


fail.traces = 0


def test_rounds_that_fail_in_a_row_are_trouble(fresh, monkeypatch):
  monkeypatch.setattr(engine.traceback, 'print_exception', lambda error: None)
  one = fresh(rows=1)
  one.start(warm=False)
  tick, one._tick = one._tick, fail
  for count in range(1, 4):
    assert one.trouble == ''
    serving.Inbox(one, serving.request()).all()
    wait_for(lambda count=count: one._failures == count)
  assert one.trouble == 'the last 3 rounds failed'
  assert one.alive
  one._tick = tick
  serving.Inbox(one, serving.request()).all()
  assert one.trouble == ''


def test_no_round_while_there_is_work_is_trouble(fresh, monkeypatch):
  monkeypatch.setattr(engine, '_SECONDS', 0.2)
  one = fresh(rows=1)
  one.start(warm=False)
  serving.Inbox(one, serving.request()).all()
  time.sleep(0.3)
  assert one.trouble == ''  # it sleeps
  gate, tick = threading.Event(), one._tick

  def hang(*args):
    gate.wait()
    return tick(*args)

  hang.traces = 0
  one._tick = hang
  inbox = serving.Inbox(one, serving.request())
  assert one.trouble == ''  # it has just begun
  wait_for(lambda: one.trouble)
  assert one.trouble.startswith('no round for')
  gate.set()
  inbox.all()
  assert one.trouble == ''


def test_an_engine_that_cannot_start_afresh_takes_no_more(fresh, monkeypatch):
  one = fresh(rows=1)
  one.start(warm=False)
  assert not one.broken
  one._tick = fail
  monkeypatch.setattr(one, '_reset', fail)
  monkeypatch.setattr(engine.traceback, 'print_exception', lambda error: None)
  inbox = serving.Inbox(one, serving.request())
  assert inbox.next().finish == ERROR
  wait_for(lambda: not one.alive)
  assert one.broken
  with pytest.raises(engine.Stopped):
    serving.Inbox(one, serving.request())


@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)
def test_a_thread_that_ends_leaves_nobody_waiting(fresh, monkeypatch):
  one = fresh(rows=1)
  one.start(warm=False)
  gate = threading.Event()

  def end():
    gate.wait()
    raise SystemExit

  monkeypatch.setattr(one, '_let_in', end)
  inboxes = [serving.Inbox(one, serving.request(seed=i)) for i in range(2)]
  gate.set()
  assert [inbox.next().finish for inbox in inboxes] == [ERROR] * 2
  wait_for(lambda: not one.alive)


def test_logits_that_are_no_numbers_fail_one_request(fresh):
  """The row is served again: what it holds has no weight, but NaN would."""
  config = dataclasses.replace(serving.CONFIG, tie_embeddings=False)
  model, params = models.make_model(config), toys.lively_params(config)
  asked = serving.request(temperature=0.0)
  expected = serving.alone(asked, model, params)
  unsaid = min(set(range(10, 32)) - {*expected})
  broken = params['embedding'].at[unsaid].set(jax.numpy.nan)
  one = fresh(rows=1, model=model, params=params | {'embedding': broken})
  one.start(warm=False)
  # So long that the next prompt does not overwrite where it begins.
  bad = dataclasses.replace(asked, prompt=(unsaid, *(5,) * 29))
  (*_, first), (tokens, *_) = serving.answers(one, [bad, asked])
  assert first.finish == ERROR
  assert first.message == 'the logits of the model are no numbers'
  assert tokens == expected
  assert one.stats['errors'] == 1


def test_a_receiver_that_fails_stops_nothing(made, capsys):
  def put(piece):
    raise RuntimeError(f'gone: {piece.finish}')

  beside = serving.request(seed=1)
  inbox = serving.Inbox(made, beside)
  made.submit(serving.request(), put)
  assert inbox.all()[0] == serving.alone(beside)  # each round has both
  wait_for(lambda: made.active == 0 and made.queued == 0)
  asked = serving.request(seed=2)
  assert serving.Inbox(made, asked).all()[0] == serving.alone(asked)
  assert made.stats['undelivered']
  assert 'gone' in capsys.readouterr().err


def test_stopping_lets_requests_end(fresh):
  one = fresh(rows=1)
  one.start(warm=False)
  inboxes = [serving.Inbox(one, serving.request(seed=i)) for i in range(3)]
  one.stop(grace=serving.WAIT_S)
  assert [inbox.all()[-1].finish in (STOP, LENGTH) for inbox in inboxes] == [
    True
  ] * 3
  with pytest.raises(engine.Stopped):
    serving.Inbox(one, serving.request())


def test_stopping_ends_what_takes_too_long(fresh):
  one = fresh(rows=1)
  one.start(warm=False)
  slowly(one)
  inboxes = [serving.Inbox(one, serving.request(**LONG)) for _ in range(2)]
  inboxes[0].next()
  began = time.monotonic()
  one.stop(grace=0.1)
  assert time.monotonic() - began < 20
  assert [inbox.all()[-1].finish for inbox in inboxes] == [CANCELLED] * 2


def test_warm_compiles_all_shapes(fresh):
  one = fresh()
  one.start()
  before = one.traces
  serving.answers(one, serving.some_requests(8))
  prompt = tuple(range(5, 30)) + tuple(range(5, 20))
  asked = serving.request(prompt, max_new_tokens=9, thinking_budget=3)
  serving.answers(one, [asked] * 2)
  serving.answers(one, [asked])
  assert one.traces == before


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'prompt': ()}, 'the prompt has 0 tokens'),
    ({'prompt': (5,) * 40}, 'has 40 tokens and 16 are asked for.* have 49 in'),
    ({'max_new_tokens': 0}, 'at least one'),
    ({'thinking_budget': 14}, '=14 and 2 stop tokens leave no room'),
    ({'min_thinking': 10}, 'min_thinking_tokens=10 is above'),
    ({'rule': 'progress'}, 'needs a head'),
  ],
)
def test_requests_that_cannot_be_served(made, changes, message):
  with pytest.raises(ValueError, match=message):
    made.submit(dataclasses.replace(serving.request(), **changes), print)


@pytest.mark.full
def test_the_longest_request_that_fits(made):
  asked = serving.request((5,) * 9, **LONG)  # 49 tokens, the last not fed
  assert serving.Inbox(made, asked).all()[0] == serving.generated_long(asked)


def test_a_model_without_thoughts():
  marks = dataclasses.replace(serving.MARKS, think_end_id=None, stop_ids=())
  one = serving.make(marks=marks)
  with pytest.raises(ValueError, match='no token ends a thought'):
    one.check(serving.request())
  one.start(warm=False)
  asked = serving.request(thinking_budget=None)
  tokens, kinds, _, last = serving.Inbox(one, asked).all()
  one.stop()
  assert tokens == serving.alone(asked, marks=marks)
  assert set(kinds) == {ticks.ANSWER}
  assert last.usage.thinking == 0
  assert not last.usage.forced


def test_the_smallest_engine():
  one = serving.make(rows=1, length=5, steps=1, max_queue=1)
  one.start()
  asked = serving.request((5, 6, 7), max_new_tokens=3, thinking_budget=None)
  assert serving.answers(one, [asked])[0][0] == serving.alone(asked)
  one.stop()
  for name in ('rows', 'length', 'steps', 'max_queue'):
    with pytest.raises(ValueError, match=f'engine: {name} must be'):
      serving.make(**{name: 0})


def test_a_foreign_cache_is_refused():
  toy = models.from_apply_fn(lambda *_: (jax.numpy.zeros((1, 1, 32)), None))
  with pytest.raises(ValueError, match='serving needs a model of meta_rl'):
    serving.make(model=toy)
