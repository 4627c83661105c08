"""Text answers: equal up to case, spaces and the marks around them."""

import unicodedata

from meta_rl.verifiers import Record, extract


def normalize(text: str) -> str:
  """Returns a text without differences that do not matter.

  Canonical Unicode (NFC: é is one letter or two; not NFKC, to which x² is x2),
  case, white space, and the $, quotes, stars and full stop around it.

  Args:
    text: any text, lone surrogates included.
  """
  text = unicodedata.normalize('NFC', text).casefold()
  text = ' '.join(text.split()).strip('$*`"\' ')
  return text.removesuffix('.').strip('$*`"\' ')


def vote(answer: str) -> str | None:
  """Returns the normal form of the final answer, None without one.

  Args:
    answer: what comes after the thought.
  """
  found = extract.final_answer(answer)
  return normalize(found) or None if found else None


def check_gold(record: Record) -> None:
  """Raises ValueError for a record whose answer is empty."""
  _gold(record)


def _gold(record: Record) -> str:
  gold = normalize(str(record['answer']))
  if not gold:
    answer = str(record['answer'])[:80]
    raise ValueError(f'the right answer {answer!r} is empty')
  return gold


def grade(answer: str, record: Record) -> float:
  """Returns 1.0 if an answer is the record's text, else 0.0.

  Args:
    answer: what comes after the thought; `extract.final_answer` says which part
      of it counts.
    record: its 'answer' is the text.

  Raises:
    ValueError: the record's answer is empty.
  """
  gold = _gold(record)
  found = extract.final_answer(answer)
  return float(found is not None and normalize(found) == gold)
