r"""Answers in LaTeX: equal as mathematics, by math-verify.

    verify(gold, target): 1/2 is 0.5, x^2 + 1 is 1 + x^2, (0, 1] is no (0, 1)

The answer is the last \boxed of a text. The two cheap cases come first, equal
texts and two integers; sympy sees the rest. It may take for ever over a line
like 9^{9^{9^9}}: math-verify's own time limit is switched off, since an
exception in the middle of sympy leaves its caches half-written, and a worker
process is killed instead (pool.py).
"""

import functools
import logging
import re

from meta_rl.verifiers import Record, TooLong, VerifierError, extract, integers

MAX_CHARS = 2000  # the longest answer of MATH has 159

# What may stand in an answer where the right one is a number. math-verify reads
# on behind what it does not know and takes the last part: 4 \to 5, 4 \\ 5 and
# 4 \lor 5 would all be 5, and any new command would be another way to hedge.
_COMMANDS = frozenset(
  'frac dfrac tfrac cfrac sqrt pi cdot times div left right big Big bigg Bigg '
  'bigl bigr Bigl Bigr lfloor rfloor lceil rceil text textbf textit textrm '
  'mathrm mathbf mathit mathsf mathbb boldsymbol bf rm mbox displaystyle '
  'textstyle circ degree binom dbinom tbinom log ln lg exp sin cos tan cot sec '
  'csc arcsin arccos arctan infty dollar percent boxed operatorname'.split()
)
_SIGNS = frozenset('%$,;:! (){}[]')  # behind a backslash
_LETTERS = frozenset('\u03c0\u221a\u00d7\u00b7\u00f7\u2212\u2013\u00b0\u221e')
# The same where the right answer is something else: what may never come new.
_SEPARATORS = re.compile(
  r'\\\\|\\(?:lor|vee|land|wedge|to|(?:long|Long)?(?:[rR]ight|[lL]eft)+arrow|'
  r'implies|iff|mid|q?quad|approx|therefore|newline|hspace|cup)(?![A-Za-z])'
)
_WORDS = re.compile(r'\\(?:text\w*|mathrm|mbox|operatorname)\{[^{}]*\}')
_COMMAND = re.compile(r'\\([A-Za-z]+|.)', re.DOTALL)
_GAP = r'(?:\s|~|\\[,;:! ]|\{\}|\\(?:text|mathrm|mbox)\{\s*\})'
# Two numbers side by side: math-verify adds them, as in 1 \frac{1}{2}.
_TWO_NUMBERS = re.compile(
  rf'\d{_GAP}+[\d.]|\d{_GAP}*(?:\\left)?(?:[(\[]|\{{\d)|'
  rf'(?:^|[^\w}}\]^]){_GAP}*\{{\d[^{{}}]*\}}{_GAP}*[\d({{]'
)
_LITERAL = re.compile(r'[\s$+-]*[\d.,]+[\s$]*')


def _is_no_false_alarm(record: logging.LogRecord) -> bool:
  return not str(record.msg).startswith('Timeout is disabled as ')


# It warns that no time limit is its own: a worker that takes long is killed.
for _name in ('math_verify.grader', 'math_verify.parser'):
  logging.getLogger(_name).addFilter(_is_no_false_alarm)


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
  r"""Returns whether two LaTeX expressions are equal as mathematics.

  Not symmetric: where gold is 5, x = 5 is right; where gold is x = 5, so is 5.
  Where gold is a number, each number of a chain must be it (10/2 = 5 is right,
  4 = 5 is wrong), and what names several numbers is wrong: 4 \to 5, 4 \\ 5.

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
  target = _one_answer(gold, target)
  if target is None:
    return False
  return all(_verify(gold, side) for side in target)


def _verify(gold: str, target: str) -> bool:
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


def check_gold(record: Record) -> None:
  """Raises ValueError for a right answer that no box could give.

  It is not parsed, which takes up to 0.3 s and may hang, but where its braces
  do not match: where they do, the very same text is right at least.
  """
  gold = str(record['answer'])
  if not gold.strip():
    raise ValueError(f'the right answer {gold!r} is empty')
  if (
    extract.extract_boxed(gold)
    or extract.extract_boxed(rf'\boxed{{{gold}}}') == gold
  ):
    return
  if all(isinstance(each, str) for each in _parse(gold)):
    raise ValueError(
      f'the right answer {gold[:80]!r} is no mathematics: its braces do not '
      'match'
    )


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


def vote(answer: str) -> str | None:
  """Returns the normal form of the last box, None without one.

  Args:
    answer: what comes after the thought.
  """
  boxed = extract.extract_boxed(answer)
  if boxed is None or not boxed.strip():
    return None
  last = _sides(boxed)[-1]  # of x = 5
  return integers.normalize(last) or _plain(last) or _plain(boxed)


def _plain(text: str) -> str:
  """Returns a text without white space, but for that between two digits."""
  text = ' '.join(text.replace('dfrac', 'frac').replace('$', '').split())
  return re.sub(r'(?<!\d) | (?!\d)', '', text)


def _one_answer(gold: str, target: str) -> list[str] | None:
  """Returns what must be equal to gold, each of it; None: several answers."""
  number = _sides(gold)[-1]
  if not _is_number(number):
    new = {found[0] for found in _SEPARATORS.finditer(target)}
    return [target] if all(each in gold for each in new) else None
  parts = [part for part in re.split(r'\\approx(?![A-Za-z])', target)]
  if len(parts) > 2 or (len(parts) == 2 and _LITERAL.fullmatch(parts[0])):
    return None
  # pi ≈ 3.14 says pi, and x ≈ 3.14 says 3.14.
  target = parts[0] if _is_number(parts[0]) else parts[-1]
  *others, last = _sides(target)
  asked = [side for side in others if _is_number(side)] + [last]
  if any(_is_several(side, gold) for side in asked):
    return None
  # The whole too: x = 5, y = 6 is not 6.
  return [*asked, target] if others else asked


def _sides(text: str) -> list[str]:
  """Returns what stands between the equality signs outside of brackets."""
  sides, depth = [''], 0
  for char in text:
    depth += (char in '([{') - (char in ')]}')
    if char == '=' and depth <= 0:
      sides.append('')
    else:
      sides[-1] += char
  return sides


def _is_number(text: str) -> bool:
  """Returns whether a text has digits or constants and nothing unknown."""
  plain = _WORDS.sub('', text)
  known = set(re.findall(r'\\([A-Za-z]+)', plain)) <= _COMMANDS
  plain = re.sub(r'\\[A-Za-z]+', ' ', plain.replace(r'\pi', '3'))
  plain = plain.replace('{,}', '')
  return (
    known
    and bool(re.search(r'[\d\u03c0]', plain))
    and not re.search(r'[A-Za-z=<>|&]|\\\\', plain)
    and not re.search(r',(?!\d{3})', plain)
  )


def _is_several(side: str, gold: str) -> bool:
  """Returns whether a text may name more than one number."""
  for command in _COMMAND.findall(side):
    if command not in _COMMANDS and command not in _SIGNS:
      return True
  if '&' in side.replace(r'\&', '') or '|' in side:
    return True
  if any(not c.isascii() and c not in _LETTERS and c not in gold for c in side):
    return True
  if '_' in side and '_' not in gold and r'\log' not in side:
    return True
  # \frac12 and \frac 1 2 are \frac{1}{2}.
  first = r'(\\(?:[dtc]?frac|[dt]?binom|sqrt))\s*(\d)'
  second = r'(\\(?:[dtc]?frac|[dt]?binom)\{[^{}]*\})\s*(\d)'
  side = re.sub(second, r'\1{\2}', re.sub(first, r'\1{\2}', side))
  side = re.sub(r'_\s*(?:\d|\{[^{}]*\})', '', side.replace('{,}', ','))
  return bool(_TWO_NUMBERS.search(side))


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
