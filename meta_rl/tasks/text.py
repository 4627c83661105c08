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
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meta_rl import chat_template, masked, text_tokenizer
from meta_rl.tasks import text_host
from meta_rl.tasks.base import Task, TaskKit
from meta_rl.tasks.text_sources import SOURCES

DELIMITERS = ('line', 'paragraph')
TEMPLATES = ('checkpoint', 'chatml', 'none')


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
    template: the 'checkpoint''s own chat template, 'chatml', or 'none': the
      question alone.
    system: text of a system turn; '': none.
    instruction: put behind each question, on a line of its own.
    open: begins the thought, behind a prompt that does not end with it already.
    close: ends the thought; one token.
    stop: forced at the budget, `close` in it.
    answer_prefix: forced behind `stop`.
    spellings: how an accepted answer may be written, '{}' for the answer.
    answer_end: ends an accepted answer; '': end-of-text.
    stop_strings: what ends an answer besides: the token that completes one is
      the last of its trace, and it is not graded from there on.
    delimiter: ends an episode of prover.boundaries='delimiters': every 'line'
      or every 'paragraph'.
    segments: options of `segments.split_ids`, for prover.boundaries='text'.
    prompt_length: tokens; longer prompts are refused.
    answer_length: tokens of an answer, its end included.
    max_answers: accepted answers that are listed, S.
    gold_bytes: of what the verifier is told of a problem, as JSON.
  """

  source: str
  tokenizer: str
  verifier: str
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  timeout_s: float = 5.0
  workers: int | None = None
  template: str = 'checkpoint'
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
  gold_bytes: int = 512


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
  encoded = _Encoder(own, words)

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
    drawn = [problems[i] for i in rng.integers(len(problems), size=64)]
    return own.prompt_length + max(
      len(
        encoded.trace(
          each,
          *source.sample_trace(
            each, rng, **{**longest, 'max_episodes': max_episodes}
          ),
        )[0]
      )
      for each in drawn
    )

  return TaskKit(
    make_task=lambda **_: encoded.task,
    load_source=lambda data_dir, split, **_: source.load(
      data_dir, split, **own.data
    ),
    record_arrays=encoded.arrays,
    cluster_key=lambda record: record['key'],
    trace_problems=lambda records, shown=None, **_: records,
    sample_traces=sample_traces,
    max_trace_length=max_trace_length,
    decode=words.decode,
    vote=lambda ids: source.vote(words.decode(ids, special=False)),
    tokenizer=words.tokenizer,
    metrics=encoded.grader.metrics,
  )


def _parse(options: dict) -> TextOptions:
  fields = {f.name: f for f in dataclasses.fields(TextOptions)}
  if unknown := sorted(set(options) - set(fields)):
    raise ValueError(f'unknown options {unknown}: known are {sorted(fields)}')
  for name in ('source', 'tokenizer', 'verifier'):
    if not options.get(name):
      raise ValueError(f'{name} is missing: a text task needs one')
  own = TextOptions(**options)
  masked.check_choice('source', own.source, SOURCES)
  masked.check_choice('delimiter', own.delimiter, DELIMITERS)
  masked.check_choice('template', own.template, TEMPLATES)
  for name in ('prompt_length', 'answer_length', 'max_answers', 'gold_bytes'):
    masked.check_count(name, getattr(own, name))
  masked.check_range('timeout_s', own.timeout_s, above=0)
  if own.close not in own.stop:
    raise ValueError(
      f'stop={own.stop!r} lacks close={own.close!r}, which ends thinking: put '
      'it in'
    )
  return own


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
    self._template = None
    if own.template == 'checkpoint' and words.chat_template:
      self._template = chat_template.ChatTemplate(
        words.chat_template, special_tokens=words.special
      )
    self.task = Task(
      name=f'text_{own.source}',
      vocab_size=words.vocab_size,
      pad_id=words.pad_id,
      eos_id=words.eos_id,
      think_end_id=words.id_of(own.close),
      stop_ids=tuple(stop),
      delimiter_ids=words.line_break_ids(1 + (own.delimiter == 'paragraph')),
      episode_length=1,
      answer_length=own.answer_length,
      verify=text_host.make_verify(words, self.grader, tuple(own.stop_strings)),
      segment=text_host.make_segment(words, **own.segments),
      stop_table=words.stop_table(own.stop_strings),
    )

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
    ids = words.encode(text)
    bos = [] if words.bos_id is None else [words.bos_id]
    return ids if ids[:1] == bos else bos + ids

  def arrays(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of `TaskKit.record_arrays`, and gold u8[N]."""
    own = self._own
    ids = self.prompt(record)
    if len(ids) > own.prompt_length:
      raise ValueError(
        f'task.prompt_length={own.prompt_length}: the prompt of '
        f'{record["question"][:40]!r} has {len(ids)} tokens; raise it'
      )
    prompts = np.full(own.prompt_length, self._words.pad_id, np.int32)
    prompts[own.prompt_length - len(ids) :] = ids
    answers = np.zeros((own.max_answers, own.answer_length), np.int32)
    mask = np.zeros(answers.shape, bool)
    spelled = dict.fromkeys(
      spelling.format(text)
      for text in record['accepted']
      for spelling in own.spellings
    )
    for row, text in enumerate(list(spelled)[: own.max_answers]):
      ids_ = self._words.encode(text) + self._end
      if len(ids_) > own.answer_length:
        raise ValueError(
          f'task.answer_length={own.answer_length}: the accepted answer '
          f'{text[:40]!r} has {len(ids_)} tokens; raise it'
        )
      answers[row, : len(ids_)] = ids_
      mask[row, : len(ids_)] = True
    return {
      'prompts': prompts,
      'prompt_mask': np.arange(own.prompt_length)
      >= own.prompt_length - len(ids),
      'answers': answers,
      'answer_mask': mask,
      'gold': text_host.pack_json(record['gold'], own.gold_bytes),
    }

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


def chatml(turns: Sequence[Mapping[str, str]]) -> str:
  """Returns a chat in ChatML, the model's turn begun."""
  text = ''.join(
    f'<|im_start|>{turn["role"]}\n{turn["content"]}<|im_end|>\n'
    for turn in turns
  )
  return f'{text}<|im_start|>assistant\n'
