"Random numbers: the generator against a restatement in numpy, tests of chance, and batches that don't depend on who makes them."
import numpy as np, pytest, torch
from torch.utils.data import Dataset
from mae_nb.core.rng import SampleRandom, purposes, random_words, sample_rng, uniform
from mae_nb.data.augment import PretrainDataset, augmentations, random_resized_crop_boxes
from mae_nb.data.bundled import fashion
from mae_nb.data.labels import FinetuneDataset
from mae_nb.data.loader import ResumableBatchSampler, train_loader
from mae_nb.data.memory import TensorImages, crop_resize_batch
from mae_nb.tasks.pretrain import mask_scores

# --- a restatement, written from Salmon et al. (2011) and the docstrings ---
def philox(counter, key):
    "Philox4x32-10 in numpy: counter (N, 4), key (2,), both of 32 bits."
    c = np.array(counter, np.uint64)
    k = [int(x) for x in key]
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p,q = np.uint64(0xD2511F53)*c[:,0], np.uint64(0xCD9E8D57)*c[:,2]
        high = lambda x: x >> np.uint64(32)
        c = np.stack([high(q) ^ c[:,1] ^ np.uint64(k[0]), q & mask, high(p) ^ c[:,3] ^ np.uint64(k[1]), p & mask], 1)
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c

def words(seed, purpose, epoch, index, n):
    "The first words of one sample."
    blocks = -(-n//4)
    counter = [(b, index & 0xFFFFFFFF, epoch, (purposes.index(purpose) << 24) + (index >> 32)) for b in range(blocks)]
    return philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:n]

KEYS = [(0, 0), (0, 1), (3, 59_999), (799, 1_281_166), (2**32 - 1, 2**40 + 5)]

@pytest.mark.parametrize('counter,key,expected', [  # known answers of the Random123 distribution
    ([0]*4, (0, 0), '6627e8d5 e169c58d bc57ac4c 9b00dbd8'), ([0xFFFFFFFF]*4, (0xFFFFFFFF,)*2, '408f276d 41c83b0e a20bc7c6 6d5451fd'),
    ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], (0xa4093822, 0x299f31d0), 'd16cfe09 94fdcceb 5001e420 24126ea1')])
def test_the_restatement_gives_known_answers(counter, key, expected):
    assert ' '.join(f'{w:08x}' for w in philox([counter], key)[0]) == expected

@pytest.mark.parametrize('purpose', purposes)
@pytest.mark.parametrize('seed', [0, 7, 2**63 + 11])
def test_words_are_those_of_the_restatement(purpose, seed):
    epochs,ids = torch.tensor(KEYS).T
    ours = random_words(seed, purpose, epochs, ids, 10)
    assert ours.tolist() == [words(seed, purpose, e, i, 10).tolist() for e,i in KEYS]

def test_numbers_of_a_sample_are_those_of_the_restatement():
    "Crop, flip and scores of a data set's sample: drawn here from words."
    view = PretrainDataset(fashion('test'), (28, 28), 49, seed=5, scale=(0.3, 1.))
    for epoch,index in (0, 0), (2, 1999), (17, 512):
        to_unit = lambda w: (w >> np.uint64(8)).astype(np.float64)/2**24
        four = iter(np.split(to_unit(words(5, 'crop', epoch, index, 40)), 10))
        while True:  # torchvision's loop
            u = next(four)
            area = 784*(0.3 + u[0]*0.7)
            aspect = 0.75*(16/9)**u[1]
            w,h = int(np.rint(np.sqrt(area*aspect))),int(np.rint(np.sqrt(area/aspect)))
            if w <= 28 and h <= 28: break
        box = int(u[2]*(29 - h)), int(u[3]*(29 - w)), h, w
        mirrored = to_unit(words(5, 'flip', epoch, index, 1))[0] < 0.5
        boxes,flips,scores = view.draw(SampleRandom(5, [(epoch, index)]))
        assert boxes[0].tolist() == list(box) and bool(flips[0]) == mirrored
        assert scores[0].tolist() == to_unit(words(5, 'mask', epoch, index, 49)).tolist()
        assert torch.equal(view[epoch, index][1], scores[0])

def test_a_generator_starts_with_the_samples_words():
    state = sample_rng(3, 1, 2, 'replace').get_state().numpy()[24:24+624*8].view(np.uint64)
    assert state.tolist() == words(3, 'replace', 1, 2, 624).tolist()

# --- tests of chance ---
@pytest.mark.slow
def test_ten_million_keys_share_no_first_64_bits():
    ids = torch.arange(10_000_000)
    drawn = torch.cat([random_words(0, 'mask', part // 1_000_000, part % 1_000_000, 2) for part in ids.split(500_000)])
    first = drawn[:,0] << 32 | drawn[:,1]
    assert len(np.unique(first.numpy())) == len(ids)

def z_of_chi_square(counts):
    "How far the counts of equally likely outcomes are from equal, in deviations of chi-square."
    expected = counts.sum()/counts.size
    freedom = counts.size - 1
    return (((counts - expected)**2/expected).sum() - freedom)/(2*freedom)**.5

def z_of_runs(x):
    "Wald and Wolfowitz: are there as many runs above and below one half as chance gives, in deviations."
    up = x >= .5
    n,a = len(x),up.sum()
    mean = 1 + 2*a*(n - a)/n
    return ((up[1:] != up[:-1]).sum() + 1 - mean)/((mean - 1)*(mean - 2)/(n - 1))**.5

N = 200_000
def along(what):
    "Uniform numbers along the indices, the epochs, the blocks or the seeds of a sample."
    line,zero = torch.arange(N),torch.zeros(N, dtype=torch.long)
    if what == 'index': w = random_words(0, 'crop', zero, line, 1)
    if what == 'epoch': w = random_words(0, 'crop', line, zero, 1)
    if what == 'block': w = random_words(0, 'crop', zero[:1], zero[:1], N).T
    if what == 'seed': w = torch.cat([random_words(s, 'crop', zero[:4], line[:4], 50) for s in range(N//200)]).view(-1, 1)
    return uniform(w)[:,0].double().numpy()

@pytest.mark.parametrize('what', ['index', 'epoch', 'block', 'seed'])
def test_uniform_and_independent(what):
    x = along(what)
    assert 0 <= x.min() and x.max() < 1
    assert abs(z_of_chi_square(np.bincount((x*256).astype(int), minlength=256))) < 4
    pairs = (x[:-1:2]*16).astype(int)*16 + (x[1::2]*16).astype(int)
    assert abs(z_of_chi_square(np.bincount(pairs, minlength=256))) < 4
    assert abs(z_of_runs(x)) < 4
    for lag in 1, 2, 7, 49: assert abs(np.corrcoef(x[:-lag], x[lag:])[0,1])*len(x)**.5 < 4

def test_these_tests_notice():
    x = np.random.default_rng(0).random(N)
    assert abs(z_of_chi_square(np.bincount((x**1.02*256).astype(int), minlength=256))) > 4  # not uniform
    assert abs(z_of_runs(np.repeat(x[:N//2], 2))) > 4  # not independent

def test_purposes_epochs_and_seeds_are_unrelated():
    ids = torch.arange(N)
    draw = lambda seed, purpose, epoch: uniform(random_words(seed, purpose, torch.full_like(ids, epoch), ids, 1))[:,0].numpy()
    base = draw(0, 'crop', 0)
    others = [draw(0, p, 0) for p in purposes[1:]] + [draw(0, 'crop', 1), draw(1, 'crop', 0), draw(2**32, 'crop', 0)]
    for other in others: assert abs(np.corrcoef(base, other)[0,1])*N**.5 < 4

# --- whoever draws ---
def test_numbers_do_not_depend_on_what_is_drawn_together():
    keys = [(e, i) for e in range(3) for i in (5, 0, 1999, 2**33)]
    together = SampleRandom(9, keys)
    for n,first in (1, 0), (7, 0), (49, 2):
        x = together.rand('mask', n, first)
        for k,key in enumerate(keys):
            assert torch.equal(SampleRandom(9, [key]).rand('mask', n, first)[0], x[k])
            assert torch.equal(together[k:k+1].rand('mask', n, first)[0], x[k])
    assert torch.equal(SampleRandom(9, keys[::-1]).rand('crop', 4), together.rand('crop', 4).flip(0))

SOME = TensorImages(torch.randint(256, (96, 3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.arange(96) % 3)
LARGE = TensorImages(SOME.imgs.repeat_interleave(3, 2).repeat_interleave(3, 3))

class OneByOne(Dataset):
    "The same images where nobody sees that they are in memory."
    def __init__(self, inner):
        self.inner = inner
        self.labels,self.classes = inner.labels,inner.classes
    def __len__(self): return len(self.inner)
    def __getitem__(self, i): return self.inner[i]

def steps(view, workers=0, rank=0, processes=1, accum_iter=1):
    "The samples of each step, as bytes, in any order."
    batches = list(train_loader(view, 24//processes//accum_iter, 2, workers, rank=rank, processes=processes, accum_iter=accum_iter))
    samples = [[(x.numpy().tobytes(), s.numpy().tobytes()) for x,s in zip(*b)] for b in batches]
    return [sum(samples[i:i+accum_iter], []) for i in range(0, len(samples), accum_iter)]

def joined(view, processes, accum_iter=1, workers=0):
    parts = [steps(view, workers, r, processes, accum_iter) for r in range(processes)]
    return [sorted(sum(p, [])) for p in zip(*parts, strict=True)]

@pytest.mark.parametrize('kind', [k for k in augmentations if k != 'color_jitter'])
def test_memory_and_loader_make_the_same_batches(kind):
    "In memory at once, image by image, by workers; for 1, 2 and 4 processes and passes."
    how = dict(seed=3, scale=(0.2, 1.), kind=kind)
    fast,slow = PretrainDataset(SOME, (16, 24), 24, **how),PretrainDataset(OneByOne(SOME), (16, 24), 24, **how)
    assert fast.in_memory and not slow.in_memory
    whole = joined(fast, 1)
    assert len(whole) == 8 and len({s for step in whole for s in step}) == 192
    for processes,accum_iter in (2, 1), (4, 1), (2, 2): assert joined(fast, processes, accum_iter) == whole
    assert joined(slow, 1) == joined(slow, 2) == joined(slow, 1, workers=2) == whole

@pytest.mark.slow
@pytest.mark.parametrize('sampling,masks', [('random', 1), ('random', 2), ('block', 1), ('block', 2), ('grid', 1)])
def test_masks_are_the_same_either_way(sampling, masks):
    how = dict(seed=3, masks=masks, score=mask_scores(sampling, (4, 6), 0.75))
    fast,slow = PretrainDataset(SOME, (16, 24), 24, **how),PretrainDataset(OneByOne(SOME), (16, 24), 24, **how)
    assert joined(fast, 1) == joined(fast, 2) == joined(slow, 1) == joined(slow, 4, workers=1)

def test_large_images_and_labels_are_the_same_either_way():
    "Above 4096 numbers an image, a CPU crops one by one; a GPU goes on as before: both ways, here."
    view = PretrainDataset(LARGE, (48, 48), 9, seed=1)
    random = SampleRandom(1, [(0, i) for i in range(12)])
    at = random.ids,*view.draw(random)
    assert torch.equal(view.batch(*at)[0], crop_resize_batch(LARGE.imgs[at[0]], at[1], (48, 48), at[2]))
    fast,slow = FinetuneDataset(SOME, (16, 24), 3),FinetuneDataset(OneByOne(SOME), (16, 24), 3)
    assert fast.in_memory and joined(fast, 1) == joined(slow, 2)

def test_boxes_do_not_depend_on_the_batch():
    sizes = np.array([(20, 28), (500, 375), (3, 900), (64, 64)])
    keys = [(0, i) for i in range(4)]
    together = random_resized_crop_boxes(sizes, (0.2, 1.), SampleRandom(0, keys).stream('crop'))
    for k,key in enumerate(keys):
        assert (random_resized_crop_boxes(sizes[k:k+1], (0.2, 1.), SampleRandom(0, [key]).stream('crop'))[0] == together[k]).all()

def test_the_sampler_draws_another_order_each_epoch_and_seed():
    order = lambda seed, epoch: ResumableBatchSampler(1000, 10, 9, seed).order(epoch)
    orders = [tuple(order(s, e)) for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9 and all(sorted(o) == list(range(1000)) for o in orders)
