"""Weights of a run: one safetensors file, or a folder that others load.

    python -m meta_rl.export --workdir=DIR --out=policy.safetensors
    python -m meta_rl.export --workdir=DIR --out=FOLDER --format=hf

The file goes wherever `init_from` does, and holds the run's config, its step
and its last held-out scores as metadata. The folder is in Hugging Face format,
with config and tokenizer, LoRA multiplied in: for transformers, vLLM and
`config.model.path`.
"""

import dataclasses
import json
import sys

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

from absl import app, flags, logging

from meta_rl import (
  checkpoint,
  command_line,
  files,
  hf,
  lora,
  metrics,
  models,
  setup_run,
  signals,
  text_tokenizer,
  tokenizer,
  value,
  weights,
)
from meta_rl.tasks import text

FLAGS = flags.FLAGS

# Tokens of a text of a model of our own, unless its traces are longer: rotary
# positions have no end, and other tools ask for one.
_CONTEXT = 4096


def export(
  folder: str,
  out: str,
  *,
  which: str,
  dtype: str | None,
  command: str = '',
  value_head: bool = False,
) -> dict:
  """Writes the parameters of a run folder to `out`.

  Args:
    folder: of a run.
    out: the file to write.
    which: 'last' or 'best' checkpoint.
    dtype: None for the run's own, 'float16' or 'bfloat16'.
    command: that trained the run, for the record.
    value_head: write a critic's value head too; without it the file is of any
      algorithm's policy.

  Returns:
    The metadata written, name -> text.

  Raises:
    ValueError: no run in the folder, no checkpoint in the run, a value head
      asked for of a run without one, or a file that cannot be written.
  """
  files.check_output('--out', out)
  config = command_line.run_config(folder)
  like = setup_run.abstract_params(config)
  if value_head:
    if config.algorithm.name != 'ppo':
      raise ValueError(
        f'{folder} is a run of algorithm.name='
        f'{config.algorithm.name!r}, which has no value head: leave '
        '--value_head out.'
      )
    width = setup_run.model_config(config).width
    like = value.with_head(like, value.init_head(width))
  found = checkpoint.restore_params(
    folder, like, which=which, optional=() if value_head else (value.NAME,)
  )
  if found is None:
    raise ValueError(
      f'{folder} holds no checkpoint yet: let it save one first.'
    )
  step, params = found
  rows = metrics.read_metrics(f'{folder}/metrics.jsonl')
  scores = [
    {k: v for k, v in row.items() if k.startswith('eval/')}
    for row in rows
    if row['step'] <= step
  ]
  scores = [row for row in scores if row]
  metadata = {
    'format': 'meta_rl',
    'command': command,
    'step': str(step),
    'seed': str(config.get('seed')),
    'config': json.dumps(config.to_dict()),
    'scores': json.dumps(scores[-1] if scores else {}),
  }
  weights.save_safetensors(out, params, metadata, dtype=dtype)
  return metadata


def export_hf(folder: str, out: str, *, which: str, dtype: str | None) -> dict:
  """Writes the policy of a run as a folder of Hugging Face format.

  Args:
    folder: of a run.
    out: the folder to write; it must not exist, or be empty.
    which: 'last' or 'best' checkpoint.
    dtype: of the tensors; None for the run's own.

  Returns:
    {'step': text, 'scores': '{}'}, as `export`.

  Raises:
    ValueError: a model that none of the known architectures is, or a run
      without a checkpoint.
  """
  config = command_line.run_config(folder)
  like = setup_run.abstract_params(config)
  found = checkpoint.restore_params(
    folder, like, which=which, optional=(value.NAME,)
  )
  if found is None:
    raise ValueError(
      f'{folder} holds no checkpoint yet: let it save one first.'
    )
  step, params = found
  shape = setup_run.model_config(config)
  merged = dataclasses.replace(shape, lora_rank=0)
  hf_config, words = _described(config, merged)
  hf.save_checkpoint(
    out,
    lora.merge(params, shape),
    merged,
    hf_config,
    tokenizer=words,
    dtype=dtype,
  )
  return {'step': str(step), 'scores': '{}'}


def _described(config, shape: models.TransformerConfig) -> tuple:
  """Returns config.json of a run's model and its tokenizer.

  Those of the checkpoint that the run began from, or, of a model of our own,
  what describes it. A folder's own files say more than what is read of them.
  """
  if path := config.model.get('path'):
    source = hf.find(path)
    folder = source.is_dir()
    return hf.hf_config_of(path), source if folder else hf.model_tokenizer(path)
  task = setup_run.make_task(config)
  words = hf.TokenizerInfo(
    tokenizer.make_tokenizer(),
    chat_template=None,
    bos_id=tokenizer.BOS,
    eos_ids=task.end_ids,
    pad_id=task.pad_id,
  )
  if config.task.name == 'text':
    own = text_tokenizer.load(config.task.tokenizer)
    template = {'none': None, 'chatml': text.CHATML}.get(
      config.task.get('template'), own.chat_template or text.CHATML
    )
    words = dataclasses.replace(
      words,
      tokenizer=own.tokenizer,
      chat_template=template,
      bos_id=own.bos_id,
    )
  hf_config = hf.config_to_hf(
    shape,
    max_position_embeddings=max(_CONTEXT, setup_run.trace_length(config, task)),
    bos_token_id=words.bos_id,
    eos_token_id=list(task.end_ids),
    pad_token_id=task.pad_id,
  )
  return hf_config, words


def _can_chat(folder: str) -> bool:
  """Returns whether the folder that was written has a chat template."""
  try:
    return bool(hf.read_tokenizer(folder).chat_template)
  except weights.WeightsError:
    return False  # SentencePiece's own file alone


def define_flags():
  """Defines the command's flags."""
  flags.DEFINE_string('workdir', None, 'Run folder.')
  flags.DEFINE_string('out', None, 'File to write; with --format=hf a folder.')
  flags.DEFINE_enum('which', 'last', ['last', 'best'], 'Checkpoint of the run.')
  flags.DEFINE_enum(
    'dtype', None, ['float16', 'bfloat16'], 'Storage type; default the own.'
  )
  flags.DEFINE_string('command', '', 'What trained the run, for the record.')
  flags.DEFINE_boolean('value_head', False, "Write the critic's head as well.")
  flags.DEFINE_enum(
    'format', 'safetensors', ['safetensors', 'hf'], 'One file, or a folder.'
  )
  flags.mark_flags_as_required(['workdir', 'out'])


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  try:
    shared = {'which': FLAGS.which, 'dtype': FLAGS.dtype}
    if FLAGS.format == 'hf':
      metadata = export_hf(FLAGS.workdir, FLAGS.out, **shared)
    else:
      metadata = export(
        FLAGS.workdir,
        FLAGS.out,
        command=FLAGS.command,
        value_head=FLAGS.value_head,
        **shared,
      )
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  scores = json.loads(metadata['scores'])
  print(f'{FLAGS.out}: step {metadata["step"]}')
  if FLAGS.format == 'hf' and _can_chat(FLAGS.out):
    print(f'  chat: python -m meta_rl.generate --model={FLAGS.out}')
  for name, score in scores.items():
    print(f'  {name:<40} {score:.4g}')


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
