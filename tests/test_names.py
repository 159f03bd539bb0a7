"Names are the field's: no earlier name is left in the library, in the notebooks' code, among the flags, or in the README."
import ast, json, re
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
GONE = set('''join_world first_does gather_losses split_batch one_at_a_time settle_job machine_fields refuse_another cut_log read_log JsonLines
    write_whole newest_checkpoint full_state restore_state load_strictly _must_fit lr_at make_adamw make_lars pick_device pick_precision
    pick_attention pick_linear gpu_peak sample_generator load_one TrainView ClassView CentreView FeatureView AugmentedView crop_box square_box
    EpochBatches EncodedImages for_crop fast_jpeg region_codec decode_with label_share labelled_sets outputs_of rows_of gather_rows count_right
    share_loader start_from fit_positions fit_patches fit_channels as_kind kind_of shapes_of must_tell find_weights from_hub load_for write_layout
    how_to_load say_check say_stats LookConfig wnids model_numbers parts_of lines_of evaluate_on held_out take_turns hf_twin pil_default EndBench
    or_none inked displayable scores_for take_patches patch_mask decode_removed ids_remove tuned_blocks head_std crop_min max_corrupt grad_ckpt
    say'''.split())  # no identifier anywhere
SYMBOLS = set('''World Together Exposed Signals Stopped Agreement State Job Losses Journal Meter Average Known Touch Encoded Skipped Undecoded
    gather fresh_store prepare plan begin train work run_job in_groups differences layer_of layer_groups param_groups duration seeded turned expand
    kept probe knn judge pooled fit build report fetch finished expected page table machine clock add scores sides numbers guarded
    touch'''.split())  # words that others use, too: no function, class or constant of the library
PARAMETERS = {'reader', 'upright', 'want', 'smoothing', 'tuned', 'share'}  # no parameter, keyword or attribute in the library
FIELDS = set('labels reader upright keep shard grad_ckpt head_std smoothing crop_min max_corrupt ema tuned_blocks encoder_ema'.split())  # no field, no flag
ALLOWED = {
    ('FinetuneConfig', 'encoder_ema'): 'says whose average is meant: `ema_decay` stands beside it',
    ('TransferConfig', 'encoder_ema'): 'as in FinetuneConfig',
    ('check_wheel.py', 'keep'): "the tool's own flag"}

def code_of(path):
    "The code of a file, or of a notebook's cells, without the lines that only IPython understands."
    if path.suffix == '.py': return [path.read_text(encoding='utf-8')]
    cells = [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    return [re.sub(r'^(\s*)[%!].*$', r'\1pass', c, flags=re.M) for c in cells if not re.match('%%(?!time|capture)', c)]

def identifiers(tree):
    "Every name that code defines or uses, with how it is used."
    for n in ast.walk(tree):
        if isinstance(n, ast.Name): yield n.id, 'name'
        elif isinstance(n, ast.Attribute): yield n.attr, 'attribute'
        elif isinstance(n, ast.arg): yield n.arg, 'parameter'
        elif isinstance(n, ast.keyword) and n.arg: yield n.arg, 'keyword'
        elif isinstance(n, (ast.FunctionDef, ast.ClassDef)): yield n.name, 'name'
        elif isinstance(n, ast.alias): yield from ((x, 'name') for x in (n.name, n.asname) if x)

def top_level(tree):
    "Names that a module defines: of functions, classes and constants; methods that fastcore patches in are none."
    for n in tree.body:
        patched = isinstance(n, ast.FunctionDef) and any(getattr(d, 'id', '') == 'patch' for d in n.decorator_list)
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not patched: yield n.name
        if isinstance(n, ast.Assign): yield from (x.id for t in n.targets for x in ast.walk(t) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store))

def left(code, where, library):
    "What is left in a piece of code."
    tree = ast.parse(code)
    for name,use in identifiers(tree):
        if name in GONE: yield f'{where}: {name}'
        if name in PARAMETERS and library and use != 'name': yield f'{where}: {use} {name}'
    if library: yield from (f'{where}: {name} is defined' for name in top_level(tree) if name in SYMBOLS)
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').startswith('mae_nb.')):
            yield from (f'{where}: {a.name} is imported' for a in n.names if a.name in SYMBOLS - {'knn', 'report', 'touch'})  # modules have these names
        if isinstance(n, ast.ClassDef) and n.name.endswith(('Config', 'Bench')):
            for x in n.body:
                if isinstance(x, ast.AnnAssign) and x.target.id in FIELDS and (n.name, x.target.id) not in ALLOWED: yield f'{where}: {n.name}.{x.target.id}'
    yield from flags(code, where)

def flags(text, where):
    "Flags that are no more."
    for f in re.findall(r'(?<![\w-])--(?:no[-_])?([a-z][a-z_-]*[a-z])\b', text):
        name = f.replace('-', '_')
        if name in FIELDS - {'encoder_ema'} and (where, name) not in ALLOWED: yield f'{where}: --{f}'

def files():
    skip = {'.ipynb_checkpoints', 'runs'}
    for pattern in 'mae_nb/**/*.py', 'nbs/**/*.ipynb', 'tests/*.py', 'tools/*.py':
        yield from (p for p in sorted(ROOT.glob(pattern)) if not skip & set(p.parts) and p.name not in ('_modidx.py', 'test_names.py'))

@pytest.mark.parametrize('path', files(), ids=lambda p: p.name)
def test_no_old_name_is_left(path):
    found = [x for code in code_of(path) for x in left(code, path.name, path.is_relative_to(ROOT/'mae_nb'))]
    assert sorted(set(found)) == []

@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'results/README.md', 'docs/index.md', 'Makefile'])
def test_texts_have_the_new_flags(name):
    text = (ROOT/name).read_text(encoding='utf-8')
    ticked = {w for span in re.findall(r'`([^`\n]+)`', text) for w in re.findall(r'[A-Za-z_]\w+', span)}
    assert list(flags(text, name)) == [] and ticked & GONE == set()

@pytest.mark.parametrize('code,what', [
    ('def f(world): return world.first_does', 'first_does'), ('x = crop_box(1)', 'crop_box'), ('pretrain(c, say=print)', 'say'),
    ('from mae_nb.weights.adapt import fit', 'fit is imported'), ('def expand(x): pass', 'expand is defined'), ('page = 1', 'page is defined'),
    ('class NewConfig:\n    labels:float = 1.', 'NewConfig.labels'), ('f(reader=1)', 'keyword reader'), ("cmd = '--max_corrupt 3'", '--max_corrupt'),
    ("cmd = ['--no-upright']", '--upright'), ('a.ids_remove', 'ids_remove')])
def test_a_planted_one_is_noticed(code, what):
    assert any(what in x for x in left(code, 'planted.py', True))

def test_what_others_call_so_is_left_alone():
    code = 'x.expand(3); opt.param_groups; table = [1]\ndef f(model): numbers = 3; return model.train(), numbers\ny.gather(1, z)'
    assert list(left(code.replace('table = [1]', 'pass'), 'fine.py', True)) == [] and list(left('table = 1', 'a_notebook', False)) == []
