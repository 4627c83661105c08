import io
import json
import math
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from meta_rl import metrics


def lines(folder, name='metrics.jsonl'):
  return (folder / name).read_text().splitlines()


def events(folder):
  """Returns [(step, tag, value)], and the steps of session starts."""
  scalars, starts = [], []
  for path in sorted((folder / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      # A TFRecord: length u64, its crc u32, the event, its crc u32.
      size = struct.unpack('<Q', data[:8])[0]
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      if event.session_log.status:
        starts.append(event.step)
      for value in event.summary.value:
        scalars.append((event.step, value.tag, value.simple_value))
  return scalars, starts


def test_scalars_go_to_jsonl_and_tensorboard(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {'loss/total': np.float32(0.5), 'a/b': 2})
    # Flushed at once: a kill now would lose nothing.
    assert json.loads(lines(tmp_path)[0]) == {
      'step': 1, 'loss/total': 0.5, 'a/b': 2.0,
    }  # fmt: skip
    writer.write(2, {'loss/total': 0.25})
  assert len(lines(tmp_path)) == 2
  scalars, _ = events(tmp_path)
  assert scalars == [(1, 'loss/total', 0.5), (1, 'a/b', 2.0),
                     (2, 'loss/total', 0.25)]  # fmt: skip


def test_tensorboard_is_optional(tmp_path):
  with metrics.MetricsWriter(tmp_path, tensorboard=False, name='eval') as w:
    w.write(0, {'x': 1})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['eval.jsonl']


def test_resume_shows_no_step_twice(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    for step in range(1, 6):
      writer.write(step, {'x': step})
  with open(tmp_path / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 6, "x": 6.')  # torn by kill -9
  with metrics.MetricsWriter(tmp_path, resume_step=3) as writer:
    for step in (4, 5):
      writer.write(step, {'x': -step})
  rows = metrics.read_metrics(tmp_path / 'metrics.jsonl')
  assert [(r['step'], r['x']) for r in rows] == [
    (1, 1), (2, 2), (3, 3), (4, -4), (5, -5),
  ]  # fmt: skip
  # TensorBoard is told to hide its own from step 4 on.
  assert 4 in events(tmp_path)[1]


@pytest.mark.parametrize('resume, kept', [(None, []), (0, [0]), (9, [0, 1])])
def test_what_is_kept(tmp_path, resume, kept):
  with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.write(0, {})
    writer.write(1, {})
  metrics.MetricsWriter(tmp_path, tensorboard=False, resume_step=resume).close()
  assert [json.loads(line)['step'] for line in lines(tmp_path)] == kept


@pytest.mark.parametrize('torn', [b'{"st', b'\xff\xfe', b'[]\n', b'{}\n', b'3'])
def test_a_torn_line_is_left_out(tmp_path, torn):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1, "x": null}\n' + torn)
  rows = metrics.read_metrics(path)
  assert len(rows) == 1
  assert math.isnan(rows[0]['x'])


def test_a_whole_last_line_without_newline_stays_a_line(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}')
  with metrics.MetricsWriter(
    tmp_path, tensorboard=False, resume_step=1
  ) as writer:
    writer.write(2, {})
  assert lines(tmp_path) == ['{"step": 1}', '{"step": 2}']


def test_steps_go_forward_only(tmp_path):
  with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.write(3, {})
    for step in (3, 2):
      with pytest.raises(ValueError, match=f'step {step} come after .* step 3'):
        writer.write(step, {})


def test_non_finite_is_null_and_counted(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    for step in range(1, 5):
      warned = step in (1, 2, 4)  # powers of two of the count
      values = {'kl': math.nan, 'r': math.inf if step == 1 else 0.0}
      if warned:
        with pytest.warns(RuntimeWarning) as seen:
          writer.write(step, values)
        assert f'kl is nan (time {step} in' in str(seen[0].message)
      else:
        writer.write(step, values)
    assert writer.non_finite == {'kl': 4, 'r': 1}
  assert lines(tmp_path)[0] == '{"step": 1, "kl": null, "r": null}'
  assert {tag for _, tag, _ in events(tmp_path)[0]} == {'r'}


def test_text_rows(tmp_path):
  with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
    path = writer.write_text_rows('samples', 50, [{'t': '6 ×'}, {'t': 'b\n'}])
    writer.write_text_rows('samples', 50, [{'t': '6 ×'}, {'t': 'b\n'}])
  assert path == tmp_path / 'samples' / 'step_000050.jsonl'
  rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  assert rows == [{'t': '6 ×'}, {'t': 'b\n'}]


def make_clock(*times):
  return iter(times).__next__


def test_timer_sums_and_starts_again():
  timer = metrics.Timer(make_clock(0.0, 1.0, 5.0, 7.0, 10.0, 10.5))
  with timer('generate'):
    pass
  with timer('generate'):
    pass
  with pytest.raises(KeyError), timer('update'):
    raise KeyError
  # (1 - 0) + (7 - 5) = 3; 10.5 - 10 = 0.5, although it failed.
  assert timer.metrics() == {'time/generate_s': 3.0, 'time/update_s': 0.5}
  assert timer.metrics() == {}


@pytest.mark.parametrize(
  'seconds, text',
  [(-1, '0s'), (59.9, '59s'), (60, '1m00s'), (185, '3m05s'), (7620, '2h07m')],
)
def test_format_seconds(seconds, text):
  assert metrics.format_seconds(seconds) == text


def test_without_a_terminal_a_line_every_n_steps():
  stream = io.StringIO()
  bar = metrics.ProgressBar(
    7,
    initial_step=3,
    print_every=3,
    stream=stream,
    clock=make_clock(0, 1, 8, 9),
  )
  for step in range(4, 8):
    bar.update(step, {
      'rollout/reward_mean': 0.5, 'regret/normalized': 0.25,
      'time/tokens_per_s': 1234.5,
    })  # fmt: skip
  bar.say('hello')
  bar.close()
  # Step 4, the first: 1 s for one step, 3 are left. Step 6: 8 s for three.
  assert stream.getvalue().splitlines() == [
    'step 4/7, reward 0.500, regret 0.250, tok/s 1,234, 3s left',
    'step 6/7, reward 0.500, regret 0.250, tok/s 1,234, 2s left',
    'step 7/7, reward 0.500, regret 0.250, tok/s 1,234, 0s left',
    'hello',
  ]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_on_a_terminal_a_bar():
  stream = Terminal()
  with metrics.ProgressBar(4, stream=stream) as bar:
    bar.update(4, {'loss/total': 1.0, 'regret/token_weighted': 0.3})
    bar.say('hello')
  text = stream.getvalue()
  assert '4/4' in text
  assert 'loss 1.0000, regret 0.300' in text
  assert 'hello' in text


def test_the_mean_of_a_metric_is_over_the_rows_that_have_it():
  rows = [{'a': 1.0, 'b': 4.0}, {'a': 3.0}]
  assert metrics.mean_rows(rows) == {'a': 2.0, 'b': 4.0}
  assert metrics.mean_rows([]) == {}


def test_total_of_a_metric(tmp_path):
  assert metrics.total(tmp_path, 'x') == 0
  with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.write(1, {'x': 1.5})
    writer.write(2, {'y': 100.0})
    writer.write(3, {'x': 2.0})
    writer.write(4, {'x': 4.0})
  assert metrics.total(tmp_path, 'x', last_step=3) == 3.5
  assert metrics.total(tmp_path, 'x') == 7.5
