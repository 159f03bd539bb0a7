"iGPT: its palette, its model against transformers' port and against itself, its runs."
import json, math, shutil, sys
from dataclasses import asdict, replace
import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image
from launch import launch
from mae_nb.core.files import read_json, read_jsonl, read_tensors
from mae_nb.data.bundled import fashion, photo
from mae_nb.data.labels import label_subset
from mae_nb.relatives.config import IGPTConfig, TuneConfig
from mae_nb.relatives.igpt import IGPTShape, ImageGPT, hf_imagegpt_state
from mae_nb.relatives.igpt_run import IGPTTask, image_nats, mask_groups, train_igpt
from mae_nb.relatives.palette import fit_palette, quantisation_error, to_colours, to_indices
from mae_nb.relatives.tune import load_relative, probe_layers, tune

def quiet(line): pass

# --- palette ---
def lloyd(x, centres):
    "k-means in plain numpy, from given centres, until nothing moves."
    while True:
        ids = np.array([((p - centres)**2).sum(1).argmin() for p in x])
        new = np.array([x[ids == k].mean(0) if (ids == k).any() else centres[k] for k in range(len(centres))])
        if np.array_equal(new, centres): return new
        centres = new

@pytest.mark.parametrize('channels', [1, 3])
def test_palette_is_a_fixed_point_of_plain_kmeans(channels):
    imgs = torch.rand(2, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    palette = fit_palette(imgs, 6)
    x = imgs.movedim(1, -1).reshape(-1, channels).double().numpy()
    assert np.abs(lloyd(x, palette.double().numpy()) - palette.numpy()).max() < 1e-6
    assert (palette.sum(1).diff() >= 0).all()
    ids = to_indices(imgs, palette).flatten().numpy()
    assert np.array_equal(ids, ((x[:,None] - palette.double().numpy())**2).sum(2).argmin(1))
    assert quantisation_error(imgs, palette) == pytest.approx(((x - palette.numpy()[ids])**2).sum(1).mean(), rel=1e-6)

def test_error_falls_with_colours_and_ends_at_zero():
    cat = photo('chelsea', 16)[None]/255
    n = len(cat.movedim(1, -1).reshape(-1, 3).unique(dim=0))
    errors = [quantisation_error(cat, fit_palette(cat, k)) for k in (1, 2, 4, 8, 16, 32, n)]
    assert all(a > b for a,b in zip(errors, errors[1:])) and errors[-1] == 0
    assert errors[0] == pytest.approx(cat.double().var((0, 2, 3), correction=0).sum().item(), rel=1e-5)
    with pytest.raises(ValueError, match=f'between 1 and {n}, .* got {n + 1}'): fit_palette(cat, n + 1)

def test_palette_does_not_depend_on_threads_or_the_global_generator():
    imgs = fashion().imgs[:200]/255
    found = []
    for threads in 1, 2:
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        before = torch.get_rng_state()
        found.append(fit_palette(imgs, 16))
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_num_threads(1)
    assert torch.equal(*found) and not torch.equal(found[0], fit_palette(imgs, 16, seed=1))

@pytest.mark.slow
def test_indices_are_those_of_transformers():
    hf = pytest.importorskip('transformers.models.imagegpt.image_processing_imagegpt')
    if not hasattr(hf, 'color_quantize_torch'): pytest.skip('transformers 5 has it')
    torch.manual_seed(0)
    imgs,clusters = torch.rand(3, 3, 8, 8),torch.rand(512, 3)*2 - 1
    theirs = hf.color_quantize_torch((2*imgs - 1).movedim(1, -1).reshape(-1, 3), clusters)
    assert torch.equal(to_indices(imgs, (clusters + 1)/2).flatten(), theirs)

# --- model ---
SMALL = IGPTShape(img_size=4, in_chans=1, embed_dim=32, depth=3, num_heads=2, colours=8)

def random_model(shape=SMALL, seed=0):
    "All weights random, also those that start at zero."
    torch.manual_seed(seed)
    model = ImageGPT(shape).eval()
    for p in model.parameters(): p.data += 0.3*torch.randn_like(p)
    return model

@pytest.fixture(scope='module')
def pair():
    hf = pytest.importorskip('transformers', minversion='5')
    torch.manual_seed(0)
    theirs = hf.ImageGPTForCausalImageModeling(hf.ImageGPTConfig(vocab_size=513, n_positions=64, n_embd=48, n_layer=4, n_head=4)).eval()
    for k,p in theirs.named_parameters(): p.data = torch.zeros_like(p) if k.endswith('bias') else p + 0.1*torch.randn_like(p)
    clusters = torch.rand(512, 3)*2 - 1
    ours = ImageGPT(IGPTShape(img_size=8, embed_dim=48, depth=4, num_heads=4)).eval()
    ours.load_state_dict(hf_imagegpt_state(theirs.state_dict(), clusters))
    return ours, theirs, clusters

def started(x): return torch.cat([torch.full((len(x), 1), 512), x[:,:-1]], 1)

@pytest.mark.parametrize('fused', [True, False])
@torch.no_grad()
def test_logits_and_states_of_transformers(pair, fused):
    ours,theirs,clusters = pair
    for b in ours.blocks: b.attn.fused_attn = fused
    x = torch.randint(512, (3, 64), generator=torch.Generator().manual_seed(1))
    out = theirs(started(x), use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(ours.logits(x), out.logits, atol=1e-5, rtol=0)
    assert out.logits.std() > 0.5
    imgs = to_colours(x.view(3, 8, 8), (clusters + 1)/2)
    assert torch.equal(ours.indices(imgs), x)
    states = ours.layers(imgs)
    for a,b in zip(states[:-1], out.hidden_states): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.state_norm(4, states[-1]), out.hidden_states[-1], atol=1e-5, rtol=0)
    for l in range(4): torch.testing.assert_close(ours.state_norm(l, states[l]), theirs.transformer.h[l].ln_1(out.hidden_states[l]), atol=1e-5, rtol=0)

def test_gradients_of_transformers(pair):
    ours,theirs,clusters = pair
    x = torch.randint(512, (2, 64), generator=torch.Generator().manual_seed(2))
    ours.zero_grad()
    ours(to_colours(x.view(2, 8, 8), (clusters + 1)/2)).loss.backward()
    F.cross_entropy(theirs(started(x), use_cache=False).logits.flatten(0, 1), x.flatten()).backward()
    grads = hf_imagegpt_state({k: p.grad for k,p in theirs.named_parameters() if not k.endswith('bias')}, clusters)
    for k,p in ours.named_parameters(): torch.testing.assert_close(p.grad, grads[k], atol=1e-6, rtol=1e-4, msg=k)

def test_biases_are_refused(pair):
    _,theirs,clusters = pair
    state = theirs.state_dict()
    name = 'transformer.h.2.attn.c_attn.bias'
    with pytest.raises(ValueError, match=f'{name} is not zero'): hf_imagegpt_state(state | {name: state[name] + 1}, clusters)

def influence(model, x, *how):
    "Gradient of a random weighting of each prediction, with respect to the content of each pixel."
    h = model.token_embed(x).detach().requires_grad_()
    hook = model.token_embed.register_forward_hook(lambda *_: h)
    logits = model.logits(x, *how).float()
    hook.remove()
    weighted = logits*torch.randn_like(logits)
    return torch.stack([torch.autograd.grad(weighted[:,i].sum(), h, retain_graph=True)[0].abs().sum((0, 2)) for i in range(x.shape[1])])

BEFORE = torch.ones(16, 16).tril(-1).bool()

@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('how', ['fp32', 'bf16', 'checkpointing'])
def test_causality(fused, how):
    model = random_model()
    model.set_grad_checkpointing(how == 'checkpointing')
    for b in model.blocks: b.attn.fused_attn = fused
    x = torch.randint(8, (4, 16))
    if how == 'checkpointing':  # autograd.grad is not for it: the prediction itself must not change
        for i in range(16):
            other = torch.cat([x[:,:i], (x[:,i:] + 1) % 8], 1)
            assert torch.equal(model.logits(other)[:,:i + 1], model.logits(x)[:,:i + 1])
        return
    with torch.autocast('cpu', torch.bfloat16, enabled=how == 'bf16'): seen = influence(model, x)
    assert (seen[~BEFORE] == 0).all() and (seen[BEFORE] > 0).all()

@pytest.mark.parametrize('leak', ['no shift', 'no mask', 'last block'])
def test_planted_leaks_are_noticed(leak, monkeypatch):
    model = random_model()
    if leak == 'no shift': monkeypatch.setattr(model, 'embed', lambda x, mask=None: model.token_embed(x) + model.pos_embed)
    for b in model.blocks if leak == 'no mask' else model.blocks[-1:] if leak == 'last block' else (): b.causal = False
    assert (influence(model, torch.randint(8, (4, 16)))[~BEFORE] > 0).any()

def test_bert_without_masks_and_with_a_causal_mask_is_causal():
    model = random_model()
    bert = random_model(replace(SMALL, objective='bert', colours=9), seed=1)
    state = {k: v for k,v in model.state_dict().items() if k != 'sos'}
    state |= {'token_embed.weight': torch.cat([state['token_embed.weight'], model.sos[None]]), 'head.weight': torch.cat([state['head.weight'], torch.zeros(1, 32)]),
              'palette': torch.rand(9, 1)}
    bert.load_state_dict(state)
    for b in bert.blocks: b.causal = True
    x = torch.randint(8, (5, 16))
    shifted = torch.cat([torch.full((5, 1), 8), x[:,:-1]], 1)
    torch.testing.assert_close(bert.logits(shifted, torch.zeros(5, 16))[...,:8], model.logits(x))

def test_loss_of_bert_is_the_mean_over_images_of_means_over_masked_pixels():
    model = random_model(replace(SMALL, objective='bert'))
    imgs = torch.rand(3, 1, 4, 4)
    mask = torch.zeros(3, 16)
    mask[0,3] = mask[1,:5] = 1.  # the last image has none
    out = model(imgs, mask)
    logp = out.logits.log_softmax(-1)
    x = model.indices(imgs)
    one = -logp[0,3,x[0,3]]
    five = -sum(logp[1,i,x[1,i]] for i in range(5))/5
    assert out.loss.item() == pytest.approx(((one + five)/3).item(), rel=1e-5)
    hidden = imgs.clone()
    hidden.view(3, 16)[mask.bool()] = 1 - hidden.view(3, 16)[mask.bool()]
    assert torch.equal(model(hidden, mask).logits, out.logits)  # masked pixels are not seen
    with pytest.raises(ValueError, match='the objective is bert'): model(imgs)

def test_normalisation_is_undone():
    "Normalised images have the colours of the images that they were made of."
    shape = replace(SMALL, in_chans=3, mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5))
    model = ImageGPT(shape)
    model.palette.copy_(torch.rand(8, 3))
    x = torch.randint(8, (4, 16))
    imgs = to_colours(x.view(4, 4, 4), model.palette)
    mean,std = (torch.tensor(v)[:,None,None] for v in (shape.mean, shape.std))
    assert torch.equal(model.indices((imgs - mean)/std), x)
    again = ImageGPT(IGPTShape(**json.loads(json.dumps(asdict(shape)))))
    again.load_state_dict(model.state_dict())
    assert again.cfg == shape and torch.equal(again.indices((imgs - mean)/std), x)

def test_sampling_is_that_of_the_whole_sequence():
    "Growing prefixes give what the full sequence gives; an image's sample does not depend on the others of its batch."
    model = random_model()
    imgs,u = torch.rand(3, 1, 4, 4),torch.rand(3, 16)
    found = to_indices(model.complete(imgs, 1, u), model.palette).flatten(1)
    p = model.logits(found).softmax(-1).cumsum(-1)
    for b in range(3):
        for i in range(4, 16):
            k = int(found[b,i])
            assert (p[b,i,k - 1] if k else 0) - 1e-6 <= u[b,i] <= p[b,i,k] + 1e-6
    assert torch.equal(found[:,:4], model.indices(imgs)[:,:4])
    assert torch.equal(model.complete(imgs[1:2], 1, u[1:2]), model.complete(imgs, 1, u)[1:2])

def test_mask_groups():
    for N,ratio in (100, 0.15), (49, 0.5), (9, 0.9), (4, 0.01):
        m = mask_groups(N, ratio)
        assert torch.equal(m.sum(0), torch.ones(N)) and m.sum(1).min() >= N//len(m) >= 1

# --- runs ---
TINY = dict(img_size=(8, 8), colours=5, embed_dim=16, depth=2, num_heads=2, max_steps=6, batch_size=32, accum_iter=2, keep_checkpoints=9, save_every=3, log_every=1, device='cpu', warmup_epochs=0.002)

@pytest.fixture(scope='module', params=['causal', 'bert'])
def finished(request, tmp_path_factory):
    cfg = IGPTConfig(**TINY, objective=request.param, output_dir=str(tmp_path_factory.mktemp('igpt')/'run'), ema_decay=0.5)
    return cfg, train_igpt(cfg, quiet)

@pytest.mark.slow
def test_a_run(finished):
    cfg,run = finished
    model = load_relative(run)
    assert model.cfg.kind == 'igpt' and model.cfg.objective == cfg.objective and read_json(run/'model.json')['colours'] == 5
    assert not torch.equal(model.palette, ImageGPT(model.cfg).palette)  # fitted
    log = read_jsonl(run/'log.jsonl')
    assert log[0]['loss'] == pytest.approx(math.log(5), abs=1e-4)  # a uniform guess, before the first step
    assert log[-1]['test_nats'] < math.log(5) and 'ema_test_nats' in log[-1]
    x = torch.randn(2, 1, 8, 8)
    assert [tuple(s.shape) for s in model.layers(x)] == [(2, 64, 16)]*3

def back_to_half(run):
    "As if it had been killed after step 3."
    shutil.rmtree(run/'checkpoints/step-00000006')
    return run

@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_run(finished, tmp_path):
    cfg,run = finished
    again = back_to_half(shutil.copytree(run, tmp_path/'again'))
    half = read_tensors(again/'checkpoints/step-00000003/model.safetensors')
    train_igpt(replace(cfg, output_dir=str(again), resume='auto'), quiet)
    for f in 'model.safetensors', 'checkpoints/step-00000006/optim.safetensors', 'checkpoints/step-00000006/ema.safetensors':
        assert (again/f).read_bytes() == (run/f).read_bytes(), f
    assert any(not torch.equal(v, half[k]) for k,v in read_tensors(run/'model.safetensors').items())  # a difference would be seen

SCRIPT = """
import sys, json
from mae_nb.relatives.config import IGPTConfig
from mae_nb.relatives.igpt_run import train_igpt
if __name__ == '__main__': train_igpt(IGPTConfig(**json.loads(sys.argv[1])), lambda line: None)
"""

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs gloo as Linux has it')
def test_two_processes_learn_what_one_does(finished, tmp_path):
    "Two processes with half of the batch each, or one with two halves one after the other: the same weights, to the last bit; stopped and resumed, too."
    cfg,run = finished
    (tmp_path/'script.py').write_text(SCRIPT)
    def go(name, **changes):
        r = launch(tmp_path/'script.py', json.dumps(asdict(replace(cfg, output_dir=str(tmp_path/name), accum_iter=1, **changes))), processes=2)
        assert r.returncode == 0, r.said
        return tmp_path/name
    two = go('two')
    a,b = ([r.get('loss', r.get('test_nats')) for r in read_jsonl(p/'log.jsonl')] for p in (run, two))
    assert max(abs(x - y) for x,y in zip(a, b, strict=True)) < 1e-5
    one = read_tensors(run/'model.safetensors')
    for k,v in read_tensors(two/'model.safetensors').items(): assert torch.equal(v, one[k]), k
    whole = (two/'model.safetensors').read_bytes()
    back_to_half(two)
    assert (go('two', resume='auto')/'model.safetensors').read_bytes() == whole

@pytest.mark.slow
def test_probe_and_fine_tuning(finished, tmp_path):
    _,run = finished
    some = [label_subset(s, 0.02, 0) for s in (fashion(), fashion('test'))]
    found = probe_layers(load_relative(run), *some, batch_size=100)
    assert len(found) == 3 and all(f['linear'] > 15 for f in found)
    cfg = TuneConfig(encoder=str(run), label_fraction=0.01, epochs=1, batch_size=50, eval_every=1, device='cpu', output_dir=str(tmp_path/'tuned'))
    tuned = tune(cfg, quiet)
    before,after = read_tensors(run/'model.safetensors'),read_tensors(tuned/'model.safetensors')
    assert torch.equal(before['palette'], after['encoder.palette'])
    assert not torch.equal(before['blocks.0.attn.qkv.weight'], after['encoder.blocks.0.attn.qkv.weight'])
    assert not torch.equal(before['token_embed.weight'], after['encoder.token_embed.weight'])

@pytest.mark.slow
def test_images_of_three_channels_without_test_images(tmp_path):
    (tmp_path/'photos').mkdir()
    for i in range(20): Image.fromarray(photo('coffee', 64).roll(3*i, 2).permute(1, 2, 0).numpy()).save(tmp_path/f'photos/{i}.png')
    cfg = IGPTConfig(**{**TINY, 'max_steps': 2, 'batch_size': 4}, data=str(tmp_path/'photos'), output_dir=str(tmp_path/'run'))
    model = load_relative(train_igpt(cfg, quiet))
    assert model.palette.shape == (5, 3) and model.palette.std(1).max() > 0.01  # colours, not greys
    with pytest.raises(ValueError, match='colours must be between 1 and'): IGPTTask(replace(cfg, colours=10**6))

@pytest.mark.slow
def test_image_nats_of_a_run_are_those_of_its_log(finished):
    cfg,run = finished
    model = load_relative(run)
    task = IGPTTask(replace(cfg, output_dir=f'{cfg.output_dir}2'))
    assert torch.equal(task.model.palette, model.palette)
    assert task.evaluate(model)['test_nats'] == pytest.approx(read_jsonl(run/'log.jsonl')[-1]['test_nats'], abs=1e-6)
    assert task.flops_per_image == 3*model.flops()
    assert image_nats(model, torch.randn(2, 1, 8, 8), task.masks).shape == (2,)
