r"""Text tasks for language models: prompts, thinking, forced answers, grading.

A text task is a source of (question, accepted answers), a tokenizer and a way
to think. Everything after that is the token machinery of the other tasks: the
accepted answers are token strings for the exact prover, and the verifier is
called from the device's program for whatever is sampled.

    prompt     the checkpoint's chat template around question + instruction,
               then `open`
    thought    what the model writes up to the one token `close`, or up to the
               budget, at which `stop` + `answer_prefix` is forced
    answer     what comes behind, up to end-of-text; graded in a worker process
               (meta_rl/verifiers), with `answer_prefix` put before it where it
               was forced

Axes: B traces, T tokens, S accepted answers, A answer length.
"""

import dataclasses
import datetime
import functools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meta_rl import chat_template, checks, text_tokenizer, verifiers
from meta_rl.tasks import text_host, text_problems
from meta_rl.tasks.base import SPLITS, Task, TaskKit
from meta_rl.tasks.text_sources import SOURCES
from meta_rl.text_tokenizer import BYTES

DELIMITERS = ('line', 'paragraph')
TEMPLATES = ('checkpoint', 'chatml', 'none')
_GOLD_BYTES = 512


@dataclasses.dataclass(frozen=True)
class TextOptions:
  """Options of a text task.

  Attributes:
    source: a key of SOURCES.
    data: its own options.
    tokenizer: as in `text_tokenizer.load`.
    verifier: as in `verifiers.path_of`.
    timeout_s: of the verifier for each answer, seconds.
    workers: processes that grade; None: one a core, at most 8.
    template: the 'checkpoint''s own chat template (of 'bytes': ChatML),
      'chatml', or 'none': the question alone.
    date: 'YYYY-MM-DD', what templates that ask take for today (Llama 3 puts it
      into every prompt): fixed, or a run would go on with other prompts.
    system: text of a system turn; '': none.
    instruction: put behind each question, on a line of its own.
    open: begins the thought, behind a prompt that does not end with it already.
    close: ends the thought; one token.
    stop: forced at the budget, `close` in it.
    answer_prefix: forced behind `stop`.
    spellings: how an accepted answer may be written; '{}', once in each, is the
      answer, and other braces are themselves: '\\boxed{{}}' is a box of it.
    answer_end: ends an accepted answer; '': end-of-text.
    stop_strings: what ends an answer besides: the token that completes one is
      the last of its trace, and it is not graded from there on.
    delimiter: ends an episode of prover.boundaries='delimiters': every 'line'
      or every 'paragraph'.
    segments: options of `segments.split_ids`, for prover.boundaries='text'.
    prompt_length: tokens; longer prompts are refused.
    answer_length: tokens of an answer, its end included.
    max_answers: accepted answers that are listed, S.
    gold_bytes: of what the verifier is told of a problem, as JSON; None: 512,
      or with reasoning_gym what its longest problem needs.
  """

  source: str
  tokenizer: str
  verifier: str
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  timeout_s: float = 5.0
  workers: int | None = None
  template: str = 'checkpoint'
  date: str = '2024-07-26'
  system: str = ''
  instruction: str = ''
  open: str = ''
  close: str = '</think>'
  stop: str = '</think>'
  answer_prefix: str = ''
  spellings: Sequence[str] = ('{}',)
  answer_end: str = ''
  stop_strings: Sequence[str] = ()
  delimiter: str = 'line'
  segments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prompt_length: int = 64
  answer_length: int = 16
  max_answers: int = 8
  gold_bytes: int | None = None


def make_kit(**options) -> TaskKit:
  """Returns the kit of a text task, one for equal options.

  Args:
    **options: fields of `TextOptions`.

  Raises:
    ValueError: an unknown or missing option, or one that cannot be used.
  """
  return _make_kit(json.dumps(options, sort_keys=True, default=list))


@functools.lru_cache(maxsize=8)
def _make_kit(text: str) -> TaskKit:
  own = _parse(json.loads(text))
  source, words = SOURCES[own.source], text_tokenizer.load(own.tokenizer)
  encoded, checked = _Encoder(own, words), set()

  def load_source(data_dir, split, **_):
    problems = source.load(data_dir, split, **own.data)
    if (str(data_dir), split) not in checked:
      encoded.check_all(problems, split)
      checked.add((str(data_dir), split))
    return problems

  def trace_problems(records, shown=None, **_):
    del shown
    if source.sample_trace is None:
      raise ValueError(
        f'task.source={own.source!r} has no traces to show: take '
        "data.source='jsonl' with a file of chats, or a source of its own "
        'traces, such as countdown'
      )
    return records

  def sample_traces(problems, rng, count, **trace_options):
    drawn = rng.integers(len(problems), size=count)
    return [
      encoded.trace(
        problems[i], *source.sample_trace(problems[i], rng, **trace_options)
      )
      for i in drawn
    ]

  def max_trace_length(problems, *, max_episodes, **trace_options):
    # Of a few that are as long as they come.
    rng = np.random.default_rng(0)
    longest = dict(trace_options, long_share=1.0, direct_share=0.0)
    longest['ordinary_episodes'] = max_episodes - 1
    longest['max_episodes'] = max_episodes
    drawn = [problems[i] for i in rng.integers(len(problems), size=64)]
    traces = [
      encoded.trace(each, *source.sample_trace(each, rng, **longest))
      for each in drawn
    ]
    return own.prompt_length + max(
      len(tokens) - start for tokens, start in traces
    )

  def encode(text, *, is_prompt=False):
    return words.encode_prompt(text) if is_prompt else words.encode(text)

  def make_problem_fn(data_dir, **_):
    return text_problems.Finder(
      load_source(data_dir, 'train'),
      prompt=encoded.prompt,
      arrays=encoded.arrays,
      decode=words.decode,
    )

  difficulty = None
  if source.difficulty is not None:
    difficulty = lambda record, **_: source.difficulty(record)
  return TaskKit(
    make_task=lambda **_: encoded.task,
    load_source=load_source,
    record_arrays=encoded.arrays,
    cluster_key=lambda record: record['key'],
    trace_problems=trace_problems,
    sample_traces=sample_traces,
    max_trace_length=max_trace_length,
    decode=words.decode,
    encode=encode,
    vote=encoded.vote,
    make_problem_fn=make_problem_fn,
    tokenizer=words.tokenizer,
    render_chat=encoded.render_chat,
    end_token=encoded.end_token,
    difficulty=difficulty,
    metrics=encoded.grader.metrics,
  )


def _parse(options: dict) -> TextOptions:
  fields = {f.name: f for f in dataclasses.fields(TextOptions)}
  if unknown := sorted(set(options) - set(fields)):
    raise ValueError(f'unknown options {unknown}: known are {sorted(fields)}')
  for name in ('source', 'tokenizer', 'verifier'):
    if not options.get(name):
      raise ValueError(f'{name} is missing: a text task needs one')
  data = options.get('data') or {}
  known = {k: v for k, v in data.items() if v is not None}
  own = TextOptions(**options | {'data': known})
  checks.check_choice('source', own.source, SOURCES)
  checks.check_choice('delimiter', own.delimiter, DELIMITERS)
  checks.check_choice('template', own.template, TEMPLATES)
  for name in ('prompt_length', 'answer_length', 'max_answers', 'gold_bytes'):
    if (name, getattr(own, name)) != ('gold_bytes', None):
      checks.check_count(name, getattr(own, name))
  checks.check_range('timeout_s', own.timeout_s, above=0)
  _check_spellings(own.spellings)
  if len(set(own.spellings)) > own.max_answers:
    raise ValueError(
      f'spellings has {len(set(own.spellings))} texts and max_answers='
      f'{own.max_answers} would leave some out: raise task.max_answers to as '
      'many for each accepted answer'
    )
  try:
    datetime.date.fromisoformat(own.date)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"date={own.date!r} is no day: give one as '2024-07-26'"
    ) from error
  if own.close not in own.stop:
    raise ValueError(
      f'stop={own.stop!r} lacks close={own.close!r}, which ends thinking: put '
      'it in'
    )
  # Here, and not when the first answer comes: after a rollout was compiled.
  verifiers.resolve(own.verifier)
  return own


def _check_spellings(spellings):
  if isinstance(spellings, str) or not spellings:
    raise ValueError(
      f"spellings={spellings!r}: give a list of texts, such as ['{{}}']"
    )
  for text in spellings:
    if not isinstance(text, str) or text.count('{}') != 1 or '{{{}}}' in text:
      raise ValueError(
        f"spellings: {text!r} must have '{{}}' once, where the answer goes; "
        'other braces are themselves and not doubled'
      )
    if command := re.search(r'(\\[A-Za-z]+){}', text):
      raise ValueError(
        f'spellings: {text!r} would run {command[1]} and the answer together; '
        f"write '{command[1]}{{{{}}}}' for its braces around the answer"
      )


class _Encoder:
  """Texts of one task as tokens."""

  def __init__(self, own: TextOptions, words: text_tokenizer.TextTokenizer):
    self._own, self._words = own, words
    self.grader = text_host.Grader(
      own.verifier,
      own.answer_prefix,
      timeout_s=own.timeout_s,
      workers=own.workers,
    )
    self._end = (
      words.encode(own.answer_end) if own.answer_end else [words.eos_id]
    )
    stop = words.encode(own.stop + own.answer_prefix)
    close = words.id_of(own.close)
    if close not in stop:
      raise ValueError(
        f'stop={own.stop!r}: in front of or behind other text close='
        f'{own.close!r} is another token than alone; put a line break there'
      )
    self._check_gold = verifiers.gold_check_of(own.verifier)
    self._vote = verifiers.vote_of(own.verifier)
    self._template = None
    if own.template == 'checkpoint' and words.chat_template:
      day = datetime.date.fromisoformat(own.date)
      self._template = chat_template.ChatTemplate(
        words.chat_template,
        special_tokens=words.special,
        now=datetime.datetime.combine(day, datetime.time()),
        name=f'the chat template of {own.tokenizer}',
      )
    elif own.template == 'checkpoint' and own.tokenizer != BYTES:
      raise ValueError(
        f"template='checkpoint': {own.tokenizer} has no chat template; say how "
        "prompts are written: template='chatml' or 'none'"
      )
    self.task = Task(
      name=f'text_{own.source}',
      vocab_size=words.needed_vocab_size,
      pad_id=words.pad_id,
      eos_id=words.eos_id,
      think_end_id=close,
      stop_ids=tuple(stop),
      delimiter_ids=words.line_break_ids(1 + (own.delimiter == 'paragraph')),
      episode_length=1,
      answer_length=own.answer_length,
      verify=text_host.Verify(words, self.grader, tuple(own.stop_strings)),
      segment=text_host.make_segment(words, **own.segments),
      stop_table=words.stop_table(own.stop_strings),
    )

  @property
  def render_chat(self):
    return None if self._template is None else self._template.render

  @property
  def end_token(self):
    # ChatML ends turns in its own way.
    if self._template is None:
      return None
    return self._words.tokenizer.id_to_token(self._words.eos_id)

  def prompt(self, record: Mapping[str, Any]) -> list[int]:
    """Returns the ids of a question, ready to be thought about."""
    own, words = self._own, self._words
    question = record['question']
    if own.instruction:
      question = f'{question}\n{own.instruction}'
    turns = [{'role': 'user', 'content': question}]
    if own.system:
      turns.insert(0, {'role': 'system', 'content': own.system})
    if own.template == 'none':
      text = '\n'.join(turn['content'] for turn in turns) + '\n'
    elif self._template is not None:
      text = self._template.render(turns)
    else:
      text = chatml(turns)
    if not (own.open and text.rstrip().endswith(own.open.strip())):
      text += own.open
    return words.encode_prompt(text)

  @functools.cached_property
  def gold_bytes(self) -> int:
    """Bytes of what the verifier is told of a problem; in every split alike."""
    own = self._own
    if own.gold_bytes is not None:
      return own.gold_bytes
    if own.source != 'reasoning_gym':
      return _GOLD_BYTES
    load = functools.partial(SOURCES[own.source].load, None, **own.data)
    sizes = (
      len(text_host.to_json(record['gold']))
      for split in SPLITS
      for record in load(split=split)
    )
    return max(_GOLD_BYTES, *sizes)

  def arrays(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of `TaskKit.record_arrays`, and gold u8[N]."""
    own = self._own
    ids, accepted, gold = parts = self._encode(record)
    for name, size in self._sizes(parts).items():
      if size > self._limit(name):
        raise ValueError(self._too_long(name, record, size))
    prompts = np.full(own.prompt_length, self._words.pad_id, np.int32)
    prompts[own.prompt_length - len(ids) :] = ids
    answers = np.zeros((own.max_answers, own.answer_length), np.int32)
    mask = np.zeros(answers.shape, bool)
    for row, each in enumerate(accepted):
      answers[row, : len(each)] = each
      mask[row, : len(each)] = True
    return {
      'prompts': prompts,
      'prompt_mask': np.arange(own.prompt_length)
      >= own.prompt_length - len(ids),
      'answers': answers,
      'answer_mask': mask,
      'gold': np.frombuffer(gold.ljust(self.gold_bytes, b'\0'), np.uint8),
    }

  def check_all(self, problems: Sequence[Mapping[str, Any]], split: str):
    """Raises ValueError for problems that are of no use, before a run begins.

    They do not fit, or have an answer that the verifier cannot use. Accepted
    answers beyond `max_answers` are a warning.

    Args:
      problems: of a split, each of which is looked at once.
      split: its name, for the message.
    """
    longest, over, bad = {}, {}, []
    for number, record in enumerate(problems, start=1):
      try:
        self._check_gold(record['gold'])
      except ValueError as error:
        bad.append((number, record, str(error)))
      except KeyError as error:
        bad.append((number, record, f'it has no {error}'))
      for name, size in self._sizes(self._encode(record)).items():
        longest[name] = max(size, longest.get(name, 0))
        if size > self._limit(name):
          over.setdefault(name, []).append((number, size))
    if bad:
      number, record, error = bad[0]
      raise ValueError(
        f'problem {number} of {split}, {record["question"][:40]!r}: {error}, '
        f'which task.verifier={self._own.verifier!r} needs: mend it, leave it '
        f'out, or take another verifier; {len(bad)} of {len(problems)} are such'
      )
    for name, found in over.items():
      number, size = found[0]
      raise ValueError(
        f'problem {number} of {split}: '
        f'{self._too_long(name, problems[number - 1], size)} or leave it out; '
        f'{len(found)} of {len(problems)} are too long, the longest has '
        f'{longest[name]}'
      )
    self._warn_of_unlisted(problems, split)

  def vote(self, ids: Sequence[int]):
    """Returns what an answer votes for, as `TaskKit.vote`."""
    own = self._own
    text = self._words.decode(ids, special=False)
    text = chat_template.cut(text, own.stop_strings)[0]
    # As in text_host.Grader: it may go on from the prefix or have its own.
    votes = (self._vote(start + text) for start in (own.answer_prefix, ''))
    return next((vote for vote in votes if vote is not None), None)

  def _encode(self, record):
    """Returns the ids of prompt and accepted answers, and the gold's JSON."""
    spelled = self._spelled(record)[: self._own.max_answers]
    answers = [self._words.encode(text) + self._end for text in spelled]
    return self.prompt(record), answers, text_host.to_json(record['gold'])

  def _spelled(self, record) -> list[str]:
    """Returns the accepted answers in every spelling, each once."""
    return list(
      dict.fromkeys(
        spelling.replace('{}', text)
        for text in record['accepted']
        for spelling in self._own.spellings
      )
    )

  def _warn_of_unlisted(self, problems, split: str):
    """Warns if exact J leaves accepted answers out."""
    counts = [len(self._spelled(record)) for record in problems]
    most = self._own.max_answers
    if over := sum(count > most for count in counts):
      warnings.warn(
        f'task.max_answers={most} leaves accepted answers of {over} of '
        f'{len(counts)} problems of {split} out: exact J is a lower bound '
        f'there; set task.max_answers={max(counts)}.',
        stacklevel=2,
      )

  def _sizes(self, parts) -> dict[str, int]:
    prompt, answers, gold = parts
    return {
      'prompt_length': len(prompt),
      'answer_length': max(map(len, answers), default=0),
      'gold_bytes': len(gold),
    }

  def _limit(self, name: str) -> int:
    return self.gold_bytes if name == 'gold_bytes' else getattr(self._own, name)

  def _too_long(self, name: str, record, size: int) -> str:
    what = {
      'prompt_length': ('the prompt', 'tokens'),
      'answer_length': ('the accepted answer', 'tokens'),
      'gold_bytes': ('what the verifier needs', 'bytes'),
    }
    part, unit = what[name]
    return (
      f'task.{name}={self._limit(name)}: {part} of '
      f'{record["question"][:40]!r} has {size} {unit}; raise it'
    )

  def trace(self, record, thought: str, answer: str):
    """Returns (tokens i32[T], start) of a whole trace."""
    own, words = self._own, self._words
    prompt = self.prompt(record)
    rest = words.encode(thought) + [self.task.think_end_id]
    # As generation meets them: the marker alone, then what was forced or not.
    rest += words.encode(own.answer_prefix + answer) + self._end
    if own.answer_end:
      rest.append(words.eos_id)
    return np.asarray(prompt + rest, np.int32), len(prompt)


# The same as a Jinja template, for other tools.
CHATML = (
  "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\\n' + "
  "turn['content'] + '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chatml(turns: Sequence[Mapping[str, str]]) -> str:
  """Returns a chat in ChatML, the model's turn begun."""
  text = ''.join(
    f'<|im_start|>{turn["role"]}\n{turn["content"]}<|im_end|>\n'
    for turn in turns
  )
  return f'{text}<|im_start|>assistant\n'
