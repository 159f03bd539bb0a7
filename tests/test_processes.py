"Several processes, and processes that die: the same run comes out."
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from launch import launch
from mae_nb.core.files import read_tensors
from mae_nb.data.bundled import fashion
from mae_nb.data.augment import PretrainDataset
from mae_nb.data.loader import train_loader
from mae_nb.core.files import read_jsonl
from mae_nb.weights.hub import from_pretrained
from mae_nb.tasks.config import PretrainConfig

ROOT,BIN = Path(__file__).parent.parent,Path(sys.executable).parent
ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1', PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}')
JOB = ['--max_steps', '20', '--effective_batch', '32', '--log_every', '1', '--save_every', '8', '--device', 'cpu']
def linux(test):
    "A slow test of processes, as Linux has them."
    return pytest.mark.slow(pytest.mark.skipif(sys.platform != 'linux', reason='needs fork, signals and gloo as Linux has them')(test))

def command(run, processes, *flags, torchrun=()):
    launcher = [str(BIN/'torchrun'), '--nproc-per-node', str(processes), '--standalone', *torchrun, '--no-python']
    return [*launcher, str(BIN/'mae_pretrain'), '--output_dir', str(run), *JOB, *map(str, flags)]

def pretrain(run, processes, *flags, rc=0):
    "A run by so many processes (0: without a launcher); its losses."
    r = launch('mae_pretrain', '--output_dir', run, *JOB, *flags, processes=processes)
    assert r.returncode == rc, r.said
    return [x['loss'] for x in read_jsonl(run/'log.jsonl')] if rc == 0 else r.said

def far(a, b): return max(abs(x - y) for x,y in zip(a, b, strict=True))

@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('runs')

@pytest.fixture(scope='module')
def alone(home): return pretrain(home/'alone', 0, '--batch_size', 32)

@pytest.fixture(scope='module')
def two(home): return pretrain(home/'two', 2, '--batch_size', 16)

def seen_per_step(view, rank=0, processes=1, accum_iter=1, num_workers=0, steps=20):
    "What a process is shown in each of the first steps: the bytes of each crop with the scores of its mask."
    loader = train_loader(view, 32//processes//accum_iter, 1, num_workers, rank=rank, processes=processes, accum_iter=accum_iter)
    out = [[] for _ in range(steps)]
    for i,(imgs,scores) in zip(range(steps*accum_iter), loader.load() if num_workers else loader):
        out[i//accum_iter] += [(x.numpy().tobytes(), s.numpy().tobytes()) for x,s in zip(imgs, scores)]
    return out

@pytest.mark.parametrize('processes,accum_iter,num_workers', [(1, 1, 1), (1, 1, 3), (2, 1, 0), (2, 1, 1), (2, 2, 0), (4, 2, 0), (1, 4, 3)])
def test_the_same_samples_crops_and_masks(processes, accum_iter, num_workers):
    view = PretrainDataset(fashion(), (28, 28), 49, seed=5, scale=(0.3, 1.))
    whole = seen_per_step(view)
    parts = [seen_per_step(view, rank, processes, accum_iter, num_workers) for rank in range(processes)]
    for step,expected in enumerate(whole):
        found = [s for part in parts for s in part[step]]
        assert len(found) == 32 and sorted(found) == sorted(expected)
    assert len(set(whole[0] + whole[1])) == 64  # they do differ

@linux
def test_two_processes_learn_what_one_does(alone, two):
    assert len(alone) == 20 and far(alone, two) < 1e-5
    assert far(alone, alone[1:] + alone[:1]) > 1e-3  # a difference would be seen

WATCHED = """
import gc, sys, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
destroy = dist.destroy_process_group
def watched():
    print('replicas', sum(isinstance(o, DistributedDataParallel) for o in gc.get_objects()), flush=True)
    destroy()
dist.destroy_process_group = watched
from mae_nb.cli import mae_pretrain
sys.exit(mae_pretrain(sys.argv[1:]))
"""

@linux
def test_the_replicated_model_goes_before_the_group(home):
    "In the other order its end waits, with Python's lock, for a thread of the group that waits for this lock: seldom, but then for ever (torch 2.8)."
    (home/'watched.py').write_text(WATCHED)
    r = launch(home/'watched.py', '--output_dir', home/'watched', *JOB, '--batch_size', 16, processes=2)
    assert r.returncode == 0 and r.said.count('replicas 0') == 2, r.said

@linux
def test_workers_change_nothing(alone, home):
    files = '--batch_size', 32, '--image_backend', 'pil'  # images in memory need no workers
    pil = pretrain(home/'pil', 0, *files)
    for n in 1, 3: assert pretrain(home/f'workers{n}', 0, '--num_workers', n, *files) == pil

@linux
def test_shards(two, home):
    "FSDP2: the losses of DDP; the checkpoint is one of ours, whoever made it."
    assert far(two, pretrain(home/'shard', 2, '--batch_size', 16, '--fsdp', '--ema_decay', 0.9)) < 1e-4
    ddp,fsdp = from_pretrained(home/'two'),from_pretrained(home/'shard')
    for p,q in zip(ddp.parameters(), fsdp.parameters()): torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-4)
    a,b = (read_tensors(home/n/'checkpoints/step-00000020/optim.safetensors') for n in ('two', 'shard'))
    assert a.keys() == b.keys() and all(a[k].shape == b[k].shape for k in a)
    assert from_pretrained(home/'shard', use_ema=True).blocks[0].attn.qkv.bias.abs().sum() > 0

@linux
def test_shards_in_16_bits(two, home):
    "FSDP2 with bf16: weights are gathered in 16 bits; the losses stay near those of 32, and the checkpoint holds 32."
    half = pretrain(home/'half', 2, '--batch_size', 16, '--fsdp', '--precision', 'bf16')
    assert 0 < far(two, half) < 0.05
    assert {v.dtype for v in read_tensors(home/'half/model.safetensors').values()} == {torch.float32}

@linux
def test_shards_are_evaluated(home):
    "FSDP2 with a moving average, evaluated in every epoch: probes by `encode`, and steps after an evaluation."
    run = home/'watched_shards'
    r = launch('mae_pretrain', '--output_dir', run, *JOB, '--batch_size', 16, '--fsdp', '--ema_decay', 0.9, '--eval_every', 1, '--eval_images', 100, processes=2)
    assert r.returncode == 0, r.said
    found = [r for r in read_jsonl(run/'log.jsonl') if 'avg_knn' in r]
    assert found and {'ema_avg_knn', 'ema_token_rank'} <= set(found[-1])
    r = launch('mae_finetune', '--encoder', run, '--label_fraction', 0.02, '--batch_size', 50, '--epochs', 2, '--warmup_epochs', 0, '--eval_every', 1, '--ema_decay', 0.9,
               '--fsdp', '--device', 'cpu', '--output_dir', home/'tuned_shards', processes=2)
    assert r.returncode == 0, r.said
    tops = [r for r in read_jsonl(home/'tuned_shards/log.jsonl') if 'top1' in r]
    assert [r['step'] for r in tops] == [2, 4] and all('ema_top1' in r for r in tops)

@linux
def test_cross_attention_in_shards(home):
    "The cross-attention decoder's blocks are called as modules, so FSDP2 gathers them: the losses of DDP."
    two,shards = (pretrain(home/f'cross{len(f)}', 2, '--batch_size', 16, '--decoder_cross', *f) for f in ((), ('--fsdp',)))
    assert far(two, shards) < 1e-4

@linux
def test_losses_are_gathered_when_logged(home):
    "One collective for ten losses; the logged means are those of a run that logs each."
    each = pretrain(home/'each', 2, '--batch_size', 16)
    ten = pretrain(home/'ten', 2, '--batch_size', 16, '--log_every', 10)
    assert len(ten) == 2
    assert far(ten, [sum(each[i:i+10])/10 for i in (0, 10)]) < 1e-6

@linux
@pytest.mark.parametrize('first,then', [((2, 16, ()), (1, 16, ())), ((0, 32, ()), (2, 16, ())), ((2, 16, ('--fsdp',)), (0, 8, ())), ((2, 16, ('--fsdp', '--ema_decay', 0.9)), (2, 8, ('--fsdp', '--ema_decay', 0.9)))])
def test_resume_with_other_processes(alone, home, first, then):
    "Stop after step 8, go on with more or fewer processes, in shards or not: the same 20 losses."
    run = home/f'{first}{then}'.replace(' ', '')
    n,b,flags = first; pretrain(run, n, '--batch_size', b, '--keep_checkpoints', 9, *flags)
    for late in run.glob('checkpoints/step-000000[12]*'): subprocess.run(['rm', '-r', late], check=True)  # as if killed after step 8
    assert [p.name for p in run.glob('checkpoints/*')] == ['step-00000008']
    n,b,flags = then; losses = pretrain(run, n, '--batch_size', b, '--resume', 'auto', *flags)
    assert far(alone, losses) < 1e-5
    assert [p.name for p in sorted(run.glob('checkpoints/*'))] == ['step-00000016', 'step-00000020']

@linux
def test_another_effective_batch_is_refused(two, home):
    said = pretrain(home/'two', 2, '--batch_size', '32', '--resume', 'auto', rc=2)
    assert 'effective_batch=32 is no multiple of batch_size=32 * 2 processes = 64: choose a batch_size that divides 16' in said

@linux
@pytest.mark.parametrize('sig,kills', [('KILL', 4), ('TERM', 2)])
def test_killed_and_resumed(sig, kills):
    "Bit for bit the weights of a run that was left in peace; the script can do it as often as one likes."
    r = subprocess.run([sys.executable, ROOT/'tools/kill_and_resume.py', '--kills', str(kills), '--signal', sig], env=ENV, capture_output=True, text=True, timeout=500)
    assert r.returncode == 0 and 'bit for bit' in r.stdout, r.stdout + r.stderr

def children(pid):
    "Processes that a process has started."
    return [int(p) for t in Path(f'/proc/{pid}/task').iterdir() for p in (t/'children').read_text().split()]

@linux
def test_torchrun_restarts(home):
    "One of two workers is killed in the middle: torchrun starts both again, they go on from the last checkpoint, and end with the same weights."
    long = ['--max_steps', '90', '--batch_size', '16', '--resume', 'auto']
    pretrain(home/'peace', 2, *long)
    run = home/'restarted'
    p = subprocess.Popen(command(run, 2, *long, torchrun=['--max-restarts', '1']), env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (run/'checkpoints/step-00000032').exists(): assert p.poll() is None; time.sleep(0.01)
        os.kill(children(p.pid)[-1], signal.SIGKILL)
        out = p.communicate(timeout=200)[0]
    finally: p.kill()
    assert p.returncode == 0, out
    assert 'resumed' in out and len(read_jsonl(run/'log.jsonl')) == 90
    for f in 'model.safetensors', 'checkpoints/step-00000090/optim.safetensors': assert (run/f).read_bytes() == (home/'peace'/f).read_bytes()

@linux
def test_sigterm_reaches_all(home):
    "SIGTERM to one of two workers: both stop after the same step, and the run is saved."
    run = home/'terminated'
    p = subprocess.Popen(command(run, 2, '--max_steps', '1000', '--batch_size', '16'), env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (run/'checkpoints/step-00000016').exists(): assert p.poll() is None; time.sleep(0.01)
        os.kill(children(p.pid)[-1], signal.SIGTERM)
        out = p.communicate(timeout=100)[0]
    finally: p.kill()
    assert 'stopped by SIGTERM, and saved' in out
    last = max(run.glob('checkpoints/step-*'))
    state = json.loads((last/'state.json').read_text())
    assert state['processes'] == 2 and state['step'] == read_jsonl(run/'log.jsonl')[-1]['step']

WORKERS = '''
import multiprocessing, os, signal
from mae_nb.data.bundled import fashion
from mae_nb.data.augment import PretrainDataset
from mae_nb.data.loader import train_loader
batches = train_loader(PretrainDataset(fashion(), (28, 28), 49), 4, 1, num_workers=2).load()
for _ in range(2): next(batches)  # one from each worker: both have begun
for p in multiprocessing.active_children(): os.kill(p.pid, signal.SIGTERM)
for _ in range(50): next(batches)
print(len(multiprocessing.active_children()))
'''

@linux
def test_loading_processes_outlive_a_sigterm_but_not_their_master():
    "They go on as long as they are needed, and a process that ends in the middle of an epoch does not wait for them."
    r = subprocess.run([sys.executable, '-c', WORKERS], env=ENV, capture_output=True, text=True, timeout=60)
    assert r.returncode == 0 and r.stdout.split() == ['2'], r.stderr
