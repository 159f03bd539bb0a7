"The house is in order: what is generated is up to date, and modules import only what stands before them in the book."
import ast, json, re, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for p in (ROOT/'mae_nb').rglob('*.py') if not p.name.startswith('_'))

def run(*cmd, cwd=ROOT): return subprocess.run([sys.executable, *map(str, cmd)], cwd=cwd, capture_output=True, text=True)

def number(path):
    "The number of the notebook that a module comes from, like '13', or '13b' for one between 13 and 14; numbers are compared as text."
    return re.search(r'File to edit: .*?(\d\d[a-z]?)_\w+\.ipynb', path.read_text())[1]

def imports(path):
    "Names of this package's modules that a module imports, and whether with a star."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mae_nb.'):
            yield node.module.removeprefix('mae_nb.'), any(a.name == '*' for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == 'mae_nb':
            yield from ((a.name, a.name == '*') for a in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name.removeprefix('mae_nb.'), False) for a in node.names if a.name.startswith('mae_nb.'))

def problems(name, num, imported, numbers):
    "What is wrong with the imports of a module."
    for other,star in imported:
        if star: yield f'{name} imports * from {other}'
        if other == 'cli': yield f'{name} imports cli'
        if other == 'recipes' and name not in ('ablations', 'cli'): yield f'{name} imports recipes'
        if not numbers.get(other, '~') < num: yield f'{name} ({num}) imports {other} ({numbers.get(other)}), which does not stand before it'
        if '11' <= num < '18' and numbers.get(other, '') < '11': yield f'{name} (training) imports {other} (model)'

def test_layering():
    numbers = {p.stem: number(p) for p in MODULES}
    assert len(numbers) >= 17
    assert [x for p in MODULES for x in problems(p.stem, number(p), imports(p), numbers)] == []

@pytest.mark.parametrize('name,num,imported', [
    ('masking', '03', [('encoder', False)]), ('images', '11', [('mae', False)]), ('optim', '14', [('mae', False)]), ('mae', '08', [('masking', True)]),
    ('pretrain', '20', [('cli', False)]), ('pretrain', '20', [('recipes', False)]), ('mae', '08', [('nosuch', False)]),
    ('augment', '13', [('batches', False)]), ('labelled', '13c', [('mae', False)])])
def test_layering_notices(name, num, imported):
    assert list(problems(name, num, imported, dict(masking='03', encoder='05', mae='08', batches='13b', optim='14', pretrain='20', recipes='25', cli='51')))

def test_export_and_clean_change_nothing(tmp_path):
    for d in 'nbs', 'mae_nb': shutil.copytree(ROOT/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    shutil.copy(ROOT/'settings.ini', tmp_path)
    for p in (tmp_path/'mae_nb').glob('*.py'):
        if p.name not in ('__init__.py', '_modidx.py'): p.unlink()
    code = 'from nbdev.export import nb_export; from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()'
    r = run('-c', code, cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    for kind in 'mae_nb/*.py', 'nbs/**/*.ipynb':
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
    code = [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    first = next(c for c in code if 'default_exp' not in c)
    assert "if 'google.colab' in sys.modules" in first and f'%cd -q /content/mae_nb/{path.parent.relative_to(ROOT).as_posix()}' in first

def test_readme_is_of_this_index():
    r = run('tools/readme.py', '--check'); assert r.returncode == 0, r.stderr

def test_readme_check_notices(tmp_path):
    for d in 'nbs', 'tools': shutil.copytree(ROOT/d, tmp_path/d)
    (tmp_path/'README.md').write_text((ROOT/'README.md').read_text() + 'more\n')
    r = run('tools/readme.py', '--check', cwd=tmp_path)
    assert r.returncode == 1 and 'stale' in r.stderr

@pytest.mark.slow
def test_library_needs_no_nbdev():
    code = f"import sys; sys.modules['nbdev'] = None; import {', '.join('.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in MODULES)}"
    r = run('-c', code); assert r.returncode == 0, r.stderr
