"The commands, as a user meets them: what they refuse and how, what they leave behind."
import importlib, importlib.util, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from PIL import Image
from mae_nb import cli
from mae_nb.cli import mae_pretrain, mae_report
from mae_nb.weights.hub import from_pretrained

TINY = ['--max_steps', '2', '--batch_size', '4', '--log_every', '1', '--device', 'cpu']

def unframed(text): return ' '.join(re.sub('[│╭╮╰╯─]', ' ', text).split())

def error_of(capsys, *args):
    "The error message of a command; exit code 2, nothing else."
    assert mae_pretrain([str(a) for a in args]) == 2
    return unframed(capsys.readouterr().err)

@pytest.fixture
def photos(tmp_path):
    "A folder of small colour images without classes."
    folder = tmp_path/'photos'; folder.mkdir()
    for i in range(8): Image.effect_noise((40, 36), 60 + i).convert('RGB').save(folder/f'{i}.png')
    return folder

def test_two_steps(tmp_path):
    run = tmp_path/'run'
    assert mae_pretrain(['--output_dir', str(run), *TINY]) == 0
    assert sorted(p.name for p in run.iterdir()) == ['checkpoints', 'config.json', 'inputs.json', 'log.jsonl', 'model.json', 'model.safetensors']
    log = [json.loads(l) for l in (run/'log.jsonl').read_text().splitlines()]
    assert [r['step'] for r in log] == [1, 2] and log[0]['lr'] == 0
    assert from_pretrained(run)(torch.rand(1, 1, 28, 28)).pred.shape == (1, 49, 16)

def test_flags_reach_the_job(tmp_path):
    run = tmp_path/'run'
    flags = ['--patch_size', '7', '--no-norm_pix_loss', '--mask_ratio', '0.5', '--img_size', '28x14', '--weight_decay', '0.1', '--seed', '3']
    assert mae_pretrain(['--output_dir', str(run), *TINY, *flags]) == 0
    job,model = (json.loads((run/f).read_text()) for f in ('config.json', 'model.json'))
    assert job['mask_ratio'] == 0.5 and job['weight_decay'] == 0.1 and job['seed'] == 3
    assert model['patch_size'] == 7 and model['img_size'] == [28, 14] and model['norm_pix_loss'] is False

@pytest.mark.parametrize('by_class', [False, True])
def test_folder_of_images(tmp_path, photos, by_class):
    if by_class:
        for i,f in enumerate(sorted(photos.iterdir())):
            (photos/f'c{i % 2}').mkdir(exist_ok=True); f.rename(photos/f'c{i % 2}'/f.name)
    run = tmp_path/'run'
    assert mae_pretrain(['--data', str(photos), '--img_size', '32', '--patch_size', '8', '--output_dir', str(run), *TINY]) == 0
    assert from_pretrained(run).cfg.in_chans == 3
    assert mae_report([str(run)]) == 0 and (run/'report.html').is_file() and (run/'reconstruction.png').is_file()

def test_a_relative_is_tuned_on_images_that_it_takes(tmp_path, photos, capsys):
    "Colour images for an encoder of grey ones, or no encoder, are refused before there is a folder."
    for i,f in enumerate(sorted(photos.iterdir())):
        (photos/f'c{i % 2}').mkdir(exist_ok=True)
        f.rename(photos/f'c{i % 2}'/f.name)
    out = ['--data', str(photos), '--output_dir', str(tmp_path/'run'), '--device', 'cpu']
    for more,said in (['--encoder', 'fashion_nano'], 'images of 3 channels, and fashion_nano takes 1'), ([], 'give encoder, the run of a relative'):
        assert cli.mae_relative(['tune', *out, *more]) == 2 and said in unframed(capsys.readouterr().err)
    assert not (tmp_path/'run').exists()

def test_never_over_a_run(tmp_path, capsys):
    run = tmp_path/'run'
    mae_pretrain(['--output_dir', str(run), *TINY])
    before = (run/'model.safetensors').read_bytes()
    assert 'already holds' in error_of(capsys, '--output_dir', run, *TINY)
    assert (run/'model.safetensors').read_bytes() == before
    assert mae_pretrain(['--output_dir', str(run), '--overwrite', '--seed', '1', *TINY]) == 0
    assert (run/'model.safetensors').read_bytes() != before

def test_overwrite_spares_what_is_no_run(tmp_path, capsys, photos):
    assert 'is not a run' in error_of(capsys, '--output_dir', photos, '--overwrite', *TINY)
    assert len(list(photos.iterdir())) == 8

def test_bad_input(tmp_path, capsys, photos):
    out = ['--output_dir', tmp_path/'run', *TINY]
    empty = tmp_path/'empty'; empty.mkdir()
    cases = [(['--epocs', '3'], 'Perhaps you meant: --epochs'), (['--data', tmp_path/'nowhere'], "it is neither a folder, nor shards"),
             (['--data', empty], f'no images under {empty}'), (['--data', 'CIFAR10'], 'give data_root'),
             (['--data', 'CIFAR10', '--data_root', empty], f'CIFAR10 is not in {empty}'),
             (['--data', photos/'0.png'], 'is a file'), (['--mask_ratio', '1'], 'mask_ratio must be between 0 and 1, got 1.0'),
             (['--mask_ratio', 'most'], "could not convert string to float: 'most'"), (['--model', 'mae_vit_bse_patch16'], "mae_vit_base_patch16"),
             (['--img_size', '30'], 'patch_size=4 does not divide an image of 30x30'), (['--img_size', 'big'], 'no image size'),
             (['--batch_size', '100000'], 'there are 10000'), (['--epochs', '0'], 'epochs must be at least 1'),
             (['--mask_ratio', '0.99'], 'keeps none of 49 patches'), (['--device', 'abacus'], 'abacus'), (['--patch_size', '0'], 'patch_size')]
    for args,said in cases: assert said in error_of(capsys, *out, *args), args
    assert not (tmp_path/'run').exists()  # nothing was begun

def test_corrupt_image_is_named(tmp_path, capsys, photos):
    (photos/'3.png').write_bytes((photos/'3.png').read_bytes()[:200])
    flags = '--data', photos, '--img_size', 32, '--patch_size', 8, *TINY
    said = error_of(capsys, *flags, '--output_dir', tmp_path/'run', '--max_bad_images', 0)
    assert 'cannot read' in said and '3.png' in said and 'max_bad_images=0' in said
    assert mae_pretrain([str(f) for f in (*flags, '--output_dir', tmp_path/'other')]) == 0  # passed over, and named
    assert 'skipped: cannot read' in (out := capsys.readouterr().out) and '3.png' in out

def test_report_of_no_run(tmp_path, capsys):
    assert mae_report([str(tmp_path)]) == 2 and 'is no run' in capsys.readouterr().err

COMMANDS = Path(__file__).parent/'commands.txt'
PARTS = dict(mae_relative=('stack', 'denoise', 'igpt', 'mpp', 'beit', 'bert', 'tune'), mae_data=('pack', 'check', 'stats', 'index'),
             mae_bench=('step', 'tokens', 'loader', 'end2end'))
NAMES = ['mae_pretrain', 'mae_finetune', 'mae_linprobe', 'mae_partial', 'mae_tokenizer', 'mae_segment', 'mae_detect', 'mae_ablate', 'mae_knn', 'mae_eval', 'mae_report', 'mae_convert', 'mae_export',
         *(f'{c} {part}' for c,parts in PARTS.items() for part in parts)]

def flags(name, capsys):
    "How a command is used, then its flags with their types and defaults: `--mask_ratio FLOAT = 0.75`."
    command,*part = name.split()
    assert getattr(cli, command)([*part, '--help']) == 0
    said = capsys.readouterr().out
    yield said.splitlines()[0].removeprefix('usage: ')
    found = re.compile(r'(--\w+(?:, --no_\w+)?)((?: [A-Z{]| none\|)\S*)?.*?(?:\(default: (.*?)\)|(\(required\)))(?: |$)')
    for text in re.split(r'(?<!,) (?=--\w)', unframed(said)):
        if m := found.match(text): yield f'  {m[1]}{m[2] or ""} = {m[3] or m[4]}'

@pytest.mark.slow
def test_commands_are_as_written_down(capsys, monkeypatch):
    "A flag, its type and its default are promises. Meant to change? `pytest tests/test_cli.py -k written_down` with UPDATE=1 writes the file anew."
    monkeypatch.setenv('COLUMNS', '400')
    text = '\n'.join(line for name in NAMES for line in [*flags(name, capsys), ''])
    if os.environ.get('UPDATE'): COMMANDS.write_text(text, encoding='utf-8')
    assert text == COMMANDS.read_text(encoding='utf-8')
    assert text.count('--recipe') == 13 and '  --mask_ratio FLOAT = 0.75\n' in text and '  --encoder STR = (required)\n' in text

LAZY = 'import sys; before = set(sys.modules); {}; print(sorted({{"torch", "timm", "torchvision", "numpy"}} & set(sys.modules)))'

@pytest.mark.parametrize('name', ['import', 'config', *NAMES])
def test_nothing_heavy_is_loaded_for_help(name):
    command,*part = name.split()
    code = {'import': 'import mae_nb; mae_nb.__version__, dir(mae_nb)', 'config': 'from mae_nb import PretrainConfig'}.get(
        name, f'from mae_nb import cli; cli.{command}({[*part, "--help"]})')
    r = subprocess.run([sys.executable, '-c', LAZY.format(code)], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.splitlines()[-1] == '[]' and not r.stderr, r.stdout[-300:] + r.stderr

COLLECTOR = 'import gc; {}; import mae_nb; mae_nb.pretrain; print(gc.isenabled(), gc.get_freeze_count() > 100_000)'

@pytest.mark.slow
@pytest.mark.parametrize('before,after', [('pass', 'True True'), ('gc.disable()', 'False False'), ('import torch', 'True False')])
def test_the_garbage_collector_is_left_as_it_was(before, after):
    "It rests while torch is imported, unless the caller has his own mind about it, and what came before is not touched."
    r = subprocess.run([sys.executable, '-c', COLLECTOR.format(before)], capture_output=True, text=True)
    assert r.stdout.strip() == after, r.stderr

def test_recipe_is_printed_without_torch():
    r = subprocess.run([sys.executable, '-c', LAZY.format('from mae_nb import cli; cli.mae_pretrain(["--recipe", "fashion", "--print"])')], capture_output=True, text=True)
    assert '"mask_ratio": 0.75' in r.stdout and r.stdout.splitlines()[-1] == '[]', r.stderr

def test_names_of_the_package():
    "What `mae_nb` offers resolves to what its module has, and is listed; anything else is an error."
    import mae_nb
    for name,module in mae_nb._modules.items():
        if importlib.util.find_spec(f'mae_nb.{name}'): continue  # a module of that name
        assert getattr(mae_nb, name) is getattr(importlib.import_module(f'mae_nb.{module}'), name) and name in dir(mae_nb)
    with pytest.raises(AttributeError, match='patchfy'): mae_nb.patchfy

@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='signals')
def test_ctrl_c_leaves_a_loadable_checkpoint(tmp_path):
    run = tmp_path/'run'
    cmd = [sys.executable, '-c', 'import sys; from mae_nb.cli import mae_pretrain; sys.exit(mae_pretrain())', '--output_dir', str(run), '--log_every', '1', '--batch_size', '8']
    wake = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs start deaf to Ctrl-C
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=wake)
    try:
        for _ in range(600):
            if (run/'log.jsonl').is_file() and len((run/'log.jsonl').read_text().splitlines()) >= 3: break
            time.sleep(0.2)
        p.send_signal(signal.SIGINT)
        _,err = p.communicate(timeout=120)
    finally: p.kill()
    assert p.returncode == 130 and 'stopped by SIGINT, and saved: continue with --resume auto' in err and 'Traceback' not in err
    steps = json.loads((run/'log.jsonl').read_text().splitlines()[-1])['step']
    assert 3 <= steps < 1000
    model = from_pretrained(run)
    assert model.blocks[0].attn.qkv.bias.abs().sum() > 0  # it has learned something: biases start at zero
    assert not list(run.glob('.*tmp'))
