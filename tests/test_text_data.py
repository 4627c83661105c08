"""Text problems: files, splits, contamination, and the dataset made of them."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meta_rl.tasks import text_data, text_files, text_sources
from meta_rl.tasks.base import SPLITS
from meta_rl.tasks.text_files import Problem


def write(path, *records):
  """Writes JSONL; a str is a line as it is."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
  path.write_text('\n'.join(lines) + '\n', 'utf-8')
  return path


def qa(number, answer=None):
  return {'question': f'Question {number}?', 'answer': answer or str(number)}


# ---- the answer of a solution


@pytest.mark.parametrize(
  'form, text, expected',
  [
    ('plain', ' 42 ', '42'),
    ('gsm8k', 'It is <<2*3=6>>6.\n#### 6', '6'),
    ('gsm8k', 'a #### 1\n####   1,234,567 ', '1234567'),
    ('boxed', r'so $\boxed{\frac{1}{2}}$.', r'\frac{1}{2}'),
    ('boxed', r'\boxed{1} and \boxed{ 2 }', '2'),
    ('boxed', r'so $\boxed 5$.', '5'),
    ('boxed', r'so $\fbox{x+1}$.', 'x+1'),
  ],
)
def test_answers_of_solutions(form, text, expected):
  assert text_files.ANSWER_FORMATS[form](text) == expected


def test_normalized_questions():
  normal = text_files.normalize_question
  assert normal(' What\tIS  1\u00a0+ 1?\n') == 'what is 1 + 1?'
  assert normal('\ufb01nd \uff11') == 'find 1'  # a ligature, a full-width digit
  assert normal('x + 1') != normal('x - 1')
  keys = [text_data.question_key(q) for q in ('A  b', 'a b', 'a c')]
  assert keys[0] == keys[1] != keys[2]


# ---- files


def test_splits_by_the_names_of_files_and_folders(tmp_path):
  names = [
    'main/train-00000-of-00002.parquet',
    'main/train-00001-of-00002.parquet',
    'main/test-00000-of-00001.parquet',
    'data/dev.jsonl',
    'train/algebra/12.json',
    'test/algebra/1.json',
    'info.json',
    'README.md',
    '.git/train.jsonl',
    'trainer.json',
  ]
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  found = text_files.find_files(path=tmp_path)
  inside = {
    split: {str(file.relative_to(tmp_path)) for file in files}
    for split, files in found.items()
  }
  assert inside == {
    'train': {names[0], names[1], names[4]},
    'test': {names[2], names[5]},
    'validation': {names[3]},
  }
  found = text_files.find_files(path=tmp_path, subset='main')
  assert {split: len(files) for split, files in found.items()} == {
    'train': 2,
    'test': 1,
  }


def test_one_file_stands_for_itself(tmp_path):
  file = write(tmp_path / 'aime.jsonl', qa(1))
  assert text_files.find_files(path=file) == {'all': (file,)}
  assert text_files.find_files(path=tmp_path) == {'all': (file,)}


def test_the_hub_cache(tmp_path, monkeypatch):
  monkeypatch.delenv('HF_HUB_CACHE', raising=False)
  monkeypatch.setenv('HF_HOME', str(tmp_path))
  folder = tmp_path / 'hub' / 'datasets--openai--gsm8k'
  with pytest.raises(ValueError, match='hf download --repo-type dataset'):
    text_files.hub_snapshot('openai/gsm8k')
  one = write(folder / 'snapshots' / 'abc' / 'main' / 'train.jsonl', qa(1))
  assert text_files.hub_snapshot('openai/gsm8k') == one.parent.parent
  found = text_files.find_files(hub='openai/gsm8k', subset='main')
  assert found == {'train': (one,)}
  # Two of them: refs/main says which.
  two = write(folder / 'snapshots' / 'def' / 'main' / 'train.jsonl', qa(2))
  with pytest.raises(ValueError, match='is not in the cache'):
    text_files.hub_snapshot('openai/gsm8k')
  write(folder / 'refs' / 'main', 'def')
  assert text_files.hub_snapshot('openai/gsm8k') == two.parent.parent
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'other'))
  with pytest.raises(ValueError, match='is not in the cache .*other'):
    text_files.hub_snapshot('openai/gsm8k')
  with pytest.raises(ValueError, match='give owner/name'):
    text_files.hub_snapshot('../openai')


@pytest.mark.parametrize(
  'options, line',
  [
    ({}, 'give one of them'),
    ({'path': 'x', 'hub': 'a/b'}, 'give one of them'),
    ({'path': 'none'}, 'none does not exist'),
    ({'path': 'notes.txt'}, 'its name must end in one of'),
    ({'path': 'empty'}, 'has no file of a split among 0'),
    ({'path': 'mixed'}, 'has no file of a split among 2'),
  ],
)
def test_files_that_are_not_there(options, line, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'notes.txt').touch()
  write(tmp_path / 'mixed' / 'a.jsonl', qa(1))
  write(tmp_path / 'mixed' / 'b.jsonl', qa(1))
  with pytest.raises(ValueError, match=line) as error:
    text_files.find_files(**options)
  assert '\n' not in str(error.value)


def test_the_three_kinds_of_files_agree(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  records = [
    {'q': 'caf\u00e9\u2028?', 'a': '1', 'x': None},
    {'q': 'two\nlines \U0001f600', 'a': ' 22 ', 'x': 3.5},
  ]
  options = {'question_key': 'q', 'answer_key': 'a'}
  expected = [Problem('caf\u00e9\u2028?', '1'), Problem(records[1]['q'], '22')]
  write(tmp_path / 'a.jsonl', '', *records, '  ')
  (tmp_path / 'a.json').write_text(json.dumps(records, indent=2))
  parquet.write_table(
    pyarrow.Table.from_pylist(records), tmp_path / 'a.parquet'
  )
  for suffix in text_files.SUFFIXES:
    file = tmp_path / f'a{suffix}'
    assert text_files.read_problems(file, **options) == expected
  # A file of one object, as the original of MATH has them.
  (tmp_path / 'b.json').write_text(
    json.dumps({'problem': 'p', 'solution': r'\boxed{7}'}, indent=1)
  )
  found = text_files.read_problems(tmp_path / 'b.json', answer_format='boxed')
  assert found == [Problem('p', '7')]
  # Numbers are answers too; columns of other types are not.
  table = pyarrow.table({'question': ['p', 'q'], 'answer': [7, 8]})
  parquet.write_table(table, tmp_path / 'c.parquet')
  found = text_files.read_problems(tmp_path / 'c.parquet')
  assert found == [Problem('p', '7'), Problem('q', '8')]
  with pytest.raises(ValueError, match=r"c.parquet, row 1: no 'problem' among"):
    text_files.read_problems(tmp_path / 'c.parquet', answer_format='boxed')
  whole = (tmp_path / 'c.parquet').read_bytes()
  (tmp_path / 'd.parquet').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match='d.parquet cannot be read as Parquet'):
    text_files.read_problems(tmp_path / 'd.parquet')


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
  (tmp_path / 'a.parquet').touch()
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(ValueError, match=r"pip install 'meta-rl\[llm\]'"):
    text_files.read_problems(tmp_path / 'a.parquet')


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"question": "q"}', r"no 'answer' among the keys \['question'\]"),
    ('{"question": 7, "answer": "1"}', "'question' must be text"),
    ('{"question": " ", "answer": "1"}', 'must be text that is not empty'),
    ('{"question": "q", "answer": null}', "'answer' is of type NoneType"),
    ('{"question": "q", "answer": true}', "'answer' is of type bool"),
    ('{"question": "q", "answer": ["1"]}', "'answer' is of type list"),
    ('{"question": "q", "answer": " "}', 'is empty'),
    (r'{"question": "q\ud800", "answer": "1"}', 'text that is not Unicode'),
    ('[1]', 'a JSON list: give an object'),
    ('{"question"', 'not JSON'),
  ],
)
def test_bad_lines_are_named(line, message, tmp_path):
  file = write(tmp_path / 'x.jsonl', qa(1), line, qa(2))
  with pytest.raises(ValueError, match=rf'x.jsonl, line 2: .*{message}') as e:
    text_files.read_problems(file)
  assert '\n' not in str(e.value)


def test_bad_files_are_named(tmp_path):
  bad = tmp_path / 'x.jsonl'
  bad.write_bytes(b'{"question": "\xff", "answer": "1"}\n')
  with pytest.raises(ValueError, match='x.jsonl is not UTF-8'):
    text_files.read_problems(bad)
  bad.write_bytes(b'\n\n')
  with pytest.raises(ValueError, match='x.jsonl has no problem'):
    text_files.read_problems(bad)
  bad = tmp_path / 'x.json'
  for text, line in (
    ('[1]', 'object 1: a JSON int'),
    ('[{}', 'is no JSON'),
    ('[{"question": "q", "answer": "1"}, {}]', "object 2: no 'question'"),
    ('[]', 'has no problem'),
  ):
    bad.write_text(text)
    with pytest.raises(ValueError, match=f'x.json.*{line}'):
      text_files.read_problems(bad)
  file = write(tmp_path / 'y.jsonl', qa(1))
  with pytest.raises(ValueError, match="y.jsonl, line 1: there is no '####'"):
    text_files.read_problems(file, answer_format='gsm8k')
  with pytest.raises(ValueError, match=r'line 1: the solution has no \\boxed'):
    text_files.read_problems(
      file,
      answer_format='boxed',
      question_key='question',
      answer_key='answer',
    )
  with pytest.raises(ValueError, match="answer_format must be one of.*'x'"):
    text_files.read_problems(file, answer_format='x')


# ---- splits


def problems(numbers):
  return [Problem(f'Question {i}?', str(i)) for i in numbers]


def test_what_is_held_out_is_not_trained_on():
  found = {
    'train': [
      *problems(range(100)),
      Problem('question  3?', '3'),  # again, spelled otherwise
      Problem('QUESTION 4?', '5'),  # again, with another answer
      Problem('Question 201?', '201'),  # in test
      Problem('question\n202?', '0'),  # in test
      Problem('Question 301?', '301'),  # in validation
    ],
    'validation': problems([301, 302, 203]),
    'test': [*problems(range(200, 210)), *problems([200])],
  }
  splits, counts, first = text_data.split_problems(found)
  assert first == 'Question 203?'
  assert splits['train'] == problems(range(100))
  assert splits['validation'] == problems([301, 302])
  assert splits['test'] == problems(range(200, 210))
  assert counts == {
    'duplicates': 3,
    'conflicts': 1,
    'contaminated_by_test': 3,
    'contaminated_by_validation': 1,
  }


def test_validation_by_the_hash_of_the_question():
  """10 percent of 2000; three standard deviations are 2 percent."""
  one, *_ = text_data.split_problems(
    {'train': problems(range(2000)), 'test': problems([5000])}
  )
  assert abs(len(one['validation']) / 2000 - 0.1) < 0.02
  # Whatever else is in the file, and however it is spelled.
  others = [
    Problem(p.question.upper(), '') for p in problems(range(1000, 3000))
  ]
  two, *_ = text_data.split_problems(
    {'train': others[::-1], 'test': problems([5000])}
  )
  held_out = {p.answer for p in one['validation'] if int(p.answer) >= 1000}
  trained = {text_data.question_key(p.question) for p in two['train']}
  for number in held_out:
    assert text_data.question_key(f'Question {number}?') not in trained


def test_one_file_gives_three_splits():
  splits, counts, _ = text_data.split_problems(
    {'all': problems(range(1000))}, validation_percent=20, test_percent=30
  )
  sizes = [len(splits[split]) for split in SPLITS]
  assert sum(sizes) == 1000
  for size, share in zip(sizes, (0.5, 0.2, 0.3)):
    assert abs(size / 1000 - share) < 0.05
  assert not any(counts.values())


@settings(max_examples=40)
@given(
  st.lists(st.sampled_from('aAbBcC'), max_size=8),
  st.lists(st.sampled_from('aAbBcCdD'), max_size=8),
)
def test_no_question_is_in_two_splits(test, train):
  """Against sets, with enough other questions that no split is empty."""
  others = problems(range(300))
  found = {
    'test': [Problem(q, '1') for q in ['z', *test]],
    'train': [Problem(q, '1') for q in train] + others,
  }
  splits, counts, _ = text_data.split_problems(found)
  keys = [text_data.question_key(p.question) for s in SPLITS for p in splits[s]]
  assert len(keys) == len(set(keys))
  lower = {q.casefold() for q in test}
  kept = {q.casefold() for q in train} - lower
  assert len(keys) == 300 + 1 + len(lower) + len(kept)
  hit = sum(q.casefold() in lower for q in train)
  assert counts['contaminated_by_test'] == hit
  dropped = len(test) - len(lower) + len(train) - hit - len(kept)
  assert counts['duplicates'] == dropped


def test_splits_that_cannot_be():
  with pytest.raises(
    ValueError, match=r"files of \['test'\] and none to train"
  ):
    text_data.split_problems({'test': problems([1])})
  with pytest.raises(
    ValueError, match="'test': 0}: validation is empty|empty;"
  ):
    text_data.split_problems({'all': problems(range(2))})
  same = {'train': problems(range(60)), 'test': problems(range(60))}
  with pytest.raises(
    ValueError,
    match=r"train is empty, since 60 of its problems, such as 'Question "
    r"0\?', are held out too .*: give others to train on",
  ):
    text_data.split_problems(same)


@pytest.mark.parametrize(
  'files, message',
  [
    ({'test': 3}, r"in: there are files of \['test'\] and none to train on"),
    ({'train': 2, 'test': 9}, 'in: the problems give .* is empty'),
  ],
)
def test_splits_that_cannot_be_name_their_folder(files, message, tmp_path):
  for split, size in files.items():
    write(tmp_path / 'in' / f'{split}.jsonl', *map(qa, range(size)))
  with pytest.raises(ValueError, match=message):
    text_data.load_source(tmp_path / 'data', 'train', path=str(tmp_path / 'in'))


# ---- the dataset


def test_a_dataset_from_files_to_records(tmp_path, caplog):
  caplog.set_level('WARNING', logger='absl')
  solution = lambda i: {'question': f'Q {i}\n\U0001f600', 'answer': f'#### {i}'}
  write(tmp_path / 'in' / 'train.jsonl', *map(solution, range(60)))
  write(tmp_path / 'in' / 'test.jsonl', solution(7), solution(100))
  options = {'path': str(tmp_path / 'in'), 'answer_format': 'gsm8k'}
  data_dir = tmp_path / 'data'
  sources = {
    split: text_data.load_source(data_dir, split, **options) for split in SPLITS
  }
  records = {
    split: [text_data.record_text(source[i]) for i in range(len(source))]
    for split, source in sources.items()
  }
  assert [r['answer'] for r in records['test']] == ['7', '100']
  assert len(records['train']) + len(records['validation']) == 59
  first = records['test'][0]
  assert first['question'] == 'Q 7\n\U0001f600'
  assert first['key'] == text_data.question_key('q 7 \U0001f600')
  assert text_data.cluster_key(sources['test'][0]) == first['key']
  counts = text_data.load_counts(data_dir, **options)
  assert counts['contaminated_by_test'] == 1
  assert sum(counts.values()) == 1
  lines = [r.getMessage() for r in caplog.records]
  assert (
    sum('dropped of the problems: 1 contaminated_by' in x for x in lines) == 1
  )
  (line,) = [x for x in lines if 'contaminated_by' in x]
  assert line.startswith(f'{tmp_path / "in"}: dropped')
  assert line.endswith("held out and in train is 'Q 7 \U0001f600'")
  # Another process says so again, with the dataset built.
  text_data._say_once.cache_clear()
  caplog.clear()
  text_data.load_source(data_dir, 'test', **options)
  assert [r.getMessage() for r in caplog.records] == [line]
  # A slice, and the other way to say where the test problems are.
  assert len(text_data.load_source(data_dir, 'train[:5]', **options)) == 5


def test_a_split_of_one_file_is_said(tmp_path, caplog):
  caplog.set_level('WARNING', logger='absl')
  file = write(tmp_path / 'in' / 'train.jsonl', *map(qa, range(60)))
  options = {'path': str(tmp_path / 'in')}
  sizes = [
    len(text_data.load_source(tmp_path / 'data', split, **options))
    for split in SPLITS
  ]
  (line,) = [r.getMessage() for r in caplog.records]
  assert line.startswith(f'{file}: there is no test file, so that its problems')
  assert '{} train, {} validation, {} test;'.format(*sizes) in line
  write(tmp_path / 'in' / 'test.jsonl', qa(100))
  caplog.clear()
  text_data.load_source(tmp_path / 'data', 'train', **options)
  assert caplog.records == []


def test_names_follow_contents_and_options(tmp_path):
  file = write(tmp_path / 'a b.jsonl', *map(qa, range(5)))
  name = text_data.make_config(path=str(file)).name
  assert name.startswith('a_b_')
  # Elsewhere, with the same contents and name: the same dataset.
  copy = write(tmp_path / 'copy' / 'a b.jsonl', *map(qa, range(5)))
  assert text_data.make_config(path=str(copy)).name == name
  others = [
    text_data.make_config(path=str(file), validation_percent=11).name,
    text_data.make_config(path=str(file), answer_key='a').name,
    text_data.make_config(path=str(file), test_path=str(copy)).name,
  ]
  write(file, *map(qa, range(6)))
  others.append(text_data.make_config(path=str(file)).name)
  assert len({name, *others}) == 5


def test_a_test_file_of_another_form(tmp_path):
  train = write(tmp_path / 'train.jsonl', *map(qa, range(60)))
  record = {'problem': 'question 7?', 'solution': r'\boxed{7}'}
  test = write(tmp_path / 'aime.jsonl', record)
  config = text_data.make_config(
    path=str(train), test_path=str(test), test_answer_format='boxed'
  )
  splits, counts, _ = text_data._read(config)
  assert splits['test'] == [Problem('question 7?', '7')]
  assert counts['contaminated_by_test'] == 1


@pytest.mark.parametrize(
  'options, line',
  [
    ({'pth': 'x'}, r"unknown text options \['pth'\]"),
    ({'answer_format': 'x'}, 'answer_format must be one of'),
    ({'validation_percent': 0}, 'each must be at least 1'),
    ({'test_percent': 95}, 'something must be left to train on'),
    ({'test_answer_key': 'x'}, 'without test_path'),
    ({'path': 'none'}, 'none does not exist'),
    ({'path': 'both', 'test_path': 'f.jsonl'}, 'there are test files already'),
  ],
)
def test_options_that_cannot_be(options, line, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / 'f.jsonl', qa(1))
  write(tmp_path / 'both' / 'train.jsonl', qa(1))
  write(tmp_path / 'both' / 'test.jsonl', qa(2))
  with pytest.raises(ValueError, match=line):
    text_data.make_config(**{'path': 'f.jsonl'} | options)


def test_well_known_datasets_have_options_that_exist():
  for options in text_data.DATASETS.values():
    with pytest.raises(ValueError, match='is not in the cache|does not exist'):
      text_data.make_config(**options | {'hub': 'nobody/has-this'})


# ---- levels


@pytest.mark.parametrize(
  'record, level',
  [
    ({'level': 'Level 5'}, 'Level 5'),
    ({'difficulty': 3}, '3'),
    ({'level': None, 'difficulty': 2.5}, '2.5'),
    ({'level': 1, 'difficulty': 9}, '1'),
    ({}, ''),
    ({'level': {'min': 1}}, ''),
    ({'level': True}, ''),
    ({'level': ' \ud800 '}, '?'),
  ],
)
def test_how_hard_a_file_says_a_problem_is(record, level, tmp_path):
  (tmp_path / 'a.json').write_text(
    json.dumps({'question': 'q', 'answer': '1'} | record)
  )
  assert text_files.read_problems(tmp_path / 'a.json') == [
    Problem('q', '1', level)
  ]


def test_levels_of_parquet(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  columns = {'question': ['p', 'q'], 'answer': ['1', '2']}
  table = pyarrow.table(columns | {'level': ['easy', None], 'rest': [0, 1]})
  parquet.write_table(table, tmp_path / 'a.parquet')
  assert text_files.read_problems(tmp_path / 'a.parquet') == [
    Problem('p', '1', 'easy'),
    Problem('q', '2', ''),
  ]


def test_levels_reach_the_task(tmp_path):
  """As numbers where they are some, and None where there is none."""
  levels = ['Level 2', 4, '', '7', 'nan']
  rows = [{**qa(i), 'level': levels[i % 5]} for i in range(10)]
  write(tmp_path / 'in' / 'test.jsonl', *rows)
  write(tmp_path / 'in' / 'train.jsonl', *map(qa, range(20, 90)))
  source = text_sources.SOURCES['files']
  records = source.load(tmp_path / 'data', 'test', path=str(tmp_path / 'in'))
  assert [
    source.difficulty(record) for record in map(records.__getitem__, range(5))
  ] == [
    ('level', 'Level 2'),
    ('level', 4.0),
    None,
    ('level', 7.0),
    ('level', 'nan'),
  ]
