"One process: options that must not change the result, and what happens to bad input."
import gc, json, os, pickle, re, shutil, signal, subprocess, sys, weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from launch import launch
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import nn
from mae_nb.data.memory import TensorImages
from torch._dynamo.utils import counters
from mae_nb.tasks.config import FinetuneConfig
from mae_nb.tasks.finetune import FinetuneTask
from mae_nb.core import dist
from mae_nb.train.checkpoint import checkpoints, latest_checkpoint
from mae_nb.core.files import read_tensors
from mae_nb.cli import mae_pretrain
from mae_nb.model.cost import activation_bytes
from mae_nb.core.device import has_fast_bf16
from mae_nb.core.files import read_jsonl
from mae_nb.weights.hub import from_pretrained
from mae_nb.model.mae import mae_model
from mae_nb.tasks.pretrain import PretrainTask, pretrain
from mae_nb.tasks.config import PretrainConfig
from mae_nb.train.engine import init_state, task_steps

BASE = PretrainConfig(device='cpu', warmup_epochs=0., max_steps=10, batch_size=32)
QUIET = dict(log=lambda line: None)

def losses(**changes):
    cfg = replace(BASE, **changes)
    return [r['loss'].mean().item() for r in task_steps(PretrainTask(cfg))]

def far(a, b): return max(abs(x - y) for x,y in zip(a, b, strict=True))

@pytest.fixture(scope='module')
def plain(): return losses()

def test_accumulation(plain): assert far(plain, losses(batch_size=8, accum_iter=4)) < 1e-5
@pytest.mark.slow
def test_effective_batch_derives_accumulation(plain): assert losses(batch_size=8, effective_batch=32) == losses(batch_size=8, accum_iter=4)
def test_checkpointed_activations(plain): assert far(plain, losses(grad_checkpointing=True)) < 1e-5
@pytest.mark.slow
def test_compile(plain): assert far(plain, losses(compile=True)) < 1e-4

def graphs(monkeypatch, task, **how):
    "Count the graphs that a step of training compiles, and the breaks between them; nothing is compiled to machine code."
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, 'compile', lambda m, *args: compile_(m, *args, backend='eager', **how))
    torch._dynamo.reset(); counters.clear()
    for _ in zip(range(2), task_steps(task)): pass
    return counters['stats']['unique_graphs'], sum(counters['graph_break'].values())

DEEP = dict(data='fashion', device='cpu', batch_size=4, max_steps=2, warmup_epochs=0., compile=True)

@pytest.mark.slow
def test_b5_pretraining_is_one_graph(monkeypatch):
    "Masking, encoder, decoder and loss, in 16 bits, with recomputed activations: one graph without a break."
    task = PretrainTask(PretrainConfig(model='mae_vit_nano_patch4', precision='bf16', grad_checkpointing=True, **DEEP))
    assert graphs(monkeypatch, task, fullgraph=True) == (1, 0)

@pytest.mark.slow
def test_b5_deep_classifier_with_drop_path_is_one_graph(monkeypatch):
    "Twelve blocks, each with another drop path: block by block, four of them would not be compiled."
    task = FinetuneTask(FinetuneConfig(encoder=None, model='mae_vit_tiny_patch16', img_size=(32, 32), mean=(0.5,), std=(0.5,), drop_path=0.2, **DEEP))
    assert graphs(monkeypatch, task, fullgraph=True) == (1, 0)

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['pre-training', 'classifier'])
def test_no_recompilation_after_the_first_step(monkeypatch, tmp_path, kind):
    "Five steps with two evaluations between them, whose last batch is smaller: one graph for steps, one for evaluations of a classifier, and no break."
    how = DEEP | dict(max_steps=5, output_dir=str(tmp_path))
    if kind == 'classifier':
        cfg = FinetuneConfig(encoder=None, model='mae_vit_nano_patch4', drop_path=0.2, **how)
        task = FinetuneTask(cfg)
        task.test = TensorImages(task.test.imgs[:10], task.test.labels[:10])  # 4, 4, 2
    else: task = PretrainTask(PretrainConfig(model='mae_vit_nano_patch4', eval_every=1, eval_images=30, **how))
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, 'compile', lambda m, *args: compile_(m, *args, backend='eager', fullgraph=True))
    torch._dynamo.reset(); counters.clear()
    state,seen = init_state(task),[]
    for record in task_steps(task, state):
        if record['step'] in (2, 4): task.evaluate(task.model, record['step'])
        seen.append(counters['stats']['unique_graphs'])
    assert seen == ([1, 2, 2, 2, 2] if kind == 'classifier' else [1]*5) and not sum(counters['graph_break'].values())

@pytest.mark.slow
def test_b5_sharded_blocks_are_all_compiled(monkeypatch):
    "Each block is a graph of its own under FSDP: the limit is raised for all of them."
    model = PretrainTask(PretrainConfig(model='mae_vit_tiny_patch16', img_size=(32, 32), mean=(0.5,), std=(0.5,), **DEEP)).model
    for i,block in enumerate(model.blocks): block.drop_path1 = DropPath(0.01*i)
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, 'compile', lambda m, *args: compile_(m, *args, backend='eager'))
    torch._dynamo.reset(); counters.clear()
    dist.compile_blocks(model.train())
    x = torch.rand(2, 5, 192)
    for block in model.blocks: x = block(x)
    assert counters['stats']['unique_graphs'] >= 12

@pytest.mark.slow
def test_a_residual_stream_in_16_bits(plain, monkeypatch):
    "Near the run in bf16, and not equal; compiled it is one graph, also with recomputed activations; other precisions have none."
    half = losses(precision='bf16', bf16_residual=True)
    assert 0 < far(half, losses(precision='bf16')) < 0.02 and far(plain, half) < 0.05
    task = PretrainTask(PretrainConfig(model='mae_vit_nano_patch4', precision='bf16', bf16_residual=True, grad_checkpointing=True, **DEEP))
    assert graphs(monkeypatch, task, fullgraph=True) == (1, 0)
    with pytest.raises(ValueError, match='needs precision bf16'): PretrainTask(replace(BASE, bf16_residual=True))

def test_batch_size_auto(plain, monkeypatch):
    "The largest divisor of the effective batch that fits; the steps are those of accumulation."
    one = PretrainTask(BASE)
    with pytest.raises(ValueError, match='needs effective_batch'): PretrainTask(replace(BASE, batch_size='auto'))
    with pytest.raises(ValueError, match='give a number'): PretrainTask(replace(BASE, batch_size='auto', effective_batch=32))
    monkeypatch.setattr('mae_nb.tasks.base.free_memory', lambda device: one.memory(17)/0.85)
    auto = replace(BASE, batch_size='auto', effective_batch=32)
    task = PretrainTask(auto)
    assert (task.cfg.batch_size, task.accum_iter, task.effective_batch) == (16, 2, 32)
    assert far(plain, losses(batch_size='auto', effective_batch=32)) < 1e-5
    monkeypatch.setattr('mae_nb.tasks.base.free_memory', lambda device: 1e-3)
    with pytest.raises(ValueError, match='one image needs about'): PretrainTask(auto)

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_tf32_needs_a_gpu():
    with pytest.raises(ValueError, match='tf32 needs an NVIDIA GPU'): PretrainTask(replace(BASE, precision='tf32'))

def test_bf16_is_near(plain): assert 0 < far(plain, losses(precision='bf16')) < 0.05
@pytest.mark.slow
def test_fp16_with_scaler_is_near(plain): assert 0 < far(plain, losses(precision='fp16')) < 0.05
def test_clipping_bites(plain): assert far(plain, losses(clip_grad=0.05)) > 1e-3
def test_seed_matters(plain): assert far(plain, losses(seed=1)) > 1e-3

def test_masks_per_image():
    "Four masks for one image: a batch of 32 decodes 8, and an epoch has four times the steps."
    cfg = replace(BASE, masks_per_image=4)
    task = PretrainTask(cfg)
    assert task.steps_per_epoch == 10_000//8 and task.effective_batch == 32 and task.lr == PretrainTask(BASE).lr
    img,scores = task.dataset[0, 0]
    assert scores.shape == (4, 49) and len(scores.unique(dim=0)) == 4
    seen = []
    task.model.register_forward_pre_hook(lambda m, args: seen.append(args))
    next(task_steps(task))
    imgs,_,scores,_ = seen[0]
    assert imgs.shape[0] == scores.shape[0] == 32
    assert torch.equal(imgs[0], imgs[3]) and not torch.equal(imgs[0], imgs[4])

@pytest.mark.slow
def test_accumulation_with_a_worker():
    "The memory of a batch is used again only after its gradients are taken."
    how = dict(batch_size=4, accum_iter=8, max_steps=4, image_backend='pil')  # images in memory need no workers
    assert losses(**how) == losses(**how, num_workers=1)

# -- runs that are there already

RUN = ['--max_steps', '12', '--batch_size', '8', '--save_every', '4', '--log_every', '1', '--device', 'cpu', '--keep_checkpoints', '3']

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp('engine')/'run'
    assert mae_pretrain(['--output_dir', str(run), *RUN, '--ema_decay', '0.5', '--tensorboard', '--milestone_epochs', '1']) == 0
    return run

@pytest.fixture
def run(finished, tmp_path): return Path(shutil.copytree(finished, tmp_path/'run'))

def again(run, *flags): return mae_pretrain(['--output_dir', str(run), *RUN, '--ema_decay', '0.5', '--resume', 'auto', *map(str, flags)])

def back_to(run, *steps):
    "Leave only these checkpoints."
    for folder in checkpoints(run):
        if int(folder.name[5:]) not in steps: shutil.rmtree(folder)

def same_weights(a, b): return all((a/f).read_bytes() == (b/f).read_bytes() for f in ('model.safetensors', 'ema.safetensors'))

def test_what_a_run_holds(finished):
    assert [c.name for c in checkpoints(finished)] == ['step-00000004', 'step-00000008', 'step-00000012']
    last = checkpoints(finished)[-1]
    assert sorted(p.name for p in last.iterdir()) == ['ema.safetensors', 'model.json', 'model.safetensors', 'optim.safetensors', 'rng.safetensors', 'state.json']
    state = json.loads((last/'state.json').read_text())
    assert (state['step'], state['epoch'], state['images_of_epoch'], state['effective_batch']) == (12, 0, 96, 8)
    assert state['config']['blr'] == 6e-3 and set(state['versions']) == {'torch', 'torchvision', 'timm'} and set(state['files']) == {
        'ema.safetensors', 'model.json', 'model.safetensors', 'optim.safetensors', 'rng.safetensors'}
    assert any((finished/'tensorboard').iterdir())
    assert {'images_per_s', 'data', 'compute', 'memory', 'tflops'} <= set(read_jsonl(finished/'log.jsonl')[-1])

def test_a_finished_run_is_left_alone(run, finished):
    assert again(run) == 0 and same_weights(run, finished)
    assert len(read_jsonl(run/'log.jsonl')) == 12

def test_resume_in_the_middle(run, finished):
    back_to(run, 4); (run/'model.safetensors').unlink()
    with open(run/'log.jsonl', 'a') as f: f.write('{"step": 13, "lo')  # as kill -9 may leave it
    assert again(run) == 0 and same_weights(run, finished)
    assert [r['step'] for r in read_jsonl(run/'log.jsonl')] == list(range(1, 13))

def test_resume_from_a_path_into_a_new_run(run, finished, tmp_path):
    assert mae_pretrain(['--output_dir', str(tmp_path/'other'), *RUN, '--ema_decay', '0.5', '--resume', str(checkpoints(run)[0])]) == 0
    assert same_weights(tmp_path/'other', finished)
    assert same_weights(run, finished)  # untouched

def test_auto_starts_where_nothing_is(tmp_path, finished):
    assert again(tmp_path/'new') == 0 and same_weights(tmp_path/'new', finished)

def spoil(path, how):
    data = bytearray(path.read_bytes())
    if how == 'truncated': path.write_bytes(data[:len(data)//2])
    if how == 'one bit': data[-1] ^= 1; path.write_bytes(data)
    if how == 'missing': path.unlink()
    if how == 'pickle': path.write_bytes(pickle.dumps(Evil(path.parent/'executed')))

class Evil:
    "A pickle that would run a command when it is opened."
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir, (str(self.mark),)

@pytest.mark.parametrize('part', ['model.safetensors', 'optim.safetensors', 'rng.safetensors', 'model.json', 'state.json'])
@pytest.mark.parametrize('how', ['truncated', 'one bit', 'missing', 'pickle'])
def test_damaged_newest(run, finished, capsys, part, how):
    "It is reported and put aside, and the one before it used."
    newest = checkpoints(run)[-1]
    spoil(newest/part, how)
    assert again(run) == 0
    said = capsys.readouterr().out
    assert 'put aside' in said and newest.name in said and 'resumed' in said and 'step-00000008' in said
    assert same_weights(run, finished) and (run/'checkpoints'/f'damaged-{newest.name}').is_dir()
    assert not list(run.rglob('executed'))

def refused(capsys, code, *flags):
    assert mae_pretrain(list(map(str, flags))) == code
    return capsys.readouterr().err

def test_all_damaged(run, capsys):
    back_to(run, 8); spoil(run/'checkpoints/step-00000008/optim.safetensors', 'truncated')
    before = read_jsonl(run/'log.jsonl')
    for _ in range(2):  # nothing is put aside, so that the next try does not take it for a new run
        assert again(run) == 2
        said = capsys.readouterr().err
        assert 'no intact checkpoint' in said and 'optim.safetensors has' in said and 'bytes, and had' in said
        assert read_jsonl(run/'log.jsonl') == before

def test_truncated_checkpoint_by_path(run, tmp_path, capsys):
    c = checkpoints(run)[0]; spoil(c/'model.safetensors', 'truncated')
    assert 'is corrupted: model.safetensors has' in refused(capsys, 2, '--output_dir', tmp_path/'n', *RUN, '--ema_decay', 0.5, '--resume', c)

def test_pickles_are_not_opened(tmp_path, capsys):
    evil = tmp_path/'checkpoint.pth'; evil.write_bytes(pickle.dumps(Evil(tmp_path/'executed')))
    assert 'is no checkpoint' in (said := refused(capsys, 2, '--output_dir', tmp_path/'n', *RUN, '--resume', evil)) and 'nothing is unpickled' in said
    folder = tmp_path/'folder'; folder.mkdir()
    (folder/'model.json').write_text('{}'); shutil.copy(evil, folder/'model.safetensors')
    with pytest.raises(ValueError, match='corrupted, or not a safetensors file'): from_pretrained(folder)
    assert not (tmp_path/'executed').exists()

@pytest.mark.parametrize('flags,said', [(['--blr', '1e-3'], 'blr: now 0.001, before 0.006'), (['--mask_ratio', '0.5'], 'mask_ratio: now 0.5, before 0.75'),
                                        (['--max_steps', '11'], 'max_steps: now 11, before 12'), (['--seed', '1'], 'seed: now 1, before 0'),
                                        (['--model', 'mae_vit_micro_patch4'], "model: now 'mae_vit_micro_patch4', before 'mae_vit_nano_patch4'")])
def test_resume_by_another_recipe(run, capsys, flags, said):
    before = {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
    assert again(run, *flags) == 2
    err = capsys.readouterr().err
    assert 'another configuration' in err and said in err
    assert before == {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}  # not a byte was changed

def test_resume_with_another_effective_batch(run, capsys):
    assert again(run, '--effective_batch', '16') == 2
    assert 'hold 8 images, and now they would hold 16' in capsys.readouterr().err

def test_checkpoint_of_another_model(run, tmp_path, capsys):
    "The job is the same, the weights are not: a preset may have changed since."
    c = checkpoints(run)[-1]
    config = json.loads((c/'model.json').read_text()) | dict(embed_dim=48)
    (c/'model.json').write_text(json.dumps(config))
    state = json.loads((c/'state.json').read_text()); state['files'].pop('model.json')
    (c/'state.json').write_text(json.dumps(state))
    assert again(run) == 2 and 'embed_dim: now 96, before 48' in capsys.readouterr().err

LOCKS = """
import sys, time
from mae_nb.core.files import run_lock
with run_lock(sys.argv[1]): print('locked', flush=True); time.sleep(100)
"""

@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='no such lock')
def test_a_lock(run, capsys):
    "Two processes never work on the same run; a process that is killed holds nothing back."
    p = subprocess.Popen([sys.executable, '-c', LOCKS, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == 'locked\n'
        assert again(run) == 2 and 'another process is using' in capsys.readouterr().err
    finally: p.kill(); p.wait()
    assert again(run) == 0

@pytest.mark.parametrize('flags,said', [(['--ema_decay', '1'], 'ema_decay must be below 1'), (['--precision', 'fp8'], "invalid choice 'fp8' for argument '--precision'"),
    (['--accum_iter', '0'], 'accum_iter must be at least 1'), (['--batch_size', '10', '--masks_per_image', '4'], 'must be a multiple of masks_per_image=4'),
    (['--batch_size', '24', '--effective_batch', '64'], 'choose a batch_size that divides 64'), (['--accum_iter', '3', '--effective_batch', '64'], 'make 24: leave accum_iter out'),
    (['--clip_grad', '-1'], 'clip_grad must be at least 0'), (['--mask_sampling', 'blok'], "Expected one of ('random', 'block', 'grid')"),
    (['--mean', '0.5'], 'mean and std belong together'), (['--mean', '0.5', '--std', 'half'], "could not convert string to float: 'half'"), (['--keep_checkpoints', '0'], 'keep_checkpoints must be at least 1'),
    (['--resume', 'auto', '--overwrite'], 'give one of them'), (['--resume', 'nowhere'], 'nowhere is no checkpoint'), (['--fsdp'], 'start with torchrun'),
    (['--effective_batch', '20000', '--batch_size', '8'], 'there are 10000: lower effective_batch')])
def test_flags_out_of_range(tmp_path, capsys, flags, said):
    try: code = mae_pretrain(['--output_dir', str(tmp_path/'run'), *RUN, *flags])
    except SystemExit as e: code = e.code
    err = ' '.join(re.sub('[│╭╮╰╯─]', ' ', capsys.readouterr().err).split())  # without the frame
    assert code == 2 and said in err

def test_milestones_and_keep(tmp_path):
    "Of six epochs, the last two checkpoints stay, and those of every third epoch."
    folder = tmp_path/'few'; folder.mkdir()
    from PIL import Image
    for i in range(8): Image.effect_noise((28, 28), 60 + i).save(folder/f'{i}.png')
    run = pretrain(PretrainConfig(data=str(folder), output_dir=tmp_path/'run', batch_size=4, epochs=6, keep_checkpoints=1, milestone_epochs=2, device='cpu'), **QUIET)
    assert [int(c.name[5:]) for c in checkpoints(run)] == [4, 8, 12]  # two steps an epoch

# -- losses that are not finite, disks that are full

def test_a_loss_that_is_not_finite(tmp_path, capsys):
    run = tmp_path/'run'
    assert mae_pretrain(['--output_dir', str(run), *RUN, '--max_steps', '400', '--blr', '1e8', '--warmup_epochs', '0.02']) == 4
    said = capsys.readouterr().err
    step = int(said.split('at step ')[1].split()[0])
    assert 'on rank 0 with lr=' in said and said.startswith('mae_pretrain: stopped: loss is')
    saved = [int(c.name[5:]) for c in checkpoints(run)]
    assert all(s < step for s in saved) and read_jsonl(run/'log.jsonl')[-1]['step'] < step
    for c in checkpoints(run): assert all(t.isfinite().all() for t in read_tensors(c/'model.safetensors').values())

SPOILED = '''
import os, sys, mae_nb.tasks.pretrain as engine
from mae_nb.cli import mae_pretrain
from mae_nb.model.cost import activation_bytes
from mae_nb.core.device import has_fast_bf16
real,calls = engine.normalise,[]
def normalise(*a):
    calls.append(1)
    return real(*a)*(float('nan') if len(calls) == 12 and os.environ.get('RANK', '1') == '1' else 1)
engine.normalise = normalise
sys.exit(mae_pretrain())
'''

@pytest.mark.skipif(sys.platform != 'linux', reason='gloo as Linux has it')
@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_of_two(tmp_path):
    (tmp_path/'spoiled.py').write_text(SPOILED)
    r = launch(tmp_path/'spoiled.py', '--output_dir', tmp_path/'run', *RUN, '--max_steps', '40', processes=2)
    assert r.returncode == 4 and r.said.count('loss is nan at step 12 on rank 1 with lr=') == 2, r.said  # both say it
    found,state = latest_checkpoint(tmp_path/'run')
    assert state['step'] == 8 and from_pretrained(found).blocks[0].attn.qkv.bias.isfinite().all()

@pytest.mark.skipif(sys.platform == 'win32', reason='limits and signals')
@pytest.mark.slow
def test_a_full_disk(tmp_path):
    "The system refuses to let any file grow beyond 1 MB, so the first save fails half-way: exit code 3, and no half checkpoint."
    code = ('import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6));'
            'from mae_nb.cli import mae_pretrain; sys.exit(mae_pretrain())')
    run = tmp_path/'run'
    r = subprocess.run([sys.executable, '-c', code, '--output_dir', run, *RUN], capture_output=True, text=True, timeout=120)
    assert r.returncode == 3 and 'cannot write' in r.stderr and 'model.safetensors' in r.stderr, r.stderr
    assert list((run/'checkpoints').iterdir()) == [] and not (run/'model.safetensors').exists()

@pytest.mark.slow
def test_a_disk_that_fills_up_later(run, finished, monkeypatch, capsys):
    "The third save fails: the second checkpoint is whole, and the run goes on from it when there is room again."
    back_to(run, 4)
    import mae_nb.core.files as c
    real,count = c.save_file,[]
    def save_file(tensors, path):
        count.append(path)
        if len(count) == 6: Path(path).write_bytes(b'half'); raise OSError(28, 'No space left on device')
        return real(tensors, path)
    monkeypatch.setattr(c, 'save_file', save_file)
    assert again(run) == 3 and 'No space left on device' in capsys.readouterr().err
    assert [x.name for x in checkpoints(run)] == ['step-00000004', 'step-00000008'] and not list(run.rglob('.*tmp'))
    monkeypatch.undo()
    assert again(run) == 0 and same_weights(run, finished)

WAITS = {'_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'unique_dim', '_unique2', 'is_nonzero'}  # what a device must be waited for

@pytest.mark.parametrize('changes', [dict(), dict(accum_iter=2, batch_size=16, clip_grad=1., ema_decay=0.9, grad_checkpointing=True, norm_pix_loss=True, masks_per_image=2), dict(precision='bf16')])
def test_nothing_in_a_step_waits_for_the_device(changes):
    "No operation of a step, forward, backward or update, brings a number to Python."
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = set()
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket._qualified_op_name.split('::')[1])
            return func(*args, **(kwargs or {}))
    cfg = replace(BASE, **changes)
    task = PretrainTask(cfg)
    view = [task.dataset[0, i] for i in range(64)]
    ready = [torch.utils.data.default_collate(view[i:i+cfg.batch_size//cfg.masks_per_image]) for i in (0, 8, 16, 24)]
    task.batches = lambda start, log: ready
    run = task_steps(task)
    next(run)  # the optimiser makes its state
    with Watch(): next(run)
    assert {'argsort', 'sort'} & seen and any('adamw' in s for s in seen) and not WAITS & seen
    with Watch(): torch.ones(1).item()
    assert WAITS & seen  # it would have been noticed

@pytest.mark.parametrize('flags,fast', [('fpu avx512f sse', False), ('fpu avx512_bf16 sse', True), ('fpu amx_bf16 amx_tile', True), ('fp asimd bf16 i8mm', True), ('', False)])
def test_fast_bf16_where_torch_does_not_tell(monkeypatch, flags, fast):
    monkeypatch.setattr(torch, 'cpu', SimpleNamespace())
    monkeypatch.setattr(Path, 'read_text', lambda self: f'flags : {flags}\n')
    assert has_fast_bf16(torch.device('cpu')) == fast

@pytest.mark.parametrize('names,fast', [((), False), (('avx512_bf16',), True), (('amx_tile',), True)])
def test_fast_bf16_where_torch_tells(monkeypatch, names, fast):
    monkeypatch.setattr(torch, 'cpu', SimpleNamespace(**{f'_is_{n}_supported': lambda n=n: n in names for n in ('avx512_bf16', 'amx_tile')}))
    def absent(self): raise FileNotFoundError(self)
    monkeypatch.setattr(Path, 'read_text', absent)
    assert has_fast_bf16(torch.device('cpu')) == fast

@pytest.mark.parametrize('recompute', [False, True])
def test_an_estimate_frees_the_model(recompute):
    model = mae_model('mae_vit_nano_patch4')
    model.set_grad_checkpointing(recompute)
    weight = weakref.ref(model.blocks[0].attn.qkv.weight)
    assert activation_bytes(model) > 0
    del model
    gc.collect()
    assert weight() is None
