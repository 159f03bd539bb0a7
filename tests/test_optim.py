"Optimisers and schedules: parameter groups against the release's rule, LARS and EMA against their equations, bad input."
import copy
import pytest, torch
from fastcore.test import test_close as check_close
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from mae_nb.model.classifier import ViTClassifier
from mae_nb.model.config import classifier_config
from mae_nb.model.mae import mae_model
from mae_nb.train.optim import adamw, cosine_lr, lars, scaled_lr, set_lr

def vit_of(depth, **kw): return ViTClassifier(classifier_config('mae_vit_nano_patch4', 5, embed_dim=16, num_heads=2, depth=depth, **kw))

def layer_by_hand(name, depth):
    "0: the embedding, 1 to `depth`: the blocks, `depth + 1`: what follows them, as in BEiT and the MAE release."
    if name.split('.')[0] in ('cls_token', 'pos_embed', 'patch_embed'): return 0
    return int(name.split('.')[1]) + 1 if name.startswith('blocks.') else depth + 1

def layer_groups_by_hand(model, weight_decay, layer_decay):
    "Groups for an optimiser, two per layer, each with its factor of the learning rate as `lr_scale`."
    groups,depth,exempt = {},len(model.blocks),model.no_weight_decay()
    for name,p in model.named_parameters():
        if not p.requires_grad: continue
        layer,plain = layer_by_hand(name, depth),p.ndim <= 1 or name in exempt
        new = dict(params=[], weight_decay=0. if plain else weight_decay, lr_scale=layer_decay**(depth + 1 - layer))
        groups.setdefault((layer, plain), new)['params'].append(p)
    return list(groups.values())

def settings(groups):
    "Each parameter's factor of the learning rate, and its weight decay."
    return {p: (g['lr_scale'], g['weight_decay']) for g in groups for p in g['params']}

def differences(m):
    "Parameters of a ViT for which our groups and timm's differ: (learning-rate factor, decay) in each."
    theirs = settings(param_groups_layer_decay(m, 0.05, layer_decay=0.75, no_weight_decay_list=m.no_weight_decay()))
    ours = settings(layer_groups_by_hand(m, 0.05, 0.75))
    return {n: (ours[p], theirs[p]) for n,p in m.named_parameters() if ours[p] != theirs[p]}

def test_layers_by_name():
    names = 'cls_token', 'patch_embed.proj.bias', 'blocks.0.norm1.weight', 'blocks.3.mlp.fc2.bias', 'fc_norm.bias', 'head.1.bias'
    assert [layer_by_hand(n, 4) for n in names] == [0, 0, 1, 4, 5, 5]
    layers = [layer_by_hand(n, 3) for n,_ in vit_of(3).named_parameters()]
    assert set(layers) == set(range(5)) and layers == sorted(layers)

@pytest.mark.parametrize('pool', ['avg', 'token'])
@pytest.mark.parametrize('batch_norm', [False, True])
def test_layer_groups_are_the_releases(pool, batch_norm): assert differences(vit_of(3, pool=pool, batch_norm=batch_norm)) == {}

def test_timms_vit_counts_the_last_norm_among_the_blocks():
    vit = VisionTransformer(img_size=28, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5, global_pool='token')
    assert differences(vit) == {n: ((1., 0.), (0.75, 0.)) for n in ('norm.weight', 'norm.bias')}

def test_frozen_parameters_are_in_no_group():
    vit = vit_of(3)
    everything = settings(layer_groups_by_hand(vit, 0.05, 0.5))
    assert everything[vit.cls_token] == everything[vit.pos_embed] == (0.5**4, 0.)
    assert everything[vit.blocks[2].attn.qkv.weight] == (0.5, 0.05)
    assert (everything[vit.fc_norm.weight], everything[vit.head.weight]) == ((1., 0.), (1., 0.05))
    assert len(everything) == len(list(vit.parameters()))
    vit.patch_embed.requires_grad_(False)
    for groups in layer_groups_by_hand(vit, 0.05, 0.5), adamw(vit, 1., layer_decay=0.5).param_groups:
        assert len(settings(groups)) == len(everything) - 2
    vit.set_trainable_blocks(0)
    assert sum(len(g['params']) for g in adamw(vit, 1., layer_decay=0.5).param_groups) == 2  # the head alone

@pytest.mark.parametrize('layer_decay', [None, 0.5, 1.])
def test_listed_parameters_are_not_decayed(layer_decay):
    vit = vit_of(3)
    def decay_of(opt, p): return next(g['weight_decay'] for g in opt.param_groups if any(p is q for q in g['params']))
    opt = adamw(vit, 1., layer_decay=layer_decay, no_weight_decay_list=vit.no_weight_decay())
    probed = vit.pos_embed, vit.cls_token, vit.patch_embed.proj.weight, vit.head.bias
    assert [decay_of(opt, p) for p in probed] == [0., 0., 0.05, 0.]
    assert decay_of(adamw(vit, 1.), vit.cls_token) == 0.05  # decayed unless it is listed

@pytest.mark.parametrize('d', [0.75, 0.65])
def test_twelve_blocks(d):
    vit = vit_of(12)
    opt = adamw(vit, 0., layer_decay=d)
    set_lr(opt, 1.)
    layer = {p: layer_by_hand(n, 12) for n,p in vit.named_parameters()}
    lr_of = dict(sorted({layer[p]: g['lr'] for g in opt.param_groups for p in g['params']}.items()))
    check_close(list(lr_of.values()), [d**(13 - i) for i in range(14)], eps=1e-12)

def test_pretraining_groups_by_shape():
    model = mae_model('mae_vit_micro_patch4')
    trained = [p for p in model.parameters() if p.requires_grad]
    ours = [p for p in trained if p.ndim <= 1],[p for p in trained if p.ndim > 1]
    for params,wd,timms in zip(ours, (0., 0.05), param_groups_weight_decay(model, 0.05), strict=True):
        assert timms['weight_decay'] == wd and all(a is b for a,b in zip(params, timms['params'], strict=True))

def test_counting_micro_batches_differs_by_less_than_a_step():
    "The release counts micro-batches. ImageNet on eight GPUs, 64 images on each: 2502 an epoch, of which 8 make a step."
    per_epoch,micro = 1_281_167//4096,1_281_167//(8*64)
    ours = [cosine_lr(t, 1., 0., 40*per_epoch, 800*per_epoch) for t in range(800*per_epoch)]
    release = [cosine_lr(e + 8*k/micro, 1., 0., 40, 800) for e in range(800) for k in range(per_epoch)]
    apart = max(abs(a - b) for a,b in zip(release, ours, strict=True))
    assert micro == 2502 and 0 < apart < 1e-4
    assert apart < max(abs(b - a) for a,b in zip(ours, ours[1:]))  # less than one step
    check_close(release[::per_epoch], ours[::per_epoch], eps=1e-12)  # equal at the start of each epoch

def test_lars_steps_scale_with_the_matrix_and_not_with_the_gradient():
    def step(weight, grad, lr=6.4, **kw):
        lin = nn.Linear(2, 1, bias=False)
        lin.weight.data.copy_(weight)
        lin.weight.grad = grad.clone()
        lars(lin, lr, **kw).step()
        return weight - lin.weight.detach()
    along = torch.tensor([[0.6, 0.8]])
    for k in torch.logspace(-2, 2, 17):
        check_close(step(k*along, along).norm(), 6.4*0.001*k, eps=1e-5)
        check_close(step(along, k*along).norm(), torch.tensor(6.4*0.001), eps=1e-5)
    # with decay, timm divides by |g| + decay*|w| = 7, the release by |g + decay*w| = 5; no recipe of the paper has decay
    w,g = torch.tensor([[3., 0.]]),torch.tensor([[0., 4.]])
    check_close(step(w, g, 1., weight_decay=1.), 0.001*3/7*(g + w), eps=1e-6)

def test_ema_of_weights_is_the_equation():
    torch.manual_seed(0)
    vit = vit_of(3)
    ours,timms = copy.deepcopy(vit),ModelEmaV3(vit, decay=0.9, exclude_buffers=True)
    opt = adamw(vit, 1e-2)
    for x in torch.randn(20, 2, 1, 28, 28):
        opt.zero_grad()
        vit(x).square().mean().backward()
        opt.step()
        timms.update(vit)
        with torch.no_grad():
            for mine,theirs in zip(ours.parameters(), vit.parameters(), strict=True): mine.lerp_(theirs, 0.1)
    for a,b in zip(ours.parameters(), timms.module.parameters(), strict=True): assert torch.equal(a, b)
    assert (timms.module.head.weight - vit.head.weight).abs().max() > 1e-3  # behind the model

def test_ema_copies_buffers():
    probe = nn.Sequential(nn.BatchNorm1d(1, affine=False), nn.Linear(1, 1))
    copied,blended = ModelEmaV3(probe, decay=0.9, exclude_buffers=True),ModelEmaV3(probe, decay=0.9)
    probe(torch.tensor([[4.], [6.]]))
    assert (copied.module[0].running_mean.item(), copied.module[0].num_batches_tracked.item()) == (0., 0)
    for average in copied, blended: average.update(probe)
    for mine,theirs in zip(copied.module.buffers(), probe.buffers(), strict=True): assert torch.equal(mine, theirs)
    check_close(copied.module[0].running_mean, torch.tensor([0.5]))
    check_close(blended.module[0].running_mean, torch.tensor([0.05]))
    probe(torch.tensor([[4.], [6.]]))
    check_close(copied.module[0].running_mean, torch.tensor([0.5]))  # a copy, not the same memory
    now = ModelEmaV3(probe, decay=0.)
    probe[1].weight.data.fill_(7.)
    now.update(probe)
    assert now.module[1].weight.item() == 7.  # decay 0: the current model

@pytest.mark.parametrize('call,says', [
    (lambda m: adamw(m, -1.), 'Invalid learning rate'), (lambda m: adamw(m, 0.1, betas=(0.9, 1.)), 'Invalid beta'),
    (lambda m: adamw(m, 1., layer_decay=0.5), 'got Linear'), (lambda m: lars(m, -1.), '-1'), (lambda m: set_lr(m, 0.1), 'param_groups'),
    (lambda m: adamw(vit_of(1), 1., layer_decay=0.), r'in \(0, 1\], got 0'), (lambda m: adamw(vit_of(1), 1., layer_decay=1.5), r'in \(0, 1\], got 1.5'),
    (lambda m: scaled_lr('1.5e-4', 4096), 'unsupported operand'), (lambda m: cosine_lr(0, 1, 0, None, 10), 'not supported')])
def test_bad_input(call, says):
    with pytest.raises((ValueError, TypeError, AttributeError), match=says): call(nn.Linear(2, 1))
