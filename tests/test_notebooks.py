"The notebooks are the source: clean, exported, tagged, and fit to be read."
import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import NOTEBOOKS, TOP, run_program

RUNNABLE = ('05_distill', '06_klej')
# Beyond these a cell or a page has grown out of hand; the style aims for half of it.
CELLS, PROSE, EXPORT, LESSON = 110, 130, 50, 18
each_notebook = pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda f: f.stem)


def cells_of(file, kind=None):
    cells = json.loads(file.read_text('utf-8'))['cells']
    return [c | {'source': ''.join(c['source'])} for c in cells if kind in (None, c['cell_type'])]


def code_lines(cell): return [line for line in cell['source'].splitlines() if line.strip() and not line.startswith('#|')]


def is_export(cell): return bool(re.search(r'^#\|\s*export', cell['source'], re.M))


def is_table_of_fields(cell):
    "A dataclass of settings is a table, which cannot be cut in two."
    body = ast.parse(cell['source']).body
    return len(body) == 1 and isinstance(body[0], ast.ClassDef) and 'dataclass' in ''.join(map(ast.unparse, body[0].decorator_list))


def is_imports(cell):
    try: return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(cell['source']).body)
    except SyntaxError: return False


def outputs_of(cell):
    "Every text that a cell's outputs hold, as (kind of output, text)."
    for o in cell.get('outputs', []):
        data = {'text/plain': o['text']} if o['output_type'] == 'stream' else o.get('data', {})
        for kind, text in data.items(): yield f'{o["output_type"]} {kind}', ''.join(text) if not isinstance(text, dict) else json.dumps(text)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The checkout's sources, where they may be rewritten."
    top = tmp_path_factory.mktemp('copy')
    for name in ('nbs', 'distilherbert'):
        shutil.copytree(TOP/name, top/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', '.*', '*_files'))
    for name in ('settings.ini', '_quarto.yml'):
        if (TOP/name).exists(): shutil.copy(TOP/name, top/name)
    return top


def test_there_is_one_notebook_per_module():
    exported = {m for f in NOTEBOOKS for c in cells_of(f, 'code') for m in re.findall(r'^#\|\s*default_exp (\w+)', c['source'], re.M)}
    modules = {f.stem for f in (TOP/'distilherbert').glob('*.py') if not f.stem.startswith('_')}
    assert exported == modules


def test_export_leaves_no_difference(copy):
    for f in (copy/'distilherbert').glob('*.py'):
        if f.stem not in ('__init__',): f.unlink()
    done = run_program(Path(sys.executable).with_name('nbdev_export'), cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {f.name: f.read_text('utf-8') for f in (copy/'distilherbert').glob('*.py')}
    kept = {f.name: f.read_text('utf-8') for f in (TOP/'distilherbert').glob('*.py')}
    different = sorted(n for n in made.keys() | kept.keys() if made.get(n) != kept.get(n))
    assert not different, f'run nbdev_export and commit: {different}'


def test_notebooks_are_clean(copy):
    done = run_program(Path(sys.executable).with_name('nbdev_clean'), cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    different = [f.name for f in NOTEBOOKS if json.loads(f.read_text('utf-8')) != json.loads((copy/'nbs'/f.name).read_text('utf-8'))]
    assert not different, f'run nbdev_clean and commit: {different}'


@pytest.mark.parametrize('name', RUNNABLE)
def test_runnable_notebooks_have_one_parameters_cell(name):
    cells = [c for c in cells_of(TOP/'nbs'/f'{name}.ipynb', 'code') if 'parameters' in c['metadata'].get('tags', [])]
    assert len(cells) == 1
    names = set()
    for node in ast.parse(cells[0]['source']).body:
        assert isinstance(node, (ast.Assign, ast.AnnAssign)), 'a parameter is a plain assignment'
        assert type(ast.literal_eval(node.value)) in (str, int, float, bool, list, dict), 'of a literal of a plain type'
        names.add((node.target if isinstance(node, ast.AnnAssign) else node.targets[0]).id)
    assert {'scenario', 'profile'} <= names
    assert not any('=' in line.split('#', 1)[1] for line in cells[0]['source'].splitlines() if '#' in line), 'papermill loses it'


@each_notebook
def test_outputs_are_fit_to_be_read(file):
    machine = re.compile(r'(?<![\w.])(/home/|/root/|/work/|/tmp/|/Users/|/var/folders/|[A-Z]:\\\\?Users)')
    for n, cell in enumerate(cells_of(file, 'code')):
        for o in cell['outputs']:
            assert o['output_type'] != 'error', f'code cell {n} stores an error'
            assert o.get('name') != 'stderr', f'code cell {n} stores something on stderr: {"".join(o["text"])[:200]}'
        for kind, text in outputs_of(cell):
            assert 'image' in kind or not machine.search(text), f'code cell {n} shows a path of one machine: {machine.search(text)}'
            assert 'Traceback (most recent call last)' not in text and 'Warning:' not in text, f'code cell {n}: {text[:200]}'
            assert '\r' not in text and '%|' not in text and '\x1b' not in text, f'code cell {n} has the rubble of a progress bar'


@each_notebook
def test_outputs_are_small(file):
    size = sum(len(json.dumps(c.get('outputs', []), ensure_ascii=False).encode()) for c in cells_of(file, 'code'))
    assert size < 300_000, f'{size/1000:.0f} KB of stored outputs'


@each_notebook
def test_cells_keep_to_the_style(file):
    cells = cells_of(file)
    assert len(cells) <= CELLS
    assert re.match(r'# \S.*\n\s*\n?> \S', cells[0]['source']), 'a title and a subtitle'
    long = []
    for n, c in enumerate(cells):
        if c['cell_type'] == 'markdown': kind, size, limit = 'words of prose', len(re.sub(r'(?s)```.*?```|^\|.*?$', '', c['source'], flags=re.M).split()), PROSE
        elif is_imports(c) or (is_export(c) and is_table_of_fields(c)): continue
        elif is_export(c): kind, size, limit = 'lines of exported code', len(code_lines(c)), EXPORT
        else: kind, size, limit = 'lines of a lesson', len(code_lines(c)), LESSON
        if size > limit: long.append(f'cell {n}: {size} {kind}, at most {limit}: {c["source"][:60]!r}')
    assert not long, '\n'.join(long)


@each_notebook
def test_imports_have_cells_of_their_own(file):
    "The build of the site executes cells of imports and exports only."
    for n, c in enumerate(cells_of(file, 'code')):
        tree = ast.parse(re.sub(r'^[%!].*$', '', c['source'], flags=re.M))
        found = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body]
        assert not any(found) or all(found), f'code cell {n} mixes imports with other code'
        assert not any(a.name == '*' for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names), f'code cell {n}: import *'


@each_notebook
def test_public_functions_are_documented(file):
    "One-line docstring; each parameter on its own line with a comment."
    missing = []
    for cell in filter(is_export, cells_of(file, 'code')):
        lines = cell['source'].splitlines()
        for f in ast.parse(cell['source']).body:
            if not isinstance(f, (ast.FunctionDef, ast.ClassDef)) or f.name.startswith('_'): continue
            if not ast.get_docstring(f): missing.append(f'{f.name} has no docstring')
            if isinstance(f, ast.ClassDef): continue
            args = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            missing += [f'{f.name}: parameter {a.arg}' for a in args if '#' not in lines[a.lineno - 1]]
            if len({a.lineno for a in args}) < len(args): missing.append(f'{f.name}: two parameters on a line')
    assert not missing, '\n'.join(missing)


@each_notebook
def test_exported_code_needs_no_development_tools(file):
    tools = {'nbdev', 'fastcore', 'IPython', 'papermill', 'pytest', 'execnb', 'nbformat'}
    for cell in filter(is_export, cells_of(file, 'code')):
        for node in ast.parse(cell['source']).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not tools & {n.split('.')[0] for n in names}, f'{names} is imported by exported code'
