"""What every engine is given: the same weights, prompts, lengths and traces.

Everything is drawn once, from seeds, and goes to the workers as files. numpy
alone is imported here.

Axes: P prompts, G group, B = P * G traces, Tp prompt columns, T columns in all.
"""

import dataclasses
import pathlib

import numpy as np

# Tokens with a part of their own; prompts and responses are of the others.
PAD, EOS, MARK = 0, 1, 2
FIRST = 3

# What Tunix's Llama takes, whatever its config says.
ROPE_BASE = 1_000_000.0

GROUP, PROMPT = 8, 16
# Long-tailed lengths: most are geometric, the others as long as may be.
MEAN, LONGEST, LONG_SHARE = 32, 256, 0.2
# Equal lengths, on so many prompts.
EQUAL, EQUAL_PROMPTS = 128, 8


@dataclasses.dataclass(frozen=True)
class Size:
  """A model of Llama's kind, and how much it is given to do.

  Attributes:
    layers, width, heads, kv_heads, ffn, vocab: of the model.
    prompts: of the long-tailed rollout, G traces each.
    batch: rows that are decoded at a time.
    update_prompts: of the batch that is trained on.
  """

  layers: int
  width: int
  heads: int
  kv_heads: int
  ffn: int
  vocab: int
  prompts: int = 64
  batch: int = 64
  update_prompts: int = 8


SIZES = {
  '0.5M': Size(3, 96, 3, 3, 384, 128),
  '10M': Size(6, 384, 6, 6, 1024, 1024, prompts=32),
  '135M': Size(
    *(30, 576, 9, 3, 1536, 49152),
    prompts=16,
    batch=32,
    update_prompts=1,
  ),
  # For a look at the commands: no figure of it means anything.
  'micro': Size(2, 32, 2, 1, 64, 64, prompts=2, batch=8, update_prompts=1),
}


def lengths(rows: int, seed: int = 0) -> np.ndarray:
  """Returns response lengths i32[B], tokens, EOS included.

  Of five, four are geometric with mean 32, cut off at 256, and one is 256. None
  is below 2: an end and a token before it.
  """
  rng = np.random.default_rng(seed)
  drawn = np.clip(rng.geometric(1 / MEAN, rows), 2, LONGEST)
  long = rng.permutation(rows) < round(LONG_SHARE * rows)
  return np.where(long, LONGEST, drawn).astype(np.int32)


def rollout_cases(size: Size) -> dict[str, dict]:
  """Returns the arrays of each case: `prompts` i32[P,Tp], `lengths` i32[B].

  'long-tailed' and 'equal'; `batch` is i32[], the rows at a time.
  """
  rng = np.random.default_rng(1)
  draw = lambda p: rng.integers(FIRST, size.vocab, (p, PROMPT), np.int32)
  rows = size.prompts * GROUP
  few = min(EQUAL_PROMPTS, size.prompts)
  longer = {'batch': np.int32(size.batch), 'lengths': lengths(rows)}
  equal = np.full(few * GROUP, EQUAL, np.int32)
  batch = np.int32(few * GROUP)
  return {
    'long-tailed': {'prompts': draw(size.prompts), **longer},
    'equal': {'prompts': draw(few), 'batch': batch, 'lengths': equal},
  }


def at_once(rows: int, batch: int) -> list[int]:
  """Returns how many rows at a time are tried, of so many.

  Few rows leave their keys and values in a processor's cache, many share the
  reading of the weights: which is faster depends on model and machine.

  Example:
    >>> at_once(512, 64)
    [16, 32, 64, 128, 512]
  """
  return sorted({n for n in (16, 32, batch, 2 * batch) if n < rows} | {rows})


def update_cases(size: Size) -> dict[str, dict]:
  """Returns the traces of each case, the same for all engines.

  `tokens` i32[B,T], prompts and then responses, padded behind; `mask` bool[B,T]
  of response tokens; `advantages` f32[B], of mean 0 in each group. How likely
  the tokens were when sampled is added by the engine that can say it.
  """
  rng = np.random.default_rng(2)
  rows = size.update_prompts * GROUP
  kinds = {
    'long-tailed': lengths(rows, 3),
    'equal': np.full(rows, EQUAL, np.int32),
  }
  cases = {}
  for name, counts in kinds.items():
    columns = np.arange(PROMPT + counts.max())
    drawn = rng.integers(FIRST, size.vocab, (rows, len(columns)), np.int32)
    end = PROMPT + counts[:, None]
    prompts = np.repeat(drawn[::GROUP, :PROMPT], GROUP, axis=0)
    drawn[:, :PROMPT] = prompts
    drawn = np.where(columns == end - 1, EOS, drawn)
    grades = rng.standard_normal((rows // GROUP, GROUP))
    grades -= grades.mean(1, keepdims=True)
    cases[name] = {
      'tokens': np.where(columns < end, drawn, PAD).astype(np.int32),
      'mask': (columns >= PROMPT) & (columns < end),
      'advantages': grades.reshape(-1).astype(np.float32),
    }
  return cases


def write(folder: pathlib.Path, cases: dict[str, dict]) -> dict[str, str]:
  """Writes each case to a file and returns the paths."""
  paths = {}
  for name, arrays in cases.items():
    path = folder / f'{name}.npz'
    np.savez(path, **arrays)
    paths[name] = str(path)
  return paths
