"Benchmarks: each runs with small settings and writes down all of it; bad settings are rejected."
import json, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
from mae_nb.bench.config import EndToEndBench, GrowthBench, LoaderBench, SavingBench, StepBench, TokensBench, benches
from mae_nb.bench.end2end import bench
from mae_nb.bench.step import bench_step
from mae_nb.cli import mae_bench

SMALL = dict(step=StepBench('mae_vit_micro_patch4', batch_size=2, precision='fp32', rounds=1, device='cpu'),
             tokens=TokensBench('mae_vit_nano_patch4', ratios='0.9', sizes='', depths='4', rounds=1, device='cpu'),
             loader=LoaderBench(images=4, kilobytes=20, passes=1, batch_size=2, num_workers=1, rounds=1),
             end2end=EndToEndBench(images=4, kilobytes=20, batch_size=2, steps=2, num_workers=0, rounds=1, device='cpu'),
             saving=SavingBench('mae_vit_nano_patch4', steps=5, save_every=2, rounds=1, device='cpu'),
             growth=GrowthBench('mae_vit_nano_patch4', batches='1,2', sizes='28', workers='0', images=4, batch_size=2, rounds=1, device='cpu'))

@pytest.mark.slow
@pytest.mark.parametrize('name', benches)
def test_bench_writes_all_of_it(tmp_path, name):
    file,said = tmp_path/'result.json',[]
    found = bench(replace(SMALL[name], output=str(file)), said.append)
    assert json.loads(file.read_text()) == found and said[-1] == f'written  {file}'
    assert found['benchmark'] == name and found['machine']['versions']['torch'] == torch.__version__.split('+')[0] and found['result']
    assert benches[name](**found['settings']) == SMALL[name]

@pytest.mark.parametrize('flags,said', [
    (['step', '--precision', 'fp12'], "no precision 'fp12'"), (['tokens', '--rounds', '0'], 'rounds must be at least 1, got 0'),
    (['saving', '--steps', '20'], 'steps=20 must be more than save_every=20'), (['growth', '--sizes', '224,big'], "sizes='224,big'"),
    (['loader', '--images', '10'], 'images=10 do not fill a batch: batch_size=50'), (['step', '--model', 'vit'], "no model 'vit'")])
def test_bench_command_rejects(capsys, flags, said):
    try: code = mae_bench(flags)
    except SystemExit as e: code = e.code
    assert code == 2 and said in ' '.join(capsys.readouterr().err.split())

@pytest.mark.slow
def test_bench_command(tmp_path):
    flags = '--model mae_vit_nano_patch4 --ratios 0.9 --sizes 28 --depths 4 --rounds 1 --device cpu --output'.split()
    assert mae_bench(['tokens', *flags, str(tmp_path/'x.json')]) == 0
    assert len(json.loads((tmp_path/'x.json').read_text())['result']) == 4

def test_missing_counterpart_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ValueError, match='pip install transformers'): bench_step(SMALL['step'])

@pytest.mark.slow
def test_slow_bf16_is_left_out(monkeypatch):
    monkeypatch.setattr('mae_nb.bench.timing.has_fast_bf16', lambda device: False)
    said = []
    assert [r['precision'] for r in bench_step(replace(SMALL['step'], precision=None), said.append)] == ['fp32']
    assert said[0].startswith('bf16 is left out')
    with pytest.warns(UserWarning, match='no fast bf16'): rows = bench_step(replace(SMALL['step'], precision='bf16'))
    assert [r['precision'] for r in rows] == ['bf16']

def gpu_check(folder, *flags):
    "A rehearsal of `tools/gpu_check.py` on the CPU; what it says of its parts."
    tool = Path(__file__).parent.parent/'tools/gpu_check.py'
    r = subprocess.run([sys.executable, tool, '--tiny', '--device', 'cpu', '--output', folder, *flags], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    return {p['part']: p for p in json.loads((folder/'gpu_check.json').read_text())['parts']}, r.stdout

@pytest.mark.slow
def test_gpu_check_runs_all_parts(tmp_path):
    parts,said = gpu_check(tmp_path, '--minutes', '7')
    assert {p['state'] for name,p in parts.items() if name != 'fashion'} == {'done'}, said
    assert parts['fashion']['state'] == 'left out: no --data_root'
    rows = {name: json.loads((tmp_path/f'gpu_{name}.json').read_text())['rows'] for name in parts if name != 'fashion'}
    assert all(rows.values()) and len(rows) == 9
    assert {(r['size'], r.get('side', 'ours')) for r in rows['step']} == {(s, side) for s in 'BLH' for side in ('ours', 'hf')}
    assert {r['said'] for r in rows['sync']} == {'nothing waits'} and {r['steps'] for r in rows['sync']} == {12}
    assert not [r for r in rows['step'] + rows['search'] if 'error' in r]

@pytest.mark.slow
def test_gpu_check_keeps_the_time(tmp_path):
    "A part that doesn't end is killed with what it has written; what no longer fits is left out and said."
    parts,_ = gpu_check(tmp_path, '--minutes', '0.2', '--only', 'step,saving,loader,growth')
    assert sum(p.get('seconds', 0) for p in parts.values()) <= 1.1*12
    assert [p['state'] for p in parts.values()][-1].startswith('left out: ')
