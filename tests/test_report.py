"Reports of runs on sets that are too large to be taken whole: a share of each class, bounded memory, and what was left out is told."
import json, os, subprocess, sys
from pathlib import Path
import pytest, torch
from PIL import Image
from mae_nb.cli import mae_finetune, mae_report
from mae_nb.core.files import read_json, read_jsonl
from mae_nb.tasks.config import PretrainConfig
from mae_nb.tasks.pretrain import pretrain

def make_set(folder, train, test, size=28, classes=10, files=200):
    "A set of grey images in folders by class, each of a few files under many names (hard links); its class shows in its brightness."
    torch.manual_seed(0)
    for split,n in (('train', train), ('test', test)):
        for c in range(classes):
            here = folder/split/f'class{c}'; here.mkdir(parents=True)
            for i in range(n//classes):
                if i < files: Image.fromarray((torch.rand(size, size)*60 + 18*c).byte().numpy()).save(here/f'{i}.png')
                else: os.link(here/f'{i % files}.png', here/f'{i}.png')

def short_run(data, out, **values):
    return pretrain(PretrainConfig(data=str(data), output_dir=str(out), max_steps=1, batch_size=16, device='cpu', **values), lambda line: None)

def report(run, *flags):
    "Run the command in a process of its own: what it said, and its peak memory, GB (`ru_maxrss` would count the process that started it, too)."
    code = '''import re, sys
from pathlib import Path
from mae_nb.cli import mae_report
rc = mae_report(sys.argv[1:])
print("GB", int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])/2**20)
sys.exit(rc)'''
    r = subprocess.run([sys.executable, '-c', code, str(run), '--device', 'cpu', *flags], capture_output=True, text=True, timeout=500)
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout, float(r.stdout.rsplit('GB ', 1)[1])

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is counted as Linux does')
def test_b11_a_report_on_100_000_images(tmp_path):
    make_set(tmp_path/'large', 100_000, 2000)
    said,memory = report(short_run(tmp_path/'large', tmp_path/'run'), '--max_images', '2000')
    assert 'probing  2000 of 100000 train images, the same fraction of each class' in said and 'raw pixels' in said
    print(f'{memory:.2f} GB')
    assert memory < 2
    notes = read_json(tmp_path/'run/results.json')['notes']
    assert notes == ['2000 of 100000 train images, the same fraction of each class']
    assert notes[0] in (tmp_path/'run/report.html').read_text()

@pytest.mark.slow
def test_b11_no_pixels_where_images_are_large(tmp_path, capsys):
    make_set(tmp_path/'set', 40, 20, size=96, classes=2)
    run = short_run(tmp_path/'set', tmp_path/'run', model='mae_vit_nano_patch4', img_size=(96, 96), patch_size=16)
    assert mae_report([str(run), '--device', 'cpu', '--max_images', '20', '--num_workers', '1']) == 0
    said = capsys.readouterr().out
    assert 'no raw pixels to compare with: 9216 values per image are more than 4096' in said and '20 of 40 train images' in said
    kept = read_json(run/'results.json')
    kinds = [f'{e} encoder, {pool}' for e in ('untrained', 'pre-trained') for pool in ('class token', 'mean of patches')]
    assert [r['features'] for r in kept['rows']] == kinds and len(kept['notes']) == 2

@pytest.mark.slow
def test_fine_tuned_runs_are_listed(tmp_path, capsys):
    make_set(tmp_path/'set', 40, 20, size=16, classes=2)
    shape = dict(model='mae_vit_nano_patch4', img_size=(16, 16))
    run = short_run(tmp_path/'set', tmp_path/'run', **shape)
    how = ['--data', tmp_path/'set', '--epochs', 2, '--batch_size', 8, '--device', 'cpu', '--img_size', 16]
    call = lambda *words: mae_finetune([*map(str, words)])
    assert call('--encoder', run, '--label_fraction', 0.5, '--output_dir', tmp_path/'tuned', *how) == 0
    assert call('--model', 'mae_vit_nano_patch4', '--layer_decay', 'none', '--output_dir', tmp_path/'scratch', *how) == 0
    capsys.readouterr()
    assert mae_report([str(run), str(tmp_path/'tuned'), str(tmp_path/'scratch'), '--device', 'cpu']) == 0
    said = capsys.readouterr().out
    reached = [[r['top1'] for r in read_jsonl(tmp_path/k/'log.jsonl') if 'top1' in r][-1] for k in ('tuned', 'scratch')]
    for start,labels,top1 in ('pre-trained', '50%', reached[0]), ('from scratch', '100%', reached[1]): assert f'{start:38}{labels:>8}{2:8}{top1:8.1f}' in said
    kept = read_json(run/'results.json')['finetuned']
    assert [(r['start'], r['label_fraction'], r['top1']) for r in kept] == [('pre-trained', 0.5, reached[0]), ('from scratch', 1., reached[1])]
    assert '<td>from scratch</td><td>100%</td><td>2</td>' in (run/'report.html').read_text()
    assert mae_report([str(run), str(tmp_path/'none')]) == 2 and 'none is no run' in capsys.readouterr().err
    assert mae_report([str(run), str(run)]) == 2 and 'give runs of mae_finetune' in capsys.readouterr().err
