"Denoising autoencoders: formulas in numpy, identities with the masked autoencoder, and runs that stop, resume and split."
import shutil
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from launch import launch
from mae_nb.core.files import read_json, read_jsonl, read_tensors
from mae_nb.data.bundled import fashion
from mae_nb.data.labels import label_subset
from mae_nb.evaluate.config import ReportConfig
from mae_nb.evaluate.report import write_report
from mae_nb.model.config import MAEConfig
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.model.masking import mask_from_scores
from mae_nb.model.patches import unpatchify
from mae_nb.model.targets import masked_mse
from mae_nb.relatives.config import DenoiseConfig, StackConfig, TuneConfig
from mae_nb.relatives.corruption import PatchLatent, corrupt, corruptions, emphasised_mean, emphasis_weights, more_normal, more_uniform
from mae_nb.relatives.denoise import DenoiseTask, DenoisingViT, corrupt_patches, denoising_loss, train_denoise
from mae_nb.relatives.stack import DAELayer, StackedDAE, StackedDAEConfig, StackTask, train_stack
from mae_nb.relatives.tune import load_relative, probe_layers, tune
from mae_nb.tasks.config import FinetuneConfig, PretrainConfig
from mae_nb.tasks.finetune import finetune
from mae_nb.tasks.pretrain import PretrainTask
from mae_nb.weights.hub import from_pretrained

QUIET = dict(log=lambda line: None)
TINY = MAEConfig(img_size=28, patch_size=4, in_chans=1, embed_dim=32, depth=2, num_heads=4, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)
STACK = StackConfig(hidden=(24, 16), max_steps=8, batch_size=16, save_every=1, keep_checkpoints=9, device='cpu', flip=True, log_every=1)
DENOISE = DenoiseConfig(max_steps=4, batch_size=8, save_every=1, keep_checkpoints=9, warmup_epochs=0., device='cpu', log_every=1)

# --- corruption ---
def philox_by_python(counter, key):
    "One block of Philox4x32-10, with Python's integers."
    c,k = list(counter),list(key)
    for _ in range(10):
        p,q = c[0]*0xD2511F53,c[2]*0xCD9E8D57
        c = [(q >> 32) ^ c[1] ^ k[0], q & 0xFFFFFFFF, (p >> 32) ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c

def test_expanded_numbers_are_philox():
    scores = torch.tensor([[0.5, 0.25, 2.**-24, 0.9]])
    words = [w for block in range(3) for w in philox_by_python((block, 2**23, 2**22, 1), (7, 0))]
    assert more_uniform(scores, 10, stream=7)[0].tolist() == [(w >> 8)/2**24 for w in words[:10]]

def test_noise_is_normal():
    z = more_normal(torch.rand(3, 5, generator=torch.Generator().manual_seed(0)), 200_000).double()
    for power,moment in ((1, 0.), (2, 1.), (3, 0.), (4, 3.)): assert (z**power).mean(1).sub(moment).abs().max() < 0.05
    assert torch.isfinite(more_normal(torch.tensor([[0., 0., 0.], [1 - 2**-24]*3]), 10_001)).all()
    assert abs(np.corrcoef(z[0,:100_000], z[0,100_000:])[0, 1]) < 0.01  # sine and cosine

@pytest.mark.parametrize('kind', corruptions)
def test_a_corruption_is_of_the_image_alone(kind):
    "Bitwise the same in any batch."
    g = torch.Generator().manual_seed(0)
    x,scores = torch.randn(7, 49, 16, generator=g),torch.rand(7, 49, generator=g)
    latent = PatchLatent(16, 4).fit(x) if kind == 'pca_gaussian' else None
    amount = torch.linspace(0.1, 0.9, 7) if 'gaussian' in kind else 0.4
    whole = corrupt(x, kind, amount, scores, latent=latent)
    for i in range(7):
        one = corrupt(x[i:i+1], kind, amount[i:i+1] if 'gaussian' in kind else amount, scores[i:i+1], latent=latent)
        assert one.hit.equal(whole.hit[i:i+1]) and (one.x - whole.x[i:i+1]).abs().max() <= (1e-6 if latent else 0)

@pytest.mark.parametrize('amount', [0., 0.1, 0.25, 0.4, 0.75, 0.9])
def test_counts(amount):
    x,scores = torch.full((5, 100, 3), 0.5),torch.rand(5, 100)
    for kind in 'masking', 'salt_pepper':
        new,hit = corrupt(x, kind, amount, scores)
        assert set(hit.sum(1).tolist()) == {100 - int(100*(1 - amount))}
        changed = (new != x).all(-1)
        assert changed.equal(hit.bool()) and (new == x).all(-1).equal(~changed)
        assert set(new[changed].flatten().tolist()) <= ({0.} if kind == 'masking' else {0., 1.})

def test_full_emphasis_on_masked_patches_is_the_loss_of_a_masked_autoencoder():
    torch.manual_seed(0)
    clean,pred,scores = torch.randn(4, 49, 16),torch.randn(4, 49, 16),torch.rand(4, 49)
    for ratio in 0.25, 0.5, 0.75:
        hit = corrupt(clean, 'masking', ratio, scores).hit
        assert hit.equal(mask_from_scores(scores, ratio).mask)
        error = (pred - clean).square().mean(-1)
        assert emphasised_mean(error, hit, (1., 0.)).equal(masked_mse(pred, clean, hit))
        assert emphasised_mean(error, hit, (2., 2.)).item() == pytest.approx(masked_mse(pred, clean, hit, 'all').item(), rel=1e-6)

# --- a layer, against numpy ---
def by_numpy(params, noisy, x, w, loss, tied):
    W,b,b2,V = params
    V = W.T if tied else V
    s = lambda a: 1/(1 + np.exp(-a))
    y = s(noisy @ W.T + b)
    a = y @ V.T + b2
    if loss == 'squared': value,da = w*(a - x)**2, 2*w*(a - x)/len(x)
    else: value,da = -w*(x*np.log(s(a)) + (1 - x)*np.log(1 - s(a))), w*(s(a) - x)/len(x)
    dh = y*(1 - y)*(da @ V)
    dW,dV = dh.T @ noisy, da.T @ y
    if tied: dW = dW + dV.T
    return value.sum(1).mean(), [dW, dh.sum(0), da.sum(0)] + ([] if tied else [dV])

@pytest.mark.parametrize('loss', ['cross_entropy', 'squared'])
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('kind', ['gaussian', 'masking', 'salt_pepper'])
def test_loss_and_gradient_of_the_first_layer(kind, tied, loss):
    torch.manual_seed(0)
    model = StackedDAE(StackedDAEConfig(img_size=4, hidden=(12, 8), tied=tied, loss=loss))
    imgs,scores = torch.rand(6, 1, 4, 4),torch.rand(6, 3)
    emphasis = (1., 1.) if kind == 'gaussian' else (1., 0.3)
    found = model(imgs, scores, 0, kind, 0.4, emphasis)
    layer = model.blocks[0]
    names = ['weight', 'bias', 'decoder_bias'] + ['decoder_weight']*(not tied)
    grads = torch.autograd.grad(found, [getattr(layer, n) for n in names])
    x = imgs.flatten(1)
    noisy,hit = corrupt(x[...,None], kind, 0.4, more_uniform(scores, 16))
    params = [None if (p := getattr(layer, n)) is None else p.detach().double().numpy() for n in ('weight', 'bias', 'decoder_bias', 'decoder_weight')]
    expected,by_hand = by_numpy(params, *(t.double().numpy() for t in (noisy[...,0], x, emphasis_weights(hit, emphasis))), loss, tied)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    for n,g,e in zip(names, grads, by_hand): np.testing.assert_allclose(g.numpy(), e, atol=1e-6, err_msg=n)

def test_the_second_layer_denoises_what_the_first_makes_of_clean_images():
    torch.manual_seed(0)
    model = StackedDAE(StackedDAEConfig(img_size=4, hidden=(12, 8)))
    imgs,scores = torch.rand(6, 1, 4, 4),torch.rand(6, 3)
    alone = DAELayer(12, 8)
    alone.load_state_dict(model.blocks[1].state_dict())
    h = model.layers(imgs)[1][:,0].detach()
    noisy = corrupt(h[...,None], 'masking', 0.25, more_uniform(scores, 12)).x[...,0]
    assert model(imgs, scores, layer=1).item() == pytest.approx(alone.error(noisy, h).sum(1).mean().item(), rel=1e-6)

# --- runs of a stack ---
def weights(run): return read_tensors(Path(run)/'model.safetensors')
def same(a, b): return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
def keep_until(run, step):
    for p in (run/'checkpoints').iterdir():
        if int(p.name.removeprefix('step-')) > step: shutil.rmtree(p)

@pytest.fixture(scope='module')
def stack_run(tmp_path_factory):
    return train_stack(replace(STACK, output_dir=str(tmp_path_factory.mktemp('stack')/'run')), **QUIET)

def test_layers_are_trained_one_after_the_other(stack_run):
    half,end = (read_tensors(stack_run/f'checkpoints/step-0000000{i}/model.safetensors') for i in (4, 8))
    start = StackTask(STACK).model.state_dict()
    for k in end:
        moved = [not a[k].equal(b[k]) for a,b in ((start, half), (half, end))]
        assert moved == ([True, False] if k.startswith('blocks.0.') else [False, True]), k

@pytest.mark.parametrize('step', [2, 4, 6])
def test_a_stack_resumes(stack_run, tmp_path, step):
    "Within the first layer, between the two, and within the second: bitwise the same weights."
    run = Path(shutil.copytree(stack_run, tmp_path/'run'))
    keep_until(run, step)
    train_stack(replace(STACK, output_dir=str(run), resume='auto'), **QUIET)
    assert same(weights(run), weights(stack_run))

def test_phases_and_learning_rates():
    task = StackTask(replace(STACK, hidden=(8, 8, 8), epochs=3, max_steps=100, warmup_epochs=0.))
    layers = [task.layer_of(s) for s in range(100)]
    assert layers == sorted(layers) and [layers.count(i) for i in range(3)] == [34, 33, 33]
    starts = [layers.index(i) for i in range(3)]
    assert [task.learning_rate(s) for s in starts] == [task.lr]*3
    assert all(task.learning_rate(s) < task.lr for s in range(100) if s not in starts) and task.learning_rate(100) == 0

@pytest.mark.slow
def test_a_stack_learns_and_can_be_probed_and_tuned(tmp_path):
    run = train_stack(replace(STACK, hidden=(48, 32), max_steps=160, batch_size=32, save_every=None, output_dir=str(tmp_path/'run')), **QUIET)
    losses = [r['loss'] for r in read_jsonl(run/'log.jsonl')]
    assert np.mean(losses[70:80]) < 0.8*losses[0] and np.mean(losses[-10:]) < 0.9*losses[80]
    model = load_relative(run)
    assert isinstance(model, StackedDAE) and model.cfg.hidden == (48, 32) and read_json(run/'model.json')['kind'] == 'stack'
    few = label_subset(fashion(), 0.02)
    found = probe_layers(model, few, label_subset(fashion('test'), 0.1), batch_size=200)
    assert len(found) == 3 and min(r['linear'] for r in found) > 40
    how = TuneConfig(encoder=str(run), label_fraction=0.02, epochs=15, warmup_epochs=0., blr=2e-2, eval_every=15, device='cpu', output_dir=str(tmp_path/'tuned'))
    tuned = tune(how, **QUIET)
    assert read_jsonl(tuned/'log.jsonl')[-1]['top1'] > 40
    before,after = weights(run),weights(tuned)
    assert not after['encoder.blocks.0.weight'].equal(before['blocks.0.weight'])
    assert after['encoder.blocks.0.decoder_bias'].equal(before['blocks.0.decoder_bias'])  # the way back isn't used
    frozen = tune(replace(how, trainable_blocks=0., max_steps=2, layer_decay=None, output_dir=str(tmp_path/'frozen')), **QUIET)
    assert weights(frozen)['encoder.blocks.0.weight'].equal(before['blocks.0.weight'])

def test_bad_stacks(tmp_path):
    for change,says in ((dict(hidden=(8, 7)), 'multiple of 4'), (dict(hidden=(0,)), 'at least one layer'), (dict(mean=(0.3,), std=(0.3,)), 'pixels in'),
                        (dict(weight_decay=0.1), 'weight_decay is not'), (dict(fsdp=True), 'fsdp is not'), (dict(amount=1.5), 'in [0, 1), got 1.5'),
                        (dict(emphasis=(0., 0.)), 'not both 0'), (dict(amount=-1), 'amount must be at least 0'), (dict(corruption='blur'), 'corruption must be one of')):
        with pytest.raises(ValueError, match=says.replace('[', r'\[').replace(')', r'\)')): StackTask(replace(STACK, **change))

# --- a ViT ---
def tiny_task(**how): return DenoiseTask(replace(DENOISE, **how))

@pytest.mark.parametrize('norm', [False, True])
def test_with_masks_it_is_the_encoder_with_mask_tokens(norm):
    "Loss and gradients of the masked autoencoder of Table 1c, whose mask token is the bias of the patch embedding."
    torch.manual_seed(0)
    cfg = replace(TINY, norm_pix_loss=norm)
    model = DenoisingViT(cfg)
    torch.nn.init.normal_(model.patch_embed.proj.bias)
    other = MaskedAutoencoderViT(replace(cfg, encoder_mask_tokens=True))
    other.load_state_dict(model.state_dict() | dict(encoder_mask_token=model.patch_embed.proj.bias.detach().view(1, 1, -1)))
    imgs,scores = torch.randn(3, 1, 28, 28),torch.rand(3, 49)
    patches,grid = model.to_patches(imgs)
    how = DenoiseConfig(corruption='masking', emphasis=(1., 0.))
    noisy = corrupt_patches(patches, scores, how)
    loss = denoising_loss(model(unpatchify(noisy.x, 4, grid)), model.target(patches, grid), noisy, how.emphasis)
    expected = other(imgs, 0.75, scores, loss_only=True).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward(); expected.backward()
    for (n,p),(_,q) in zip(model.named_parameters(), ((n, dict(other.named_parameters())[n]) for n,_ in model.named_parameters())):
        if not p.requires_grad: continue
        grad = q.grad + other.encoder_mask_token.grad.view(-1) if n == 'patch_embed.proj.bias' else q.grad
        assert torch.allclose(p.grad, grad, atol=2e-6), n

def test_it_hides_what_pretraining_masks():
    "The same seed: the same images, crops and masks."
    ours = tiny_task(corruption='masking', seed=3)
    theirs = PretrainTask(PretrainConfig(device='cpu', batch_size=8, seed=3, max_steps=4, warmup_epochs=0.))
    for (imgs,scores),(imgs2,scores2),_ in zip(ours.batches(0), theirs.batches(0), range(3)):
        assert imgs.equal(imgs2) and scores.equal(scores2)
        patches,_ = ours.model.to_patches(imgs.float())
        assert corrupt_patches(patches, scores, ours.cfg).hit.equal(mask_from_scores(scores2, 0.75).mask)

def test_span_is_black_and_white():
    task = tiny_task(corruption='salt_pepper', of='pixels', amount=0.5)
    imgs,scores = next(iter(task.batches(0)))
    patches,_ = task.model.to_patches((imgs.float()/255 - task.stats[0])/task.stats[1])
    noisy = corrupt_patches(patches, scores, task.cfg, task.span)
    pixels = noisy.x*task.stats[1] + task.stats[0]
    assert noisy.hit.shape == patches.shape and noisy.hit.mean() == 0.5
    assert torch.allclose(pixels[noisy.hit.bool()], pixels[noisy.hit.bool()].round(), atol=1e-6)
    assert pixels[noisy.hit.bool()].mean().sub(0.5).abs() < 0.05

@pytest.mark.slow
def test_noise_within_the_components():
    task = tiny_task(corruption='pca_gaussian', amount=1., noise_levels='single')
    patches = task.latent.mean.expand(64, 49, -1)
    noise = corrupt_patches(patches, torch.rand(64, 49), task.cfg, latent=task.latent).x - patches
    z = noise @ task.latent.components.T
    assert torch.allclose(z @ task.latent.components, noise, atol=1e-5)             # nothing outside of them
    assert (z.std()/task.latent.scale - 1).abs() < 0.02                              # as much noise as signal
    again = tiny_task(corruption='pca_gaussian', amount=1., noise_levels='single')
    assert again.latent.components.equal(task.latent.components) and again.latent.scale.equal(task.latent.scale)

@pytest.fixture(scope='module')
def denoise_run(tmp_path_factory):
    return train_denoise(replace(DENOISE, corruption='pca_gaussian', output_dir=str(tmp_path_factory.mktemp('denoise')/'run')), **QUIET)

@pytest.mark.slow
def test_a_vit_resumes(denoise_run, tmp_path):
    run = Path(shutil.copytree(denoise_run, tmp_path/'run'))
    keep_until(run, 2)
    train_denoise(replace(DENOISE, corruption='pca_gaussian', output_dir=str(run), resume='auto'), **QUIET)
    assert same(weights(run), weights(denoise_run))

@pytest.mark.slow
def test_its_weights_are_those_of_a_masked_autoencoder(denoise_run, tmp_path):
    "Read strictly by all that reads one: from_pretrained, fine-tuning, the report."
    model = from_pretrained(denoise_run, 'autoencoder')
    assert type(model) is MaskedAutoencoderViT and same(dict(model.state_dict()), weights(denoise_run))
    assert type(load_relative(denoise_run)) is MaskedAutoencoderViT
    out = model(torch.randn(2, 1, 28, 28))
    assert torch.isfinite(out.loss)
    run = finetune(FinetuneConfig(encoder=str(denoise_run), label_fraction=0.01, max_steps=2, eval_every=1, batch_size=8, device='cpu', output_dir=str(tmp_path/'run')), **QUIET)
    assert 'top1' in read_jsonl(run/'log.jsonl')[-1]
    copy = Path(shutil.copytree(denoise_run, tmp_path/'copy'))
    write_report(copy, ReportConfig(max_images=200, device='cpu'), lambda line: None)
    assert 'no patch was left out' in (copy/'report.html').read_text()

@pytest.mark.parametrize('how', [dict(), dict(corruption='masking', emphasis=(1., 0.)), dict(corruption='masking', of='pixels', emphasis=(1., 0.5)),
                                 dict(corruption='salt_pepper', amount=0.3), dict(corruption='pca_gaussian', components=2), dict(norm_pix_loss=True), dict(amount=0.)])
@pytest.mark.slow
def test_every_kind_trains(how):
    from mae_nb.train.engine import task_steps
    task = tiny_task(**how)
    losses = [r['loss'].item() for r in task_steps(task)]
    assert len(losses) == 4 and np.isfinite(losses).all() and losses[-1] != losses[0]
    assert task.model.mask_token.grad is None and 'denoise' not in task.summary() and task.flops_per_image > PretrainTask(PretrainConfig(device='cpu')).flops_per_image

def test_bad_amounts():
    assert corrupt_patches(torch.zeros(1, 49, 16), torch.rand(1, 49), DenoiseConfig(corruption='masking', amount=1e-3)).hit.sum() == 1  # rounded up
    for change,says in ((dict(corruption='masking', amount=1.), 'got 1.0'), (dict(emphasis=(1., 0.)), 'has no effect'), (dict(components=0), 'components must be'),
                        (dict(corruption='pca_gaussian', components=17), 'between 1 and 16'), (dict(corruption='pca_gaussian', norm_pix_loss=True), 'rest_weight=1')):
        with pytest.raises(ValueError, match=says): tiny_task(**change)

# --- several processes ---
TWO = '''
import sys
from dataclasses import replace
from mae_nb.relatives.config import DenoiseConfig, StackConfig, TuneConfig
from mae_nb.relatives.denoise import train_denoise
from mae_nb.relatives.stack import train_stack
from mae_nb.relatives.tune import tune
kind,out,encoder = sys.argv[1:]
if kind == 'stack': train_stack(replace({stack}, batch_size=8, output_dir=out))
if kind == 'denoise': train_denoise(replace({denoise}, corruption='pca_gaussian', batch_size=4, output_dir=out))
if kind == 'tune': tune(TuneConfig(encoder=encoder, label_fraction=0.02, max_steps=3, batch_size=8, eval_every=1, device='cpu', output_dir=out))
'''

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['stack', 'denoise'])
def test_two_processes(kind, tmp_path):
    "Two processes with half of the batch each, or one with two halves one after the other: the same weights, to the last bit."
    script = tmp_path/'two.py'
    script.write_text(TWO.format(stack=repr(STACK), denoise=repr(DENOISE)))
    r = launch(script, kind, tmp_path/'run', 'none', processes=2)
    assert r.returncode == 0, r.said
    out = str(tmp_path/'halves')
    if kind == 'stack': halves = train_stack(replace(STACK, batch_size=8, accum_iter=2, output_dir=out), **QUIET)
    else: halves = train_denoise(replace(DENOISE, corruption='pca_gaussian', batch_size=4, accum_iter=2, output_dir=out), **QUIET)
    assert same(weights(tmp_path/'run'), weights(halves))

@pytest.mark.slow
def test_tuning_in_two_processes(stack_run, tmp_path):
    "A decoder that isn't used has no gradient to wait for."
    script = tmp_path/'two.py'
    script.write_text(TWO.format(stack=repr(STACK), denoise=repr(DENOISE)))
    r = launch(script, 'tune', tmp_path/'run', stack_run, processes=2)
    assert r.returncode == 0 and 'top1' in read_jsonl(tmp_path/'run/log.jsonl')[-1], r.said
