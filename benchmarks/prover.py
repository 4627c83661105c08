"""J at every boundary of a batch of traces: four ways, on one machine.

    python benchmarks/prover.py [--traces=4] [--boundaries=16] [--prompt=128]
      [--episode=64] [--answers=2] [--branches=8] [--pairs=5] [--json=FILE]

    exact      every accepted answer scored behind each boundary, from the
               trace's own KV cache (meta_rl.prover.exact)
    prefilled  the same where no cache was kept: the traces are prefilled first
    forked     --branches answers sampled a boundary, their KV forked from the
               trace's cache (meta_rl.prover.sampled)
    prefix     each boundary's prefix prefilled once, its branches forked
    sample     each prefix prefilled again for every sample, as it has to be
               where a prover is a call of `generate` on text

Of each: tokens that pass through the network, seconds (medians and spread of
rounds A B C D A B C D), and the root mean square of its difference to the true
J. That is found by teacher forcing of every [prefix, stop, answer] by itself,
without a cache; what is accepted are the listed answers, so the sum over them
is J. Beside them the machine's own limits.

The policy is a transformer of random weights, as wide and deep as told, at a
temperature that makes it choosy; accepted answers are some that it gives. What
is timed depends on the sizes alone.
"""

import collections
import functools
import json
import statistics
import sys

import figures
import jax
import jax.numpy as jnp
import limits
import numpy as np
import step
from absl import app, flags

from meta_rl import env, models, prover, tries
from meta_rl.rollout import generate
from meta_rl.scoring import score

FLAGS = flags.FLAGS
STOP, ANSWER = (4,), 6  # token ids; tokens of an answer, EOS included
TEMPERATURE = 0.05
MIXING = 0.3  # of what the layers add, that J moves along a trace and no more
CHUNK = 64  # rows at a time of the true J


def make_model(width: int, layers: int, vocab: int) -> tuple:
  """Returns a transformer and its random parameters."""
  config = models.TransformerConfig(
    vocab_size=vocab,
    num_layers=layers,
    width=width,
    num_heads=max(width // 32, 1),
    ffn_width=4 * width,
    tie_embeddings=False,
  )
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      MIXING * x if {'o', 'down'} & {str(p.key) for p in path} else x
    ),
    models.init_params(config, jax.random.key(0)),
  )
  return config, models.make_model(config), params


def make_traces(rows: int, prompt: int, episode: int, boundaries: int, vocab):
  """Returns tokens i32[B,T] and ends i32[B,K+1]: J is measured at K+1 places.

  The first is the prompt's end, each other one the end of an episode.
  """
  ends = prompt - 1 + episode * np.arange(boundaries)
  tokens = jax.random.randint(
    jax.random.key(1), (rows, ends[-1] + 1), 8, vocab, jnp.int32
  )
  return tokens, jnp.asarray(np.tile(ends, (rows, 1)), jnp.int32)


def make_answers(model, params, tokens, ends, mean: int):
  """Returns (answers i32[B,S,A], mask, eos_id): what the policy itself answers.

  Traces have by turns one answer less than the mean and one more. EOS is the
  token that it says most.
  """
  ones = jnp.ones(tokens.shape, bool)
  drawn, alive = jax.jit(
    functools.partial(
      prover.sample_answers,
      model,
      num_branches=32,
      max_answer_len=ANSWER,
      stop_ids=STOP,
      eos_id=1,
      temperature=TEMPERATURE,
    )
  )(params, tokens, ones, ends, jax.random.key(2))
  drawn = np.where(alive, drawn, -1)
  rows, most = len(drawn), max(mean + 1, 1)
  said = drawn[..., 2:].reshape(-1)
  eos = int(np.bincount(said[said > 1]).argmax())
  answers = np.zeros((rows, most, ANSWER), np.int32)
  mask = np.zeros(answers.shape, bool)
  for b in range(rows):
    seen = collections.Counter()
    for answer in drawn[b].reshape(-1, ANSWER).tolist():
      cut = answer.index(eos) if eos in answer else ANSWER - 1
      if cut > 1 and min(answer[:cut]) > 1:
        seen[(*answer[:cut], eos)] += 1
    wanted = mean
    if mean > 1 and b < rows // 2 * 2:
      wanted += 2 * (b % 2) - 1
    for s, (answer, _) in enumerate(seen.most_common(wanted)):
      answers[b, s, : len(answer)] = answer
      mask[b, s, : len(answer)] = True
  return jnp.asarray(answers), jnp.asarray(mask), eos


def true_success(model, params, tokens, ends, answers, mask) -> np.ndarray:
  """Returns J f64[B,K+1], each [prefix, stop, answer] by itself, uncached."""
  tokens, ends = np.asarray(tokens), np.asarray(ends)
  answers, mask = np.asarray(answers), np.asarray(mask)
  found = np.zeros(ends.shape)
  rescore = jax.jit(
    functools.partial(score, model, temperature=TEMPERATURE, chunk=CHUNK)
  )
  for b, j in np.ndindex(*ends.shape):
    # Of one length, whatever the boundary: one program.
    prefix = tokens[b, : ends[b, j] + 1]
    rows = np.zeros((answers.shape[1], tokens.shape[1] + ANSWER + 1), np.int32)
    valid = np.zeros(rows.shape, bool)
    for s in range(len(rows)):
      row = [*prefix, *STOP, *answers[b, s][mask[b, s]]]
      rows[s, : len(row)], valid[s, : len(row)] = row, True
    log_probs = np.asarray(rescore(params, rows, valid)[0], np.float64)
    for s in range(len(rows)):
      if mask[b, s].any():
        last = valid[s].sum()
        found[b, j] += np.exp(
          log_probs[s, last - mask[b, s].sum() : last].sum()
        )
  return found


def matches(answers, mask):
  """Returns the verifier that accepts the listed answers and no other."""

  def verify(found, drawn):
    listed, inside = answers[:, None, None], mask[:, None, None]
    same = (found[..., None, :] == listed) | ~inside
    same &= drawn[..., None, :] == inside
    return (same.all(-1) & inside.any(-1)).any(-1).astype(jnp.float32)

  return verify


def sampled_by_prefix(
  model, tokens, ends, verify, eos, branches: int, again: bool
):
  """Returns f(params, key) -> (J f32[B,K+1], tokens that were drawn).

  Every boundary is a call of `generate` on its prefixes, all of one length:
  nothing is padded.

  Args:
    again: whether a prefix is prefilled for each sample, not once for all.
  """
  rows = len(tokens)
  copies, group = (branches, 1) if again else (1, branches)
  stop = jnp.tile(jnp.asarray(STOP, jnp.int32), (rows, 1))
  options = {
    'max_new_tokens': ANSWER,
    'eos_id': eos,
    'temperature': TEMPERATURE,
    'group_size': group,
  }

  @jax.jit
  def one(params, prompts, key):
    prompts = jnp.repeat(prompts, copies, axis=0)
    found = generate(
      model, params, prompts, jnp.ones(prompts.shape, bool), key, **options
    )
    cut = lambda x: x[:, prompts.shape[1] :].reshape(rows, 1, branches, -1)
    answers, drawn = cut(found.tokens), cut(found.mask)
    return verify(answers, drawn)[:, 0].mean(-1), drawn.sum()

  prefixes = [
    jnp.concatenate([tokens[:, : end + 1], stop], axis=1)
    for end in np.asarray(ends)[0]
  ]

  def run(params, key):
    found = [
      one(params, prefix, jax.random.fold_in(key, j))
      for j, prefix in enumerate(prefixes)
    ]
    return jnp.stack([j for j, _ in found], 1), sum(n for _, n in found)

  return run


def count_tokens(
  ends, answers, mask, drawn: int, drawn_again: int, branches: int
) -> dict[str, int]:
  """Returns the tokens that pass through the network in each way.

  Args:
    ends: i32[B,K+1], of traces without padding.
    answers, mask: accepted, [B,S,A].
    drawn: of the answers that were sampled from prefixes prefilled once.
    drawn_again: of those that were sampled from prefixes prefilled each time.
    branches: a boundary.
  """
  ends = np.asarray(ends)
  rows, boundaries = ends.shape
  trees = tries.make(jnp.asarray(STOP), jnp.asarray(answers), jnp.asarray(mask))
  exact = int(trees.size.sum()) * boundaries
  prefix = int((ends + 1 + len(STOP)).sum())
  # The last token that is drawn is fed to nothing.
  answered = rows * boundaries * branches
  return {
    'exact': exact,
    'prefilled': exact + int(ends[:, -1].sum()) + rows,
    'forked': answered * (len(STOP) - 1) + drawn,
    'prefix': prefix + drawn - answered,
    'sample': branches * prefix + drawn_again - answered,
  }


def run(flag) -> dict:
  """Returns every figure of this benchmark as one dict."""
  config, model, params = make_model(flag.width, flag.layers, flag.vocab)
  tokens, ends = make_traces(
    flag.traces, flag.prompt, flag.episode, flag.boundaries, flag.vocab
  )
  ones = jnp.ones(tokens.shape, bool)
  answers, mask, eos = make_answers(model, params, tokens, ends, flag.answers)
  verify = matches(answers, mask)
  cache = jax.jit(
    lambda params: prover.probes.prefill(model, params, tokens, ones)
  )(params)
  exact = jax.jit(
    functools.partial(
      prover.exact, model, stop_ids=STOP, temperature=TEMPERATURE
    )
  )
  given = params, tokens, ones, ends
  forked = jax.jit(
    lambda key, cache: prover.sampled(
      model,
      *given,
      verify,
      key,
      num_branches=flag.branches,
      max_answer_len=ANSWER,
      stop_ids=STOP,
      eos_id=eos,
      temperature=TEMPERATURE,
      cache=cache,
      return_mask=True,
    )
  )
  by_prefix = functools.partial(
    sampled_by_prefix, model, tokens, ends, verify, eos, flag.branches
  )
  prefix, sample = by_prefix(False), by_prefix(True)
  key = jax.random.key(3)
  calls = {
    'exact': lambda: exact(*given, answers, mask, cache=cache),
    'prefilled': lambda: exact(*given, answers, mask),
    'forked': lambda: forked(key, cache),
    'prefix': lambda: prefix(params, key),
    'sample': lambda: sample(params, key),
  }
  truth = true_success(model, params, tokens, ends, answers, mask)
  of = lambda found: found[0] if isinstance(found, tuple) else found
  found = {name: call() for name, call in calls.items()}
  error = {
    name: float(np.sqrt(((np.asarray(of(x)) - truth) ** 2).mean()))
    for name, x in found.items()
  }
  fed = count_tokens(
    ends,
    answers,
    mask,
    int(found['prefix'][1]),
    int(found['sample'][1]),
    flag.branches,
  )
  fed['forked'] = int(found['forked'][1].sum())
  times = step.alternate(calls, flag.pairs)
  median = {name: statistics.median(x) for name, x in times.items()}
  rows = flag.traces * tokens.shape[1]
  return {
    'machine': env.machine_description(),
    'limits': {
      'matmul_gflops': limits.matmuls(
        config, rows, 8 * flag.pairs, backward=False
      )['gflops'],
      'read_gb_s': limits.bandwidth(flag.pairs),
    },
    'sizes': {
      'parameters': models.num_params(params),
      'trace': tokens.shape[1],
      **{
        name: getattr(flag, name)
        for name in 'traces boundaries prompt episode branches'.split()
      },
      'answers_mean': float(mask[..., 0].sum(1).mean()),
    },
    'success_mean': float(truth.mean()),
    'tokens': fed,
    'seconds': median,
    'spread': {name: [min(x), max(x)] for name, x in times.items()},
    'error': error,
    'expected_sampling_error': float(
      np.sqrt((truth * (1 - truth) / flag.branches).mean())
    ),
    'tokens_over_exact': {k: v / fed['exact'] for k, v in fed.items()},
    'seconds_over_exact': {k: v / median['exact'] for k, v in median.items()},
    'sample_over_forked_seconds': median['sample'] / median['forked'],
  }


def table(figures: dict) -> str:
  """Returns the figures as lines to read."""
  lines = [
    f'{"":10}{"tokens":>10}{"x exact":>9}{"s":>9}{"x exact":>9}{"error":>10}'
  ]
  for name, fed in figures['tokens'].items():
    lines.append(
      f'{name:10}{fed:>10}{figures["tokens_over_exact"][name]:>9.1f}'
      f'{figures["seconds"][name]:>9.3f}'
      f'{figures["seconds_over_exact"][name]:>9.1f}'
      f'{figures["error"][name]:>10.1e}'
    )
  limit = figures['limits']
  lines.append(
    f'matrix multiplies at these shapes {limit["matmul_gflops"]:.0f} GFLOP/s, '
    f'reading {limit["read_gb_s"]:.1f} GB/s'
  )
  return '\n'.join(lines)


def main(argv):
  """Runs the benchmark, prints a table and writes JSON."""
  del argv
  for name in SIZES:
    if getattr(FLAGS, name) < 1:
      sys.exit(f'error: --{name}={getattr(FLAGS, name)} must be at least 1')
  env.enable_compile_cache()
  figures = run(FLAGS)
  print(json.dumps(figures, indent=2))
  print(table(figures))
  if FLAGS.json:
    with open(FLAGS.json, 'w', encoding='utf-8') as file:
      file.write(json.dumps(figures, indent=2) + '\n')


SIZES = {
  'traces': (4, 'Traces, each of a prompt of its own.'),
  'boundaries': (16, 'At which J is measured: the prompt, and episodes.'),
  'prompt': (128, 'Tokens.'),
  'episode': (64, 'Tokens.'),
  'answers': (2, 'Accepted answers of a trace, on average.'),
  'branches': (8, 'Answers sampled a boundary.'),
  'pairs': (5, 'Rounds.'),
  'width': (96, 'Of the transformer.'),
  'layers': (3, 'Of the transformer.'),
  'vocab': (128, 'Of the transformer.'),
}

if __name__ == '__main__':
  env.check_versions()
  for _name, (_value, _help) in SIZES.items():
    flags.DEFINE_integer(_name, _value, _help)
  figures.define_json()
  app.run(main)
