"Evaluation's protocols: each value of a recipe is read back where it acts; runs that are stopped go on; wrong checkpoints are refused."
import json, math, os, sys
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np, pytest, torch, torch.nn.functional as F
from launch import launch
from timm.data.random_erasing import RandomErasing
from torch import nn
from mae_nb.tasks import finetune as tuning
from mae_nb.core.rng import fork_rng, sample_rng
from mae_nb.core.files import read_tensors, save_weights
from mae_nb.cli import mae_eval, mae_finetune, mae_knn, mae_linprobe, mae_partial, mae_pretrain, mae_report
from mae_nb.data.bundled import fashion
from mae_nb.data.datasets import normalise
from mae_nb.data.memory import TensorImages
from mae_nb.evaluate.accuracy import evaluate
from mae_nb.tasks.finetune import FinetuneTask, finetune
from mae_nb.weights.hub import from_pretrained
from mae_nb.weights.formats import Weights
from mae_nb.data.labels import FinetuneDataset, label_subset
from mae_nb.evaluate.knn import extract_features, knn_rank, linear_predict
from mae_nb.core.files import read_jsonl
from mae_nb.model.config import MAEConfig, classifier_config, mae_config
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.model.classifier import ViTClassifier
from mae_nb.train.optim import lars
from mae_nb.tasks.config import FinetuneConfig, PretrainConfig, linprobe_defaults, partial_defaults
from mae_nb.recipes import recipe, recipes
from mae_nb.train import engine
from mae_nb.train.engine import task_steps

linux = pytest.mark.skipif(sys.platform != 'linux', reason='needs fork, signals and gloo as Linux has them')
QUIET = dict(log=lambda line: None)
JUDGES = {n: r.config for n,r in recipes.items() if r.kind in ('finetune', 'linprobe', 'partial')}

@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('tuned')

def keep(folder, seed=0, **changes):
    "A pre-trained run's weights, without the pre-training."
    torch.manual_seed(seed)
    model = MaskedAutoencoderViT(mae_config('mae_vit_nano_patch4', **dict(dict(mean=(0.28,), std=(0.35,)), **changes)))
    save_weights(model.state_dict(), asdict(model.cfg), folder)
    return str(folder)

@pytest.fixture(scope='module')
def mae(home): return keep(home/'mae')

# -- recipes, typed again from the paper's tables and the release

NINE = dict(base=(100, 5e-4, .65, .1), large=(50, 1e-3, .75, .2), huge=(50, 1e-3, .75, .3))  # release: epochs, blr, layer decay, drop path
PAPER = dict(base=(100, 1e-3, .75, .1), large=(50, 1e-3, .75, .1), huge=(50, 1e-3, .75, .2))  # Table 9
ELEVEN = dict(base=(300, .1), large=(200, .2), huge=(200, .2))  # Table 11: epochs, drop path
DEPTH = dict(base=12, large=24, huge=32)

@pytest.fixture(scope='module')
def photographs():
    g = torch.Generator().manual_seed(0)
    return TensorImages(torch.randint(256, (8192, 3, 8, 8), dtype=torch.uint8, generator=g), torch.arange(8192) % 10)

def read_back(monkeypatch, photographs, cfg, depth, **shapes):
    "What the loop is given, on a model as small as can be, with as many blocks as the recipe's."
    got = {}
    def capture(*args): got.update(zip(('loss_of', 'batches', 'optimizer', 'lr_of', 'start', 'accum_iter', 'clip_grad', 'scaler', 'hold'), args)); raise StopIteration
    small = asdict(mae_config('mae_vit_nano_patch4', img_size=8, depth=depth, embed_dim=12, num_heads=1, in_chans=3, mean=(.485, .456, .406), std=(.229, .224, .225)))
    monkeypatch.setattr('mae_nb.data.labels.load_images', lambda *_, **__: photographs)
    monkeypatch.setattr('mae_nb.tasks.base.mae_config', lambda name: MAEConfig(**small))
    monkeypatch.setattr(engine, 'train_steps', capture)
    if cfg.encoder:
        c = MAEConfig(**small)
        monkeypatch.setattr('mae_nb.tasks.base.resolve_weights', lambda *_: (None, {}))
        monkeypatch.setattr('mae_nb.tasks.base.read_weights', lambda *_: Weights(MaskedAutoencoderViT(c).state_dict(), asdict(c), 'mae_nb', 'x'))
    batch = dict(effective_batch=1024, batch_size=32) if cfg.effective_batch > 8192 else {}  # there are 8192 images
    cfg = replace(cfg, device='cpu', num_workers=0, img_size=None, **batch)
    task = FinetuneTask(cfg)
    with pytest.raises(RuntimeError): next(task_steps(task))  # StopIteration in a generator
    return cfg, task, got

def by_name(task, optimizer):
    names = {id(p): n for n,p in task.model.named_parameters()}
    return {names[id(p)]: g for g in optimizer.param_groups for p in g['params']}

@pytest.mark.parametrize('name', [n for n in JUDGES if '_vit_' in n and ('finetune' in n or 'scratch' in n) or '_inat' in n or '_places' in n])
def test_fine_tuning_recipes(name, monkeypatch, photographs):
    "Tables 9 and 11, the release's notes, A.5: epochs, rates per block, decay, drop path, schedule, augmentation, head."
    size = name.split('_vit_')[1].split('_')[0]; scratch = 'scratch' in name; release = name.startswith('release')
    epochs,blr,decay,path = NINE[size] if release else PAPER[size]
    if scratch: epochs,path = ELEVEN[size]; blr = 1e-4
    cfg,task,got = read_back(monkeypatch, photographs, JUDGES[name], DEPTH[size])
    depth,groups = DEPTH[size],by_name(task, got['optimizer'])
    assert len(groups) == len(list(task.model.parameters())) and isinstance(got['optimizer'], torch.optim.AdamW)
    effective,warm = (4096, 20) if scratch else (1024, 5)
    assert task.effective_batch == effective and task.total_steps == epochs*8192//effective
    assert {g['betas'] for g in groups.values()} == {(0.9, 0.95) if scratch else (0.9, 0.999)}
    for n,g in groups.items():
        spared = task.model.get_parameter(n).ndim == 1 or n in ('pos_embed', 'cls_token')
        assert g['weight_decay'] == (0 if spared else 0.3 if scratch else 0.05), n
        layer = 0 if n.split('.')[0] in ('pos_embed', 'cls_token', 'patch_embed') else int(n.split('.')[1]) + 1 if n.startswith('blocks') else depth + 1
        assert g.get('lr_scale', 1.) == pytest.approx(1. if scratch else decay**(depth + 1 - layer)), n
    peak,per = blr*effective/256,8192//effective
    lr_of,W,T = got['lr_of'],warm*per,task.total_steps
    end = 0. if scratch else 1e-6
    assert lr_of(0) == 0 and lr_of(W/2) == pytest.approx(peak/2) and lr_of(W) == pytest.approx(peak) and lr_of(T) == pytest.approx(end, abs=1e-12)
    assert lr_of((W + T)/2) == pytest.approx((peak + end)/2)
    rates = [getattr(b.drop_path1, 'drop_prob', 0.) for b in task.model.blocks]
    assert rates == pytest.approx([path*i/(depth - 1) for i in range(depth)], abs=1e-6) and [getattr(b.drop_path2, 'drop_prob', 0.) for b in task.model.blocks] == rates
    view = got['batches'].view
    assert view.scale == (0.08, 1.) and view.flip and view.kind == 'rand_crop' and task.model.global_pool == ('avg' if release else 'token')  # A.1: the class token
    assert len(view.change.ops) == 15 and {(op.magnitude, op.magnitude_std, op.prob) for op in view.change.ops} == {(9, 0.5, 0.5)} and view.change.num_layers == 2
    erase = task.erase
    assert (erase.probability, erase.per_pixel, erase.max_count) == (0.25, True, 1) if release else erase is None
    assert cfg.ema_decay == (0.9999 if scratch else None)
    std = task.model.head.weight.std().item()
    assert std == pytest.approx(0.02 if scratch else 2e-5, rel=0.3) and (task.model.head.bias == 0).all()
    assert got['clip_grad'] is None and task.model.cfg.batch_norm is False and cfg.label_smoothing == 0.1 and (cfg.mixup, cfg.cutmix) == (0.8, 1.)

def test_hardware_and_hours_of_the_release():
    "FINETUNE.md: 7h11m, 8h52m and 13h9m of fine-tuning; 2h20m of linear probing for ViT-B."
    said = {n: (r.hardware, r.hours) for n,r in recipes.items() if r.kind in ('finetune', 'linprobe', 'partial') and r.hours != 'not reported'}
    assert said == dict(release_finetune_vit_base=('32 V100', '7.2'), release_finetune_vit_large=('32 V100', '8.9'),
                        release_finetune_vit_huge=('64 V100', '13.2'), release_linprobe_vit_base=('32 V100', '2.3'))

@pytest.mark.parametrize('name', [n for n in JUDGES if 'linprobe' in n])
def test_linear_probe_recipes(name, monkeypatch, photographs):
    "Table 10: LARS, no decay, BatchNorm without affine, random crops and flips only."
    size = name.split('_vit_')[1]
    cfg,task,got = read_back(monkeypatch, photographs, JUDGES[name], DEPTH[size])
    assert (JUDGES[name].effective_batch, JUDGES[name].blr, JUDGES[name].warmup_epochs, JUDGES[name].min_lr) == (16384, 0.1, 10, 0)
    assert JUDGES[name].epochs == (50 if name.startswith('release') and size != 'base' else 90)
    assert [n for n,p in task.model.named_parameters() if p.requires_grad] == ['head.1.weight', 'head.1.bias']
    bn = task.model.head[0]
    assert isinstance(bn, nn.BatchNorm1d) and not bn.affine and bn.eps == 1e-6 and task.model.global_pool == 'token'
    assert [(type(got['optimizer']).__name__, g['weight_decay'], g['momentum'], g['always_adapt']) for g in got['optimizer'].param_groups] == [
        ('Lars', 0., 0.9, True), ('Lars', 0., 0.9, False)]
    view = got['batches'].view
    assert (view.kind, view.scale, view.flip, view.change, task.erase) == ('clip_crop', (0.08, 1.), True, None, None)
    assert (cfg.mixup, cfg.cutmix, cfg.label_smoothing, cfg.drop_path) == (0, 0, 0, 0) and task.model.head[1].weight.std().item() == pytest.approx(0.01, rel=0.3)

@pytest.mark.parametrize('name', [n for n in JUDGES if 'partial' in n])
def test_partial_recipes(name, monkeypatch, photographs):
    blocks = float(name.split('blocks')[1])
    cfg,task,got = read_back(monkeypatch, photographs, JUDGES[name], 24)
    first = 24 - math.ceil(blocks)
    learns = {n for n,p in task.model.named_parameters() if p.requires_grad}
    assert {n for n in learns if not n.startswith('blocks')} == {'head.weight', 'head.bias', 'norm.weight', 'norm.bias'}
    assert {int(n.split('.')[1]) for n in learns if n.startswith('blocks')} == set(range(first, 24))
    half = {n.split('.', 2)[2] for n in learns if n.startswith(f'blocks.{first}.')}
    assert ('attn.qkv.weight' in half) == (blocks != 0.5) and 'mlp.fc1.weight' in half and 'norm2.bias' in half
    assert set(by_name(task, got['optimizer'])) == learns
    task.model.train()
    assert [b.training for b in task.model.blocks] == [i >= first for i in range(24)]

# -- the parts

def test_lars_against_a_restatement():
    "The first fifty steps beside the rule, written out."
    torch.manual_seed(0)
    lin = nn.Linear(16, 5); opt = lars(lin, 6.4)
    w,m = [p.detach().clone() for p in lin.parameters()],[torch.zeros_like(p) for p in lin.parameters()]
    for _ in range(50):
        grads = [torch.randn_like(p)*s for p,s in zip(lin.parameters(), (1., 1e-3))]
        for i,(p,g) in enumerate(zip(lin.parameters(), grads)):
            p.grad = g.clone()
            if g.ndim > 1: g = g*(0.001*w[i].norm()/g.norm())
            m[i] = 0.9*m[i] + g; w[i] = w[i] - 6.4*m[i]
        opt.step()
    assert max((p - q).abs().max() for p,q in zip(lin.parameters(), w)) < 1e-6

def test_mixup_targets(mae):
    "Targets of a mixed batch: smoothed, mixed by one number per batch, of pairs that mirror each other."
    cfg = FinetuneConfig(encoder=mae, mixup=0.8, cutmix=1., label_smoothing=0.1, batch_size=8, device='cpu')
    task,seen = FinetuneTask(cfg),[]
    task.batches(0)
    forward = lambda x: task.model(seen.append(x) or x)
    imgs,labels = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8), torch.arange(8)
    calls = []
    import unittest.mock as mock
    with mock.patch('torch.nn.functional.cross_entropy', lambda a, b, **kw: calls.append((b, kw)) or a.sum()): 
        for _ in range(40): task.loss(forward, (imgs.clone(), labels))
    kinds = set()
    for x,(target,kw) in zip(seen, calls):
        assert kw == dict(label_smoothing=0.) and torch.allclose(target.sum(1), torch.ones(8)) and target.min() == pytest.approx(0.01)
        lam = (target[0,0] - 0.01)/0.9
        expected = torch.full((8, 10), 0.01)
        for i in range(8): expected[i,i] += 0.9*lam; expected[i,7-i] += 0.9*(1 - lam)
        assert torch.allclose(target, expected, atol=1e-5)
        own = (imgs.float()/255 - 0.28)/0.35
        blend = lam*own + (1 - lam)*own.flip(0)
        kinds.add('mixup' if torch.allclose(x, blend, atol=1e-4) else 'cutmix')
        if not torch.allclose(x, blend, atol=1e-4): assert ((x == own) | (x == own.flip(0))).all()  # each pixel is one image's
    assert kinds == {'mixup', 'cutmix'}

def test_random_erasing_of_a_batch(mae):
    "A quarter of the images, after normalisation: noise in a rectangle of 2 to 33 %; the same in a resumed run; the batch is left alone."
    task,seen = FinetuneTask(FinetuneConfig(encoder=mae, reprob=0.25, batch_size=500, device='cpu')),[]
    assert task.dataset.in_memory  # the loader knows nothing of it
    forward = lambda x: task.model(seen.append(x) or x)
    imgs,labels = torch.randint(256, (500, 1, 28, 28), dtype=torch.uint8),torch.arange(500) % 10
    for batch in (imgs, imgs.float()/255):
        task.batches(3)
        own = batch.clone()
        for _ in range(2): task.loss(forward, (batch, labels))
        assert torch.equal(batch, own)
    first,second,floats = seen[0],seen[1],seen[2]
    plain = (imgs.float()/255 - 0.28)/0.35
    changed = ((first - plain).abs() > 1e-4)[:,0]
    noisy = changed.any(2).any(1)
    assert 90 < noisy.sum() < 160 and not torch.equal(first, second)  # 125 +- 10
    for one in changed[noisy]:
        rows,cols = one.any(1).nonzero()[:,0],one.any(0).nonzero()[:,0]
        h,w = rows[-1] - rows[0] + 1,cols[-1] - cols[0] + 1
        assert one[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1].float().mean() > 0.97 and 0.01 < h*w/784 < 0.36
    noise = first[:,0][changed]
    assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(1, abs=0.05)
    assert torch.equal(floats[:,0][changed], noise)  # the same numbers of batch, the same noise

@pytest.mark.slow
def test_randaugment_survives_posterize():
    "Many images through the paper's policy, also of one channel: none fails."
    for c in 1, 3:
        view = FinetuneDataset(TensorImages(torch.randint(256, (8, c, 16, 16), dtype=torch.uint8)), (16, 16), policy='rand-m9-mstd0.5-inc1', mean=(.5,)*c, std=(.2,)*c)
        assert all(view[e, e % 8][0].shape == (c, 16, 16) for e in range(1500))

def test_reference_transform():
    "RandAugment, normalisation and erasing are timm's: with one chance, its own pipeline gives the same image."
    from timm.data.transforms_factory import transforms_imagenet_train
    from torchvision.transforms import functional as tvf
    mean,std = (.485, .456, .406),(.229, .224, .225)
    img = TensorImages(torch.randint(256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)))
    ours = FinetuneDataset(img, (32, 32), policy='rand-m9-mstd0.5-inc1', mean=mean, std=std)
    erase = RandomErasing(0.25, mode='pixel', device='cpu')
    theirs = transforms_imagenet_train(32, color_jitter=None, auto_augment='rand-m9-mstd0.5-inc1', interpolation='bicubic', re_prob=0.25, re_mode='pixel', mean=mean, std=std)
    for s in range(200):
        pil = tvf.to_pil_image(torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(s)))
        op = theirs.transforms
        with fork_rng(sample_rng(9, s)): a = erase(normalise(tvf.pil_to_tensor(ours.change(pil))[None], mean, std))[0]
        with fork_rng(sample_rng(9, s)):
            try: b = op[-1](op[-2](op[-3](op[2](pil))))
            except ValueError as e: assert 'bits' in str(e); continue  # the mended operation
        assert torch.allclose(a, b, atol=1e-6), s

def test_label_share_and_its_images():
    s = label_subset(fashion(), 0.01, 3)
    assert s.labels.bincount().tolist() == [10]*10 and all(int(s[i][1]) == int(s.labels[i]) for i in range(100))

# -- evaluation and probes

def brute_force(bank, labels, feats, k, t):
    rank = []
    for f in feats:
        sim = [(F.cosine_similarity(f, b, dim=0).item(), int(y)) for b,y in zip(bank, labels)]
        votes = np.zeros(int(labels.max()) + 1)
        for s,y in sorted(sim, key=lambda x: -x[0])[:k]: votes[y] += math.exp(s/t)
        rank.append(np.argsort(-votes, kind='stable'))
    return torch.tensor(np.array(rank))

@pytest.mark.parametrize('k,bank_chunk,chunk', [(1, 7, 5), (5, 64, 1000), (20, 10, 3), (20, 1000, 1000), (50, 7, 4)])
def test_knn_is_brute_force(k, bank_chunk, chunk):
    g = torch.Generator().manual_seed(k)
    bank,feats,labels = torch.randn(60, 6, generator=g), torch.randn(23, 6, generator=g), torch.arange(60) % 4
    found = knn_rank(bank, labels, feats, k, 0.07, 4, chunk, bank_chunk)
    expected = brute_force(bank, labels, feats, k, 0.07)
    assert torch.equal(found[:,0], expected[:,0])
    if k >= 20: assert torch.equal(found, expected)  # with fewer neighbours several classes have no vote at all

@pytest.mark.slow
def test_lars_probe_comes_near_the_closed_form(mae, home):
    "On the same cached features: 90 epochs of LARS beside ridge regression."
    cfg = replace(linprobe_defaults, encoder=mae, pool='avg', device='cpu', output_dir=home/'probe', eval_every=90)
    top1 = [r['top1'] for r in read_jsonl(finetune(cfg, **QUIET)/'log.jsonl') if 'top1' in r][-1]
    task = FinetuneTask(cfg)
    closed = 100*(linear_predict(task.dataset.feats, task.dataset.labels, task.test.feats) == task.test.labels).float().mean().item()
    assert top1 > 60 and abs(top1 - closed) < 3, (top1, closed)

@pytest.mark.slow
def test_probe_with_and_without_cache(mae):
    "Fixed crops: cached features and images through the frozen encoder give the same losses."
    losses = [[r['loss'].item() for r in task_steps(FinetuneTask(cfg))] for cache in (True, False)
              for cfg in [replace(linprobe_defaults, encoder=mae, cache=cache, max_steps=5, label_fraction=0.1, batch_size=100, device='cpu')]]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)

@pytest.mark.slow
def test_half_a_block_learns_and_nothing_else_moves(mae, home):
    run = finetune(replace(partial_defaults, encoder=mae, trainable_blocks=0.5, max_steps=3, device='cpu', label_fraction=0.1, output_dir=home/'half', ema_decay=0.5), **QUIET)
    before,after = read_tensors(Path(mae)/'model.safetensors'),read_tensors(run/'model.safetensors')
    moved = {k.rsplit('.', 1)[0] for k in before.keys() & after.keys() if not torch.equal(before[k], after[k])}
    assert moved == {'blocks.3.norm2', 'blocks.3.mlp.fc1', 'blocks.3.mlp.fc2'}

TWO = """
import json, sys, torch
from mae_nb.data.bundled import fashion
from mae_nb.data.memory import TensorImages
from mae_nb.core.dist import init_distributed
from mae_nb.evaluate.accuracy import evaluate
from mae_nb.weights.hub import from_pretrained
s = fashion('test')
with init_distributed('cpu') as world:
    model = from_pretrained(sys.argv[1])
    if world.rank: [b.add_(1) for b in model.buffers()]     # other statistics: the first one's count
    for n in (1, 7, 997): found = evaluate(model, TensorImages(s.imgs[:n], s.labels[:n]), world, batch_size=100)
    if world.first: print(json.dumps(found))
"""

@pytest.mark.slow
@linux
@pytest.mark.parametrize('processes', [2, 3])
def test_every_image_counts_once(processes, mae, home):
    if not (home/'three').exists():
        finetune(replace(linprobe_defaults, encoder=mae, max_steps=30, device='cpu', output_dir=home/'three'), **QUIET)
        (home/'two.py').write_text(TWO)
    r = launch(home/'two.py', home/'three', processes=processes)
    assert r.returncode == 0, r.said
    s = fashion('test')
    alone = evaluate(from_pretrained(home/'three'), TensorImages(s.imgs[:997], s.labels[:997]), batch_size=100)
    found = json.loads(next(line for line in r.said.splitlines() if line.startswith('{')))
    assert (found['images'], found['top1'], found['top5']) == (997, alone['top1'], alone['top5'])
    assert found['loss'] == pytest.approx(alone['loss'], abs=1e-9)

# -- runs

HARD = ['--max_steps', '12', '--batch_size', '16', '--label_fraction', '0.1', '--save_every', '4', '--log_every', '1', '--device', 'cpu', '--mixup', '0.8', '--cutmix', '1.0',
        '--rand_augment', 'rand-m9-mstd0.5-inc1', '--reprob', '0.25', '--drop_path', '0.2', '--ema_decay', '0.9', '--keep_checkpoints', '9']

@pytest.fixture(scope='module')
def whole(mae, home):
    assert mae_finetune(['--encoder', mae, '--output_dir', str(home/'whole'), *HARD]) == 0
    return home/'whole'

@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_stopped_and_resumed_to_the_bit(workers, whole, mae, home, monkeypatch):
    "Stopped in step 6 by SIGTERM: with mixup, cutmix, RandAugment, erasing, stochastic depth and an average, the same bytes come out."
    import signal
    run,inner = home/f'stopped-{workers}',engine.train_steps
    def stops(*args):
        for r in inner(*args):
            if r['step'] == 6: os.kill(os.getpid(), signal.SIGTERM)
            yield r
    flags = ['--encoder', mae, '--output_dir', str(run), *HARD, '--num_workers', str(workers)]
    monkeypatch.setattr(engine, 'train_steps', stops)
    assert mae_finetune(flags) == 128 + signal.SIGTERM
    monkeypatch.setattr(engine, 'train_steps', inner)
    assert mae_finetune([*flags, '--resume', 'auto']) == 0
    for f in 'model.safetensors', 'ema.safetensors', 'checkpoints/step-00000012/optim.safetensors':
        assert (run/f).read_bytes() == (whole/f).read_bytes(), f
    a,b = ([(r['step'], r.get('loss'), r.get('top1')) for r in read_jsonl(x/'log.jsonl')] for x in (run, whole))
    assert a == b and len([x for x in a if x[2] is not None]) == 1

@pytest.mark.slow
def test_the_average_is_judged(whole, home):
    "What the log says of the moving average is what mae_eval finds."
    said = [r for r in read_jsonl(whole/'log.jsonl') if 'ema_top1' in r][-1]
    for flags,key in ([], 'top1'), (['--use_ema'], 'ema_top1'):
        out = home/f'{key}.json'
        assert mae_eval(['--weights', str(whole), '--data', 'fashion', '--device', 'cpu', '--image_backend', 'fast', '--output', str(out), *flags]) == 0
        assert json.loads(out.read_text())['results']['top1'] == pytest.approx(said[key], abs=0.11)  # batches of other sizes

@pytest.mark.slow
def test_seed_matters(whole, mae, home):
    assert mae_finetune(['--encoder', mae, '--output_dir', str(home/'other'), *HARD, '--seed', '1']) == 0
    assert (home/'other'/'model.safetensors').read_bytes() != (whole/'model.safetensors').read_bytes()

@pytest.mark.slow
@linux
def test_two_processes_fine_tune(mae, home):
    "Without chance that belongs to a batch, two processes learn what one does; the linear probe runs by two as well."
    flags = ['--encoder', mae, '--max_steps', '8', '--log_every', '1', '--label_fraction', '0.1', '--device', 'cpu', '--effective_batch', '32']
    assert mae_finetune([*flags, '--batch_size', '32', '--output_dir', str(home/'one')]) == 0
    def two(command, *more):
        r = launch(command, *flags, '--batch_size', 16, *more, processes=2)
        assert r.returncode == 0, r.said
    two('mae_finetune', '--output_dir', str(home/'two'))
    a,b = ([r for r in read_jsonl(home/x/'log.jsonl')] for x in ('one', 'two'))
    assert [r['loss'] for r in a if 'loss' in r] == pytest.approx([r['loss'] for r in b if 'loss' in r], abs=1e-5)
    assert [r['top1'] for r in a if 'top1' in r] == pytest.approx([r['top1'] for r in b if 'top1' in r], abs=0.2)
    two('mae_linprobe', '--output_dir', str(home/'two-probe'))
    r = launch('mae_knn', '--encoder', mae, '--label_fraction', '0.1', '--device', 'cpu', '--output', home/'knn2.json', processes=2)
    assert r.returncode == 0, r.said
    assert mae_knn(['--encoder', mae, '--label_fraction', '0.1', '--device', 'cpu', '--output', str(home/'knn1.json')]) == 0
    assert json.loads((home/'knn1.json').read_text())['result'] == json.loads((home/'knn2.json').read_text())['result']

@pytest.mark.slow
def test_readme_in_two_commands(home, capsys):
    "From mae_pretrain's own output to a classifier, which mae_eval then judges as the log does."
    pre,tuned = str(home/'pre'),str(home/'pre_tuned')
    assert mae_pretrain(['--output_dir', pre, '--max_steps', '160', '--warmup_epochs', '0.2', '--device', 'cpu']) == 0
    assert mae_finetune(['--encoder', pre, '--output_dir', tuned, '--max_steps', '150', '--blr', '0.012', '--label_fraction', '0.2', '--eval_every', '99', '--device', 'cpu', '--warmup_epochs', '1']) == 0
    top1 = [r['top1'] for r in read_jsonl(home/'pre_tuned'/'log.jsonl') if 'top1' in r][-1]
    assert top1 > 40  # ten classes
    assert mae_eval(['--weights', tuned, '--data', 'fashion', '--output', str(home/'eval.json'), '--device', 'cpu', '--image_backend', 'fast']) == 0
    assert json.loads((home/'eval.json').read_text())['results']['top1'] == pytest.approx(top1, abs=0.11)

def test_timms_logits(home):
    "A file in the official fine-tuned layout, made by timm itself, gives timm's logits."
    from functools import partial
    from timm.models.vision_transformer import VisionTransformer
    torch.manual_seed(0)
    theirs = VisionTransformer(embed_dim=192, depth=2, num_heads=3, num_classes=7, global_pool='avg', norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
    torch.save(dict(model=theirs.state_dict()), home/'timm.pth')
    ours,imgs = from_pretrained(home/'timm.pth'),torch.randn(2, 3, 224, 224)
    assert (ours(imgs) - theirs(imgs)).abs().max() < 1e-5 and ours.cfg.mean == (0.485, 0.456, 0.406)

# -- refused

def refused(capsys, command, *flags):
    assert command([*map(str, flags), '--device', 'cpu']) == 2
    return capsys.readouterr().err

@pytest.mark.slow
def test_wrong_checkpoints(mae, home, whole, capsys):
    out = ['--output_dir', home/'never']
    wide = keep(home/'wide', embed_dim=48)
    said = refused(capsys, mae_finetune, '--encoder', wide, '--model', 'mae_vit_nano_patch4', *out)
    assert 'embed_dim: 48 there, 96 wanted' in said
    state = {k: v for k,v in read_tensors(Path(mae)/'model.safetensors').items() if k.startswith('decoder')}
    save_weights(state, json.loads((Path(mae)/'model.json').read_text()), home/'decoder')
    assert 'missing' in (said := refused(capsys, mae_finetune, '--encoder', home/'decoder', *out)) and 'blocks.0.attn.qkv.weight' in said
    torch.save(dict(model=state), home/'decoder.pth')
    assert 'no encoder in it' in refused(capsys, mae_finetune, '--encoder', home/'decoder.pth', *out)
    three = home/'folder'
    for split in 'train', 'val':
        for c in 'abc':
            (three/split/c).mkdir(parents=True, exist_ok=True)
            from PIL import Image
            for i in range(2): Image.new('RGB', (28, 28), (i*90, 0, 99)).save(three/split/c/f'{i}.png')
    tuned3 = ViTClassifier(classifier_config(mae_config('mae_vit_nano_patch4', in_chans=3), 5))
    save_weights(tuned3.state_dict(), asdict(tuned3.cfg), home/'five')
    said = refused(capsys, mae_finetune, '--encoder', home/'five', '--data', three, '--batch_size', 2, *out)
    assert 'num_classes: 5 there, 3 wanted' in said and 'fine-tuned' in said
    assert 'has no head' in refused(capsys, mae_eval, '--weights', mae, '--data', 'fashion')
    import pickle
    class Code:
        def __reduce__(self): return os.system, (f'touch {home}/executed',)
    torch.save(dict(model=Code()), home/'code.pth')
    assert 'nothing else is unpickled' in refused(capsys, mae_finetune, '--encoder', home/'code.pth', *out)
    assert not (home/'executed').exists() and not (home/'never').exists()
    (home/'cut.pth').write_bytes((home/'decoder.pth').read_bytes()[:500])
    assert 'cut.pth' in refused(capsys, mae_finetune, '--encoder', home/'cut.pth', *out)
    assert 'nowhere' in refused(capsys, mae_finetune, '--encoder', home/'nowhere', *out)

@pytest.mark.slow
def test_the_encoder_is_not_overwritten(mae, home, capsys):
    "A run in the folder of the encoder that it starts from would remove it."
    run = home/'precious'
    assert mae_pretrain(['--output_dir', str(run), '--max_steps', '2', '--device', 'cpu']) == 0
    before = (run/'model.safetensors').read_bytes()
    for encoder in (run, run/'checkpoints'/'step-00000002'):
        assert 'starts from' in refused(capsys, mae_finetune, '--encoder', encoder, '--output_dir', run, '--overwrite')
    assert (run/'model.safetensors').read_bytes() == before

@pytest.mark.slow
def test_a_classifier_is_no_autoencoder(whole, capsys):
    assert mae_report([str(whole)]) == 2
    assert 'mae_eval' in capsys.readouterr().err

def test_wrong_data(mae, home, capsys):
    from PIL import Image
    def folder(name, **classes):
        for split,names in classes.items():
            for c in names:
                (home/name/split/c).mkdir(parents=True)
                for i in range(4): Image.new('RGB', (28, 28), (i, 9, 9)).save(home/name/split/c/f'{i}.png')
        return home/name
    enc = keep(home/'rgb', in_chans=3, mean=(.5,)*3, std=(.2,)*3)
    flags = ['--encoder', enc, '--batch_size', 2, '--output_dir', home/'never']
    assert "['b', 'c']" in refused(capsys, mae_finetune, *flags, '--data', folder('differ', train='ab', val='ac'))
    (home/'bare').mkdir(); Image.new('RGB', (28, 28)).save(home/'bare'/'x.png')
    assert 'without a class' in refused(capsys, mae_finetune, *flags, '--data', home/'bare')
    said = refused(capsys, mae_finetune, '--encoder', mae, '--data', folder('fine', train='ab', val='ab'), '--batch_size', 2, '--output_dir', home/'never')
    assert 'images of 3 channels, and the model takes 1' in said
    assert 'lower batch_size' in refused(capsys, mae_finetune, '--encoder', enc, '--data', home/'fine', '--output_dir', home/'never')

@pytest.mark.parametrize('flags,named', [
    ('--label_fraction 0', 'label_fraction'), ('--batch_size 15 --mixup 0.8', 'even'), ('--trainable_blocks 9', '9'), ('--trainable_blocks 0.3', '0.3'), ('--drop_path 1', 'drop_path'),
    ('--layer_decay 0', 'layer_decay'), ('--optimizer lars', 'layer_decay'), ('--rand_augment m9', 'rand_augment'), ('--cache', 'frozen'), ('--pool max', 'max'),
    ('--recipe paper_vit_base_1600', 'is a recipe for mae_pretrain'), ('--recipe paper_finetune_vit_bas', 'did you mean'), ('--label_smoothing nan', 'smoothing'), ('--betas 0.9', 'betas'),
    ('--crop_pct 0', 'crop_pct'), ('--model mae_vit_nan_patch4', 'did you mean'), ('--eval_every 0', 'eval_every')])
def test_bad_values(flags, named, mae, home, capsys):
    assert named in refused(capsys, mae_finetune, '--encoder', mae, '--output_dir', home/'never', *flags.split())
    assert not (home/'never').exists()
