"Semantic segmentation: its head, metric and windows against others, its values read back, its runs resumed and in two processes, bad input."
import io, multiprocessing, re, shutil
from dataclasses import replace
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from launch import launch
from mae_nb import cli
from mae_nb.core.dist import DistInfo
from mae_nb.core.files import read_json, read_jsonl, read_tensors
from mae_nb.data.bundled import photo
from mae_nb.data.loader import train_loader
from mae_nb.recipes import recipe, recipes
from mae_nb.tasks.config import FinetuneConfig
from mae_nb.tasks.finetune import FinetuneTask
from mae_nb.train.engine import task_steps
from mae_nb.transfer.config import SegmentConfig
from mae_nb.transfer.miou import confusion_matrix, count_pixels, evaluate_maps, predict_windows, segmentation_metrics, window_starts
from mae_nb.transfer.segcrops import SegmentationDataset
from mae_nb.transfer.segdata import BadMap, decode_map, ignored, load_map_splits
from mae_nb.transfer.segment import SegmentTask, evaluate_run, predict_maps, segment
from mae_nb.transfer.pyramid import feature_maps
from mae_nb.transfer.segmenter import load_segmenter, make_segmenter
from mae_nb.transfer.upernet import FCNHead, UperNetHead
from mae_nb.weights.hub import from_pretrained

quiet = dict(log=lambda line: None)
TRAIN,TEST = 12,5

def save_map(path, labels, mode=None): Image.fromarray(labels, mode).save(path)

def make_folder(root, splits=('training', 'validation'), maps='annotations'):
    "Photographs of several sizes; classes are levels of brightness, the darkest pixels are unlabelled."
    cat = photo('chelsea').permute(1, 2, 0).numpy()
    for split,n in zip(splits, (TRAIN, TEST)):
        for d in 'images', maps: (root/d/split).mkdir(parents=True)
        for i in range(n):
            h,w = 30 + 2*i, 44 - i
            img = cat[17*i:17*i + h,23*i:23*i + w]
            Image.fromarray(img).save(root/f'images/{split}/{i:02d}.png')
            save_map(root/f'{maps}/{split}/{i:02d}.png', (img.mean(2)//40).clip(0, 3).astype(np.uint8))
    return root

@pytest.fixture(scope='module')
def ade(tmp_path_factory): return make_folder(tmp_path_factory.mktemp('ade')/'set')

def tiny(data, **more):
    "A configuration whose runs take a second."
    how = dict(data=str(data), model='mae_vit_nano_patch4', patch_size=6, img_size=(24, 24), head_channels=8, aux_channels=8, drop_path=0.2, batch_size=4,
               epochs=2, log_every=1, blr=1e-2, warmup_epochs=0.5, device='cpu')
    return SegmentConfig(**how | more)

# --- head ---
def randomised(module):
    for p in module.parameters(): nn.init.normal_(p, std=0.2)
    for k,b in module.named_buffers():
        if k.endswith('running_mean'): nn.init.normal_(b)
        if k.endswith('running_var'): nn.init.uniform_(b, 0.5, 2)
    return module.eval()

def under_hf_names(state):
    names = {'pool.stages': 'psp_modules', 'pool.join': 'bottleneck', 'lateral': 'lateral_convs', 'smooth': 'fpn_convs', 'join': 'fpn_bottleneck', 'classify': 'classifier', 'conv': 'convs.0'}
    out = {}
    for k,v in state.items():
        old = next(o for o in names if k.startswith(f'{o}.'))
        out[names[old] + k.removeprefix(old).replace('.norm.', '.batch_norm.')] = v
    return out

@pytest.mark.slow
@pytest.mark.parametrize('dims,sizes', [((8, 8, 8, 8), (16, 8, 4, 2)), ((4, 8, 12, 16), (27, 14, 7, 3))])
def test_heads_of_transformers(dims, sizes):
    hf = pytest.importorskip('transformers.models.upernet.modeling_upernet')
    torch.manual_seed(0)
    cfg = hf.UperNetConfig(hidden_size=6, num_labels=7, auxiliary_channels=5)
    maps = [torch.randn(2, d, s, s + 1) for d,s in zip(dims, sizes)]
    ours,theirs = randomised(UperNetHead(dims, 7, 6)),hf.UperNetHead(cfg, dims).eval()
    theirs.load_state_dict(under_hf_names(ours.state_dict()))
    assert (ours(maps) - theirs(maps)).abs().max() < 1e-5 < ours(maps).abs().max()
    ours,theirs = randomised(FCNHead(dims[2], 7, 5)),hf.UperNetFCNHead(cfg, dims).eval()
    theirs.load_state_dict(under_hf_names(ours.state_dict()))
    assert (ours(maps[2]) - theirs(maps)).abs().max() < 1e-5

@pytest.mark.slow
def test_backbone_is_the_encoder():
    "On pre-trained weights the maps are the encoder's states, up to rounding: relative positions and layer scale change nothing at first."
    scenes = load_map_splits('scenes')[1]
    model = make_segmenter(SegmentConfig(encoder='fashion_nano', head_channels=4, aux_channels=4), scenes).eval()
    encoder = from_pretrained('fashion_nano', 'encoder', log=lambda line: None)
    x = torch.randn(2, 1, 28, 28)
    states = encoder.encode(x, [f'blocks.{i}' for i in range(4)]).intermediates
    for a,b in zip(feature_maps(model.backbone, x), states.values()): assert (a.flatten(2).transpose(1, 2) - b[:,1:]).abs().max() < 1e-4

# --- metric ---
@pytest.mark.slow
def test_miou_of_torchmetrics():
    metrics = pytest.importorskip('torchmetrics.classification')
    torch.manual_seed(0)
    labels = torch.randint(6, (4, 30, 30))
    labels[labels == 3] = 1  # absent
    labels[:,:9] = ignored
    pred = torch.where(torch.rand(labels.shape) < 0.7, labels, torch.randint(6, labels.shape)).clamp(max=5)
    pred[pred == 3] = 2
    for n,p in (6, pred), (7, pred.where(torch.rand(pred.shape) > 0.001, 6)):  # a class that is predicted, and never there
        matrix = sum(confusion_matrix(a, b, n) for a,b in zip(p, labels))
        found = segmentation_metrics(matrix)
        theirs = metrics.MulticlassJaccardIndex(n, ignore_index=ignored, average='macro')(p, labels).item()
        assert found['mIoU'] == pytest.approx(100*theirs, abs=1e-4)
        known = labels != ignored
        assert found['aAcc'] == pytest.approx(100*(p == labels)[known].float().mean().item(), abs=1e-4)

def published_windows(n, window, stride):
    "mmsegmentation's `slide_inference`, one axis."
    grids = max(n - window + stride - 1, 0)//stride + 1
    starts = []
    for i in range(grids):
        end = min(i*stride + window, n)
        starts.append(max(end - window, 0))
    return starts

@pytest.mark.parametrize('n', [1, 511, 512, 513, 683, 852, 853, 854, 2048])
def test_windows_of_the_reproduction(n): assert window_starts(n, 512, 341) == published_windows(n, 512, 341)

# --- values ---
@pytest.mark.parametrize('name', ['paper_segment_base', 'paper_segment_large', 'upernet_base'])
def test_recipe_is_read_back(name, ade):
    "Learning rate by layer, groups without decay, stochastic depth, schedule, crops: of a model as small as can be."
    cfg = recipe(name, 'segment').config
    assert (cfg.img_size, cfg.base_size, cfg.mean[0], cfg.head_channels, cfg.aux_channels) == ((512, 512), (512, 2048), 0.485, None, 256)
    task = SegmentTask(replace(cfg, data=str(ade), encoder=None, model='mae_vit_nano_patch4', patch_size=6, img_size=(24, 24), batch_size=12, effective_batch=12, num_workers=0, device='cpu'))
    assert (task.model.cfg.rel_pos, task.model.cfg.aux_channels, task.model.head.aux_weight, task.model.cfg.head_channels) == (True, 256, 0.4, 96)
    group_of = {id(p): g for g in task.optimizer().param_groups for p in g['params']}
    for k,p in task.model.named_parameters():
        g = group_of[id(p)]
        m = re.match(r'backbone\.blocks\.(\d+)', k)
        assert g['lr_scale'] == pytest.approx(0.65**(4 - int(m[1]) if m else 5 if k.startswith('backbone') else 0)), k
        plain = p.ndim == 1 or k.endswith(('pos_embed', 'cls_token', 'bias_table'))
        assert g['weight_decay'] == (0 if plain else 0.05) and g['betas'] == (0.9, 0.999), k
    assert [b.drop_path1.drop_prob if hasattr(b.drop_path1, 'drop_prob') else 0. for b in task.model.blocks] == pytest.approx([0, 0.1/3, 0.2/3, 0.1])
    assert {m.p for m in task.model.modules() if isinstance(m, nn.Dropout2d)} == {0.1}
    peak,T,W = 1e-4*12/16,task.total_steps,1500/1263*task.steps_per_epoch
    assert T == (127 if name == 'upernet_base' else 100)*task.steps_per_epoch
    for t in 0, W/2, W, T/2, T: assert task.learning_rate(t) == pytest.approx(peak*(1 - t/T)*min(1, t/W))
    d = task.dataset
    assert (d.ratio_range, d.base_size, d.cat_max_ratio, d.flip, d.photometric, d.size) == ((0.5, 2.), (512, 2048), 0.75, True, True, (24, 24))
    assert cfg.inference == 'slide' and cfg.schedule == 'poly' and cfg.weight_decay == 0.05 and cfg.min_lr == 0

def test_160_000_steps():
    cfg = recipes['upernet_base'].config
    assert cfg.max_steps == 160_000 and 20_210//16*cfg.epochs > 160_000 and cfg.warmup_epochs*(20_210//16) == pytest.approx(1500)

# --- samples ---
def test_samples_depend_on_nothing_else(ade):
    "The same crops from workers, from another batch size, and for one of two processes."
    train,_ = load_map_splits(ade)
    view = SegmentationDataset(train, (24, 24), (0.4,)*3, seed=3)
    def pairs(**how): return {i.numpy().tobytes(): m for imgs,maps in train_loader(view, how.pop('batch', 6), 1, **how) for i,m in zip(imgs.clone(), maps)}
    whole = pairs()
    assert len(whole) == TRAIN
    for part in pairs(num_workers=1), pairs(batch=3, rank=1, processes=2):
        for img,labels in part.items(): assert torch.equal(whole[img], labels)

def test_zero_is_unlabelled(ade, tmp_path):
    train,test = load_map_splits(ade)
    raw = torch.from_numpy(np.asarray(Image.open(ade/'annotations/training/00.png')).copy()).long()
    labels = train.pair(0)[1].long()
    assert torch.equal(labels == ignored, raw == 0) and torch.equal(labels[raw > 0], raw[raw > 0] - 1) and train.num_classes == 3
    listed = shutil.copytree(ade, tmp_path/'listed')
    (listed/'objectInfo150.txt').write_text('Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.2\t9\t1\t1\twall\n2\t0.1\t9\t1\t1\tbuilding, edifice\n3\t0.1\t9\t1\t1\tsky\n')
    assert load_map_splits(listed)[0].classes == ('wall', 'building', 'sky')
    other = make_folder(tmp_path/'other', ('train', 'val'), 'masks')
    assert load_map_splits(other)[0].num_classes == 4 and load_map_splits(other, reduce_zero_label=True)[0].num_classes == 3
    outside = tmp_path/'outside'
    for split in 'train', 'val':
        for d in 'images', 'masks': shutil.copytree(other/d/split, outside/split/d)
    for a,b in zip(load_map_splits(other), load_map_splits(outside)): assert len(a) == len(b) and torch.equal(a.pair(2)[1], b.pair(2)[1])

# --- runs ---
@pytest.fixture(scope='module')
def whole(ade, tmp_path_factory): return segment(tiny(ade, save_every=2, keep_checkpoints=9, ema_decay=0.5, output_dir=str(tmp_path_factory.mktemp('segment')/'run')), **quiet)

@pytest.mark.slow
def test_resumed(whole, ade, tmp_path):
    "Stopped after step 4 and continued: the same weights, to the last bit, and the same evaluation."
    run = shutil.copytree(whole, tmp_path/'run')
    shutil.rmtree(run/'checkpoints/step-00000006')
    for name in 'model.json', 'model.safetensors': (run/name).unlink()
    segment(tiny(ade, save_every=2, keep_checkpoints=9, ema_decay=0.5, output_dir=str(run), resume='auto'), **quiet)
    assert (run/'model.safetensors').read_bytes() == (whole/'model.safetensors').read_bytes()
    last = [[r for r in read_jsonl(p/'log.jsonl') if 'mIoU' in r][-1] for p in (whole, run)]
    assert last[0] == last[1] and 'ema_mIoU' in last[0]
    assert sorted(p.name for p in (whole/'pictures').iterdir()) == ['step-00000003.png', 'step-00000006.png']

@pytest.mark.slow
def test_saved_model(whole, ade):
    "Loaded from its folder it predicts images of any size, and has the numbers of its log; the moving average has others."
    model = load_segmenter(whole)
    assert model.cfg.num_classes == 3 and model.cfg.head == 'upernet' and read_json(whole/'model.json')['kind'] == 'segmentation'
    imgs = [photo('coffee')[:,:50,:31], Image.open(ade/'images/validation/00.png')]
    assert [tuple(m.shape) for m in predict_maps(model, imgs)] == [(50, 31), (30, 44)]
    with pytest.raises(ValueError, match='of 3 channels, got shape'): predict_maps(model, [torch.zeros(1, 30, 30, dtype=torch.uint8)])
    last = [r for r in read_jsonl(whole/'log.jsonl') if 'mIoU' in r][-1]
    test = load_map_splits(ade)[1]
    for m,k in (model, 'mIoU'), (load_segmenter(whole, use_ema=True), 'ema_mIoU'): assert evaluate_maps(m, test)['mIoU'] == pytest.approx(last[k], abs=1e-4)
    assert not torch.equal(load_segmenter(whole, use_ema=True).head.upernet.classify.weight, model.head.upernet.classify.weight)
    with pytest.raises(ValueError): FinetuneTask(FinetuneConfig(encoder=str(whole), device='cpu'))  # it is no encoder

SCRIPT = '''
import sys
from mae_nb.transfer.config import SegmentConfig
from mae_nb.transfer.segment import segment
segment(SegmentConfig(data=sys.argv[1], output_dir=sys.argv[2], resume=sys.argv[3] if len(sys.argv) > 3 else None, model='mae_vit_nano_patch4', patch_size=6, img_size=(24, 24),
                      head_channels=8, aux_channels=8, drop_path=float(sys.argv[4]) if len(sys.argv) > 4 else 0.2, batch_size=2, epochs=2, log_every=1, blr=1e-2, warmup_epochs=0.5,
                      save_every=2, keep_checkpoints=9, device='cpu'))
'''

@pytest.mark.slow
def test_two_processes(ade, tmp_path):
    "Resumed bit for bit; five test images, three of them in one process, counted once each."
    (tmp_path/'train.py').write_text(SCRIPT)
    r = launch(tmp_path/'train.py', ade, tmp_path/'two', processes=2)
    assert r.returncode == 0, r.said
    run = shutil.copytree(tmp_path/'two', tmp_path/'again')
    shutil.rmtree(run/'checkpoints/step-00000006')
    for name in 'model.json', 'model.safetensors': (run/name).unlink()
    r = launch(tmp_path/'train.py', ade, run, 'auto', processes=2)
    assert r.returncode == 0, r.said
    assert (run/'model.safetensors').read_bytes() == (tmp_path/'two/model.safetensors').read_bytes()
    last = [r for r in read_jsonl(run/'log.jsonl') if 'mIoU' in r][-1]
    alone = evaluate_run(tiny(ade, evaluate=str(run)), **quiet)
    for k in 'mIoU', 'mAcc', 'aAcc': assert alone[k] == pytest.approx(last[k], abs=1e-4)
    assert np.nanmean(alone['iou']) == pytest.approx(alone['mIoU'])

@pytest.mark.slow
def test_batch_norm_over_processes(tmp_path):
    "Half a batch in each of two processes has the output, gradients and statistics of the whole."
    (tmp_path/'norm.py').write_text('''
import sys, torch
from mae_nb.core.dist import init_distributed
from mae_nb.transfer.upernet import sync_batch_norm
x,w = torch.load(sys.argv[1])
with init_distributed('cpu', lambda line: None) as dist:
    half = slice(dist.rank*3, dist.rank*3 + 3)
    norm = sync_batch_norm(torch.nn.Sequential(torch.nn.BatchNorm2d(4)), dist.size)[0]
    a = x[half].clone().requires_grad_()
    out = norm(a)
    (out*w[half]).sum().backward()
    torch.distributed.all_reduce(norm.weight.grad)
    torch.save([out.detach(), a.grad, norm.weight.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked], f'{sys.argv[2]}/{dist.rank}')
''')
    torch.manual_seed(0)
    x,w = torch.randn(6, 4, 5, 5)*3 + 2,torch.randn(6, 4, 5, 5)
    torch.save((x, w), tmp_path/'x')
    r = launch(tmp_path/'norm.py', tmp_path/'x', tmp_path, processes=2)
    assert r.returncode == 0, r.said
    norm,a = nn.BatchNorm2d(4),x.clone().requires_grad_()
    out = norm(a)
    (out*w).sum().backward()
    parts = [torch.load(tmp_path/str(rank)) for rank in (0, 1)]
    for i,expected in enumerate((out.detach(), a.grad)): assert torch.allclose(torch.cat([p[i] for p in parts]), expected, atol=1e-5)
    for p in parts:
        for found,expected in zip(p[2:], (norm.weight.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked)): assert torch.allclose(found, expected, atol=1e-4)

def test_accumulation(ade):
    "A batch in two halves: the same losses, once BatchNorm is out of it."
    class Plain(SegmentTask):
        def setup(self):
            super().setup()
            for m in self.model.modules():
                if isinstance(m, nn.BatchNorm2d): m.forward = lambda x: x
    cfg = tiny(ade, drop_path=0., dropout=0., max_steps=3)
    one,two = ([r['loss'].item() for r in task_steps(Plain(c))] for c in (cfg, replace(cfg, batch_size=2, accum_iter=2)))
    assert max(abs(a - b) for a,b in zip(one, two)) < 1e-5

def test_each_image_is_counted_once(ade, whole):
    model,test = load_segmenter(whole),load_map_splits(ade)[1]
    labelled = [int((test.pair(i)[1] != ignored).sum()) for i in range(TEST)]
    counts = [int(count_pixels(model, test, DistInfo(rank, 3)).sum()) for rank in range(3)]
    assert counts == [sum(labelled[rank::3]) for rank in range(3)]
    with torch.no_grad(): assert predict_windows(model.predict, [torch.randn(3, 24, 24)], (24, 24))[0].shape == (3, 24, 24)

def test_a_saved_model_knows_how_classes_are_counted(tmp_path):
    "Evaluated without --reduce_zero_label, and with its EMA weights: the numbers of the run."
    data = make_folder(tmp_path/'other', ('train', 'val'), 'masks')  # not ADE20K's names
    run = segment(tiny(data, reduce_zero_label=True, ema_decay=0.5, max_steps=2, output_dir=str(tmp_path/'run')), **quiet)
    last = [r for r in read_jsonl(run/'log.jsonl') if 'mIoU' in r][-1]
    for ema in False, True:
        found = evaluate_run(tiny(data, evaluate=str(run), encoder_ema=ema), **quiet)
        assert found['mIoU'] == pytest.approx(last['ema_'*ema + 'mIoU'], abs=1e-5)
    assert last['ema_mIoU'] != last['mIoU'] or last['ema_aAcc'] != last['aAcc']

# --- queries ---
@pytest.mark.slow
def test_queries_are_trained_and_resumed(ade, tmp_path):
    "Masked at random while they train, and the same after a stop; not masked at the end."
    cfg = tiny(ade, head='query', rel_pos=False, num_queries=6, query_blocks=2, save_every=2, keep_checkpoints=9)
    one = segment(replace(cfg, output_dir=str(tmp_path/'one')), **quiet)
    run = shutil.copytree(one, tmp_path/'two')
    shutil.rmtree(run/'checkpoints/step-00000006')
    segment(replace(cfg, output_dir=str(run), resume='auto'), **quiet)
    assert (run/'model.safetensors').read_bytes() == (one/'model.safetensors').read_bytes()
    probs = [read_tensors(one/f'checkpoints/step-{n:08d}/model.safetensors')['head.mask_prob'] for n in (2, 4, 6)]  # after 1, 3 and 5 of 6 steps
    assert torch.equal(probs[0], torch.ones(2)) and 0 <= probs[1][0] < probs[1][1] <= 1 and probs[2].max() < 0.5
    found = [r for r in read_jsonl(one/'log.jsonl') if 'mIoU' in r][-1]
    assert evaluate_maps(load_segmenter(one), load_map_splits(ade)[1]).keys() <= found.keys()
    assert predict_maps(load_segmenter(one), [photo('coffee')[:,:50,:31]])[0].shape == (50, 31)

def test_query_parameters_without_decay(ade):
    task = SegmentTask(tiny(ade, head='query', rel_pos=False, num_queries=6, query_blocks=2))
    decay = {id(p): g['weight_decay'] for g in task.optimizer().param_groups for p in g['params']}
    plain = {k for k,p in task.model.named_parameters() if p.ndim > 1 and not decay[id(p)]}
    assert plain == {'backbone.pos_embed', 'backbone.cls_token', 'head.query'}

# --- bad input ---
def said(capsys, *args):
    "The message of a refusal, without a traceback."
    assert cli.mae_segment([str(a) for a in args]) == 2
    err = capsys.readouterr().err
    assert 'Traceback' not in err
    return ' '.join(re.sub('[│╭╮╰╯─]', ' ', err).split())

def flags(data, out): return ['--data', data, '--model', 'mae_vit_nano_patch4', '--patch_size', 6, '--img_size', 24, '--head_channels', 8, '--aux_channels', 8, '--batch_size', 4,
                              '--epochs', 1, '--output_dir', out, '--device', 'cpu']

def spoil(root, what):
    at = root/'annotations/training/03.png'
    labels = np.asarray(Image.open(at)).copy()
    if what == 'size': save_map(at, labels[:-2])
    if what == 'class': save_map(at, labels + 100)
    if what == 'colour': Image.fromarray(labels).convert('RGB').save(at)
    if what == 'missing': at.unlink()
    if what == 'empty':
        for p in (root/'annotations/training').iterdir(): save_map(p, np.zeros_like(np.asarray(Image.open(p))))
    if what == 'names': (root/'classes.txt').write_text('sky\n\ntree\n')
    if what == 'test': (root/'annotations/validation').rename(root/'annotations/valid')
    if what in ('class', 'empty'): (root/'classes.txt').write_text('dark\ngrey\nbright\n')

@pytest.mark.parametrize('what,says', [('size', '03.png has 36x41 pixels, and its map 34x41'), ('class', '03.png has class 102'), ('colour', 'is an image of mode RGB'),
                                       ('missing', '1 of 12 images under'), ('empty', 'none of 12 maps looked at has a labelled pixel'), ('names', 'has an empty line, 2')])
def test_bad_maps_are_refused(what, says, tmp_path, capsys):
    spoil(make_folder(tmp_path/'set'), what)
    assert says in said(capsys, *flags(tmp_path/'set', tmp_path/'run'))
    assert not (tmp_path/'run').exists()

@pytest.mark.slow
def test_other_bad_input(ade, whole, tmp_path, capsys):
    out = flags(ade, tmp_path/'run')
    (tmp_path/'empty').mkdir()
    for more,says in ((['--data', tmp_path/'nowhere'], 'neither a folder'), (['--data', tmp_path/'empty'], 'needs a folder images'), (['--img_size', 25], 'does not divide'),
                      (['--cat_max_ratio', 0], 'cat_max_ratio'), (['--num_classes', 2], 'has class 2 (counted from 0), and there are 2 classes'), (['--batch_size', 64], 'there are 12'),
                      (['--encoder', 'fashion_nano', '--model', 'none'], 'images of 3 channels, and the model takes 1'), (['--encoder', tmp_path/'empty'], 'empty'),
                      (['--output_dir', ade/'images/training/run'], 'lies among the images'), (['--evaluate', whole, '--data', 'scenes'], 'knows 3 classes, and scenes has 11'),
                      (['--head', 'query'], 'give'), (['--encoder', whole, '--output_dir', whole, '--overwrite'], 'give another output_dir')): assert says in said(capsys, *out, *more), more
    assert not (tmp_path/'run').exists()

def test_a_bad_map_that_was_not_looked_at(tmp_path, monkeypatch):
    "Found in a worker, it stops the run, in one line."
    from mae_nb.transfer import segment as module
    spoil(make_folder(tmp_path/'set'), 'size')
    monkeypatch.setattr(module, 'check_maps', lambda *a, **kw: [])
    for workers in 0, 1:
        with pytest.raises(BadMap) as e: segment(tiny(tmp_path/'set', num_classes=3, num_workers=workers, output_dir=str(tmp_path/f'run{workers}')), **quiet)
        assert re.fullmatch(r'\S+03.png has 36x41 pixels, and its map 34x41: they must be of one size', str(e.value))
        assert not multiprocessing.active_children()  # the worker has ended, although the error's traceback is kept

@pytest.mark.slow
def test_some_empty_maps_and_a_broken_image(tmp_path):
    "A map without any label is trained, with no loss; a broken image is named, and replaced by another."
    root = make_folder(tmp_path/'set')
    save_map(root/'annotations/training/02.png', np.zeros_like(np.asarray(Image.open(root/'annotations/training/02.png'))))
    for at in 'training/05.png', 'validation/01.png': (root/'images'/at).write_bytes((root/'images'/at).read_bytes()[:300])
    lines = []
    run = segment(tiny(root, output_dir=str(tmp_path/'run')), log=lines.append)
    text = '\n'.join(lines)
    assert '1 of 12 maps looked at have no labelled pixel' in text and 'skipped: cannot read' in text and '05.png' in text
    records = read_jsonl(run/'log.jsonl')
    assert all(np.isfinite(r['loss']) for r in records if 'loss' in r) and [r['test_skipped'] for r in records if 'mIoU' in r] == [1, 1]

def test_palette_and_16_bits(tmp_path):
    labels = np.array([[0, 7], [255, 3]], np.uint8)
    for kind in 'palette', '16 bits':
        img = Image.fromarray(labels.astype(np.uint16) if kind == '16 bits' else labels)
        if kind == 'palette':
            img = img.convert('P') if img.mode == 'P' else Image.frombytes('P', img.size, labels.tobytes())
            img.putpalette([200, 100, 50]*256)
        out = io.BytesIO()
        img.save(out, 'png')
        assert np.array_equal(decode_map(out.getvalue(), num_classes=8), labels)

# --- all together ---
@pytest.mark.slow
def test_two_commands(ade, tmp_path, capsys):
    "Pre-trained on the photographs of a folder, then trained on its maps; and evaluated by a third."
    mae,seg = tmp_path/'mae',tmp_path/'seg'
    assert cli.mae_pretrain(['--data', str(ade/'images'), '--model', 'mae_vit_nano_patch4', '--img_size', '24', '--patch_size', '6', '--max_steps', '3', '--batch_size', '4',
                             '--output_dir', str(mae), '--device', 'cpu']) == 0
    args = ['--encoder', mae, '--data', ade, '--head_channels', 8, '--aux_channels', 8, '--batch_size', 4, '--epochs', 1, '--output_dir', seg, '--device', 'cpu']
    assert cli.mae_segment([str(a) for a in args]) == 0
    out = capsys.readouterr().out
    assert '0 is unlabelled, classes count from 1; 255 is ignored; 3 classes' in out and 'mIoU' in out
    found = [r for r in read_jsonl(seg/'log.jsonl') if 'mIoU' in r][-1]
    assert cli.mae_segment(['--evaluate', str(seg), '--data', str(ade), '--device', 'cpu']) == 0
    assert f'on {TEST} images' in (out := capsys.readouterr().out) and f'mIoU {found["mIoU"]:.4g}' in out
