"""The package as it is installed: its wheel, built and unpacked."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

from conftest import ROOT


def build(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder in which the wheel's files lie, below `folder`."""
  # From a copy: a build leaves folders beside setup.py.
  tree, installed = folder / 'tree', folder / 'installed'
  no_runs = shutil.ignore_patterns('.*', 'runs', 'build', '*.egg-info')
  shutil.copytree(ROOT, tree, ignore=no_runs)
  built = subprocess.run(
    [
      *(sys.executable, '-m', 'build', '--wheel', '--no-isolation'),
      *('--outdir', str(folder), str(tree)),
    ],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert built.returncode == 0, built.stdout + built.stderr
  (wheel,) = folder.glob('meta_rl-*.whl')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(installed)
  return installed
