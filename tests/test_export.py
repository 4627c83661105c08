"""Export of a run's weights, and starting from them."""

import dataclasses
import json
import types

import jax
import ml_collections
import numpy as np
import pytest

from meta_rl import (
  chat_template,
  export,
  hf,
  models,
  setup_run,
  text_tokenizer,
  tokenizer,
  weights,
  workdir,
)
from meta_rl.configs import mrt_qwen3_0p6b
from meta_rl.tasks import text

pytest_plugins = ['small_runs']


def params_of(run, which):
  """The parameters of a run's checkpoint."""
  like = setup_run.abstract_params(run.config)
  return weights.init_from(f'{run.folder}@{which}', like)


def start_from(run, source):
  """The parameters that a run with `init_from=source` starts with."""
  config = run.config.copy_and_resolve_references()
  config.init_from = str(source)
  return setup_run.initial_params(config)


def test_round_trip(trained, small, tmp_path):
  file = tmp_path / 'policy.safetensors'
  metadata = export.export(trained.folder, str(file), which='last', dtype=None)
  assert small.equal(start_from(trained, file), params_of(trained, 'last'))
  _, stored = weights.load_safetensors(file)
  assert stored == metadata
  assert (metadata['format'], metadata['step']) == ('meta_rl', '4')
  assert metadata['seed'] == str(trained.config.seed)
  config = json.loads(metadata['config'])
  assert workdir.difference(config, trained.config.to_dict()) == {}
  scores = json.loads(metadata['scores'])
  last = trained.rows[-1]
  assert scores == {k: v for k, v in last.items() if k.startswith('eval/')}
  assert 'eval/regret_token_weighted' in scores


def test_a_run_folder_itself_is_a_start(trained, small):
  assert small.equal(
    start_from(trained, f'{trained.folder}@last'), params_of(trained, 'last')
  )


def test_half_precision(trained, tmp_path):
  whole, half = tmp_path / 'f32.safetensors', tmp_path / 'f16.safetensors'
  export.export(trained.folder, str(whole), which='last', dtype=None)
  export.export(trained.folder, str(half), which='last', dtype='float16')
  assert half.stat().st_size < 0.7 * whole.stat().st_size
  exact = jax.tree.leaves(params_of(trained, 'last'))
  for x, y in zip(exact, jax.tree.leaves(start_from(trained, half))):
    assert y.dtype == np.float32
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


def test_the_best_checkpoint(trained, tmp_path):
  """Only steps that were evaluated have a score: here step 4 of 3 and 4."""
  file = tmp_path / 'best.safetensors'
  found = export.export(trained.folder, str(file), which='best', dtype=None)
  assert found['step'] == '4'


def test_the_command(trained, tmp_path, monkeypatch, capsys):
  file = tmp_path / 'policy.safetensors'
  flags = types.SimpleNamespace(
    workdir=str(trained.folder),
    out=str(file),
    which='last',
    dtype=None,
    command='train it',
    value_head=False,
    format='safetensors',
  )
  monkeypatch.setattr(export, 'FLAGS', flags)
  export.main(['export'])
  printed = capsys.readouterr().out
  assert printed.startswith(f'{file}: step 4\n')
  assert '  eval/regret_token_weighted  ' in printed
  flags.workdir = str(tmp_path / 'none')
  with pytest.raises(SystemExit) as error:
    export.main(['export'])
  assert error.value.code == 1
  line = capsys.readouterr().err
  assert line.startswith('error: ')
  assert line.count('\n') == 1
  assert 'holds no config.json' in line


def test_a_run_without_a_checkpoint(small, tmp_path):
  config = small.config('mrt').to_dict()
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='holds no checkpoint yet'):
    export.export(
      tmp_path, str(tmp_path / 'x.safetensors'), which='last', dtype=None
    )
  assert not (tmp_path / 'x.safetensors').exists()


def test_a_folder_of_hugging_face_keeps_its_tokenizer_files(
  tmp_path, monkeypatch
):
  """They say more than what is read of them, such as how to sample."""
  seen = []
  config = ml_collections.ConfigDict({'model': {'path': str(tmp_path)}})
  monkeypatch.setattr(export.command_line, 'run_config', lambda _: config)
  shape = models.TransformerConfig(
    vocab_size=4, num_layers=1, width=4, num_heads=1, ffn_width=4
  )
  for name in ('abstract_params', 'model_config'):
    monkeypatch.setattr(export.setup_run, name, lambda _: shape)
  monkeypatch.setattr(
    export.checkpoint, 'restore_params', lambda *_, **__: (3, {})
  )
  monkeypatch.setattr(export.lora, 'merge', lambda params, _: params)
  monkeypatch.setattr(export.hf, 'hf_config_of', lambda _: {})
  monkeypatch.setattr(
    export.hf, 'save_checkpoint', lambda *_, **more: seen.append(more)
  )
  export.export_hf('run', str(tmp_path / 'out'), which='last', dtype=None)
  assert seen[0]['tokenizer'] == tmp_path


def test_a_model_of_our_own_is_a_folder_that_says_the_same(
  trained, small, tmp_path
):
  """A llama with the tokenizer of its words; `transformers` loads the like."""
  out = tmp_path / 'hf'
  export.export_hf(trained.folder, str(out), which='last', dtype=None)
  config, params, words = hf.load_model(out, dtype='float32')
  own = setup_run.model_config(trained.config)
  model = models.make_model(own)
  theirs = models.make_model(config)
  tokens = np.asarray([words.tokenizer.encode('<bos> 3 + 4 = 7 ;').ids])
  positions = np.arange(tokens.shape[1])[None]
  want, _ = model.apply_fn(
    params_of(trained, 'last'), tokens, positions, None, None
  )
  found, _ = theirs.apply_fn(params, tokens, positions, None, None)
  np.testing.assert_allclose(found, want, atol=1e-5)
  assert words.eos_ids == (tokenizer.EOS,)
  assert words.bos_id == tokenizer.BOS
  assert not export._can_chat(out)


def test_the_template_of_an_exported_rehearsal_is_chatml():
  turns = [{'role': 'system', 'content': 'a'}, {'role': 'user', 'content': 'b'}]
  template = chat_template.ChatTemplate(text.CHATML)
  assert template.render(turns) == text.chatml(turns)


def test_a_rehearsal_can_be_talked_to(tmp_path, monkeypatch):
  """Of a language model's config; the template goes with it."""
  config = mrt_qwen3_0p6b.get_config('tiny')
  monkeypatch.setattr(export.command_line, 'run_config', lambda _: config)
  params = setup_run.initial_params(config)
  monkeypatch.setattr(
    export.checkpoint, 'restore_params', lambda *_, **__: (3, params)
  )
  out = tmp_path / 'hf'
  export.export_hf('run', str(out), which='last', dtype=None)
  assert export._can_chat(out)
  assert hf.read_tokenizer(out).chat_template == text.CHATML
  shape = hf.model_config(str(out))
  assert shape.qk_norm
  assert shape.head_dim == 12
  # Another tokenizer's own template and ends; room for a longer trace.
  config.task.tokenizer = 'FOLDER'
  config.rollout.thinking_budget = 8192
  words = dataclasses.replace(
    text_tokenizer.load('bytes'), chat_template='{{ 1 }}', end_ids=(1,)
  )
  for module in (text_tokenizer, text.text_tokenizer):
    monkeypatch.setattr(module, 'load', lambda _: words)
  values, info = export._described(config, setup_run.model_config(config))
  assert info.chat_template == '{{ 1 }}'
  assert info.eos_ids == (3, 1)
  assert values['eos_token_id'] == [3, 1]
  assert values['max_position_embeddings'] > 8192
  config.task.template = 'none'
  _, info = export._described(config, setup_run.model_config(config))
  assert info.chat_template is None
