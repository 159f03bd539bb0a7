"Partial fine-tuning: both ends of a sweep are the linear probe and full fine-tuning; a sweep is repeatable; only the head of a probe is trained."
from dataclasses import replace
from pathlib import Path
import pytest, torch
from PIL import Image
from mae_nb.data.bundled import fashion
from mae_nb.data.labels import label_subset
from mae_nb.tasks.config import FinetuneConfig, linprobe_defaults, partial_defaults
from mae_nb.tasks.finetune import FinetuneTask, finetune
from mae_nb.tasks.partial import sweep
from mae_nb.weights.formats import read_weights
from mae_nb.weights.hub import from_pretrained

QUIET = dict(log=lambda line: None)

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with 50 training and 20 test images in `tiny`, as files."
    home = tmp_path_factory.mktemp('partial')
    for part,fraction in dict(train=0.005, test=0.01).items():
        few = label_subset(fashion(part), fraction)
        for i in range(len(few)):
            img,label = few[i]
            path = home/'tiny'/part/str(int(label))/f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(img[0].numpy()).save(path)
    return home

@pytest.fixture
def tiny(home): return dict(data=str(home/'tiny'), label_fraction=1., max_steps=3, batch_size=25, encoder='fashion_nano', device='cpu')

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.slow
def test_both_ends_of_a_sweep(tiny, home):
    "Without blocks it is the linear probe, pooled as the other runs; with all of them full fine-tuning; bitwise identical weights."
    partial,probe = replace(partial_defaults, output_dir=home/'ends', **tiny),replace(linprobe_defaults, **tiny)
    assert (partial.pool, probe.pool) == ('avg', 'token')
    runs = sweep(partial, [0, 4.], probe, **QUIET)
    alone = finetune(replace(probe, pool='avg', output_dir=home/'probe'), **QUIET)
    assert same(read_weights(runs[0]).state, read_weights(alone).state)
    full = FinetuneConfig(output_dir=home/'full', **tiny)
    assert same(read_weights(runs[4.]).state, read_weights(finetune(full, **QUIET)).state)

@pytest.mark.slow
def test_a_sweep_is_repeatable(tiny, home):
    "A folder for each point; what is complete is not trained again, and another configuration in the folder is an error."
    partial = replace(partial_defaults, output_dir=home/'sweep', **tiny)
    runs = sweep(partial, (0.5, 1), **QUIET)
    assert {b: run for b,run in runs.items()} == {b: home/'sweep'/f'blocks-{b:g}' for b in (0.5, 1)}
    written = lambda runs: [(run/'model.safetensors').stat().st_mtime_ns for run in runs.values()]
    before = written(runs)
    assert written(sweep(partial, (0.5, 1), **QUIET)) == before
    with pytest.raises(ValueError, match='epochs: now 5, before 20'): sweep(replace(partial, epochs=5), (1,), **QUIET)

@pytest.mark.slow
def test_a_probe_is_one_linear_map(tiny, home):
    "Training moves the head alone, and BatchNorm folds into the linear map."
    cfg = replace(linprobe_defaults, output_dir=home/'linear', **tiny)
    task = FinetuneTask(cfg)
    before = {k: v.clone() for k,v in task.model.state_dict().items()}
    trained = from_pretrained(finetune(cfg, **QUIET)).eval()
    moved = {k for k,v in trained.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith('head.') for k in moved)
    norm,linear = trained.head
    W = linear.weight/(norm.running_var + norm.eps).sqrt()
    b = linear.bias - W @ norm.running_mean
    x = task.test.feats
    assert torch.allclose(trained.head(x), x @ W.T + b, atol=1e-3)

@pytest.mark.parametrize('values,named', [
    (dict(augment='clip_crop'), "randomness in ['augment']"), (dict(mixup=0.8), "randomness in ['mixup']"),
    (dict(reprob=0.25), "randomness in ['reprob']"), (dict(trainable_blocks=1.), 'frozen encoder')])
def test_what_cannot_be_cached(values, named):
    with pytest.raises(ValueError) as e: replace(linprobe_defaults, encoder='fashion_nano', **values)
    assert named in str(e.value)

@pytest.mark.slow
def test_more_blocks_than_there_are(tiny):
    with pytest.raises(ValueError, match='got 5'): FinetuneTask(replace(partial_defaults, trainable_blocks=5., **tiny))

def test_less_than_no_blocks():
    with pytest.raises(ValueError, match='trainable_blocks must be at least 0'): replace(partial_defaults, trainable_blocks=-1.)

@pytest.mark.slow
def test_too_few_labels_for_a_step():
    with pytest.raises(ValueError, match='a step needs 512 images'):
        FinetuneTask(replace(linprobe_defaults, encoder='fashion_nano', device='cpu', label_fraction=0.01))
