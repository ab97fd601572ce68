"The wheel and the source archive: what is in them, and that the wheel works alone."
import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from conftest import TOP
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_cli import tiny

MODULES = sorted(f.stem for f in (TOP/'distilherbert').glob('*.py') if not f.stem.startswith('_'))
NOT_BUILT = ('.git', '.venv', '_runs', '_docs', '_proc', 'build', 'dist', '*.egg-info', '__pycache__', '.quarto', '.*_cache', '.hypothesis')


def settings():
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(TOP/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The folder with wheel and source archive, built from a copy of the checkout."
    top = tmp_path_factory.mktemp('build')
    shutil.copytree(TOP, top/'source', symlinks=True, ignore=shutil.ignore_patterns(*NOT_BUILT))
    (top/'source'/'_runs').mkdir()
    for name in ('.gitkeep', 'S4.ipynb'): (top/'source'/'_runs'/name).touch()
    subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', top/'dist', top/'source'], check=True, capture_output=True)
    return top/'dist'


def wheel_of(built): return next(built.glob('*.whl'))


def test_wheel_holds_the_library_and_its_licence(built):
    with zipfile.ZipFile(wheel_of(built)) as z: names = z.namelist()
    assert {f'distilherbert/{m}.py' for m in (*MODULES, '__init__')} <= set(names)
    assert any(n.endswith('licenses/LICENSE') for n in names)
    strange = [n for n in names if not n.startswith(('distilherbert/', 'distilherbert-'))]
    assert not strange


def test_source_archive_holds_what_a_checkout_needs(built):
    with tarfile.open(next(built.glob('*.tar.gz'))) as t: names = {n.partition('/')[2] for n in t.getnames()}
    notebooks = {f'nbs/{f.name}' for f in (TOP/'nbs').glob('*.ipynb')}
    tests = {f'tests/{f.name}' for f in (TOP/'tests').glob('*.py')}
    expected = {'settings.ini', 'setup.py', 'pyproject.toml', 'constraints.txt', 'Makefile', 'LICENSE', 'README.md', '.ci/run', '_quarto.yml'}
    expected = {n for n in expected if (TOP/n).exists()}
    assert expected | notebooks | tests <= names, sorted((expected | notebooks | tests) - names)
    assert [n for n in names if '_runs/' in n] == ['_runs/.gitkeep'], 'README writes notebooks there'
    assert not [n for n in names if '__pycache__' in n or n.startswith(('.git/', '.venv'))]


def test_metadata_says_what_settings_say(built):
    with zipfile.ZipFile(wheel_of(built)) as z:
        text = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
        entry = z.read(next(n for n in z.namelist() if n.endswith('entry_points.txt'))).decode()
    assert f"Version: {settings()['version']}\n" in text and 'License-Expression: Apache-2.0' in text
    assert {'dev', 'deepspeed'} <= {line.split(': ')[1] for line in text.splitlines() if line.startswith('Provides-Extra')}
    assert 'distilherbert = distilherbert.reproduce:main' in entry.replace('=', ' = ').replace('  ', ' ')


def test_version_is_written_once():
    assert f'__version__ = "{settings()["version"]}"' in (TOP/'distilherbert'/'__init__.py').read_text('utf-8')
    assert metadata.version('distilherbert') == settings()['version']


def imported(file):
    "Top-level names of what a module imports anywhere, third-party only."
    for node in ast.walk(ast.parse(file.read_text('utf-8'))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
            [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        yield from (n.split('.')[0] for n in names)


# Looked for at run time, and explained where missing: papermill runs notebooks, deepspeed, onnxruntime and pyspark (with pyarrow) are extras, IPython shows pictures in notebooks.
OPTIONAL = {'papermill', 'nbformat', 'nbconvert', 'nbclient', 'deepspeed', 'IPython', 'onnxruntime', 'pyspark', 'py4j', 'pyarrow'}
# Makes pages from notebooks, which only a checkout has: its imports come with [dev].
DEVELOPMENT = {'site'}
# Used by name only: by transformers (a model's loading, the tokenizer's classes) and by datasets (HTTP).
INDIRECT = {'aiohttp', 'accelerate', 'datasets'}


def test_requirements_are_what_the_modules_import():
    packages = metadata.packages_distributions()
    third = {n for m in MODULES if m not in DEVELOPMENT for n in imported(TOP/'distilherbert'/f'{m}.py')} - set(sys.stdlib_module_names) - {'distilherbert'} - OPTIONAL
    used = {canonicalize_name(d) for n in third for d in packages.get(n, [f'{n} (not installed)'])}
    required = {canonicalize_name(Requirement(r).name) for r in settings()['requirements'].split()}
    assert used <= required, f'imported but not required: {sorted(used - required)}'
    assert required - used <= INDIRECT, f'required but not imported: {sorted(required - used - INDIRECT)}'


def test_constraints_pin_every_requirement():
    pins = dict(line.split('==') for line in (TOP/'constraints.txt').read_text('utf-8').splitlines() if line and not line.startswith('#'))
    pinned = {canonicalize_name(n) for n in pins}
    required = {canonicalize_name(Requirement(r).name) for k in ('requirements', 'dev_requirements') for r in settings()[k].split()}
    assert required <= pinned, sorted(required - pinned)
    for r in map(Requirement, settings()['requirements'].split() + settings()['dev_requirements'].split()):
        assert r.specifier.contains(next(v for n, v in pins.items() if canonicalize_name(n) == canonicalize_name(r.name))), str(r)
    assert pins['torch'] == '2.13.0' and '+' not in ''.join(pins.values())
    assert f"pip install torch=={pins['torch']} --index-url" in (TOP/'README.md').read_text('utf-8')


def closure(names):
    "The distributions that some need, with all that these need."
    found, todo = {}, list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found: continue
        try: found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError: continue  # needed on other systems, or optional
        for r in map(Requirement, found[name].requires or []):
            if r.marker is None or r.marker.evaluate({'extra': ''}): todo.append(r.name)
    return found.values()


@pytest.fixture(scope='module')
def environment(built, tmp_path_factory):
    "A fresh environment with the wheel, and links to exactly what its requirements bring."
    top = tmp_path_factory.mktemp('fresh')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', top/'env'], check=True)
    python = top/'env'/('Scripts' if os.name == 'nt' else 'bin')/'python'
    subprocess.run([sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', wheel_of(built)], check=True)
    site = Path(subprocess.run([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], check=True,
                               capture_output=True, text=True).stdout.strip())
    for d in closure(Requirement(r).name for r in settings()['requirements'].split()):
        for name in {f.parts[0] for f in d.files or [] if f.parts[0] not in ('..', '__pycache__')}:
            if not (site/name).exists(): (site/name).symlink_to(Path(d.locate_file(name)))
    return python


def in_environment(python, *args, cwd, timeout=300, **env):
    base = {k: v for k, v in os.environ.items() if not k.startswith(('DISTILHERBERT', 'PYTHON'))}
    base |= {'HOME': str(cwd), 'XDG_CACHE_HOME': str(cwd/'cache'), 'HF_HUB_OFFLINE': '1'} | env
    return subprocess.run([str(a) for a in (python, *args)], cwd=cwd, env=base, capture_output=True, text=True, timeout=timeout)


def test_modules_import_without_nbdev_and_papermill(environment, tmp_path):
    code = f'''
import importlib, sys, warnings
warnings.simplefilter("error", UserWarning)
for m in {[m for m in MODULES if m not in DEVELOPMENT]!r}: importlib.import_module(f"distilherbert.{{m}}")
from distilherbert.student import truncate
print(importlib.import_module("distilherbert").__file__)
for tool in ("nbdev", "papermill", "fastcore", "IPython", "jupyter_client", "pytest"):
    assert importlib.util.find_spec(tool) is None, tool
'''
    done = in_environment(environment, '-c', code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(TOP) not in done.stdout, 'the wheel itself was imported'


@pytest.mark.parametrize('args', (['--help'], ['status'], ['cost', '--scenario', 'S4']), ids=' '.join)
def test_commands_work_outside_a_checkout(environment, tmp_path, args):
    done = in_environment(environment.with_name('distilherbert'), *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr and done.stdout


def test_a_row_is_made_outside_a_checkout(environment, tmp_path):
    "Text, tokenizer, teacher, student and scores, with nothing but the wheel and what it requires."
    program, file = environment.with_name('distilherbert'), tiny(tmp_path, world_size=150, tasks=['nkjp-ner'])
    done = in_environment(program, 'run', 'S4', '--profile', file, cwd=tmp_path)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stdout + done.stderr
    folder = Path(re.search(r'S4 \(tiny\) is there: (.+)', done.stdout)[1])
    assert (folder/'model.safetensors').is_file() and folder.is_relative_to(tmp_path/'cache'/'distilherbert')
    assert list((folder.parents[1]/'scores').glob('S4-*/predictions.npz'))
    status = in_environment(program, 'status', '--profile', file, cwd=tmp_path).stdout
    assert any(line.split()[:3] == ['model', 'S4', 'current'] for line in status.splitlines())


def test_reproduce_outside_a_checkout_says_what_it_needs(environment, tmp_path):
    done = in_environment(environment.with_name('distilherbert'), 'reproduce', cwd=tmp_path)
    assert done.returncode == 2 and 'checkout' in done.stderr and 'Traceback' not in done.stderr


def test_without_an_installation_the_error_says_what_to_type():
    done = subprocess.run([sys.executable, '-S', '-c', 'import sys; sys.path.insert(0, sys.argv[1]); import distilherbert.scenario', str(TOP)],
                          capture_output=True, text=True)
    assert done.returncode == 1 and 'make install' in done.stderr and '.venv/bin/activate' in done.stderr and sys.executable in done.stderr
