"""Which problem of a text task a prompt is of: for traces made elsewhere.

A prompt is the problem's whose own prompt has the same ids. Where a row names
its question the problem is that question's, whatever the prompt around it: an
engine may have another template or system turn.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_SHOWN = 40  # characters of a prompt in a message

Record = Mapping[str, Any]


class Finder:
  """`(prompt ids, question) -> arrays`, the problems of one split."""

  def __init__(
    self,
    problems: Sequence[Record],
    *,
    prompt: Callable[[Record], list[int]],
    arrays: Callable[[Record], dict[str, np.ndarray]],
    decode: Callable[[Sequence[int]], str],
  ):
    """Goes through all problems once.

    Args:
      problems: records of meta_rl/tasks/text_sources.py.
      prompt: record -> the ids of its prompt.
      arrays: record -> its arrays.
      decode: ids -> text, for messages.
    """
    self._problems, self._prompt = problems, prompt
    self._arrays, self._decode = arrays, decode
    # Digests: the ids of a large split would take more room than the problems.
    self._by_prompt, self._by_question = {}, {}
    for index, record in enumerate(problems):
      self._by_prompt[_of_ids(prompt(record))] = index
      self._by_question[_of_text(record['question'])] = index

  def __call__(
    self, prompt: Sequence[int], question: str | None = None
  ) -> dict[str, np.ndarray]:
    """Returns the arrays of a problem, but for its prompt's.

    Args:
      prompt: ids without padding.
      question: of the problem; None: the prompt alone says which it is.

    Raises:
      ValueError: one line; no problem of the split has it, or the prompt is
        that of another question's problem.
    """
    found = self._by_prompt.get(_of_ids(prompt))
    if question is not None:
      named = self._by_question.get(_of_text(question))
      if named is None:
        raise ValueError(
          f'no problem of the train split has the "question" '
          f'{_short(question)!r}: give it as the problems have it, or leave '
          "the key out where the prompt is the task's own"
        )
      if found not in (None, named):
        other = self._problems[found]['question']
        raise ValueError(
          f'the "question" {_short(question)!r} is not that of the prompt, '
          f'{_short(other)!r}: leave the key out, or give the right one'
        )
      found = named
    if found is None:
      raise ValueError(self._unknown(prompt))
    arrays = self._arrays(self._problems[found])
    return {k: x for k, x in arrays.items() if not k.startswith('prompt')}

  def _unknown(self, prompt) -> str:
    """Returns what to say of a prompt that no problem has."""
    given = self._decode(prompt)
    asked = [r for r in self._problems if r['question'].strip() in given]
    if not asked:
      return (
        f'no problem of the train split has the prompt {_short(given)!r}: '
        'sample from prompts of task.data, or give the row the "question" of '
        'its problem'
      )
    # The longest: others may be part of it.
    own = self._decode(
      self._prompt(max(asked, key=lambda r: len(r['question'])))
    )
    if given == own:
      return (
        'its prompt has the text of its problem in other tokens: encode '
        'prompts as config.task.tokenizer does, or give the row the "question"'
      )
    pairs = enumerate(zip(given, own))
    place = next(
      (i for i, (a, b) in pairs if a != b), min(len(given), len(own))
    )
    return (
      f'its prompt is not that of its problem: from character {place} on it is '
      f'{_short(given[place:])!r} and the task has {_short(own[place:])!r}: '
      'write prompts as config.task does, or give the row the "question"'
    )


def _of_ids(ids: Sequence[int]) -> bytes:
  return _digest(np.asarray(ids, np.int32).tobytes())


def _of_text(question: str) -> bytes:
  """Equal for questions that differ in white space alone."""
  return _digest(' '.join(question.split()).encode())


def _digest(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=16).digest()


def _short(text: str) -> str:
  return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…'
