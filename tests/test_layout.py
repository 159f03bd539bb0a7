"The layers of the package, and that everything generated is up to date."
import ast, json, re, shutil, subprocess, sys
from functools import cache
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT/'mae_nb'
MODULES = {'.'.join(p.relative_to(PACKAGE).with_suffix('').parts): p for p in sorted(PACKAGE.rglob('*.py')) if not p.name.startswith('_')}

FLOORS = [('core',), ('model', 'data', 'train'), ('weights', 'plots'), ('evaluate', 'demo'), ('tasks',),
          ('relatives', 'transfer', 'recipes', 'bench'), ('ablations',), ('cli',)]  # imports point down; rooms of one floor don't know each other
ONLY = dict(model={'core'}, data={'core'}, train={'core'}, weights={'core', 'model'}, plots={'core', 'model', 'data'},
            evaluate={'core', 'model', 'data', 'weights', 'plots'}, demo={'core', 'model', 'data', 'weights', 'plots'})  # narrower than the floors
FRONT_DOORS = {'cli', 'recipes', 'bench', 'ablations'}  # modules that stand at the root
LONGEST = 260  # lines of a module

def run(*cmd, cwd=ROOT): return subprocess.run([sys.executable, *map(str, cmd)], cwd=cwd, capture_output=True, text=True)

# --- layers ---
def imports(name, source, modules):
    "What a module imports of the package, in functions, too: pairs of a module's name and the name taken from it, or None."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.split('.')[0] == 'mae_nb': yield a.name.removeprefix('mae_nb').lstrip('.'), None
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or '').split('.') if node.module else []
            if node.level: base = ['mae_nb', *name.split('.')[:-node.level], *base]
            if base[:1] != ['mae_nb']: continue
            where = '.'.join(base[1:])
            for a in node.names:
                inner = f'{where}.{a.name}'.lstrip('.')
                yield (inner, None) if inner in modules else (where, a.name)

def floor(name): return next((i for i, rooms in enumerate(FLOORS) if name.split('.')[0] in rooms), None)

def circles(graph):
    "Modules that import each other, by any way."
    def reach(a):
        seen, todo = set(), list(graph[a])
        while todo:
            b = todo.pop()
            if b not in seen: seen.add(b); todo += graph.get(b, ())
        return seen
    return sorted(a for a in graph if a in reach(a))

def problems(sources):
    "What is wrong with a package of these modules: name -> source."
    graph = {}
    for name, source in sources.items():
        room = name.split('.')[0]
        graph[name] = set()
        if floor(name) is None: yield f'{name}: no floor has a room {room}'; continue
        if '.' not in name and name not in FRONT_DOORS: yield f'{name} stands at the root: only {sorted(FRONT_DOORS)} do'
        if (n := len(source.splitlines())) > LONGEST: yield f'{name} has {n} lines, more than {LONGEST}'
        for other, what in imports(name, source, sources):
            to = other.split('.')[0]
            if what == '*': yield f'{name} imports * from {other}'
            if other not in sources: yield f'{name} imports {other or "mae_nb"}, which is no module'; continue
            graph[name].add(other)
            if floor(other) is None or to == room or room == 'recipes' and other.endswith('.config'): continue
            if to in ONLY.get(room, {to}) and floor(other) < floor(name): continue
            yield f'{name} imports {other}: {"not on a lower floor" if floor(other) >= floor(name) else f"{room} knows {sorted(ONLY[room])} alone"}'
    if found := circles(graph): yield f'{found} import each other'

def test_layers(): assert list(problems({name: p.read_text(encoding='utf-8') for name, p in MODULES.items()})) == []

GOOD = {'core.files': 'import os', 'model.mae': 'from ..core import files', 'data.loader': 'from ..core.files import atomic', 'weights.hub': 'from ..model.mae import MAE',
        'plots.images': 'from ..data.loader import load\nfrom ..model.mae import MAE', 'evaluate.knn': 'def f():\n    from mae_nb.weights.hub import download',
        'tasks.config': 'import json', 'tasks.pretrain': 'from .config import C\nfrom ..evaluate import knn', 'bench.config': '', 'recipes': 'from .tasks.config import C\nfrom .bench.config import B',
        'cli': 'from .recipes import recipes'}

def test_a_good_package_has_no_problems(): assert list(problems(GOOD)) == []

@pytest.mark.parametrize('name,source,says', [
    ('core.rng', 'from ..model.mae import MAE', 'core.rng imports model.mae: not on a lower floor'),
    ('core.rng', 'def f():\n    from ..model.mae import MAE', 'core.rng imports model.mae: not on a lower floor'),
    ('data.pack', 'from ..model import mae', 'data.pack imports model.mae: not on a lower floor'),
    ('plots.images', 'from ..weights.hub import fetch', 'plots.images imports weights.hub: not on a lower floor'),
    ('evaluate.knn', 'from ..train.loop import train', "evaluate.knn imports train.loop: evaluate knows ['core', 'data', 'model', 'plots', 'weights'] alone"),
    ('weights.hub', 'import mae_nb.data.loader as l', "weights.hub imports data.loader: weights knows ['core', 'model'] alone"),
    ('tasks.pretrain', 'from ..recipes import recipes', 'tasks.pretrain imports recipes: not on a lower floor'),
    ('recipes', 'from .bench.step import bench', 'recipes imports bench.step: not on a lower floor'),
    ('model.mae', 'from mae_nb import MAE', 'model.mae imports mae_nb, which is no module'),
    ('model.mae', 'from ..core.files import *', 'model.mae imports * from core.files'),
    ('model.mae', 'from ..core.nosuch import x', 'model.mae imports core.nosuch, which is no module'),
    ('core.files', 'from .rng import seeded', "['core.files', 'core.rng'] import each other"),
    ('model.mae', 'x = 1\n'*261, 'model.mae has 261 lines, more than 260'),
    ('helpers', '', 'no floor has a room helpers'),
    ('model', '', "model stands at the root: only ['ablations', 'bench', 'cli', 'recipes'] do")])
def test_layers_notice(name, source, says):
    package = GOOD | {'train.loop': '', 'bench.step': '', 'core.rng': 'from .files import atomic'} | {name: source}
    assert any(says in p for p in problems(package)), list(problems(package))

def test_configurations_need_no_torch():
    configs = [f'mae_nb.{name}' for name in MODULES if name.split('.')[-1] == 'config']
    assert {'mae_nb.core.config', 'mae_nb.model.config'} <= set(configs)
    r = run('-c', f"import sys, {', '.join(configs)}; sys.exit('torch' in sys.modules or 'timm' in sys.modules)")
    assert r.returncode == 0, r.stderr

# --- statements ---
def kind(e):
    "What stands on the right: the same function called, a constant, a name, ..."
    return f'call of {ast.unparse(e.func)}' if isinstance(e, ast.Call) else type(e).__name__

def crowded(source):
    "Statements that share a line or an assignment, and functions of more than 30 lines."
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Tuple) and isinstance(n.value, ast.Tuple):
            if len({kind(e) for e in n.value.elts}) > 1: yield f'line {n.lineno}: unlike things are assigned together'
        for body in (getattr(n, part, None) for part in ('body', 'orelse', 'finalbody')):
            for a, b in zip(body, body[1:]) if isinstance(body, list) else ():
                if a.end_lineno == b.lineno: yield f'line {b.lineno}: two statements'
        if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno >= 30: yield f'line {n.lineno}: {n.name} has {n.end_lineno - n.lineno + 1} lines'

@pytest.mark.parametrize('name', MODULES)
def test_one_statement_a_line_and_short_functions(name): assert list(crowded(MODULES[name].read_text(encoding='utf-8'))) == []

@pytest.mark.parametrize('source,says', [('a = 1; b = 2', 'two statements'), ('if x: a(); b()', 'two statements'), ('a,b = 1,f(2)', 'unlike things'), ('a,b = f(1),g(2)', 'unlike things'),
                                         ('def f():\n' + '    x = 1\n'*30, 'f has 31 lines')])
def test_crowded_notices(source, says): assert says in next(crowded(source))

def unused(source):
    "Names that a module imports, and never says."
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    names = [(a.asname or a.name).split('.')[0] for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    said = {n.id for n in nodes if isinstance(n, ast.Name)}
    return [name for name in names if name not in said]

@pytest.mark.parametrize('name', MODULES)
def test_what_is_imported_is_used(name): assert unused(MODULES[name].read_text(encoding='utf-8')) == []

def test_unused_notices(): assert unused('import os, a.b as c\nfrom x import y, z\nprint(z, os.name)') == ['c', 'y']

def test_like_things_may_be_assigned_together(): assert list(crowded('a,b = 1,2\nh,w = x.shape\nx,y = f(1),f(2)\nwhile a: a = b')) == []

# --- what is generated ---
@pytest.mark.slow
def test_export_and_clean_change_nothing(tmp_path):
    for d in 'nbs', 'mae_nb': shutil.copytree(ROOT/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    shutil.copy(ROOT/'settings.ini', tmp_path)
    for p in (tmp_path/'mae_nb').rglob('*.py'):
        if p.name not in ('__init__.py', '_modidx.py'): p.unlink()
    code = 'from nbdev.export import nb_export; from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()'
    r = run('-c', code, cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    for kind in 'mae_nb/**/*.py', 'nbs/**/*.ipynb':
        here = {p.relative_to(ROOT): p.read_text() for p in ROOT.glob(kind) if '.ipynb_checkpoints' not in p.parts}
        made = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.glob(kind)}
        assert here.keys() == made.keys()
        stale = [str(k) for k in here if here[k] != made[k]]
        assert not stale, f'{stale} differ from what nbdev_export and nbdev_clean make: run `make notebooks`'

def test_outputs_are_of_this_code():
    r = run('tools/run_nbs.py', '--check'); assert r.returncode == 0, r.stdout

@pytest.mark.parametrize('path', sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not {'runs', '.ipynb_checkpoints'} & set(p.parts)), ids=lambda p: p.stem)
def test_colab_finds_the_project(path):
    "On Colab a notebook fetches the project and goes to its own folder, before anything else runs."
    code = [source for source,c in cells_of(path) if c['cell_type'] == 'code']
    first = next(c for c in code if 'default_exp' not in c)
    assert "if 'google.colab' in sys.modules" in first and f'%cd -q /content/mae_nb/{path.parent.relative_to(ROOT).as_posix()}' in first

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').glob('*/*.ipynb') if not {'runs', '.ipynb_checkpoints'} & set(p.parts))

@cache
def cells_of(path): return [(''.join(c['source']), c) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]

def test_code_fits_the_page():
    "Lines of at most 120 characters: the site shows as many without scrolling, in a window of 1280 pixels."
    lines = [(p.name, l) for p in NOTEBOOKS for source,c in cells_of(p) if c['cell_type'] == 'code' and 'google.colab' not in source for l in source.splitlines()]
    assert len(lines) > 10_000 and [(name, l) for name,l in lines if len(l) > 120 and not l.startswith('#|')] == []

def test_folded_cells_are_folded_in_jupyter():
    "`tools/run_nbs.py` hides them, and the output of solutions, too."
    folded = [(p.name, source, c['metadata'].get('jupyter', {})) for p in NOTEBOOKS for source,c in cells_of(p) if c['cell_type'] == 'code' and '#| code-fold: true' in source]
    def right(source, hidden): return hidden.get('source_hidden') and hidden.get('outputs_hidden', False) == ('#| code-summary: "Solution' in source)
    assert len(folded) > 100 and [(name, source[:80]) for name,source,hidden in folded if not right(source, hidden)] == []

def test_a_chapter_opens_with_what_one_needs_to_know():
    line = re.compile(r'^\*You need:\* .+\*(Covers|Builds):\* .+\*Time:\* \d+ minutes to read, \d+ seconds to run\.$', re.M)
    def opening(path): return '\n'.join(source.strip() for source,c in cells_of(path)[:6] if c['cell_type'] == 'markdown')
    assert [p.name for p in NOTEBOOKS if not line.search(opening(p))] == []

def test_every_chapter_is_in_the_table_of_contents():
    "By its title and its question, as they are now."
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    for p in sorted((ROOT/'nbs').glob('[0-9]*/*.ipynb')):
        first = ''.join(json.loads(p.read_text(encoding='utf-8'))['cells'][0]['source'])
        title,summary = re.match(r'# (.+)\n+> (.+)', first).groups()
        assert f'({p.relative_to(ROOT).as_posix()}) {title} | {summary.strip()} |' in readme, f'{p.name}: run tools/run_nbs.py -f nbs/index.ipynb and tools/readme.py'

def test_every_command_is_in_the_readmes_table():
    from mae_nb.cli import __all__ as names
    said = (ROOT/'README.md').read_text(encoding='utf-8')
    commands = [n for n in names if n.startswith('mae_')]
    assert len(commands) > 10 and not [n for n in commands if f'| `{n}` |' not in said]

def test_readme_is_of_this_index():
    r = run('tools/readme.py', '--check'); assert r.returncode == 0, r.stderr

def test_readme_check_notices(tmp_path):
    for d in 'nbs', 'tools': shutil.copytree(ROOT/d, tmp_path/d)
    (tmp_path/'README.md').write_text((ROOT/'README.md').read_text() + 'more\n')
    r = run('tools/readme.py', '--check', cwd=tmp_path)
    assert r.returncode == 1 and 'stale' in r.stderr

@pytest.mark.slow
def test_library_needs_no_nbdev():
    code = f"import sys; sys.modules['nbdev'] = None; import {', '.join('mae_nb.' + name for name in MODULES)}"
    r = run('-c', code); assert r.returncode == 0, r.stderr
