"""safetensors files written by hand, wrong ones included, for tests of hf."""

import json
import shutil

import numpy as np
from conftest import ROOT

from meta_rl.hf.tensors import TensorFile
from meta_rl.weights import DTYPES

DATA = ROOT / 'tests' / 'data' / 'hf'
KINDS = {np.dtype(dtype): kind for kind, dtype in DTYPES.items()}


def write(path, tensors, **changes):
  """Writes tensors to a file; `changes` replace entries of its header."""
  header, data = {'__metadata__': {'format': 'pt'}}, b''
  for name, array in tensors.items():
    start, data = len(data), data + array.tobytes()
    header[name] = {
      'dtype': KINDS[array.dtype],
      'shape': list(array.shape),
      'data_offsets': [start, len(data)],
    }
  for name, change in changes.items():
    header[name] |= change
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data)


def read(path):
  """Returns the tensors of a file, name -> array."""
  file = TensorFile(path)
  return {name: file.read(name) for name in file.tensors}


def read_all(folder):
  """Returns the tensors of all files of a folder."""
  found = {}
  for path in sorted(folder.glob('*.safetensors')):
    found |= read(path)
  return found


def copy(name, folder):
  """Returns a copy of a committed checkpoint, to be damaged."""
  return shutil.copytree(DATA / name, folder / name)


def edit_json(path, **changes):
  """Sets keys of a JSON file; None deletes one."""
  values = json.loads(path.read_text('utf-8')) | changes
  values = {k: v for k, v in values.items() if v is not None}
  path.write_text(json.dumps(values), 'utf-8')
