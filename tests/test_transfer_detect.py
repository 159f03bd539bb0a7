"Detection: against pycocotools and the encoder; recipes read back; resumed, and in two processes; COCO-style folders, good and bad."
import json, math, shutil
from dataclasses import replace
import numpy as np, pytest, torch
from PIL import Image
from launch import launch
from mae_nb import cli
from mae_nb.core.files import read_json, read_jsonl, read_tensors
from mae_nb.data.bundled import photo
from mae_nb.data.images import CorruptImage
from mae_nb.data.loader import train_loader
from mae_nb.model.encoder import MAEEncoder
from mae_nb.recipes import recipe, recipes
from mae_nb.transfer.ap import average_precision, coco_truth, detect_images, to_results
from mae_nb.transfer.config import DetectConfig
from mae_nb.transfer.detdata import CocoInstances, find_annotations, load_instances, some_images
from mae_nb.transfer.detect import DetectTask, detect
from mae_nb.transfer.jitter import JitteredInstances, decode_masks, encode_masks, jitter_size, to_rle
from mae_nb.transfer.maskrcnn import Detector, DetectorConfig, load_detector, make_rcnn
from mae_nb.transfer.pyramid import DenseViTConfig, feature_maps, load_backbone, make_backbone
from mae_nb.weights.adapt import select_part
from mae_nb.weights.formats import read_weights
from mae_nb.weights.hub import resolve_weights

quiet = dict(log=lambda line: None)

def square(x, y, s): return [[x, y, x + s, y, x + s, y + s, x, y + s]]

def annotation(image, x, y, s, category, **more):
    return dict(image_id=image, category_id=category, bbox=[x, y, s, s], segmentation=square(x, y, s), area=s*s, iscrowd=0) | more

def write_set(folder, file, n, seed, empty=()):
    "Photographs with bright squares on them, of categories 3 and 90, and the JSON file."
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    found = dict(images=[], annotations=[], categories=[dict(id=90, name='toothbrush'), dict(id=3, name='car')])
    names = 'astronaut', 'chelsea', 'coffee'
    for i in range(n):
        h,w = (int(v) for v in rng.integers(28, 49, 2))
        img = photo(names[i % 3], 48)[:,:h,:w].clone()
        for k in range(0 if i in empty else 1 + i % 2):
            x,y,s = (int(v) for v in rng.integers((0, 0, 8), (w - 16, h - 16, 16)))
            category = (3, 90)[(i + k) % 2]
            img[:,y:y+s,x:x+s] = 255 if category == 3 else 0
            found['annotations'].append(annotation(100 + i, x, y, s, category, id=len(found['annotations'])))
        found['images'].append(dict(id=100 + i, file_name=f'{i:012d}.jpg', height=h, width=w))
        Image.fromarray(img.permute(1, 2, 0).numpy()).save(folder/f'{i:012d}.jpg', quality=95)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))
    return found

@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    "In COCO's own layout: 8 images, three of them without objects, and 5 to test on."
    at = tmp_path_factory.mktemp('coco')
    write_set(at/'train2017', at/'annotations/instances_train2017.json', 8, 0, empty=(2, 3, 5))
    write_set(at/'val2017', at/'annotations/instances_val2017.json', 5, 1, empty=(4,))
    return at

TINY = DetectConfig(model='mae_vit_nano_patch4', img_size=(32, 32), channels=16, box_dim=32, proposals=20, box_samples=16, drop_path=0.2, epochs=3, max_steps=4,
                    batch_size=4, warmup_epochs=0.5, blr=0.064, log_every=1, save_every=2, keep_checkpoints=9, eval_every=2, device='cpu')

@pytest.fixture(scope='module')
def whole(coco, tmp_path_factory): return detect(replace(TINY, data=str(coco), output_dir=str(tmp_path_factory.mktemp('run')/'run')), **quiet)

# --- metric ---
def crowded(seed):
    "Truth with crowds and masks of any form, and detections: some right, some moved, some of nothing."
    rng = np.random.default_rng(seed)
    images = [dict(id=i, height=120, width=150) for i in range(1, 9)]
    truth,results = [],[]
    for image in images:
        for _ in range(rng.integers(0, 7)):
            x,y,s = (int(v) for v in rng.integers((0, 0, 6), (80, 60, 60)))
            mask = torch.zeros(1, 120, 150, dtype=torch.bool)
            mask[0,y:y+s,x:x+s] = torch.rand(s, s, generator=torch.Generator().manual_seed(s)) > 0.03
            crowd = int(rng.random() < 0.2)
            a = dict(id=len(truth) + 1, image_id=image['id'], category_id=int(rng.choice([3, 90])), bbox=[x, y, s, s], area=int(mask.sum()), iscrowd=crowd, segmentation=encode_masks(mask)[0])
            truth.append(a)
            for _ in range(rng.integers(0, 3)):
                dx,dy = (int(v) for v in rng.integers(-3, 4, 2))
                moved = mask.roll((dy, dx), (1, 2))
                label = a['category_id'] if rng.random() < 0.8 else 3
                results.append(dict(image_id=image['id'], category_id=label, bbox=[x + dx, y + dy, s, s], score=float(rng.random()), segmentation=encode_masks(moved)[0]))
    return dict(info={}, images=images, annotations=truth, categories=[dict(id=3, name='a'), dict(id=90, name='b')]), results

@pytest.mark.parametrize('seed', [0, 1, 2])
def test_ap_of_pycocotools(seed):
    "The reference implementation, fed with the same; for masks without boxes in the results, as detectron2 does."
    coco_api = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval
    truth,results = crowded(seed)
    ours = average_precision(truth, results)
    for kind,name,drop in ('bbox', 'box', 'segmentation'), ('segm', 'mask', 'bbox'):
        gt = coco_api.COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        run = COCOeval(gt, gt.loadRes([{k: v for k,v in r.items() if k != drop} for r in results]), kind)
        run.evaluate(); run.accumulate(); run.summarize()
        for key,value in zip(('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'), run.stats):
            if value < 0: assert f'{name}_{key}' not in ours
            else: assert abs(ours[f'{name}_{key}'] - 100*value) < 1e-8  # of percents: 1e-10 of fractions
    assert 5 < ours['mask_AP'] < 95

def test_masks_of_pycocotools():
    mask = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(0)
    for _ in range(20):
        polygons = (rng.random((2, 10))*40).tolist()
        theirs = mask.merge(mask.frPyObjects(polygons, 30, 40))
        assert to_rle(polygons, (30, 40))['counts'] == theirs['counts'].decode()
        bits = rng.random((30, 40)) > 0.5
        rle = encode_masks(torch.from_numpy(bits)[None])[0]
        assert rle['counts'] == mask.encode(np.asfortranarray(bits.astype(np.uint8)))['counts'].decode()
        assert np.array_equal(decode_masks([rle], (30, 40))[0].numpy(), bits)

# --- network ---
def test_windows_as_large_as_the_grid_are_the_encoder():
    "The ViT of the detector, with weights of a masked autoencoder: what that one's blocks compute without a class token."
    path,told = resolve_weights('fashion_nano')
    w = read_weights(path, **told)
    sizes = {k: w.shapes[k] for k in ('img_size', 'patch_size', 'in_chans', 'embed_dim', 'depth', 'num_heads', 'mlp_ratio')} | dict(depth=8)
    encoder = MAEEncoder(DenseViTConfig(**sizes)).eval()
    for k,v in w.state.items():  # its four blocks, twice
        for to in (k, *(k.replace(f'blocks.{i}.', f'blocks.{i + 4}.') for i in range(4) if f'blocks.{i}.' in k)):
            if to in encoder.state_dict(): encoder.state_dict()[to].copy_(v)
    imgs = torch.randn(2, 1, 28, 28)
    vit = make_backbone(DenseViTConfig(**sizes, window_size=7)).eval()
    assert [b.window_size for b in vit.blocks] == [7, 0]*4
    load_backbone(vit, replace(select_part(w, 'encoder'), state=dict(encoder.state_dict()), shapes=w.shapes | dict(depth=8)))
    with torch.no_grad():
        x = encoder.embed(*encoder.to_patches(imgs))[:,1:]
        for block in encoder.blocks: x = block(x)
        assert torch.allclose(feature_maps(vit, imgs, (7,))[0].flatten(2).mT, x, atol=1e-4)

def test_vitdet_base():
    "Sizes of the published network, without memory: heads, windows, relative positions, proposals."
    c = recipe('vitdet_base').config
    with torch.device('meta'):
        net = make_rcnn(DetectorConfig(img_size=1024, window_size=c.window_size, classes=range(80), channels=c.channels, box_dim=c.box_dim, proposals=c.proposals, box_samples=c.box_samples))
    blocks = net.backbone.vit.blocks
    assert [b.attn.rel_pos_h.shape[0] for b in blocks] == [27, 27, 127]*4 and {b.window_size for b in blocks} == {0, 14}
    shapes = {k: tuple(p.shape) for k,p in net.named_parameters()}
    assert [shapes[f'rpn.head.conv.{i}.0.weight'] for i in (0, 1)] == [(256, 256, 3, 3)]*2 and 'rpn.head.conv.2.0.weight' not in shapes
    assert shapes['roi_heads.box_head.5.weight'] == (1024, 256*49) and shapes['roi_heads.box_predictor.cls_score.weight'] == (81, 1024)
    for head in 'box_head', 'mask_head':
        assert [type(m).__name__ for m in getattr(net.roi_heads, head)[0]] == ['Conv2d', 'LayerNorm2d', 'ReLU'] and f'roi_heads.{head}.3.0.weight' in shapes
    assert shapes['roi_heads.mask_predictor.mask_fcn_logits.weight'] == (81, 256, 1, 1)
    rpn,roi,t = net.rpn,net.roi_heads,net.transform
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (dict(training=2000, testing=1000), dict(training=1000, testing=1000))
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction, rpn.nms_thresh) == (256, 0.5, 0.7)
    assert (roi.fg_bg_sampler.batch_size_per_image, roi.fg_bg_sampler.positive_fraction, roi.score_thresh, roi.nms_thresh, roi.detections_per_img) == (512, 0.25, 0.05, 0.5, 100)
    assert (t.min_size, t.max_size, t.size_divisible) == ((1024,), 1024, 1024) and rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert [(p.output_size, p.sampling_ratio) for p in (roi.box_roi_pool, roi.mask_roi_pool)] == [((7, 7), 0), ((14, 14), 0)]

PUBLISHED = dict(  # drop path, layer decay, epochs, patch, box AP, mask AP
    vitdet_base=(0.1, 0.7, 100, None, 51.6, 45.9), vitdet_large=(0.4, 0.8, 100, None, 55.5, 49.2), vitdet_huge=(0.5, 0.9, 75, 16, 56.7, 50.2),
    paper_detect_base=(0.1, 1, 100, None, 50.3, 44.9), paper_detect_large=(0.3, 1, 50, None, 53.3, 47.2))

@pytest.mark.parametrize('name', PUBLISHED)
def test_recipes_read_back(name):
    "What the optimiser, the schedule, the blocks and the loader get, for a model as small as can be."
    drop,decay,epochs,patch,box,mask = PUBLISHED[name]
    r = recipe(name, 'detect')
    assert f'boxes {box}, masks {mask}' in r.expected and (r.config.patch_size, r.config.epochs, r.config.img_size) == (patch, epochs, (1024, 1024))
    if name.startswith('paper'): assert recipes[r.config.encoder.removeprefix('runs/')].kind == 'pretrain' and 'A.3' in r.source and r.config.pyramid == 'subsets'
    small = dict(data='scenes', encoder=None, model='mae_vit_nano_patch6', patch_size=None, img_size=(72, 72), window_size=None, channels=16, box_dim=32, batch_size=64, num_workers=0, eval_images=5, device='cpu')
    task = DetectTask(replace(r.config, **small))
    lr,begin = (8e-5, 0.25) if name.startswith('paper') else (1e-4, 250/1832)
    assert task.effective_batch == 64 and task.lr == pytest.approx(lr) and task.cfg.min_lr == 0
    n = task.total_steps
    warm = task.cfg.warmup_epochs*task.steps_per_epoch
    assert n == epochs*(2000//64) and warm/n == pytest.approx(begin/epochs)
    after = [task.learning_rate(t)/lr for t in (0, warm/2, (warm + n)/2, int(n*8/9) - 1, int(n*8/9) + 1, int(n*26/27) + 1, n - 1)]
    cosine = [0.5 + 0.5*math.cos(math.pi*(t - warm)/(n - warm)) for t in (int(n*8/9) - 1, int(n*8/9) + 1, int(n*26/27) + 1, n - 1)]
    assert after == pytest.approx([0, 0.5, 0.5, *cosine] if name.startswith('paper') else [0, 0.5, 1, 1, 0.1, 0.01, 0.01])
    names = {id(p): k for k,p in task.model.named_parameters()}
    groups = task.optimizer().param_groups
    got = {names[id(p)]: (g.get('lr_scale', 1.), g['weight_decay']) for g in groups for p in g['params']}
    assert got.keys() == set(names.values()) and {g['betas'] for g in groups} == {(0.9, 0.999)}
    vit = 'rcnn.backbone.vit.'
    for k,(scale,wd) in got.items():
        layer = 5 if not k.startswith(vit) else int(k.split('.')[4]) + 1 if '.blocks.' in k else 0
        p = dict(task.model.named_parameters())[k]
        assert scale == pytest.approx(decay**(5 - layer)) and wd == (0 if p.ndim == 1 or k == vit + 'pos_embed' else 0.1), k
    rates = [getattr(b.drop_path1, 'drop_prob', 0.) for b in task.model.blocks]
    assert rates == pytest.approx([drop*i/3 for i in range(4)]) and type(task.model.rcnn.backbone.pyramid).__name__ == dict(v='SimpleFeaturePyramid', p='SubsetPyramid')[name[0]]
    assert (task.dataset.scale, task.dataset.side, task.dataset.flip, task.cfg.empty_images) == ((0.1, 2.), 72, True, False)

def test_sizes_after_jitter():
    "torchvision's formula, which rounds down where ours rounds to the nearest."
    from torchvision.transforms import v2
    torch.manual_seed(0)
    img = torch.zeros(1, 480, 640)
    theirs = v2.ScaleJitter((1024, 1024), (0.1, 2.))
    for _ in range(20):
        h,w = theirs.make_params([img])['size']
        s = max(h/480, w/640)/min(1024/480, 1024/640)
        assert max(abs(a - b) for a,b in zip(jitter_size((480, 640), 1024, s), (h, w))) <= 1

def test_recomputed_activations():
    c = DetectorConfig(img_size=24, patch_size=6, in_chans=1, embed_dim=16, depth=8, num_heads=2, window_size=2, drop_path=0.5, classes='ab', channels=8, box_dim=16, proposals=9, box_samples=8)
    torch.manual_seed(0)
    model = Detector(c)
    masks = torch.zeros(1, 24, 24, dtype=torch.bool)
    masks[0,3:15,4:20] = True
    target = [dict(boxes=torch.tensor([[4., 3, 20, 15]]), labels=torch.tensor([1]), masks=masks)]
    def grads(on):
        model.set_grad_checkpointing(on)
        torch.manual_seed(1)
        return torch.autograd.grad(sum(model([torch.ones(1, 24, 24)/2], target).values()), list(model.parameters()))
    for a,b in zip(grads(False), grads(True)): assert torch.allclose(a, b, atol=1e-6)

def test_16_bits_and_no_object():
    "Losses in bfloat16 are near those of float32; a batch without any object gives every parameter a gradient, which several processes need."
    c = DetectorConfig(img_size=24, patch_size=6, in_chans=1, embed_dim=16, depth=4, num_heads=2, classes='ab', channels=8, box_dim=16, proposals=9, box_samples=8, pyramid='subsets')
    torch.manual_seed(0)
    model = Detector(c)
    none = [dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long), masks=torch.zeros(0, 24, 18, dtype=torch.bool))]
    losses = {}
    for on in False, True:
        torch.manual_seed(1)
        with torch.autocast('cpu', torch.bfloat16, enabled=on): losses[on] = model([torch.rand(1, 24, 18)], none)
    for k,v in losses[False].items(): assert abs(v - losses[True][k]) < 0.05, k
    sum(losses[True].values()).backward()
    assert all(p.grad is not None for p in model.parameters())

# --- runs ---
@pytest.mark.slow
def test_resumed(whole, coco, tmp_path):
    "Stopped after step 2 and continued: the same weights, to the last bit; and the same metrics."
    run = shutil.copytree(whole, tmp_path/'run')
    shutil.rmtree(run/'checkpoints/step-00000004')
    for name in 'model.json', 'model.safetensors': (run/name).unlink()
    torch.manual_seed(7)
    detect(replace(TINY, data=str(coco), output_dir=str(run), resume='auto'), **quiet)
    assert (run/'model.safetensors').read_bytes() == (whole/'model.safetensors').read_bytes()
    assert read_jsonl(run/'log.jsonl')[-1] == read_jsonl(whole/'log.jsonl')[-1]
    with pytest.raises(ValueError, match='scale_jitter: now'): detect(replace(TINY, data=str(coco), output_dir=str(run), resume='auto', scale_jitter=(0.1, 2.)), **quiet)

SCRIPT = '''
import sys
from dataclasses import replace
from mae_nb.transfer.config import DetectConfig
from mae_nb.transfer.detect import detect
out,data,steps = sys.argv[1:]
detect(DetectConfig(model='mae_vit_nano_patch4', img_size=(32, 32), channels=16, box_dim=32, proposals=20, box_samples=16, drop_path=0.2, epochs=3, max_steps=int(steps),
                    batch_size=2, warmup_epochs=0.5, blr=0.064, log_every=1, save_every=2, keep_checkpoints=9, eval_every=2, device='cpu', data=data, output_dir=out, resume='auto'))
'''

@pytest.mark.slow
def test_two_processes(coco, tmp_path):
    """Two processes with half of a batch each, or one with two halves one after the other: the same weights, to the last bit, though halves without objects are among them;
    the same results of five images, each once; and the same when stopped in the middle."""
    (tmp_path/'train.py').write_text(SCRIPT)
    r = launch(tmp_path/'train.py', tmp_path/'two', coco, 4, processes=2)
    assert r.returncode == 0, r.said
    halves = detect(replace(TINY, data=str(coco), output_dir=str(tmp_path/'halves'), batch_size=2, accum_iter=2), **quiet)
    two,one = (read_tensors(p/'model.safetensors') for p in (tmp_path/'two', halves))
    for k in one: assert torch.equal(one[k], two[k]), k
    results = [json.loads((p/'results.json').read_text()) for p in (tmp_path/'two', halves)]
    assert results[0] == results[1] and len(results[0]) > 5
    assert read_jsonl(halves/'log.jsonl')[-1] == read_jsonl(tmp_path/'two/log.jsonl')[-1]
    shutil.rmtree(tmp_path/'two/checkpoints/step-00000004')
    for name in 'model.json', 'model.safetensors': (tmp_path/'two'/name).unlink()
    r = launch(tmp_path/'train.py', tmp_path/'two', coco, 4, processes=2)
    assert r.returncode == 0, r.said
    assert 'resumed' in r.said
    again = read_tensors(tmp_path/'two/model.safetensors')
    for k in one: assert torch.equal(one[k], again[k]), k

@pytest.mark.slow
def test_what_a_run_leaves(whole, coco, tmp_path):
    model = load_detector(whole)
    assert (model.cfg.classes, model.cfg.category_ids, model.cfg.in_chans) == (('car', 'toothbrush'), (3, 90), 3)
    results = json.loads((whole/'results.json').read_text())
    assert {r['category_id'] for r in results} <= {3, 90} and {r['image_id'] for r in results} <= set(range(100, 105))
    assert [p.name for p in (whole/'detections').iterdir()] == ['step-00000004.png']
    said = []
    found = detect(replace(TINY, data=str(coco), evaluate=str(whole), output_dir=str(tmp_path/'out')), log=said.append)
    last = read_jsonl(whole/'log.jsonl')[-1]
    assert found['images'] == 5 and all(found[k] == pytest.approx(v, abs=1e-5) for k,v in last.items() if 'AP' in k)
    assert read_json(tmp_path/'out/evaluation.json')['box_AP'] == found['box_AP'] and (tmp_path/'out/detections/test.png').exists()
    with pytest.raises(ValueError, match='holds another run'): detect(replace(TINY, data=str(coco), evaluate=str(tmp_path/'x'), output_dir=str(whole)), **quiet)
    with pytest.raises(ValueError, match='has the categories'): detect(replace(TINY, data='scenes', evaluate=str(whole), output_dir=str(tmp_path/'y')), **quiet)

def test_workers_change_nothing(coco):
    view = JitteredInstances(load_instances(coco), 32, seed=5)
    one,two = (list(train_loader(view, 3, 2, n)) for n in (0, 2))
    assert len(one) == 4
    for (imgs,targets),(imgs2,targets2) in zip(one, two):
        for a,b in zip(imgs, imgs2): assert torch.equal(a, b)
        for a,b in zip(targets, targets2):
            for k in a: assert torch.equal(a[k], b[k])

@pytest.mark.slow
def test_two_commands(coco, tmp_path, capsys):
    "Pre-trained on the photographs of a COCO folder, then a detector of boxes alone on that encoder."
    assert cli.mae_pretrain(['--data', str(coco/'train2017'), '--output_dir', str(tmp_path/'mae'), '--model', 'mae_vit_nano_patch4', '--img_size', '32', '--batch_size', '8', '--epochs', '2', '--device', 'cpu']) == 0
    words = ['--data', str(coco), '--encoder', str(tmp_path/'mae'), '--output_dir', str(tmp_path/'det'), '--channels', '8', '--box_dim', '16', '--proposals', '9', '--box_samples', '8', '--batch_size', '4',
             '--max_steps', '2', '--device', 'cpu', '--no_masks', '--pyramid', 'subsets', '--schedule', 'steps', '--log_every', '1']
    assert cli.mae_detect(words) == 0, capsys.readouterr().err
    assert 'Faster R-CNN' in capsys.readouterr().out
    assert not any('segmentation' in r for r in json.loads((tmp_path/'det/results.json').read_text()))
    assert set(read_jsonl(tmp_path/'det/log.jsonl')[-1]) >= {'box_AP', 'box_AP50'} and not load_detector(tmp_path/'det').cfg.masks
    assert cli.mae_detect([*words[:2], '--evaluate', str(tmp_path/'det'), '--output_dir', str(tmp_path/'eval'), '--device', 'cpu']) == 0
    assert cli.mae_detect(['--recipe', 'vitdet_base', '--print']) == 0
    capsys.readouterr()

# --- bad input ---
def changed(coco, tmp_path, change, split='train'):
    "A copy of the set with another JSON file."
    at = shutil.copytree(coco, tmp_path/'copy')
    file = at/f'annotations/instances_{split}2017.json'
    found = read_json(file)
    change(found)
    file.write_text(json.dumps(found))
    return at

def first(found, **more): found['annotations'][0] |= more
LEFT_OUT = {  # what is done to a file, and what the plan says
    'no area': (lambda f: first(f, bbox=[3, 3, 0, 5]), 'with a box without area, left out: 1'),
    'outside': (lambda f: first(f, bbox=[90, 3, 5, 5]), 'with a box outside of the image, left out: 1'),
    'negative': (lambda f: first(f, bbox=[-9, -9, 5, 5]), 'with a box outside of the image, left out: 1'),
    'another image': (lambda f: first(f, image_id=999), 'of images that are not listed, or not there, left out: 1'),
    'empty polygons': (lambda f: first(f, segmentation=[]), 'without a mask, not trained with masks: 1'),
    'null': (lambda f: first(f, segmentation=None), 'without a mask, not trained with masks: 1'),
    'two corners': (lambda f: first(f, segmentation=[[1, 2, 3, 4]]), 'with a mask that cannot be used, not trained with masks: 1'),
    'another size': (lambda f: first(f, segmentation=dict(size=[5, 5], counts=[20, 5])), 'with a mask that cannot be used, not trained with masks: 1'),
    'damaged runs': (lambda f: first(f, segmentation=dict(size=[f['images'][0]['height'], f['images'][0]['width']], counts='zz~')), 'with a mask that cannot be used, not trained with masks: 1'),
    'text as mask': (lambda f: first(f, segmentation='mask.png'), 'with a mask that cannot be used, not trained with masks: 1'),
    'no categories': (lambda f: f.pop('categories'), 'classes are named by their ids'),
    'lost image': (lambda f: f['images'][0].update(file_name='lost.jpg'), 'warning: 1 of 8 images are not in'),
    'nothing': (lambda f: None, 'images without objects: 3')}

@pytest.mark.parametrize('case', LEFT_OUT)
def test_left_out_with_a_note(case, coco, tmp_path):
    change,says = LEFT_OUT[case]
    at = changed(coco, tmp_path, change)
    data = load_instances(at)
    assert any(says in n for n in data.notes), data.notes
    every = [data.instances(i) for i in range(len(data))]
    for i,found in enumerate(every):
        H,W = data.size(i)
        assert ((found['boxes'][:,2:] > found['boxes'][:,:2]).all() and found['boxes'].amin() >= 0 if len(found['boxes']) else True) and found['masks'].shape[1:] == (H, W)
    average_precision(coco_truth(data), [])  # can be judged, too

REFUSED = {
    'category': (lambda f: first(f, category_id=4), 'of category 4, and the file lists'),
    'box of three': (lambda f: first(f, bbox=[1, 2, 3]), 'no box of four numbers'),
    'box of words': (lambda f: first(f, bbox=['1', 2, 3, 4]), 'no box of four numbers'),
    'box is NaN': (lambda f: first(f, bbox=[float('nan'), 2, 3, 4]), 'no box of four numbers'),
    'no box': (lambda f: f['annotations'][0].pop('bbox'), 'no box of four numbers'),
    'no width': (lambda f: f['images'][0].pop('width'), 'whole number as width'),
    'id is text': (lambda f: f['images'][0].update(id='a'), 'whole number as id'),
    'id twice': (lambda f: f['images'][1].update(id=100), 'id 100 more than once'),
    'category twice': (lambda f: f['categories'][1].update(id=90), 'id 90 more than once'),
    'no images': (lambda f: f.pop('images'), 'is no COCO file'),
    'no name': (lambda f: f['images'][3].pop('file_name'), 'has no file_name'),
    'all lost': (lambda f: [m.update(file_name='lost.jpg') for m in f['images']], 'are in none of')}

@pytest.mark.parametrize('case', REFUSED)
def test_refused_by_name(case, coco, tmp_path):
    change,says = REFUSED[case]
    with pytest.raises(ValueError, match=says): load_instances(changed(coco, tmp_path, change))

def test_sets_that_contradict_each_other(coco, tmp_path):
    at = changed(coco, tmp_path, lambda f: f['categories'][1].update(name='lorry'), 'val')
    with pytest.raises(ValueError, match='different categories.*lorry'): DetectTask(replace(TINY, data=str(at)))
    found = read_json(at/'annotations/instances_train2017.json')
    for a in found['annotations']: a.pop('segmentation')
    for split in 'train', 'val': (at/f'annotations/instances_{split}2017.json').write_text(json.dumps(found))
    shutil.copytree(at/'train2017', at/'val2017', dirs_exist_ok=True)
    with pytest.raises(ValueError, match='has no masks: give masks=False'): DetectTask(replace(TINY, data=str(at)))
    assert DetectTask(replace(TINY, data=str(at), masks=False)).steps_per_epoch == 2
    (at/'annotations/instances_train2017.json').write_text(json.dumps(dict(found, annotations=[])))
    with pytest.raises(ValueError, match='none of 8 images has an object'): some_images(load_instances(at), empty=False)

def test_other_layouts(coco, tmp_path):
    "Of Roboflow, of labelling tools, and with a folder of all images."
    def found(data, split='train'):
        return find_annotations(data, split), load_instances(data, split).path
    for split,name in ('train', 'train'), ('val', 'valid'):
        at = shutil.copytree(coco/f'{split}2017', tmp_path/'robo'/name)
        shutil.copy(coco/f'annotations/instances_{split}2017.json', at/'_annotations.coco.json')
    assert found(tmp_path/'robo', 'test') == (tmp_path/'robo/valid/_annotations.coco.json', tmp_path/'robo/valid')
    tool = tmp_path/'tool'
    shutil.copytree(coco/'train2017', tool/'images')
    for split in 'train', 'test': shutil.copy(coco/'annotations/instances_train2017.json', tool/f'{split}.json')
    assert found(tool, 'test') == (tool/'test.json', tool/'images') and len(load_instances(tool)) == 8
    shutil.copy(tool/'train.json', tool/'train_old.json')
    with pytest.raises(ValueError, match='several annotations for train: train.json, train_old.json'): found(tool)
    alone = tmp_path/'alone'
    shutil.copytree(coco/'train2017', alone/'photos'/'train2017')
    shutil.copy(coco/'annotations/instances_train2017.json', alone/'labels.json')
    with pytest.raises(ValueError, match='are in none of'): found(alone)
    shutil.move(alone/'photos'/'train2017', alone/'images')
    assert found(alone) == (alone/'labels.json', alone/'images')

def test_crowds(coco, tmp_path):
    "Not trained on, and kept for the evaluation, where what is found in them counts neither way."
    at = changed(coco, tmp_path, lambda f: first(f, iscrowd=1))
    data = load_instances(at)
    before = load_instances(coco)
    assert len(data.instances(0)['labels']) == len(before.instances(0)['labels']) - 1
    truth = coco_truth(data)
    assert [a['iscrowd'] for a in truth['annotations']].count(1) == 1 and min(a['id'] for a in truth['annotations']) == 1
    right = [r for i in range(len(data)) for r in to_results(data.instances(i) | dict(scores=torch.ones(len(data.instances(i)['labels']))), data.image_id(i), data.category_ids)]
    a = truth['annotations'][0]
    inside = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=2., segmentation=a['segmentation'])]*3
    assert average_precision(truth, right + inside)['box_AP'] == pytest.approx(100)

@pytest.mark.slow
def test_images_that_cannot_be_read(coco, tmp_path):
    "Named, replaced in training, left out of the evaluation and counted."
    at = shutil.copytree(coco, tmp_path/'copy')
    (at/'val2017/000000000001.jpg').write_bytes(b'no image')
    Image.new('RGB', (9, 9)).save(at/'train2017/000000000000.jpg')
    with pytest.raises(CorruptImage, match='is 9x9, and its annotations are for'): load_instances(at)[0]
    said = []
    run = detect(replace(TINY, data=str(at), output_dir=str(tmp_path/'run'), max_steps=2, save_every=None), log=said.append)
    records = read_jsonl(run/'log.jsonl')
    assert records[-1]['test_skipped'] == 1 and any(r.get('skipped') == 1 for r in records)
    assert any('warning  test: 1 images cannot be read' in line for line in said) and any('is 9x9' in line for line in said)
    model,data = load_detector(run),load_instances(at, 'test')
    assert list(detect_images(model, data, batch_size=2)) == [0, 2, 3, 4]
