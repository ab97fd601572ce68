"The notebooks are the source: clean, exported, tagged and fit to be read; and nothing is unused."
import ast
import json
import re
import shutil
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import NOTEBOOKS, TOP, run_program

RUNNABLE = ('05_distill', '06_klej')
LATE = {'pipeline', 'reproduce'}  # their late imports, of makers and of the functions behind commands, may point upwards
PACKAGE = [f for f in sorted((TOP/'distilherbert').glob('*.py')) if not f.stem.startswith('_')]
each_notebook = pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda f: f.stem)


def cells_of(file, kind=None):
    cells = json.loads(file.read_text('utf-8'))['cells']
    return [c | {'source': ''.join(c['source'])} for c in cells if kind in (None, c['cell_type'])]


def is_export(cell): return bool(re.search(r'^#\|\s*export', cell['source'], re.M))


def parse_cell(cell): return ast.parse(re.sub(r'^[%!].*$', '', cell['source'], flags=re.M))


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The checkout's sources, where they may be rewritten."
    top = tmp_path_factory.mktemp('copy')
    for name in ('nbs', 'distilherbert'):
        shutil.copytree(TOP/name, top/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', '.*', '*_files'))
    for name in ('settings.ini', '_quarto.yml'): shutil.copy(TOP/name, top/name)
    return top


@pytest.mark.parametrize(('program', 'kind'), [('nbdev_export', 'distilherbert/*.py'), ('nbdev_clean', 'nbs/*.ipynb')])
def test_exporting_and_cleaning_leave_no_difference(copy, program, kind):
    if program == 'nbdev_export':
        for f in (copy/'distilherbert').glob('[!_]*.py'): f.unlink()
    done = run_program(Path(sys.executable).with_name(program), cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    read = json.loads if kind.endswith('ipynb') else str
    made, kept = ({f.name: read(f.read_text('utf-8')) for f in top.glob(kind)} for top in (copy, TOP))
    different = sorted(n for n in made.keys() | kept.keys() if made.get(n) != kept.get(n))
    assert not different, f'run {program} and commit: {different}'


@each_notebook
def test_parameters_are_literals_in_one_cell(file):
    cells = [c for c in cells_of(file, 'code') if 'parameters' in c['metadata'].get('tags', [])]
    assert len(cells) == (file.stem in RUNNABLE)
    for cell in cells:
        given = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell['source']).body}
        assert {'scenario', 'profile'} <= set(given) and all(type(v) in (str, int, float, bool, list, dict) for v in given.values())
        assert not any('=' in line.split('#', 1)[1] for line in cell['source'].splitlines() if '#' in line), 'papermill loses it'


@each_notebook
def test_a_page_is_fit_to_be_read(file):
    "It has a title and a subtitle, and its outputs no error, warning, or path of one machine."
    assert re.match(r'# \S.*\n\s*\n?> \S', cells_of(file)[0]['source'])
    outputs = [o for cell in cells_of(file, 'code') for o in cell['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error' or o.get('name') == 'stderr']
    shown = [o['data'] if 'data' in o else {'text': o['text']} for o in outputs]
    texts = [json.dumps(v) if isinstance(v, dict) else ''.join(v) for data in shown for k, v in data.items() if 'image' not in k]
    bad = re.search(r'(?<![\w.])/(home|root|work|tmp|Users|var/folders)/|Traceback \(most recent|Warning:|\r|%\||\x1b', '\n'.join(texts))
    assert not bad and len(json.dumps(outputs, ensure_ascii=False).encode()) < 300_000, bad


def imports_of(file):
    "Pairs (module of the package, imported inside a function?)."
    tree = ast.parse(file.read_text('utf-8'))
    late = {n for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom) and node.module: names = [f'distilherbert.{node.module}' if node.level else node.module]
        elif isinstance(node, ast.ImportFrom): names = [f'distilherbert.{name}' for name in names]
        for name in names:
            if name.startswith('distilherbert.'): yield name.split('.')[1], node in late


def test_imports_run_one_way():
    graph = {f.stem: {m for m, late in imports_of(f) if not (late and f.stem in LATE)} for f in PACKAGE}
    try: TopologicalSorter(graph).prepare()
    except CycleError as e: pytest.fail(f'an import circle: {" <- ".join(e.args[1])}')


def definitions(tree):
    "Names of functions, classes, methods, fields and constants of a module, but not of what its own decorators put into a registry."
    own = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if not own & {m for d in node.decorator_list for m in mentions(d)}: yield node.name
        if isinstance(node, ast.Assign): yield from (t.id for t in node.targets if isinstance(t, ast.Name))
        if isinstance(node, ast.ClassDef) and not node.bases:  # a subclass overrides what others call
            for n in node.body:
                if isinstance(n, ast.FunctionDef): yield n.name
                if isinstance(n, ast.AnnAssign): yield n.target.id


def mentions(tree):
    "Identifiers that some code reads, sets by keyword, or names in a string."
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load): yield node.id
        if isinstance(node, ast.Attribute): yield node.attr
        if isinstance(node, ast.keyword) and node.arg: yield node.arg
        if isinstance(node, ast.alias): yield node.name
        if isinstance(node, ast.Constant) and isinstance(node.value, str): yield from re.findall(r'[A-Za-z_]\w*', node.value)


def test_nothing_is_unused():
    trees = {f: ast.parse(f.read_text('utf-8')) for f in PACKAGE}
    for tree in trees.values():  # the list of exported names is no use of them
        tree.body = [n for n in tree.body if not (isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__')]
    used = {m for tree in trees.values() for m in mentions(tree)}
    scripts = [f for folder in ('tests', 'bench', 'tools') for f in (TOP/folder).glob('*.py')]
    used |= {m for f in scripts for m in mentions(ast.parse(f.read_text('utf-8')))}
    used |= {m for f in NOTEBOOKS for c in cells_of(f, 'code') if not is_export(c) for m in mentions(parse_cell(c))}
    unused = [f'{f.stem}.{n}' for f, tree in trees.items() for n in definitions(tree) if n not in used and not n.startswith('__')]
    assert not unused, unused
