"""Worker of meta_rl, which also writes the checkpoint that all engines load."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import limits
import numpy as np
import worker
import workload

from meta_rl import (
  env,
  heap,
  hf,
  models,
  optimizers,
  rollout,
  scoring,
  steps,
  update,
  weights,
)

# The first number of an embedding, which layers neither read nor write, and the
# last norm's factor on it: what comes next is decided by its sign.
_COMMON, _MARK, _EOS = 0.5, -2.0, -8.0
_FACTOR = 20.0
_LAST_NORM = 'final_norm/scale'
_READ = ('attention_norm/scale', 'ffn_norm/scale')
_WRITTEN = ('attention/o/kernel', 'down/kernel')

_MOST_LOGITS_MB = 128  # of a micro-batch
# Columns that micro-batches are cut to, prompts of 16 tokens included.
_BUCKETS = [24, 32, 48, 64, 96, 144]
# New tokens that the cache has room for, one after the other.
_ROOMS = [32, 64, 96, 128, 160, 192, 224]


class Engine:
  """meta_rl, with a checkpoint loaded."""

  def write(self, size: str, folder: str, seed: int = 0):
    """Writes a checkpoint of random weights in Hugging Face's format.

    No row may end by chance before its length, in any engine, and one whose
    thinking is ended at its budget has to end right behind the marker. The
    first channel sees to it: positive for all tokens but two, it leaves the
    marker and EOS no chance, unless the marker was the last token: then the
    logit of EOS is the largest by far.
    """
    if pathlib.Path(folder).exists():
      return
    shape = workload.SIZES[size]
    config = _config(shape)
    params = models.init_params(config, jax.random.key(seed))
    leaves = weights.flatten(params)
    first = np.full(shape.vocab, _COMMON, np.float32)
    first[workload.MARK], first[workload.EOS] = _MARK, _EOS
    for path, leaf in leaves.items():
      if path == 'embedding':
        leaf = 0.05 * jax.random.normal(jax.random.key(seed + 1), leaf.shape)
        leaves[path] = leaf.at[:, 0].set(first)
      elif path == _LAST_NORM:
        leaves[path] = leaf.at[0].set(_FACTOR)
      elif path.endswith(_READ):
        leaves[path] = leaf.at[0].set(0)
      elif path.endswith(_WRITTEN):
        leaves[path] = leaf.at[:, 0].set(0)
    params = weights.unflatten(leaves)
    values = hf.config_to_hf(
      config,
      max_position_embeddings=4096,
      eos_token_id=workload.EOS,
      pad_token_id=workload.PAD,
    )
    hf.save_checkpoint(folder, params, config, values)

  def load(self, folder: str, threads: int) -> dict:
    """Loads the checkpoint; returns the versions."""
    del threads  # XLA takes all cores that the process may use
    env.enable_compile_cache()
    self.folder = folder
    self.config, self.params, _ = hf.load_model(folder, tokenizer=False)
    self.model = models.make_model(self.config)
    self.programs = {}
    return {
      'versions': {'jax': jax.__version__},
      'machine': env.machine_description(),
      'parameters': models.num_params(self.params),
      'loaded_mb': worker.resident_mb(),
    }

  def logits(self, tokens: list[int], path: str):
    """Writes the logits f32[T,V] of one row of tokens."""
    tokens = jnp.array([tokens])
    positions = jnp.arange(tokens.shape[1])[None]
    found, _ = self.model.apply_fn(self.params, tokens, positions, None)
    np.save(path, np.asarray(found[0]))

  def shapes(self, rows: int, backward: bool) -> dict:
    """Returns (m, k, n) of the model's products on so many rows."""
    known = limits.shapes_of(self.config, rows, backward=backward)
    return {'shapes': [shape for shape, _ in known]}

  def limits(self, rows: int, backward: bool, rounds: int, others) -> dict:
    """Returns GFLOP/s and seconds of these products, and memory's GB/s.

    others: seconds of each product elsewhere; the fastest counts.
    """
    known = limits.shapes_of(self.config, rows, backward=backward)
    own = limits.matmul_seconds([shape for shape, _ in known], rounds)
    fastest = np.min([own, *others], axis=0)
    read = limits.bandwidth(rounds)
    return limits.total(known, fastest.tolist()) | {'read_gb_s': read}

  def modes(self, rows: int, batch: int) -> dict:
    """Returns the ways to sample so many rows."""
    found = [{'name': f'{batch} rows', 'batch': batch}]
    if rows > batch:
      for slots in workload.at_once(rows, batch)[:-1]:
        more = {'slots': slots}
        found.append({'name': f'{slots} slots', 'batch': rows, 'more': more})
    else:
      more = {'cache_buckets': _ROOMS}
      name = f'{batch} rows, cache by {_ROOMS[0]}'
      found.append({'name': name, 'batch': batch, 'more': more})
    return {'modes': found, 'warm': 1}

  def rollout(self, path: str, mode: dict, seed: int) -> dict:
    """Samples all rows of a case once; returns seconds and useful tokens."""
    case = np.load(path)
    lengths, prompts = case['lengths'], case['prompts']
    group = len(lengths) // len(prompts)
    # The budget is spent, the marker forced, and EOS sampled.
    budgets = lengths - 2
    key = jax.random.key(seed)
    traces = []
    with worker.clock() as seconds:
      for part in worker.waves(len(prompts), max(mode['batch'] // group, 1)):
        rows = slice(part.start * group, part.stop * group)
        sample = self._program(group, int(lengths[rows].max()), mode)
        traces.append(
          sample(self.params, prompts[part], budgets[rows], key, rows.start)
        )
      jax.block_until_ready(traces)
    prompt = prompts.shape[1]
    counts = [t.token_mask[:, prompt:].sum(1) for t in traces]
    counts = np.concatenate(counts)
    if (counts != lengths).any():
      raise RuntimeError(f'rows of {counts} tokens in place of {lengths}')
    return {'seconds': seconds[0], 'tokens': int(lengths.sum())}

  def score(self, path: str, seed: int = 0):
    """Adds to the traces of a case how likely they were when sampled.

    What the policy says, and noise of 0.1: as if it had been trained a little
    since then. Some ratios are clipped.
    """
    case = dict(np.load(path))
    tokens, mask = case['tokens'], case['mask']
    _, params, _ = hf.load_model(self.folder, tokenizer=False)
    found = []
    for row in range(len(tokens)):
      one = slice(row, row + 1)
      found.append(self._score(params, tokens[one], _real(case)[one]))
    noise = np.random.default_rng(seed).normal(0, 0.1, tokens.shape)
    scored = np.where(mask, np.concatenate(found) + noise, 0)
    np.savez(path, **case | {'behavior_log_probs': scored.astype(np.float32)})

  @functools.cached_property
  def _score(self):
    return jax.jit(
      lambda params, tokens, mask: scoring.score(
        self.model, params, tokens, mask
      )[0]
    )

  def update_modes(self, rows: int) -> dict:
    """Returns the ways to train on so many rows."""
    found = [{'name': 'whole batch', 'buckets': [], 'parts': 1}]
    for parts in (rows // 16, rows // 8, rows // 4, rows // 2):
      if 1 < parts <= 8:
        name = f'micro-batches of {rows // parts}, by length'
        found.append({'name': name, 'buckets': _BUCKETS, 'parts': parts})
    return {'modes': found, 'warm': 1}

  def update(self, path: str, mode: dict, fresh: bool) -> dict:
    """Takes one optimizer step on a case; returns seconds, loss and tokens."""
    case = np.load(path)
    if fresh:
      self._begin(mode, case)
    batch = {
      'tokens': case['tokens'],
      'token_mask': _real(case),
      'mask': case['mask'],
      'behavior_log_probs': case['behavior_log_probs'],
      'advantages': case['advantages'][:, None] * case['mask'],
    }
    with worker.clock() as seconds:
      self.state, metrics = self.step(self.state, batch)
      jax.block_until_ready((self.state, metrics))
    return {
      'seconds': seconds[0],
      'loss': update.to_scalars(metrics)['loss/policy_gradient'],
      'tokens': int(batch['token_mask'].sum()),
    }

  def memory(self, path: str, mode: dict) -> dict:
    """Returns the most that one step holds beside what was loaded, MB."""
    before = worker.resident_mb()
    self.update(path, mode, True)
    worker.reset_peak()
    self.update(path, mode, False)
    return {'peak_mb': worker.peak_mb() - before}

  def _begin(self, mode, case):
    """Makes the optimizer's state and the jitted step of a mode on a case."""
    optimizer, _ = optimizers.make_optimizer(
      learning_rate=1e-6, b2=0.999, max_grad_norm=1.0
    )
    _, params, _ = hf.load_model(self.folder, tokenizer=False)
    self.params = None  # the step gives its own away
    self.state = update.init_state(params, optimizer, 0)
    # Logits that memory has room for are not worth computing twice.
    tokens = case['tokens'].size // mode['parts']
    logits_mb = 4 * tokens * self.config.vocab_size / 1e6
    chunk = 64 if logits_mb > _MOST_LOGITS_MB else None
    step = functools.partial(
      update.update,
      loss_fn=steps.make_loss(self.model, chunk=chunk),
      optimizer=optimizer,
      micro_batches=mode['parts'],
      length_buckets=_needed(mode['buckets'], mode['parts'], _real(case)),
    )
    self.step = jax.jit(step, donate_argnums=0)

  def _program(self, group, longest, mode):
    """Returns the jitted `generate` of a mode."""
    known = group, longest, mode['name']
    if known not in self.programs:
      more = mode.get('more', {})
      self.programs[known] = jax.jit(
        functools.partial(_generate, self.model, group, longest, more)
      )
    return self.programs[known]


def _generate(model, group, longest, more, params, prompts, budgets, key, row):
  return rollout.generate(
    model,
    params,
    prompts,
    jnp.ones(prompts.shape, bool),
    key,
    max_new_tokens=longest,
    eos_id=workload.EOS,
    think_end_id=workload.MARK,
    thinking_budget=budgets,
    group_size=group,
    row_offset=row,
    **more,
  )


def _needed(buckets, parts: int, mask) -> list[int]:
  """Returns the buckets that some micro-batch takes: others only compile."""
  lengths = np.sort(mask.sum(1)).reshape(parts, -1)
  fits = [[n for n in buckets if n >= part.max()] for part in lengths]
  return sorted({found[0] for found in fits if found})


def _real(case) -> np.ndarray:
  """Returns bool[B,T], True on prompts and responses."""
  mask = case['mask']
  return mask | (np.arange(mask.shape[1]) < mask.argmax(1)[:, None])


def _config(shape: workload.Size) -> models.TransformerConfig:
  return models.TransformerConfig(
    vocab_size=shape.vocab,
    num_layers=shape.layers,
    width=shape.width,
    num_heads=shape.heads,
    num_kv_heads=shape.kv_heads,
    ffn_width=shape.ffn,
    rope_base=workload.ROPE_BASE,
    norm_eps=1e-5,
  )


if __name__ == '__main__':
  heap.keep_memory()  # as the commands do
  worker.serve(Engine())
