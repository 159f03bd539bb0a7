"What must be true of any input: hypothesis looks for one of which it isn't."
import io, json, math, tarfile
from dataclasses import asdict
from pathlib import Path
import pytest, torch

pytest.importorskip('hypothesis')
from hypothesis import assume, given, settings, strategies as st
from mae_nb.data.augment import random_resized_crop_boxes
from mae_nb.core.rng import SampleRandom
from mae_nb.data.loader import ResumableBatchSampler
from mae_nb.data.shards import expand_shards, index_shard
from mae_nb.core.dist import accumulation_steps
from mae_nb.data.folders import image_endings
from mae_nb.model.config import ClassifierConfig, MAEConfig
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.model.classifier import ViTClassifier
from mae_nb.model.masking import gather_patches, mask_from_scores, num_keep
from mae_nb.model.masks import scores_from_mask
from mae_nb.train.optim import cosine_lr
from mae_nb.model.patches import patchify, unpatchify
from mae_nb.tasks.config import PretrainConfig
from mae_nb.weights.formats import from_hf, to_hf

settings.register_profile('house', deadline=None, max_examples=300, derandomize=True, database=None)
settings.load_profile('house')
few = st.integers(1, 4)

# --- patches and masks

@given(few, few, few, few, few)
def test_patches_there_and_back(B, C, h, w, p):
    imgs = torch.arange(B*C*h*p*w*p).view(B, C, h*p, w*p)
    patches = patchify(imgs, p)
    assert patches.shape == (B, h*w, p*p*C)
    assert torch.equal(unpatchify(patches, p, (h, w)), imgs)
    assert torch.equal(patches[0,0].view(p, p, C), imgs[0,:,:p,:p].permute(1, 2, 0))

@given(st.data(), few, st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_a_mask_is_a_ranking(data, B, L, ratio):
    assume(int(L*(1 - ratio)) >= 1)
    scores = torch.tensor(data.draw(st.lists(st.lists(st.integers(0, 5), min_size=L, max_size=L), min_size=B, max_size=B))).float()
    m,K = mask_from_scores(scores, ratio), num_keep(L, ratio)
    assert m.ids_keep.shape == (B, K) and (m.mask.sum(1) == L - K).all()
    everyone = torch.arange(L).expand(B, L)
    ids = torch.cat([m.ids_keep, m.ids_masked], 1)
    assert torch.equal(ids.sort(1).values, everyone) and torch.equal(ids.gather(1, m.ids_restore), everyone)
    assert (m.mask.gather(1, m.ids_keep) == 0).all() and (m.mask.gather(1, m.ids_masked) == 1).all()
    ranked = scores.gather(1, ids)
    assert (ranked.diff(dim=1) >= 0).all()                     # the lowest scores are kept
    ties = ranked.diff(dim=1) == 0
    assert (ids.diff(dim=1)[ties] > 0).all()                   # and of equal ones, the first
    x = torch.randn(B, L, 2)
    assert torch.equal(gather_patches(gather_patches(x, ids), m.ids_restore), x)

@given(st.data(), few, st.integers(2, 60))
def test_masks_of_ones_own(data, B, L):
    removed = data.draw(st.integers(1, L - 1))
    mask = torch.zeros(B, L)
    for row in mask: row[data.draw(st.permutations(range(L)))[:removed]] = 1
    scores,ratio = scores_from_mask(mask)
    assert torch.equal(mask_from_scores(scores, ratio).mask, mask)

# --- steps, batches, rates

@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 6), st.booleans(), st.booleans())
def test_a_step_is_made_up_of_its_passes(batch_size, processes, accum_iter, by_total, by_both):
    total = batch_size*processes*accum_iter
    given_ = dict(effective_batch=total) if by_total else dict(accum_iter=accum_iter)
    if by_both: given_ = dict(effective_batch=total, accum_iter=accum_iter)
    assert accumulation_steps(batch_size, processes=processes, **given_) == (accum_iter, total)
    for bad in dict(effective_batch=total + 1), dict(effective_batch=total + 1, accum_iter=accum_iter):
        if batch_size*processes > 1 or 'accum_iter' in bad:
            with pytest.raises(ValueError, match=f'effective_batch={total + 1}'): accumulation_steps(batch_size, processes=processes, **bad)

@pytest.mark.slow
@given(st.integers(1, 60), few, few, few, st.integers(1, 3), st.integers(0, 9), st.data())
def test_ranks_and_passes_share_out_each_step(n, b, a, p, epochs, seed, data):
    assume(b*a*p <= n)
    def of(rank, start=0): return list(ResumableBatchSampler(n, b, epochs, seed, start, a, rank, p))
    whole,per_epoch = list(ResumableBatchSampler(n, b*a*p, epochs, seed)), n//(b*a*p)
    parts = [of(rank) for rank in range(p)]
    assert all(len(part) == len(ResumableBatchSampler(n, b, epochs, seed, 0, a, rank, p)) == per_epoch*epochs*a for rank,part in enumerate(parts))
    for k,step in enumerate(whole):
        assert [key for i in range(a) for part in parts for key in part[k*a + i]] == step
    for e in range(epochs):
        seen = [key for step in whole[e*per_epoch:(e + 1)*per_epoch] for key in step]
        assert len(set(seen)) == len(seen) and all(epoch == e and 0 <= i < n for epoch,i in seen)
    start = data.draw(st.integers(0, per_epoch*epochs))
    for rank,part in enumerate(parts): assert of(rank, start) == part[start*a:]

@given(st.floats(1e-6, 10), st.floats(0, 1), st.integers(0, 50), st.integers(1, 200))
def test_the_rate_climbs_then_falls(lr, share, warmup, rest):
    total,least = warmup + rest, lr*share
    rates = [cosine_lr(s, lr, least, warmup, total) for s in range(total + 1)]
    tiny = 1e-9*lr
    assert all(a <= b + tiny for a,b in zip(rates[:warmup], rates[1:warmup + 1])) and all(a >= b - tiny for a,b in zip(rates[warmup:], rates[warmup + 1:]))
    assert math.isclose(rates[warmup], lr) and abs(rates[-1] - least) <= tiny and max(rates) <= lr + tiny
    if warmup: assert rates[0] == 0
    assert cosine_lr(total + 5, lr, least, warmup, total) == rates[-1]
    jump = max(abs(a - b) for a,b in zip(rates, rates[1:]))
    assert jump <= max(lr/max(1, warmup), (lr - least)*math.pi/2/rest) + tiny  # no leaps

@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 1), st.floats(0, 1), st.floats(0.3, 1), st.floats(1, 3), st.booleans(), st.integers(0, 99))
def test_a_crop_is_inside_the_image(H, W, low, up, slim, wide, clip, seed):
    rand = SampleRandom(seed, [(0, i) for i in range(3)]).stream('crop')
    boxes = random_resized_crop_boxes([(H, W)]*3, (low, low + up*(1 - low)), rand, (slim, wide), clip)
    assert (boxes[:,:2] >= 0).all() and (boxes[:,2:] >= 1).all() and (boxes[:,:2] + boxes[:,2:] <= (H, W)).all()

# --- files and names

@given(st.integers(1, 3), st.integers(0, 3), st.booleans(), st.booleans())
@settings(max_examples=15)
def test_weights_of_any_depth_there_and_back(depth, decoder_depth, whole, classes):
    shape = dict(img_size=8, patch_size=4, embed_dim=8, depth=depth, num_heads=2)
    if whole: state = MaskedAutoencoderViT(MAEConfig(**shape, decoder_embed_dim=4, decoder_depth=max(1, decoder_depth), decoder_num_heads=1)).state_dict()
    else: state = {k: v for k,v in ViTClassifier(ClassifierConfig(**shape, num_classes=2, pool='token')).state_dict().items() if not k.startswith('head')}
    there = to_hf(state)
    again = from_hf(there)
    assert again.keys() == state.keys() and all(torch.equal(again[k], v) for k,v in state.items())
    assert to_hf(again).keys() == there.keys() and sum(v.numel() for v in there.values()) == sum(v.numel() for v in state.values())

@given(st.integers(0, 120), st.integers(0, 12), st.integers(1, 7))
def test_a_pattern_stands_for_its_numbers(first, more, width):
    names = [f'at/x-{i:0{width}d}.tar' for i in range(first, first + more + 1)]
    assert expand_shards(f'at/x-{{{first:0{width}d}..{first + more:0{width}d}}}.tar') == names
    assert expand_shards(f'{{00..01}}/{{{first:0{width}d}..{first:0{width}d}}}') == [f'{a}/{first:0{width}d}' for a in ('00', '01')]
    assert expand_shards(names[0]) == names[:1]

letters = st.text('abz09_é', min_size=1, max_size=90)
member = st.tuples(st.sampled_from(['', 'a/', 'a/b/', './']), letters, st.sampled_from([*image_endings(), '.JPEG', '.cls', '.json', '.seg.png']), st.binary(max_size=1100))

def what(m): return m[0].removeprefix('./'), m[1], 'image' if m[2].lower().endswith(image_endings()) else m[2]  # one image a sample

@pytest.mark.slow
@given(st.lists(member, max_size=8, unique_by=what), st.integers(0, 999), st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_a_shard_holds_what_tarfile_says(tmp_path_factory, members, label, form):
    path = tmp_path_factory.mktemp('shard')/'x.tar'
    with tarfile.open(path, 'w', format=form) as tar:
        for folder,name,ending,data in members:
            info = tarfile.TarInfo(folder + name + ending)
            if ending == '.cls': data = str(label).encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index,raw = index_shard(path), path.read_bytes()
    images,classes,first = {}, set(), {}
    with tarfile.open(path) as tar:
        for m in tar:
            key = m.name.rpartition('/')[0], m.name.rpartition('/')[2].partition('.')[0]
            if m.name.endswith('.cls'): classes.add(key)
            elif m.name.lower().endswith(image_endings()) and key not in first: first[key] = m.name; images[m.name] = key, tar.extractfile(m).read()
    assert index['names'] == list(images) and index['bytes'] == len(raw)
    for name,label_,at,size in zip(*(index[k] for k in ('names', 'labels', 'offsets', 'sizes')), strict=True):
        key,data = images[name]
        assert raw[at:at + size] == data and label_ == (label if key in classes else -1)
    for cut in {len(raw) - 10_240, len(raw)//2} - {0}:  # its end mark is missing, or more
        if raw[cut:].strip(b'\0'):
            path.write_bytes(raw[:cut])
            with pytest.raises(ValueError, match='no complete tar file'): index_shard(path)

configs = st.one_of(
    st.builds(MAEConfig, img_size=st.sampled_from([32, (32, 64)]), patch_size=st.sampled_from([4, 8]), in_chans=st.integers(1, 4), depth=few, embed_dim=st.sampled_from([12, 48]),
              num_heads=st.sampled_from([1, 3]), norm_pix_loss=st.booleans(), loss_on=st.sampled_from(['masked', 'all']), mlp_ratio=st.sampled_from([2., 4.])),
    st.builds(ClassifierConfig, img_size=st.sampled_from([32, (64, 32)]), patch_size=st.just(8), num_classes=few, pool=st.sampled_from(['avg', 'token']), drop_path=st.floats(0, .5), depth=few),
    st.builds(PretrainConfig, model=st.sampled_from(['mae_vit_nano_patch4', 'mae_vit_base_patch16']), mask_ratio=st.floats(.01, .99), img_size=st.sampled_from([None, '32', '32x64', (32, 64)]),
              epochs=few, blr=st.floats(1e-6, 1), ema_decay=st.one_of(st.none(), st.floats(.1, .99)), mean=st.just((.5, .4, .3)), std=st.just((.2, .1, .3)), flip=st.booleans(),
              seed=st.integers(0, 2**40)))

@pytest.mark.slow
@given(configs)
def test_a_configuration_survives_json(config):
    told = json.loads(json.dumps(asdict(config)))
    again = type(config)(**told)
    assert again == config and json.loads(json.dumps(asdict(again))) == told
