"""Pages from notebooks: the site in `_docs`, with Quarto where it is installed, else with pandoc; and README.md from the home page.

    python tools/pages.py docs      all pages, from the outputs stored in the notebooks; the report as PDF, the records as CSV
    python tools/pages.py render    the same, after the report's pages were executed on the committed records (--own: on your own first)
    python tools/pages.py readme    execute the report's pages in place on the committed records, then write README.md

All but `readme` work on a copy: the checkout stays as it is. An unresolved reference, citation or link is an error.
"""
import argparse
import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

import yaml
from bs4 import BeautifulSoup

TOP = Path(__file__).resolve().parents[1]
PAGES = ('07_report', 'index', '25_what_did_not_work', '30_records')  # Made from records
OPTION = re.compile(r'#\|\s*([\w-]+):\s*(.*)')  # `#| echo: false`


def run(*command, cwd):
    "Run a program; its standard error. It ends this one when it fails."
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=os.environ | {'NO_COLOR': '1'}, capture_output=True, text=True)
    said = f'{done.stdout[-2000:]}{done.stderr[-4000:]}'
    if done.returncode: sys.exit(f'{" ".join(Path(c).name for c in map(str, command[:2]))} failed:\n{said}')
    return done.stderr


def split_options(source):
    "The `#| name: value` lines at the head of a cell, and the code below them."
    options, lines = {}, source.splitlines()
    while lines and lines[0].startswith('#|'):
        if m := OPTION.match(lines[0]): options[m[1]] = yaml.safe_load(m[2])
        lines.pop(0)
    return options, '\n'.join(lines).strip()


def only_imports(code):
    try: return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body)
    except SyntaxError: return False  # a magic or a shell command


def read_cells(file):
    "Cells of a notebook, their sources as one string each."
    notebook = json.loads(file.read_text('utf-8'))
    for cell in notebook['cells']: cell['source'] = ''.join(cell['source'])
    return notebook, notebook['cells']


def process(folder):
    """Apply nbdev's directives to the notebooks in `folder/nbs`; the folder with the results. Cells that only import are left out,
    and those with the tag "plumbing" are folded."""
    run(sys.executable, '-c', 'from nbdev.serve import proc_nbs; proc_nbs(n_workers=0, force=True)', cwd=folder)
    for file in (folder/'_proc').glob('*.ipynb'):
        notebook, cells = read_cells(file)
        def shown(c): return c['cell_type'] != 'code' or c['outputs'] or not only_imports(split_options(c['source'])[1])
        notebook['cells'] = list(filter(shown, cells))
        for cell in notebook['cells']:
            if 'plumbing' not in cell['metadata'].get('tags', ()): continue
            names = ', '.join(re.findall(r'^(?:def|class) (?!_)(\w+)', cell['source'], re.M))
            cell['source'] = f'#| code-fold: true\n#| code-summary: "{names or "Code"}"\n{cell["source"]}'
        for output in (o for c in notebook['cells'] for o in c.get('outputs', ()) if 'text/html' in o.get('data', {})):
            # On a page with an output of this type Quarto loads scripts from another host
            output['data'] = {'text/markdown': '```{=html}\n' + ''.join(output['data']['text/html']) + '\n```'}
        file.write_text(json.dumps(notebook), 'utf-8')
    return folder/'_proc'


def add_files(folder):
    "What pages link to or load: the records as CSV, and the script of the interactive figures."
    import pandas as pd
    import vl_convert

    from distilherbert.results import load_results, value_groups
    results = [load_results(name) for name in ('real', 'demo', 'bench')]
    def listed(name): return [{'profile': r.profile, **x} for r in results for x in r.get('comparisons', name, default=[])]
    scores = [{'profile': r.profile, 'model': s, 'task': t, 'title': v['title'], 'selection': how, 'mean': x['mean'], 'low': x['low'],
               'high': x['high'], 'majority': v.get('majority'), 'n': v.get('n'), **{f'seed {n}': y for n, y in x.get('seeds', {}).items()}}
              for r in results for s, tasks in r.scores().items() for t, v in tasks.items() for how, x in v['selections'].items()]
    values = [{'profile': r.profile, 'record': what, 'field': ' / '.join((*path, name)), 'value': value}
              for r in results for what, x in r.records.items()
              for path, found in value_groups(x['values']) for name, value in found.items()]
    tables = {'scores': scores, 'differences': listed('pairs'), 'retention': listed('retention'), 'records': values}
    for name, rows in tables.items(): pd.DataFrame(rows).to_csv(folder/f'{name}.csv', index=False)
    (folder/'vega.js').write_text(vl_convert.javascript_bundle(), 'utf-8')


def render_quarto(program, folder):
    "Render the processed notebooks with Quarto; the folder of the site."
    said = run(program, 'render', cwd=folder)
    unresolved = [line for line in said.splitlines() if re.search(r'WARN|Unable to resolve|not found', line)]
    if unresolved: sys.exit('\n'.join(['Quarto warns:', *unresolved]))
    return folder/'_docs'


def output_markdown(output, options):
    "One output of a cell, as pandoc's Markdown."
    data = output.get('data', {})
    for kind in ('image/svg+xml', 'image/png'):
        if kind not in data: continue
        content = ''.join(data[kind])
        content = content.replace('\n', '') if kind == 'image/png' else base64.b64encode(content.encode()).decode()
        label = f'#{options["label"]} ' if 'label' in options else ''
        return f'![{options.get("fig-cap", "")}](data:{kind};base64,{content}){{{label}fig-alt="{escape(options.get("fig-alt", ""))}"}}'
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    text = ''.join(data.get('text/plain', output.get('text', '')))
    return f'````` {{.output}}\n{text.rstrip()}\n`````'


def cell_markdown(cell):
    "A processed cell as pandoc's Markdown: the code unless it is not to be shown, then what it put out."
    if cell['cell_type'] != 'code': return cell['source']
    options, code = split_options(cell['source'])
    if options.get('include') is False: return ''
    parts = [f'````` {{.python}}\n{code}\n`````'] if code and options.get('echo') is not False else []
    if parts and options.get('code-fold') is True:
        parts = [f'<details><summary>{options.get("code-summary", "Code")}</summary>', *parts, '</details>']
    if options.get('output') is not False: parts += [output_markdown(o, options) for o in cell['outputs']]
    return '\n\n'.join(parts)


def page_name(notebook):
    "The page of a notebook, as nbdev names it: `07_report.ipynb` becomes `report.html`."
    return re.sub(r'^\d+\w*?_', '', Path(notebook).stem.lower()) + '.html'


def navigation(entries, titles):
    "The sidebar as HTML lists."
    def item(e):
        if isinstance(e, str): return f'<a href="{page_name(e)}">{escape(titles[e])}</a>'
        return f'<span>{escape(e["section"])}</span>{navigation(e["contents"], titles)}'
    return '<ul>' + ''.join(f'<li>{item(e)}</li>' for e in entries) + '</ul>'


def render_pandoc(folder):
    "Render the processed notebooks with pandoc and the template beside this script; the folder of the site."
    import pypandoc
    out = folder/'_docs'
    out.mkdir()
    if (folder/'figures').exists(): shutil.copytree(folder/'figures', out/'figures')
    for file in (*folder.glob('*.csv'), *folder.glob('*.js'), *folder.glob('*.pdf')): shutil.copy(file, out)
    pages = {f.name: read_cells(f)[1] for f in sorted(folder.glob('*.ipynb'))}
    titles = {name: yaml.safe_load(cells[0]['source'].strip().strip('-'))['title'] for name, cells in pages.items()}
    contents = yaml.safe_load((folder/'sidebar.yml').read_text('utf-8'))['website']['sidebar']['contents']
    here, nav = Path(__file__).parent, navigation(contents, titles)

    def render(name):
        text = folder/f'{name}.md'
        text.write_text('\n\n'.join(map(cell_markdown, pages[name])), 'utf-8')
        run(pypandoc.get_pandoc_path(), text, '--output', out/page_name(name), '--from', 'markdown', '--to', 'html5',
            '--template', here/'page.html', '--variable', f'nav={nav}', '--toc', '--toc-depth', '3', '--mathml',
            '--lua-filter', here/'references.lua', '--citeproc', '--bibliography', 'references.bib', '--metadata', 'link-citations=true',
            '--fail-if-warnings', cwd=folder)
    with ThreadPoolExecutor(2) as pool: list(pool.map(render, pages))
    return out


def write_pdf(folder):
    "The report as `report.pdf`: its Markdown by pandoc to Typst, which is a Python package; links to other pages lead to the site."
    import matplotlib
    import pypandoc
    import typst
    site = yaml.safe_load((folder/'nbdev.yml').read_text('utf-8'))['website']['site-url']
    text = '\n\n'.join(map(cell_markdown, read_cells(folder/'07_report.ipynb')[1]))
    text = re.sub(r'\]\((\w+\.ipynb)(#[\w.-]+)?\)', lambda m: f']({site}/{page_name(m[1])}{m[2] or ""})', text)
    (folder/'_report.md').write_text(text, 'utf-8')  # Quarto makes no page of a name that begins so
    run(pypandoc.get_pandoc_path(), '_report.md', '--output', '_report.typ', '--to', 'typst', '--standalone',
        '--lua-filter', Path(__file__).parent/'references.lua', '--citeproc', '--bibliography', 'references.bib',
        '--metadata', 'link-citations=true', '--variable', 'papersize=a4', '--variable', 'fontsize=10pt',
        '--variable', 'linkcolor=0b5cad', '--fail-if-warnings', cwd=folder)
    fonts = Path(matplotlib.get_data_path())/'fonts'/'ttf'  # Those of the figures
    typst.compile(folder/'_report.typ', output=folder/'report.pdf', root=folder, font_paths=[fonts])


def find_problems(site):
    "What no reader should meet: unresolved references, links that lead nowhere, pictures without words, things loaded from elsewhere."
    soups = {f.name: BeautifulSoup(f.read_text('utf-8'), 'html.parser') for f in sorted(site.glob('*.html'))}
    ids = {name: {e['id'] for e in soup.find_all(id=True)} | {'', 'top'} for name, soup in soups.items()}
    styles = {f.name: f.read_text('utf-8') for f in sorted(site.rglob('*.css'))}
    styles |= {name: ''.join(e.get_text() for e in soup.find_all('style')) for name, soup in soups.items()}
    outside = re.compile(r'(?:url\(|@import)\s*["\']?((?:https?:)?//[^"\')\s]+)')
    found = [f'{name}: loads {target}' for name, style in styles.items() for target in outside.findall(style)]
    for name, soup in soups.items():
        for e in soup.find_all(['pre', 'code']): e.clear()
        found += [f'{name}: {m}' for m in re.findall(r'\?@[\w-]+|^:::.*', soup.get_text(), re.M)]
        found += [f'{name}: a picture without alternative text' for e in soup.find_all('img') if not e.get('alt', '').strip()]
        for e in soup.find_all(['a', 'img', 'script', 'link']):
            target = e.get('href') or e.get('src') or ''
            if re.match(r'(https?:)?//', target):
                if e.name != 'a' and e.get('rel') != ['canonical']: found.append(f'{name}: loads {target}')
            elif not re.match(r'data:|mailto:|javascript:', target):
                file, _, place = target.partition('#')
                file = file or name
                if not (site/file).exists() or place not in ids.get(file, {place}): found.append(f'{name}: nothing at {target}')
    return found


def execute(nbs):
    "Execute the pages that are made from records, in place; what is stored does not differ between runs."
    import nbformat
    from nbclient import NotebookClient
    os.environ['DISTILHERBERT_FIGURES'] = str(nbs/'figures')
    for file in (nbs/f'{name}.ipynb' for name in PAGES):
        doc = nbformat.read(file, 4)
        metadata = [dict(c.metadata) for c in doc.cells]
        resources = {'metadata': {'path': str(nbs)}}
        NotebookClient(doc, timeout=600, kernel_name='python3', extra_arguments=['--log-level=CRITICAL'], resources=resources).execute()
        for cell, before in zip(doc.cells, metadata, strict=True):
            cell.metadata, cell.source = before, cell.source.splitlines(keepends=True)
            if cell.cell_type == 'code': cell.execution_count = None
            for o in cell.get('outputs', ()):
                if 'execution_count' in o: o['execution_count'] = None
                if 'text' in o: o['text'] = o['text'].splitlines(keepends=True)
                for kind, text in o.get('data', {}).items():
                    if isinstance(text, str): o['data'][kind] = text.splitlines(keepends=True)
        doc.metadata.pop('language_info', None)
        file.write_text(json.dumps(doc, ensure_ascii=False, indent=1, sort_keys=True) + '\n', 'utf-8')


def write_site(out, executed):
    "Make the site from a copy of the notebooks, and move it to its place when nothing is wrong with it."
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        for name in ('settings.ini', '_quarto.yml'): shutil.copy(TOP/name, folder)
        shutil.copytree(TOP/'nbs', folder/'nbs', symlinks=True, ignore=shutil.ignore_patterns('.*', '*_files'))
        if executed: execute(folder/'nbs')
        processed = process(folder)
        add_files(processed)
        write_pdf(processed)
        quarto = shutil.which('quarto', path=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
        if not quarto: print('Quarto is not here (`pip install quarto-cli`): pandoc makes plainer pages, without search.')
        site = render_quarto(quarto, processed) if quarto else render_pandoc(processed)
        if problems := find_problems(site): sys.exit('\n'.join(['These pages are not fit to be read:', *problems]))
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(site, out)
    print(f'Open {out}/report.html in a browser; the home page is {out}/index.html.')


def readme(index):
    "The home page as Markdown for GitHub, by nbconvert: code as the directives ask, links from the top of the checkout."
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    notebook = nbformat.read(index, 4)
    notebook.metadata.language_info = {'name': 'python'}
    for cell in notebook.cells:
        if cell.cell_type != 'code': continue
        options, code = split_options(cell.source)
        if options.get('include') is False or '#| hide' in cell.source: cell.metadata.tags = ['hidden']
        elif options.get('echo') is False: cell.metadata.tags = ['output-only']
        cell.source = code
    remove = {'enabled': True, 'remove_cell_tags': ['hidden'], 'remove_input_tags': ['output-only']}
    text = MarkdownExporter(config=Config(TagRemovePreprocessor=remove)).from_notebook_node(notebook)[0]
    # a figure: its description as alternative text, its caption below
    text = re.sub(r'!\[([^\]]*)\]\(([^)]+)\)\{[^}]*?fig-alt="([^"]*)"[^}]*\}', r'![\3](\2)\n\n*\1*', text)
    text = re.sub(r'^: (.*?)(?: \{#[\w-]+\})?$', r'*\1*', text, flags=re.M)
    text = re.sub(r'(\]\()(?!https?:|#|\.\./)', r'\1nbs/', text).replace('](../', '](')
    text = re.sub(r'\n{3,}', '\n\n', text).replace('\n```\n\n```python\n', '\n\n')  # imports and the example below them in one block
    return text.strip() + '\n'


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['docs', 'render', 'readme'])
    p.add_argument('--own', action='store_true', help='records of your own runs first, the committed ones behind')
    p.add_argument('--out', type=Path, default=TOP/'_docs', help='folder of the site (default: _docs)')
    a = p.parse_args()
    from distilherbert.results import own_results
    os.environ['DISTILHERBERT_RESULTS'] = os.pathsep.join([str(own_results())]*a.own + [str(TOP/'results')])
    if a.what != 'readme': return write_site(a.out, executed=a.what == 'render')
    execute(TOP/'nbs')
    pages = ''.join(f.read_text('utf-8') for f in (TOP/'nbs').glob('*.ipynb'))
    for figure in (TOP/'nbs'/'figures').rglob('*.svg'):
        if figure.relative_to(TOP/'nbs').as_posix() not in pages: figure.unlink()  # Drawn for a section that has no records yet
    (TOP/'README.md').write_text(readme(TOP/'nbs'/'index.ipynb'), 'utf-8')


if __name__ == '__main__': main()
