"BEiT against its published masks, transformers and timm; its weights, and its run: resumed, and in two processes."
import math, random, shutil
from dataclasses import asdict, replace
import numpy as np, pytest, torch
from launch import launch
from mae_nb.core.files import read_json, read_tensors, save_json, save_tensors
from mae_nb.core.rng import SampleRandom
from mae_nb.data.augment import PretrainDataset
from mae_nb.data.bundled import fashion
from mae_nb.data.labels import label_subset
from mae_nb.data.loader import train_loader
from mae_nb.relatives.beit import BEiT, BEiTShape
from mae_nb.relatives.beit_run import BEiTTask, complete_tokens, train_beit
from mae_nb.relatives.beit_weights import beit_from_hf, beit_hf_config, beit_shape, beit_to_hf, load_hf_beit, save_hf_beit
from mae_nb.relatives.block_masks import block_mask, block_masks, mask_sampler, paper_block_masks
from mae_nb.relatives.config import BEiTConfig, TuneConfig
from mae_nb.relatives.tune import load_relative, probe_layers, tune
from mae_nb.tasks.config import TokenizerConfig
from mae_nb.tasks.tokenizer import load_tokenizer, train_tokenizer
from mae_nb.train.engine import task_steps

TINY = BEiTShape(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4, vocab_size=50)
quiet = dict(log=lambda line: None)

# --- masks ---
class PublishedMasks:
    "BEiT's `masking_generator.py`, restated: Python's `random`, patch by patch."
    def __init__(self, grid, masked, smallest): self.h,self.w,self.masked,self.smallest = *grid,masked,smallest
    def add(self, mask, most):
        delta = 0
        for attempt in range(10):
            area = random.uniform(self.smallest, most)
            aspect = math.exp(random.uniform(math.log(0.3), math.log(1/0.3)))
            h,w = int(round(math.sqrt(area*aspect))),int(round(math.sqrt(area/aspect)))
            if w < self.w and h < self.h:
                top = random.randint(0, self.h - h)
                left = random.randint(0, self.w - w)
                already = mask[top:top+h,left:left+w].sum()
                if 0 < h*w - already <= most:
                    for i in range(top, top + h):
                        for j in range(left, left + w):
                            if mask[i,j] == 0: mask[i,j] = 1; delta += 1
                if delta > 0: break
        return delta
    def __call__(self):
        mask,count = np.zeros((self.h, self.w), int),0
        while count < self.masked:
            delta = self.add(mask, self.masked - count)
            if delta == 0: break
            count += delta
        return mask

@pytest.mark.parametrize('grid,masked,smallest', [((14, 14), 75, 16), ((14, 14), 75, 4), ((7, 7), 19, 4), ((6, 10), 30, 1), ((14, 14), 118, 16)])
def test_masks_of_the_release(grid, masked, smallest):
    "One generator for many masks, as in the release's workers: equal masks from equal seeds."
    theirs = PublishedMasks(grid, masked, smallest)
    rng = random.Random(5)
    random.seed(5)
    counts = set()
    for _ in range(100):
        expected = theirs()
        assert np.array_equal(block_mask(grid, masked, smallest, rng), expected.astype(bool))
        counts.add(expected.sum())
    assert max(counts) <= masked and random.getstate() == rng.getstate()

class Replay:
    "Python's interface to uniform numbers `(tries, 4)`."
    def __init__(self, u): self.rows,self.at = iter(u),2
    def uniform(self, a, b):
        if self.at == 2: self.row,self.at = next(self.rows),0
        self.at += 1
        return a + (b - a)*self.row[self.at - 1]
    def randint(self, a, b):
        self.at += 1
        value = a + int((b - a + 1)*self.row[self.at - 1])
        if self.at == 4: self.at = 2
        return value

@pytest.mark.parametrize('grid,masked,smallest', [((14, 14), 75, 16), ((7, 7), 19, 4), ((6, 10), 30, 1)])
def test_masks_of_a_batch(grid, masked, smallest):
    "Drawn together they are what each would be alone, and what the release makes of the same numbers."
    samples = SampleRandom(7, [(2, i) for i in range(60)])
    masks = block_masks(60, grid, masked, smallest, samples.stream('mask'))
    numbers = samples.rand('mask', 4*800).double().view(60, 800, 4).tolist()
    for i,(mask,u) in enumerate(zip(masks, numbers)):
        assert np.array_equal(block_mask(grid, masked, smallest, Replay(u)), mask.numpy())
        assert torch.equal(block_masks(1, grid, masked, smallest, samples[i:i+1].stream('mask'))[0], mask)

def test_distribution_of_masks():
    "Counts and places: those of the restated release, from other numbers."
    random.seed(0); torch.manual_seed(0)
    theirs = torch.from_numpy(np.stack([PublishedMasks((14, 14), 75, 16)() for _ in range(1500)])).float()
    ours = block_masks(3000, (14, 14), 75).float()
    a,b = theirs.sum((1, 2)),ours.sum((1, 2))
    assert a.max() == b.max() == 75 and abs(a.mean() - b.mean()) < 0.1
    assert abs((a == 75).float().mean() - (b == 75).float().mean()) < 0.04
    assert (theirs.mean(0) - ours.mean(0)).abs().max() < 0.06
    assert abs(theirs.any(2).sum(1).float().mean() - ours.any(2).sum(1).float().mean()) < 0.2

def test_a_block_is_a_full_rectangle():
    "With one try that fits, and no more: rows and columns of the block are those of the area and the aspect ratio."
    area,aspect = torch.rand(300)*59 + 16,0.3**(2*torch.rand(300) - 1)
    u = torch.rand(300, 64)
    u[:,0],u[:,1] = (area - 16)/59,(aspect.log() - math.log(0.3))/(math.log(1/0.3) - math.log(0.3))
    u[:,4:] = torch.tensor([0., 0., 0.9, 0.9]).repeat(15)  # all further tries: 16 patches and more, 2 x 7, in the corner
    for mask,s,r in zip(block_masks(300, (14, 14), 75, 16, lambda B, n: u), area, aspect):
        a,b = round(math.sqrt(s*r)),round(math.sqrt(s/r))
        if a < 14 and b < 14 and a*b <= 75: assert torch.nn.functional.avg_pool2d(mask[None].float(), (a, b), 1).max() == 1

def test_rule_of_the_paper():
    torch.manual_seed(0)
    n = paper_block_masks(1000, (14, 14)).sum((1, 2))
    assert n.min() > 0.4*196 and n.max() < 0.4*196 + 40
    assert paper_block_masks(50, (14, 14), 0.).sum((1, 2)).min() >= 1  # more than nothing
    samples = SampleRandom(1, [(0, i) for i in range(20)])
    whole = paper_block_masks(20, (7, 7), 0.4, 4, samples.stream('mask'))
    for i in range(20): assert torch.equal(paper_block_masks(1, (7, 7), 0.4, 4, samples[i:i+1].stream('mask'))[0], whole[i])

@pytest.mark.parametrize('sampling', ['block', 'block_paper', 'random'])
def test_masks_belong_to_samples(sampling):
    "From a loader in memory, and from one that reads sample by sample, in one process or as rank 1 of 2."
    def masks(backend, rank, processes):
        data = PretrainDataset(fashion(), (28, 28), 49, 3, score=mask_sampler(sampling, (7, 7)), image_backend=backend)
        return {i: m for imgs,ms in [next(iter(train_loader(data, 16//processes, 1, 0, rank=rank, processes=processes)))] for i,m in zip(map(lambda x: x.numpy().tobytes(), imgs), ms)}
    whole = masks('fast', 0, 1)
    for part in masks('fast', 1, 2).items(): assert torch.equal(whole[part[0]], part[1])
    found = PretrainDataset(fashion(), (28, 28), 49, 3, score=mask_sampler(sampling, (7, 7)), image_backend='pil')[0, 11][1]
    assert torch.equal(found, PretrainDataset(fashion(), (28, 28), 49, 3, score=mask_sampler(sampling, (7, 7)))[0, 11][1])

# --- model ---
def randomised(model, std=0.3):
    for p in model.parameters(): torch.nn.init.normal_(p, std=std)
    return model

@pytest.fixture
def case():
    torch.manual_seed(0)
    mask = torch.zeros(4, 16, dtype=torch.bool)
    for row,n in zip(mask, (3, 6, 6, 9)): row[torch.randperm(16)[:n]] = True
    return randomised(BEiT(TINY)),torch.randn(4, 3, 16, 16),mask,torch.randint(50, (4, 16))

def hugging_face(model, **change):
    "transformers' model with our weights; every tensor finds its place."
    transformers = pytest.importorskip('transformers', minversion='5')  # whose names in memory are the other generation
    oracle = transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**beit_hf_config(model.cfg) | change)).eval()
    there = {k: None for k in oracle.state_dict()}
    for k,v in beit_to_hf(model.state_dict()).items():
        for a,b in (('encoder.layer.', 'layers.'), ('attention.attention.query', 'attention.q_proj'), ('attention.attention.key', 'attention.k_proj'),
                    ('attention.attention.value', 'attention.v_proj'), ('attention.output.dense', 'attention.o_proj'), ('intermediate.dense', 'mlp.fc1'),
                    ('output.dense', 'mlp.fc2'), ('encoder.relative_position_bias', 'shared_position_bias')): k = k.replace(a, b)
        there[k] = v
    oracle.load_state_dict(there)
    return oracle

@pytest.mark.slow
def test_loss_and_all_gradients_of_transformers(case):
    model,imgs,mask,tokens = case
    oracle = hugging_face(model)
    a,b = model(imgs, mask, tokens),oracle(pixel_values=imgs, bool_masked_pos=mask, labels=tokens[mask])
    assert torch.allclose(a.logits, b.logits[mask], atol=1e-5) and abs(a.loss - b.loss) < 1e-5
    a.loss.backward(); b.loss.backward()
    expected = beit_from_hf({k: p.grad for k,p in oracle.named_parameters()})
    grads = {k: p.grad for k,p in model.named_parameters()}
    assert grads.keys() == expected.keys() and len(grads) == 15*3 + 9
    for k in grads: assert torch.allclose(grads[k], expected[k], atol=1e-5) and expected[k].abs().max() > 1e-4, k

def test_per_image_is_the_same_for_equal_masks(case):
    "And for unequal ones, the mean of what transformers has for each image."
    model,imgs,mask,tokens = case
    equal = mask[1:3]
    assert abs(model(imgs[1:3], equal, tokens[1:3]).loss - model(imgs[1:3], equal, tokens[1:3], per_image=True).loss) < 1e-6
    oracle = hugging_face(model)
    each = [oracle(imgs[i:i+1], mask[i:i+1], labels=tokens[i:i+1][mask[i:i+1]]).loss for i in range(4)]
    assert abs(model(imgs, mask, tokens, per_image=True).loss - sum(each)/4) < 1e-5

def test_stochastic_depth_of_transformers(case):
    "The same rates; a dropped branch is dropped for the image, and the others are scaled."
    model = randomised(BEiT(replace(TINY, drop_path=0.4)))
    oracle = hugging_face(model, drop_path_rate=0.4).train()
    assert [b.drop_path1.drop_prob for b in model.blocks] == [getattr(l.drop_path, 'drop_prob', 0.) for l in oracle.beit.layers]
    _,imgs,mask,tokens = case
    none_dropped,all_but = (torch.full((4, 3, 2), v) for v in (0.99, 0.))
    scaled = model.train()(imgs, mask, drops=none_dropped).logits
    for i,b in enumerate(model.blocks):
        for name in 'gamma_1', 'gamma_2': getattr(b, name).data /= 1 - b.drop_path1.drop_prob
    assert torch.allclose(scaled, model.eval()(imgs, mask).logits, atol=1e-5)  # all kept: as if scaled
    for b in model.blocks[1:]: b.gamma_1.data.zero_(); b.gamma_2.data.zero_()
    assert torch.allclose(model.train()(imgs, mask, drops=all_but).logits, model.eval()(imgs, mask).logits, atol=1e-5)  # all dropped, but for the first block, whose rate is 0

def test_encoder_of_timm(case):
    from timm.models.beit import Beit
    model,imgs,_,_ = case
    encoder = Beit(16, 4, 3, num_classes=0, global_pool='', embed_dim=32, depth=3, num_heads=4, norm_layer=model.norm.__class__, init_values=0.1,
                   use_abs_pos_emb=False, use_shared_rel_pos_bias=True).eval()
    for m in encoder.modules():
        if isinstance(m, torch.nn.LayerNorm): m.eps = 1e-6
    encoder.load_state_dict({k: v for k,v in model.state_dict().items() if k != 'mask_token' and not k.startswith('lm_head')})
    states = model.eval().layers(imgs)
    assert torch.allclose(model.norm(states[-1]), encoder.forward_features(imgs)[:,1:], atol=1e-5)
    for ours,theirs in zip(states[1:], encoder.forward_intermediates(imgs, intermediates_only=True, output_fmt='NLC')): assert torch.allclose(ours, theirs, atol=1e-5)

def test_start_of_the_release():
    "Cut at one standard deviation; the last weight of each branch is divided by the root of twice its layer."
    torch.manual_seed(0)
    model = BEiT(replace(TINY, embed_dim=64, num_heads=4))
    for k,p in model.named_parameters():
        if k.endswith(('proj.weight', 'fc2.weight')) and 'blocks' in k: limit = 0.02/math.sqrt(2*(int(k.split('.')[1]) + 1))
        elif p.ndim > 1 and 'table' not in k: limit = 0.02
        else: limit = None
        if limit: assert 0.95*limit < p.abs().max() <= limit*1.0001 and p.std().item() == pytest.approx(0.54*limit, rel=0.15), k
        elif 'gamma' in k: assert (p == 0.1).all()
        elif 'norm' in k and k.endswith('weight'): assert (p == 1).all(), k
        else: assert not p.any(), k

def test_what_cannot_be_seen(case):
    "Masked pixels have no influence, and predictions elsewhere no gradient."
    model,imgs,mask,tokens = case
    model.eval()
    hidden = imgs + 5*mask.view(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(model(imgs, mask).logits, model(hidden, mask).logits)
    x = imgs.clone().requires_grad_()
    grad, = torch.autograd.grad(model(x, mask, tokens).loss, x)
    patches = grad.unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((1, 4, 5)).flatten(1)
    assert torch.equal(patches != 0, ~mask)

def test_recomputed_activations_and_16_bits(case):
    model,imgs,mask,tokens = case
    randomised(model, 0.1)
    plain = model(imgs, mask, tokens).loss
    expected = torch.autograd.grad(plain, list(model.parameters()))
    model.set_grad_checkpointing(True)
    for a,b in zip(torch.autograd.grad(model(imgs, mask, tokens).loss, list(model.parameters())), expected): assert torch.allclose(a, b, atol=1e-6)
    for fused in (True, False):
        for block in model.blocks: block.attn.fused_attn = fused
        with torch.autocast('cpu', torch.bfloat16): assert abs(model(imgs, mask, tokens).loss - plain) < 0.05

# --- weights ---
def test_in_both_generations_of_names(case, tmp_path):
    transformers = pytest.importorskip('transformers', minversion='5')
    model = case[0].eval()
    here = load_hf_beit(save_hf_beit(model, tmp_path/'files'))
    for k,v in model.state_dict().items(): assert torch.equal(here.state_dict()[k], v)
    oracle,info = transformers.BeitForMaskedImageModeling.from_pretrained(tmp_path/'files', output_loading_info=True)
    assert not any(info.values()), info
    in_memory = oracle.state_dict()
    assert not set(in_memory) & set(read_tensors(tmp_path/'files/model.safetensors')) - {k for k in in_memory if 'layers' not in k and 'shared' not in k}
    back = beit_from_hf(in_memory)
    for k,v in model.state_dict().items(): assert torch.equal(back[k], v)
    _,imgs,mask,_ = case
    assert torch.allclose(oracle.eval()(imgs, mask).logits[mask], model(imgs, mask).logits, atol=1e-5)

def test_what_transformers_writes(case, tmp_path):
    transformers = pytest.importorskip('transformers', minversion='5')
    theirs = randomised(transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**beit_hf_config(TINY)))).eval()
    theirs.save_pretrained(tmp_path)
    save_json(dict(image_mean=[0.5]*3, image_std=[0.5]*3), tmp_path/'preprocessor_config.json')
    ours = load_hf_beit(tmp_path)
    _,imgs,mask,_ = case
    assert ours.cfg == replace(TINY, mean=(0.5,)*3, std=(0.5,)*3) and not ours.training
    assert torch.allclose(ours(imgs, mask).logits, theirs(imgs, mask).logits[mask], atol=1e-5)
    torch.save(read_tensors(tmp_path/'model.safetensors'), tmp_path/'pytorch_model.bin'); (tmp_path/'model.safetensors').unlink()
    assert torch.equal(load_hf_beit(tmp_path).lm_head.weight, theirs.lm_head.weight)

def test_names_of_the_release(case):
    "The release's state dict, by its modules' names, is ours but for the index."
    model = case[0]
    per_block = 'gamma_1 gamma_2 norm1.weight norm1.bias attn.q_bias attn.v_bias attn.qkv.weight attn.proj.weight attn.proj.bias norm2.weight norm2.bias ' \
                'mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias'.split()
    outside = 'cls_token mask_token patch_embed.proj.weight patch_embed.proj.bias rel_pos_bias.relative_position_bias_table norm.weight norm.bias lm_head.weight lm_head.bias'.split()
    assert set(model.state_dict()) == {f'blocks.{i}.{k}' for i in range(3) for k in per_block} | set(outside)

@pytest.mark.parametrize('change,says', [(dict(use_shared_relative_position_bias=False), 'use_shared_relative_position_bias must be True'), (dict(hidden_act='relu'), 'hidden_act must be gelu'),
                                         (dict(image_size=[16, 24]), 'give square images, got 16x24'), (dict(use_absolute_position_embeddings=True), 'use_absolute_position_embeddings must be False')])
def test_other_models_are_refused(change, says):
    with pytest.raises(ValueError, match=says): beit_shape(beit_hf_config(TINY) | change)

# --- run ---
RUN = BEiTConfig(max_steps=6, batch_size=8, warmup_epochs=0.002, log_every=1, save_every=3, keep_checkpoints=9, drop_path=0.2, device='cpu')

@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    run = tmp_path_factory.mktemp('tokenizer')/'run'
    return str(train_tokenizer(TokenizerConfig(output_dir=str(run), max_steps=10, batch_size=16, vocab_size=16, embed_dim=4, eval_every=10_000, device='cpu'), **quiet))

@pytest.fixture(scope='module')
def whole(tokenizer, tmp_path_factory): return train_beit(replace(RUN, tokenizer=tokenizer, output_dir=str(tmp_path_factory.mktemp('beit')/'run')), **quiet)

def losses(cfg): return [r['loss'].mean().item() for r in task_steps(BEiTTask(cfg))]

@pytest.mark.slow
@pytest.mark.parametrize('sampling', ['block', 'block_paper'])
def test_accumulation(sampling, tokenizer):
    "A batch in two halves: the same losses, though masks differ in size, and branches are dropped."
    cfg = replace(RUN, tokenizer=tokenizer, mask_sampling=sampling, max_steps=3)
    one,two = losses(cfg),losses(replace(cfg, batch_size=4, accum_iter=2))
    assert max(abs(a - b) for a,b in zip(one, two)) < 1e-5
    assert losses(replace(cfg, drop_path=0.)) != one

@pytest.mark.slow
def test_resumed(whole, tokenizer, tmp_path):
    "Stopped after step 3 and continued: the same weights, to the last bit."
    run = shutil.copytree(whole, tmp_path/'run')
    shutil.rmtree(run/'checkpoints/step-00000006')
    for name in 'model.json', 'model.safetensors': (run/name).unlink()
    train_beit(replace(RUN, tokenizer=tokenizer, output_dir=str(run), resume='auto'), **quiet)
    assert (run/'model.safetensors').read_bytes() == (whole/'model.safetensors').read_bytes()

@pytest.mark.slow
def test_another_tokenizer_is_refused(whole, tokenizer, tmp_path):
    run = shutil.copytree(whole, tmp_path/'run')
    moved = shutil.copytree(tokenizer, tmp_path/'moved')
    train_beit(replace(RUN, tokenizer=str(moved), output_dir=str(run), resume='auto'), **quiet)  # the same, elsewhere
    state = read_tensors(moved/'model.safetensors')
    for p in (moved/'checkpoints').glob('*'): shutil.rmtree(p)
    save_tensors({k: v + 0.01 for k,v in state.items()}, moved/'model.safetensors')
    with pytest.raises(ValueError, match='tokenizer: now'): train_beit(replace(RUN, tokenizer=str(moved), output_dir=str(run), resume='auto'), **quiet)

SCRIPT = '''
import sys
from mae_nb.relatives.config import BEiTConfig
from mae_nb.relatives.beit_run import train_beit
train_beit(BEiTConfig(output_dir=sys.argv[1], tokenizer=sys.argv[2], max_steps=6, batch_size=4, warmup_epochs=0.002, log_every=1, drop_path=0.2, device='cpu'))
'''

@pytest.mark.slow
def test_two_processes(tokenizer, tmp_path):
    "Two processes with half of the batch each, or one with two halves one after the other: the same weights, to the last bit."
    (tmp_path/'train.py').write_text(SCRIPT)
    r = launch(tmp_path/'train.py', tmp_path/'two', tokenizer, processes=2)
    assert r.returncode == 0, r.said
    halves = train_beit(replace(RUN, tokenizer=tokenizer, output_dir=str(tmp_path/'halves'), batch_size=4, accum_iter=2), **quiet)
    two,one = (read_tensors(p/'model.safetensors') for p in (tmp_path/'two', halves))
    for k in one: assert torch.equal(one[k], two[k]), k

@pytest.mark.slow
def test_probes_fine_tuning_and_weights(whole, tokenizer, tmp_path):
    model = load_relative(whole)
    assert isinstance(model, BEiT) and model.cfg.vocab_size == 16 and model.cfg.drop_path == 0.2
    some = [label_subset(fashion(s), 0.02, 0) for s in ('train', 'test')]
    found = probe_layers(model, *some, batch_size=64)
    assert len(found) == model.cfg.depth + 1 and all(10 < r['linear'] <= 100 for r in found)
    tuned = tune(TuneConfig(encoder=str(whole), output_dir=str(tmp_path/'tuned'), label_fraction=0.02, max_steps=2, device='cpu'), **quiet)
    before,after = read_tensors(whole/'model.safetensors'),read_tensors(tuned/'model.safetensors')
    moved = {k for k in before if not torch.equal(before[k], after[f'encoder.{k}'])}
    assert 'rel_pos_bias.relative_position_bias_table' in moved and 'blocks.0.gamma_1' in moved
    assert load_hf_beit(save_hf_beit(model, tmp_path/'hf')).cfg == replace(model.cfg, value_range=None)

def test_complete_tokens(whole, tokenizer):
    model,codes = load_relative(whole),torch.randint(16, (3, 49))
    imgs,mask = torch.randn(3, 1, 28, 28),mask_sampler('block', (7, 7))(3)
    found = complete_tokens(model, imgs, mask, codes)
    assert torch.equal(found[~mask], codes[~mask])
    assert torch.equal(found[mask], model(imgs, mask).logits.argmax(-1)) and load_tokenizer(tokenizer).decode(found.view(3, 7, 7)).shape == imgs.shape
