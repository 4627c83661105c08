"""What a notebook shows: pictures, tables and traces, each with its words."""

import io
import re

import matplotlib.image
import pytest

from meta_rl import notebook
from meta_rl.configs import mrt_countdown
from meta_rl.plots import Line, Panel
from meta_rl.report_style import SHADES_LIGHT

PANEL = Panel('Title', 'x', 'y', [Line('a', 0, [0, 1], [0.2, 0.7])])


def evaluation(name, last, **more):
  """An evaluation whose J rises from 0.25 to `last` over 9 tokens."""
  return {
    'name': name,
    'algorithm': name.lower(),
    'budgets': [0, 9],
    'accuracy_at_budget': [0.25, last],
    'scalars': {'tokens_mean': 6.0},
  } | more


def trace(prompt='3 5 = 8', answer='5 3 +', reward=1.0, gains=(0.5, -0.25)):
  """A trace of episodes with these gains, from J = 0.25 on."""
  texts = ['3 5 - no ;', '5 3 + 8 yes ;', 'w']
  episodes = [{'text': t, 'progress': g} for t, g in zip(texts, gains)]
  return {
    'prompt': prompt,
    'success_start': 0.25,
    'episodes': episodes,
    'answer': answer,
    'reward': reward,
  }


def shown(value):
  """Returns (data, metadata) of what a notebook asks for."""
  return value._repr_mimebundle_(include=None, exclude=None)


def test_a_picture_has_words_and_a_size():
  value = notebook.picture(PANEL, text='a rises to 0.7')
  data, metadata = shown(value)
  assert data['text/plain'] == repr(value) == 'a rises to 0.7'
  image = matplotlib.image.imread(io.BytesIO(data['image/png']))
  # A panel of 4.6 by 3.0 inches, 150 dots and 100 pixels of the page an inch.
  assert image.shape[:2] == (450, 690)
  assert metadata == {'image/png': {'alt': 'a rises to 0.7', 'width': 460}}


def test_pictures_stand_side_by_side():
  _, metadata = shown(notebook.picture(PANEL, PANEL, text='twice the same'))
  assert metadata['image/png']['width'] == 920


def test_the_same_picture_is_the_same_bytes():
  first, again = [
    shown(notebook.picture(PANEL, text='a rises'))[0] for _ in range(2)
  ]
  assert first == again


@pytest.mark.parametrize('text', ['', '  \n'])
def test_a_picture_without_words_is_refused(text):
  with pytest.raises(ValueError, match="text='' is given: say what"):
    notebook.picture(PANEL, text=text)


def test_no_panel_is_refused():
  with pytest.raises(ValueError, match='no panel'):
    notebook.picture(text='nothing')


def test_accuracy_says_where_curves_begin_and_end():
  value = notebook.accuracy(evaluation('base', 0.5), evaluation('MRT', 0.75))
  data, _ = shown(value)
  assert data['image/png'].startswith(b'\x89PNG')
  assert data['text/plain'] == (
    'Accuracy against tokens: base from 0.25 with no thinking to 0.50 with 9 '
    'tokens of it; MRT from 0.25 with no thinking to 0.75 with 9 tokens of it.'
  )


def test_accuracy_of_no_curve_is_refused():
  with pytest.raises(ValueError, match='no panel'):
    notebook.accuracy(evaluation('base', 0.5, budgets=[]))


def test_a_table_is_markdown():
  data, metadata = shown(notebook.table(evaluation('base', 0.5)))
  assert data['text/markdown'] == data['text/plain']
  header, rule, row = data['text/markdown'].splitlines()
  assert header.startswith('| policy ')
  assert set(rule) == {'|', '-', ' '}
  assert row.startswith('| base')
  assert metadata == {}


def test_traces_as_text():
  value = notebook.traces({'base': [trace()], 'MRT': [trace(reward=0.0)]})
  assert repr(value).splitlines() == [
    '3 5 = 8',
    '  base: J 0.25 with no thinking',
    '    +0.50  3 5 - no ;',
    '    −0.25  5 3 + 8 yes ;',
    '    answer 5 3 +  ✓ right',
    '  MRT: J 0.25 with no thinking',
    '    +0.50  3 5 - no ;',
    '    −0.25  5 3 + 8 yes ;',
    '    answer 5 3 +  ✗ wrong',
  ]


def test_an_episode_has_the_colour_of_its_progress():
  # Shades begin at 0.02, 0.1, 0.3 and 0.6 of progress (report_views).
  data, _ = shown(notebook.traces({'a': [trace(gains=(0.61, -0.11, 0.01))]}))
  colors = re.findall(r'background:(#\w+)"', data['text/html'])
  # The first chip is J before any thinking.
  assert colors == [SHADES_LIGHT[s] for s in ('z', 'p4', 'n2', 'z')]
  assert '<b>+0.61</b>' in data['text/html']
  assert 'style>' not in data['text/html']  # it would restyle the page


def test_traces_of_one_problem_stand_together():
  first, second = trace(prompt='1'), trace(prompt='2')
  value = notebook.traces({'a': [first, second], 'b': [first]})
  names = [line.split(':')[0] for line in repr(value).splitlines()]
  names = [name.strip() for name in names if not name.startswith('    ')]
  assert names == ['1', 'a', 'b', '2', 'a']
  assert shown(value)[0]['text/html'].count('margin:0 0 14px') == 2


def test_no_traces():
  assert repr(notebook.traces({})) == 'no traces'
  assert repr(notebook.traces({'a': []})) == 'no traces'


def test_text_of_a_model_cannot_leave_its_place():
  given = trace(prompt='<b>\x1b[2J', answer='</div>\x1b')
  given['episodes'][0]['text'] = '</span>\x1b'
  data, _ = shown(notebook.traces({'<i>': [given]}))
  page, text = data['text/html'], data['text/plain']
  assert '<i>' not in page
  assert '&lt;b&gt;\ufffd[2J' in page
  assert '&lt;/div&gt;\ufffd' in page
  assert '&lt;/span&gt;\ufffd' in page
  assert text.count('\ufffd') == 3
  assert '\x1b' not in text


def test_a_reward_between_right_and_wrong_or_none_at_all():
  assert repr(notebook.traces({'a': [trace(reward=0.5)]})).endswith(
    'reward 0.5'
  )
  assert repr(notebook.traces({'a': [trace(reward=None)]})).endswith('5 3 +')


def test_progress_is_no_error_to_a_notebook(monkeypatch, capsys):
  def run(config, folder):
    print(f'step 1 of {config} in {folder}', file=notebook.sys.stderr)
    return 0

  monkeypatch.setattr(notebook.training, 'run', run)
  assert notebook.train('a config', 'runs/a') is None
  told = capsys.readouterr()
  assert (told.out, told.err) == ('step 1 of a config in runs/a\n', '')


def test_a_run_that_ends_early_stops_the_notebook(tmp_path, capsys):
  config = mrt_countdown.get_config('tiny')
  config.rollout.num_prompts = 0
  folder = tmp_path / 'run'
  with pytest.raises(RuntimeError, match='exit code 1: the line above says'):
    notebook.train(config, folder)
  told = capsys.readouterr()
  assert told.out.startswith('error: ')
  assert 'num_prompts' in told.out
  assert told.err == ''
  assert not folder.exists()
