"The wheel and the source archive: what is in them, and that the wheel works alone."
import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib import metadata

import pytest
import yaml
from conftest import TOP, write_tiny
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MODULES = sorted(f.stem for f in (TOP/'distilherbert').glob('*.py') if not f.stem.startswith('_'))
NOT_BUILT = ('.git', '.venv', '_runs', '_docs', '_proc', 'build', 'dist', '*.egg-info', '__pycache__', '.quarto', '.*_cache', '.hypothesis')
CONFIG = ConfigParser(delimiters=['='], interpolation=None)
CONFIG.read(TOP/'settings.ini', encoding='utf-8')
SETTINGS = CONFIG['DEFAULT']
# Looked for at run time, and explained where missing: papermill and its kin run notebooks, IPython shows pictures, the rest are extras.
OPTIONAL = {'papermill', 'nbformat', 'nbconvert', 'nbclient', 'deepspeed', 'IPython', 'onnx', 'onnxruntime', 'pyspark', 'py4j'}
# Used by name only: by transformers (to load models), and by datasets (HTTP).
INDIRECT = {'aiohttp', 'accelerate', 'datasets'}
TOOLS = ('nbdev', 'execnb', 'papermill', 'fastcore', 'IPython', 'jupyter_client', 'nbformat', 'nbclient', 'nbconvert', 'pytest')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The wheel and the source archive, built from a copy of the checkout."
    top = tmp_path_factory.mktemp('build')
    shutil.copytree(TOP, top/'source', symlinks=True, ignore=shutil.ignore_patterns(*NOT_BUILT))
    (top/'source'/'_runs').mkdir()
    for name in ('.gitkeep', 'S4.ipynb'): (top/'source'/'_runs'/name).touch()
    subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', top/'dist', top/'source'], check=True, capture_output=True)
    return next((top/'dist').glob('*.whl')), next((top/'dist').glob('*.tar.gz'))


def test_wheel_and_source_archive_hold_what_they_should(built):
    with zipfile.ZipFile(built[0]) as z:
        names = z.namelist()
        about, entry = (z.read(next(n for n in names if n.endswith(end))).decode() for end in ('METADATA', 'entry_points.txt'))
    assert {f'distilherbert/{m}.py' for m in (*MODULES, '__init__')} <= set(names) and any(n.endswith('licenses/LICENSE') for n in names)
    assert all(n.startswith(('distilherbert/', 'distilherbert-')) for n in names)
    expected = {f'Version: {SETTINGS["version"]}', *(f'Provides-Extra: {x}' for x in ('dev', 'deepspeed', 'onnx', 'real', 'spark'))}
    assert expected <= set(about.splitlines()) and entry.replace(' ', '').endswith(f'{SETTINGS["console_scripts"]}\n')
    with tarfile.open(built[1]) as t: names = {n.partition('/')[2] for n in t.getnames()}
    expected = {'settings.ini', 'setup.py', 'pyproject.toml', 'constraints.txt', 'Makefile', 'LICENSE', 'README.md', '.ci/run'}
    expected |= {f.relative_to(TOP).as_posix() for kind in ('nbs/*.ipynb', 'tests/*.py', 'bench/*.py', 'tools/*.*') for f in TOP.glob(kind)}
    assert expected <= names, sorted(expected - names)
    assert not [n for n in names if '__pycache__' in n or n.startswith(('.git/', '.venv', '_runs/S4'))]


def test_version_is_written_once():
    cff, bib = yaml.safe_load((TOP/'CITATION.cff').read_text('utf-8')), (TOP/'CITATION.bib').read_text('utf-8')
    version = SETTINGS['version']
    assert f'__version__ = "{version}"' in (TOP/'distilherbert'/'__init__.py').read_text('utf-8')
    assert metadata.version('distilherbert') == cff['version'] == version and f'version = {{{version}}}' in bib
    assert cff['repository-code'] == SETTINGS['git_url'] and f'## {version}' in (TOP/'CHANGELOG.md').read_text('utf-8')


def imported(file):
    "Top-level names of what a module imports anywhere, the package itself left out."
    for node in ast.walk(ast.parse(file.read_text('utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name.split('.')[0] for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0]


def test_requirements_are_what_the_modules_import_and_all_are_pinned():
    packages = metadata.packages_distributions()
    third = {n for m in MODULES for n in imported(TOP/'distilherbert'/f'{m}.py')} - {*sys.stdlib_module_names, 'distilherbert', *OPTIONAL}
    used = {canonicalize_name(d) for n in third for d in packages.get(n, [f'{n} (not installed)'])}
    required = {canonicalize_name(Requirement(r).name) for r in SETTINGS['requirements'].split()}
    assert used <= required and required - used <= INDIRECT, f'only imported {used - required}, only required {required - used - INDIRECT}'
    lines = (TOP/'constraints.txt').read_text('utf-8').splitlines()
    pins = {canonicalize_name(n): v for n, v in (line.split('==') for line in lines if line and not line.startswith('#'))}
    every = [Requirement(r) for k, v in SETTINGS.items() if k.endswith('requirements') for r in v.split()]
    assert f"torch=={pins['torch']}" in (TOP/'README.md').read_text('utf-8')
    assert not [str(r) for r in every if not r.specifier.contains(pins.get(canonicalize_name(r.name), '0'))]


def alone(wheel, *args, cwd, code='from distilherbert.reproduce import main; sys.exit(main())'):
    "Run the command line, or some code, from an unpacked wheel without the tools of a checkout."
    env = {k: v for k, v in os.environ.items() if not k.startswith(('DISTILHERBERT', 'PYTHON'))} | {'PYTHONPATH': str(wheel)}
    env |= {'HOME': str(cwd), 'XDG_CACHE_HOME': str(cwd/'cache'), 'HF_HUB_OFFLINE': '1'}
    code = f'import sys; sys.modules.update(dict.fromkeys({TOOLS!r})); {code}'
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert 'Traceback' not in done.stderr, done.stderr
    return done


@pytest.mark.slow
def test_the_wheel_works_alone_outside_a_checkout(built, tmp_path):
    "Text, tokenizer, teacher, student and scores; only `reproduce` needs the notebooks."
    with zipfile.ZipFile(built[0]) as z: z.extractall(wheel := tmp_path/'wheel')
    modules = f'import importlib; print(*(importlib.import_module(f"distilherbert.{{m}}").__file__ for m in {MODULES!r}))'
    assert all(f.startswith(str(wheel)) for f in alone(wheel, cwd=tmp_path, code=modules).stdout.split())
    file, runs = write_tiny(tmp_path, world_size=150, tasks=['nkjp-ner']), tmp_path/'cache'/'distilherbert'/'_runs'
    for args in (['--help'], ['cost', 'S4'], ['run', 'S4', '--profile', file]):
        done = alone(wheel, *args, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout, done.stdout + done.stderr
    assert list(runs.glob('model/S4-*/model.safetensors')) and list(runs.glob('scores/S4-*/predictions.npz'))
    done = alone(wheel, 'reproduce', cwd=tmp_path)
    assert done.returncode == 2 and 'checkout' in done.stderr


def test_without_an_installation_the_error_says_what_to_type():
    code = 'import sys; sys.path.insert(0, sys.argv[1]); import distilherbert.scenario'
    done = subprocess.run([sys.executable, '-S', '-c', code, str(TOP)], capture_output=True, text=True)
    assert done.returncode == 1 and 'make install' in done.stderr and '.venv/bin/activate' in done.stderr and sys.executable in done.stderr
