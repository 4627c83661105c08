r"""Integer answers, AIME-style: found, normalised, compared as strings.

No `int()`, no float and no eval: an answer may be a million digits long, and
1e400 or 9**9 is no integer here but a text of another form.
"""

import re

from meta_rl.verifiers import Record, extract

# Groups of three between commas or spaces; a decimal part of zeros; '42.'.
_INTEGER = re.compile(
  r'([+-]?) ?(\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.0*)?',
  re.ASCII,
)
# What LaTeX, Markdown and prose put around a number or between its groups.
_SPACES = re.compile(r'\\[,;:! ]|~|[ \t\r\n\u00a0\u202f\u2009]')
_AROUND = '$*`"\' '
_NAMED = re.compile(r'\A\s*[A-Za-z]\s*=')
_WRAPPED = re.compile(
  r'\\(?:text|textbf|mathrm|mathbf|boldsymbol)\{([^{}]*)\}', re.DOTALL
)


def normalize(text: str) -> str | None:
  r"""Returns an integer as its digits, or None for what is no integer.

    ' $1{,}024$ ' -> '1024'   '+007' -> '7'   '-0.00' -> '0'   '42\%' -> '42'

  Two texts are the same integer if and only if these are equal strings.

  Args:
    text: the number alone. Digits are ASCII. Allowed around it are a sign,
      leading zeros, commas or spaces between groups of three, a decimal part of
      zeros, a full stop, $, \( \), %, \text{}, quotes and Markdown's stars.
  """
  text = text.strip()
  wrapped = _WRAPPED.fullmatch(text)
  if wrapped:
    text = wrapped[1]
  for mark in (r'\(', r'\)', r'\[', r'\]'):
    text = text.replace(mark, '$')
  text = text.replace('{,}', ',').replace('\u2212', '-')
  text = _SPACES.sub(' ', text.replace(r'\%', '%').replace(r'\$', '$'))
  text = text.strip(_AROUND).removesuffix('%').strip()
  text = text.strip(_AROUND)
  # '$42$.' has its full stop outside.
  text = text.removesuffix('.').strip(_AROUND) or text
  match = _INTEGER.fullmatch(text)
  if not match:
    return None
  digits = match[2].replace(',', '').replace(' ', '').lstrip('0') or '0'
  return '-' + digits if match[1] == '-' and digits != '0' else digits


def find_integer(text: str, *, boxed_only: bool = False) -> str | None:
  r"""Returns the integer that a text gives as its answer, or None.

  A `\boxed{}` decides where there is one; in it a name may be in front, as in
  x = 42. Otherwise it is the last line that names its answer ('answer: 42'), or
  the whole text if that is an integer. Words behind the number ('42 apples',
  '42, since 40 + 2 = 42') make it none: which number is meant is not guessed.

  Args:
    text: what comes after the thought.
    boxed_only: only a box counts.
  """
  found = extract.extract_boxed(text)
  if found is not None:
    found = _NAMED.sub('', found)
  elif not boxed_only:
    found = extract.final_answer(text)
  return None if found is None else normalize(found)


def vote(answer: str) -> str | None:
  """Returns the integer that an answer gives, None without one.

  Args:
    answer: what comes after the thought.
  """
  return find_integer(answer)


def check_gold(record: Record) -> None:
  """Raises ValueError for a record whose answer is no integer."""
  _gold(record)


def _gold(record: Record) -> str:
  gold = normalize(str(record['answer']))
  if gold is None:
    answer = str(record['answer'])[:80]
    raise ValueError(f'the right answer {answer!r} is no integer')
  return gold


def grade(answer: str, record: Record) -> float:
  """Returns 1.0 if the integer that an answer gives is the record's, else 0.0.

  Args:
    answer: what comes after the thought.
    record: its 'answer' is an integer as text.

  Raises:
    ValueError: the record's answer is no integer.
  """
  return float(find_integer(answer) == _gold(record))
