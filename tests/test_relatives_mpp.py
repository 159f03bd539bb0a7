"Masked patch prediction against restatements, and its run: resumed, and in two processes."
import shutil
from dataclasses import replace
from functools import partial
import pytest, torch, torch.nn.functional as F
from launch import launch
from mae_nb.core.files import read_tensors
from mae_nb.model.patches import patchify
from mae_nb.relatives.config import MPPConfig, TuneConfig
from mae_nb.relatives.mpp import Corruption, MPPShape, MPPTask, MPPViT, draw_corruption, mean_colour_targets, train_mpp
from mae_nb.relatives.tune import load_relative, probe_layers, tune
from mae_nb.data.bundled import fashion
from mae_nb.data.labels import label_subset
from mae_nb.train.engine import task_steps

TINY = MPPShape(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
RUN = MPPConfig(max_steps=6, batch_size=8, warmup_epochs=0.002, log_every=1, save_every=3, keep_checkpoints=9, device='cpu')
quiet = dict(log=lambda line: None)

# --- target ---
def labels_of_vit_pytorch(imgs, p, bits, mean, std):
    "`MPPLoss` of vit-pytorch: un-normalise, mean of each patch, bucketize, digits to a base."
    imgs = (imgs*std.view(-1, 1, 1) + mean.view(-1, 1, 1)).clamp(max=1.)
    B,C,H,W = imgs.shape
    avg = imgs.unfold(2, p, p).unfold(3, p, p).mean((-1, -2)).flatten(2).transpose(1, 2).contiguous()
    size = 1./2**bits
    digits = torch.bucketize(avg, torch.arange(size, 1., size))
    return (digits*((2**bits)**torch.arange(0, C).long())[None,None]).sum(-1)

@pytest.mark.parametrize('C,bits', [(3, 3), (1, 3), (3, 1), (1, 8), (4, 4)])
def test_labels_of_vit_pytorch(C, bits):
    torch.manual_seed(C + bits)
    mean,std = torch.rand(C),torch.rand(C) + 0.1
    imgs = (torch.rand(8, C, 16, 24) - mean.view(-1, 1, 1))/std.view(-1, 1, 1)
    expected = labels_of_vit_pytorch(imgs, 4, bits, mean, std)
    pixels = patchify(imgs, 4).unflatten(-1, (-1, C))*std + mean
    found = mean_colour_targets(pixels.flatten(-2), C, bits)
    assert (found != expected).float().mean() < 1e-3  # means are summed in another order: one on a border may differ
    assert expected.unique().numel() > 1 and found.max() < 2**(bits*C)

def test_flat_patches():
    "Every grey level of 8 bits as a patch of its own: 32 of them to a bin."
    levels = (torch.arange(256)/255)[None,:,None].expand(1, 256, 16)
    assert mean_colour_targets(levels, 1)[0].bincount().tolist() == [32]*8

# --- corruption ---
def test_counts():
    torch.manual_seed(0)
    c = draw_corruption(torch.rand(3000, 3, 196))
    swapped = c.source != torch.arange(196)
    kept = c.corrupted & ~c.replaced & ~swapped
    assert (c.corrupted.sum(1) == 98).all()
    for part,expected in ((c.replaced, 0.8), (swapped, 0.1), (kept, 0.1)):
        assert part.sum()/c.corrupted.sum() == pytest.approx(expected, abs=0.003) and not (part & ~c.corrupted).any()
    assert not (c.replaced & swapped).any()
    offset = (c.source - torch.arange(196))[swapped] % 196
    assert offset.bincount(minlength=196)[1:].float().std() < 0.1*offset.bincount(minlength=196)[1:].float().mean()  # any other patch

@pytest.mark.parametrize('fractions,replaced,swapped', [((1., 0.), 98, 0), ((0., 1.), 0, 98), ((0., 0.), 0, 0)])
def test_all_of_one_kind(fractions, replaced, swapped):
    c = draw_corruption(torch.rand(50, 3, 196), 0.5, *fractions)
    assert (c.replaced.sum(1) == replaced).all() and ((c.source != torch.arange(196)).sum(1) == swapped).all()

# --- model ---
def restated(model, imgs, c):
    "Loss patch by patch, in plain terms."
    patches,_ = model.to_patches(imgs)
    e = model.patch_embed.proj(imgs).flatten(2).mT
    x = model.pos_embed.expand(len(imgs), -1, -1).clone()
    x[:,0] = x[:,0] + model.cls_token[0,0]
    rows = []
    for b in range(len(imgs)):
        for i in range(16): x[b,1 + i] = x[b,1 + i] + (model.mask_token[0,0] if c.replaced[b,i] else e[b,c.source[b,i]])
    y = model.head(model.norm(model.blocks(x))[:,1:])
    t = labels_of_vit_pytorch(imgs, 4, 3, torch.tensor(TINY.mean), torch.tensor(TINY.std))
    for b in range(len(imgs)): rows += [F.cross_entropy(y[b,i], t[b,i]) for i in range(16) if c.corrupted[b,i]]
    return torch.stack(rows).mean()

@pytest.fixture
def case():
    torch.manual_seed(0)
    return MPPViT(TINY), torch.randn(3, 3, 16, 16)*0.5, draw_corruption(torch.rand(3, 3, 16), 0.5, 0.5, 0.3)

def test_loss_and_gradients(case):
    model,imgs,c = case
    learned = {n: p for n,p in model.named_parameters() if p.requires_grad}
    losses = restated(model, imgs, c),model(imgs, c).loss
    expected,found = (torch.autograd.grad(l, list(learned.values())) for l in losses)
    assert losses[1].item() == pytest.approx(losses[0].item(), abs=1e-6)
    for n,a,b in zip(learned, found, expected): assert torch.allclose(a, b, atol=1e-6) and b.abs().sum() > 0, n

def test_no_gradient_where_nothing_is_corrupted(case):
    model,imgs,c = case
    out = model(imgs, c)
    grad, = torch.autograd.grad(out.loss, out.pred)
    assert torch.equal((grad != 0).any(-1), c.corrupted) and (grad[~c.corrupted] == 0).all()

def test_recomputed_activations(case):
    model,imgs,c = case
    grads = [torch.autograd.grad(model(imgs, c).loss, model.mask_token)[0] for on in (False, True) if model.set_grad_checkpointing(on) is None]
    assert torch.allclose(*grads, atol=1e-7)

def test_16_bits(case):
    model,imgs,c = case
    with torch.autocast('cpu', torch.bfloat16): assert model(imgs, c).loss.item() == pytest.approx(model(imgs, c).loss.item(), abs=0.05)

def test_layers(case):
    model,imgs,_ = case
    states = model.eval().layers(imgs)
    nothing = Corruption(torch.ones(3, 16).bool(), torch.zeros(3, 16).bool(), torch.arange(16).expand(3, 16))
    assert len(states) == 3 and torch.allclose(model.head(model.norm(states[-1])), model(imgs, nothing).pred, atol=1e-6)

# --- run ---
def losses(cfg): return [r['loss'].mean().item() for r in task_steps(MPPTask(cfg))]

def test_accumulation():
    one,two = losses(replace(RUN, max_steps=4)),losses(replace(RUN, max_steps=4, batch_size=4, accum_iter=2))
    assert max(abs(a - b) for a,b in zip(one, two)) < 1e-5
    assert losses(replace(RUN, max_steps=4, seed=1)) != one

@pytest.fixture(scope='module')
def whole(tmp_path_factory): return train_mpp(replace(RUN, output_dir=str(tmp_path_factory.mktemp('mpp')/'run')), **quiet)

def test_resumed(whole, tmp_path):
    "Stopped after step 3 and continued: the same weights, to the last bit."
    run = shutil.copytree(whole, tmp_path/'run')
    shutil.rmtree(run/'checkpoints/step-00000006')
    for name in 'model.json', 'model.safetensors': (run/name).unlink()
    train_mpp(replace(RUN, output_dir=str(run), resume='auto'), **quiet)
    assert (run/'model.safetensors').read_bytes() == (whole/'model.safetensors').read_bytes()
    other = replace(RUN, output_dir=str(run), resume='auto', mask_ratio=0.4)
    with pytest.raises(ValueError, match='mask_ratio: now 0.4, before 0.5'): train_mpp(other, **quiet)

SCRIPT = '''
import sys
from mae_nb.relatives.config import MPPConfig
from mae_nb.relatives.mpp import train_mpp
train_mpp(MPPConfig(output_dir=sys.argv[1], max_steps=6, batch_size=4, warmup_epochs=0.002, log_every=1, device='cpu'))
'''

@pytest.mark.slow
def test_two_processes(tmp_path):
    "Two processes with half of the batch each, or one with two halves one after the other: the same weights, to the last bit."
    (tmp_path/'train.py').write_text(SCRIPT)
    r = launch(tmp_path/'train.py', tmp_path/'two', processes=2)
    assert r.returncode == 0, r.said
    halves = train_mpp(replace(RUN, output_dir=str(tmp_path/'halves'), batch_size=4, accum_iter=2), **quiet)
    two,one = (read_tensors(p/'model.safetensors') for p in (tmp_path/'two', halves))
    for k in one: assert torch.equal(one[k], two[k]), k

@pytest.mark.slow
def test_probes_and_fine_tuning(whole, tmp_path):
    model = load_relative(whole)
    assert isinstance(model, MPPViT) and model.cfg.bits == 3
    some = [label_subset(fashion(s), 0.02, 0) for s in ('train', 'test')]
    found = probe_layers(model, *some, batch_size=64)
    assert len(found) == model.cfg.depth + 1 and all(10 < r['linear'] <= 100 for r in found)
    tuned = tune(TuneConfig(encoder=str(whole), output_dir=str(tmp_path/'tuned'), label_fraction=0.02, max_steps=2, device='cpu'), **quiet)
    assert 'encoder.mask_token' in read_tensors(tuned/'model.safetensors')

def test_images_of_a_folder(tmp_path):
    "Colour: 512 classes, with mean and deviation of the images."
    from mae_nb.data.bundled import assets, photo_names
    (tmp_path/'photos').mkdir()
    for n in photo_names: shutil.copy(assets/f'{n}.jpg', tmp_path/'photos')
    cfg = replace(RUN, data=str(tmp_path/'photos'), img_size=(32, 32), patch_size=8, batch_size=2, max_steps=2, crop_scale_min=0.2)
    task = MPPTask(cfg)
    assert task.model.cfg.classes == 512 and len(task.model.cfg.mean) == 3
    assert [l for l in losses(cfg) if l > 0]
