r"""Answers in LaTeX: equal as mathematics, by math-verify.

    verify(gold, target): 1/2 is 0.5, x^2 + 1 is 1 + x^2, (0, 1] is no (0, 1)

The answer is the last \boxed of a text. The two cheap cases come first, equal
texts and two integers; sympy sees the rest. It may take for ever over a line
like 9^{9^{9^9}}: math-verify's own time limit is switched off, since an
exception in the middle of sympy leaves its caches half-written, and a worker
process is killed instead (pool.py).
"""

import functools

from meta_rl.verifiers import Record, TooLong, VerifierError, extract, integers

MAX_CHARS = 2000  # the longest answer of MATH has 159


def check_installed():
  """Raises VerifierError if math-verify is missing; warms it up otherwise.

  The first symbolic comparison takes as long as hundreds of later ones.
  """
  try:
    import math_verify  # noqa: F401
  except ImportError as error:
    raise VerifierError(
      f"verifier 'math' needs math-verify ({error}): run pip install "
      "'meta-rl[llm]'"
    ) from error
  is_equal(r'\frac{x+1}{2}', r'\frac{1+x}{2}')
  is_equal('(0,1]', r'\sqrt{8}')


def is_equal(gold: str, target: str) -> bool:
  """Returns whether two LaTeX expressions are equal as mathematics.

  Not symmetric: where gold is 5, x = 5 is right; where gold is x = 5, so is 5.

  Args:
    gold: the right answer, without $ or box.
    target: the answer to grade, without $ or box.

  Raises:
    TooLong: the target has more than 2000 characters.
    MemoryError, RecursionError: of sympy.
  """
  if _plain(gold) == _plain(target):
    return True
  if len(target) > MAX_CHARS:
    raise TooLong(f'{len(target)} characters, at most {MAX_CHARS} are parsed')
  integer = integers.normalize(target)
  if integer is not None and integers.normalize(gold) is not None:
    return integer == integers.normalize(gold)
  from math_verify import verify

  try:
    return bool(
      verify(
        list(_parse_gold(gold)),
        _parse(target),
        timeout_seconds=None,
        raise_on_error=True,
      )
    )
  except (MemoryError, RecursionError):
    raise
  except Exception:  # of sympy, any: two things that cannot be compared
    return False


def grade(answer: str, record: Record) -> float:
  r"""Returns 1.0 if the last \boxed of an answer is the record's, else 0.0.

  Args:
    answer: what comes after the thought.
    record: its 'answer' is LaTeX, without $ or box.

  Raises:
    ValueError: the record's answer is empty.
    TooLong: the box holds more than 2000 characters.
  """
  gold = str(record['answer'])
  if not gold.strip():
    raise ValueError(f'the right answer {gold!r} is empty')
  boxed = extract.extract_boxed(answer)
  if boxed is None or not boxed.strip():
    return 0.0
  return float(is_equal(gold, boxed))


def _plain(text: str) -> str:
  return ''.join(text.replace('dfrac', 'frac').replace('$', '').split())


@functools.lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> tuple:
  """Returns the parses of a right answer, which a group's answers share."""
  return tuple(_parse(gold))


def _parse(text: str) -> list:
  from math_verify import parse

  try:
    return parse(
      f'\\boxed{{{text}}}', parsing_timeout=None, raise_on_error=True
    )
  except (MemoryError, RecursionError):
    raise
  except Exception:  # of the parser, any: no mathematics
    return []
