"Other images of the same things: choice among a set's classes, mCE, evaluations that go on, sets that come with lists."
import json, os, random, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from launch import launch
from mae_nb.evaluate import robustness
from mae_nb.data.datasets import load_images
from mae_nb.data.filelists import inat, listed_sets, places205, places365, read_list
from mae_nb.data.images import FolderImages
from mae_nb.evaluate.config import EvalConfig
from mae_nb.evaluate.robustness import (alexnet_errors, find_corruptions, imagenet_wnids, match_classes, mce, paper_table13,
                                        protocols, run_eval)

W = imagenet_wnids()
HEN,COCK,OSTRICH = 8,7,9
ROOT = Path(__file__).parent.parent

class Colours(nn.Module):
    "Scores of hen, cock and ostrich are the mean red, green and blue of an image; all other classes have less."
    def __init__(self, names=None, size=8, weight=1.):
        super().__init__()
        self.numbers = [HEN, COCK, OSTRICH] if names is None else list(range(len(names)))
        n = 1000 if names is None else len(names)
        self.cfg = SimpleNamespace(img_size=(size, size), in_chans=3, mean=(0.,)*3, std=(1.,)*3, num_classes=n, classes=names)
        self.cls_token = nn.Parameter(torch.tensor([weight]))
    def forward(self, imgs):
        logits = imgs.new_full((len(imgs), self.cfg.num_classes), -1.)
        logits[:,self.numbers] = imgs.mean((2, 3))*self.cls_token
        return logits

def colour(path, rgb, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), rgb, np.uint8)).save(path)

@pytest.fixture
def model(monkeypatch):
    "What `from_pretrained` gives, whatever it is asked for."
    m = Colours()
    monkeypatch.setattr(robustness, 'from_pretrained', lambda path, kind=None, device=None, ema=False: m)
    return m

@pytest.fixture
def birds(tmp_path):
    "Three images of hens and cocks; in one of them an ostrich would score most."
    pictures = {f'{W[HEN]}/0': (100, 50, 200), f'{W[COCK]}/0': (50, 100, 0), f'{W[COCK]}/1': (100, 50, 0)}
    for name,rgb in pictures.items(): colour(tmp_path/'birds'/f'{name}.png', rgb)
    return tmp_path/'birds'

def job(data, protocol='plain', **kw): return EvalConfig('model', data, protocol, device='cpu', **kw)
def top1(cfg): return round(run_eval(cfg, log=lambda line: None)['top1'], 3)

# -- the protocols

@pytest.mark.parametrize('reader', ['pil', 'fast'])
@pytest.mark.parametrize('protocol', [p for p in protocols if p not in ('imagenet-c', 'imagenet-v2')])
def test_restriction(model, birds, protocol, reader):
    "One of three is wrong anyway; another is wrong where an ostrich may be chosen."
    if protocol == 'plain': birds.rename(birds.parent/'val'); birds = birds.parent
    assert top1(job(birds, protocol, image_backend=reader)) == (66.667 if protocol in ('imagenet-a', 'imagenet-r') else 33.333)

def test_sets_by_their_names(model, tmp_path):
    "ImageNetV2's folders are numbers, whose order as text means nothing; any subset is found by names."
    for c,rgb in ((HEN, (9, 0, 0)), (COCK, (0, 9, 0)), (OSTRICH, (0, 0, 9)), (10, (0, 0, 9)), (100, (0, 0, 9))): colour(tmp_path/'v2'/str(c)/'0.png', rgb)
    assert FolderImages(tmp_path/'v2').classes == ('10', '100', '7', '8', '9')
    assert top1(job(tmp_path/'v2', 'imagenet-v2')) == 60
    with pytest.raises(ValueError, match="5 of 5 classes of the data are none of the model's: 10, 100, 7"): top1(job(tmp_path/'v2', 'imagenet-sketch'))

def test_plain_folders_of_any_model(birds, tmp_path, monkeypatch):
    named = Colours(('hen', 'cock', 'emu'))
    monkeypatch.setattr(robustness, 'from_pretrained', lambda path, kind=None, device=None, ema=False: named)
    for c,rgb in dict(emu=(0, 0, 9), hen=(9, 0, 0), cock=(0, 9, 0)).items(): colour(tmp_path/'p'/'test'/c/'0.png', rgb)
    assert top1(job(tmp_path/'p')) == 100          # folders are in another order than the model's classes
    with pytest.raises(ValueError, match=f'{W[COCK]}.*its 3 are hen, cock, emu'): top1(job(birds, 'imagenet-a'))
    named.cfg.classes,lines = None,[]
    run_eval(job(tmp_path/'p'), lines.append)    # no names: the order is taken for the same, and that is said
    assert "the model's classes have no names" in lines[0]
    with pytest.raises(ValueError, match='3 classes, and their names are not known'): top1(job(birds, 'imagenet-a'))

def test_few_classes_are_mentioned(model, birds):
    lines = []
    got = run_eval(job(birds, 'imagenet-a'), lines.append)
    assert lines[0] == '2 classes, and imagenet-a has 200: not to be compared with published numbers'
    assert got['classes'] == 2 and got['images'] == 3 and lines[-1].startswith('imagenet-a: top-1 66.67 %')

def test_no_classes(model, tmp_path):
    colour(tmp_path/'x.png', (0, 0, 0))
    with pytest.raises(ValueError, match='no class names'): top1(job(tmp_path, 'imagenet-r'))

def test_corrupted_images_are_not_resized(monkeypatch, tmp_path):
    "ImageNet-C's are cropped already: a border that a resize to 8/0.875 would cut off is seen."
    seen = []
    class Look(Colours):
        def forward(self, imgs): seen.append(imgs); return super().forward(imgs)
    monkeypatch.setattr(robustness, 'from_pretrained', lambda path, kind=None, device=None, ema=False: Look())
    x = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    (tmp_path/'fog'/'1'/W[HEN]).mkdir(parents=True)
    Image.fromarray(x[:8,:8]).save(tmp_path/'fog'/'1'/W[HEN]/'a.png')
    Image.fromarray(x).save(tmp_path/'fog'/'1'/W[HEN]/'b.png')
    run_eval(job(tmp_path, 'imagenet-c', batch_size=1), lambda line: None)
    assert torch.equal((seen[0][0]*255).round().byte(), torch.from_numpy(x[:8,:8]).permute(2, 0, 1))
    want = torch.from_numpy(np.array(Image.fromarray(x).resize((8, 8), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert torch.equal((seen[1][0]*255).round().byte(), want)          # all of a larger image

def test_class_indices_do_not_depend_on_the_listing(tmp_path, monkeypatch):
    "A file system lists folders in any order; classes are sorted."
    for c in 'fox', 'ant', 'cow': colour(tmp_path/c/'x.png', (9, 9, 9))
    def found(): return FolderImages(tmp_path).classes, FolderImages(tmp_path).labels.tolist()
    walk = os.walk
    before = found()
    monkeypatch.setattr(os, 'walk', lambda *a, **k: ((at, sorted(dirs, reverse=True), names) for at,dirs,names in walk(*a, **k)))
    assert found() == before == (('ant', 'cow', 'fox'), [0, 1, 2])

# -- mCE

def test_alexnet_has_100():
    assert mce({c: [e]*5 for c,e in alexnet_errors.items()}) == pytest.approx(100, abs=1e-9)
    assert mce({c: [e - .1, e - .05, e, e + .05, min(1, e + .1)] for c,e in alexnet_errors.items() if e <= .9} | {'impulse_noise': [.92264]*5}) == pytest.approx(100)

@pytest.mark.parametrize('change,message', [
    (dict(fog=None), 'nothing for fog'), (dict(fogg=[0.]*5), 'knows no fogg'), (dict(fog=[0.]*4), 'fog needs five errors'),
    (dict(fog=[0., 0., 0., 0., 1.1]), 'fog needs'), (dict(fog=[0., float('nan'), 0., 0., 0.]), 'fog needs')])
def test_mce_refuses(change, message):
    errors = {c: [e]*5 for c,e in alexnet_errors.items()} | change
    with pytest.raises(ValueError, match=message): mce({k: v for k,v in errors.items() if v is not None})

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "All 75 folders, half of them as they were packed, and an extra one; a hen each."
    root = tmp_path_factory.mktemp('c')
    for n,c in enumerate([*alexnet_errors, 'spatter']):
        for s in range(1, 6): colour(root/('weather' if n % 2 else '.')/c/str(s)/W[HEN]/'0.png', (9, 0, 0))
    return root

@pytest.mark.slow
def test_mce_of_folders(model, whole, tmp_path, monkeypatch):
    "A model with AlexNet's errors in each folder has 100; all 75 are looked at, in its own order of classes, unrestricted."
    asked = []
    def as_alexnet(model, dataset, *a, classes, restrict, crop_pct, **kw):
        asked.append((dataset.path.parent.name, dataset.path.name, classes, restrict, crop_pct))
        return dict(images=1, top1=100*(1 - alexnet_errors[dataset.path.parent.name]), top5=0., loss=0.)
    monkeypatch.setattr(robustness, 'evaluate', as_alexnet)
    lines = []
    got = run_eval(job(whole, 'imagenet-c', output=tmp_path/'new'/'c.json'), lines.append)
    assert got['mce'] == pytest.approx(100) and got['missing'] == [] and got['images'] == 75
    assert [a[:2] for a in asked] == [(c, str(s)) for c in alexnet_errors for s in range(1, 6)]
    assert {(tuple(a[2]), *a[3:]) for a in asked} == {((HEN,), False, 1.)}
    assert 'not part of mCE, skipped: spatter' in lines and lines[-1] == 'mCE 100.00' and sum('not to be compared' in x for x in lines) == 1
    stored = json.loads((tmp_path/'new'/'c.json').read_text())
    assert stored['results']['mce'] == got['mce'] and stored['config']['protocol'] == 'imagenet-c' and len(stored['parts']) == 75

def test_part_of_imagenet_c(model, whole, tmp_path):
    for c,s,rgb in ('fog', 1, (9, 0, 0)), ('fog', 2, (0, 9, 0)), ('jpeg_compression', 5, (9, 0, 0)): colour(tmp_path/c/str(s)/W[HEN]/'0.png', rgb)
    lines = []
    got = run_eval(job(tmp_path, 'imagenet-c'), lines.append)
    assert got['mce'] is None and got['errors'] == dict(fog=[0., 100.], jpeg_compression=[0.]) and len(got['missing']) == 72
    assert lines[-1].startswith('no mCE: 72 of 75 folders are missing (gaussian_noise/1')
    with pytest.raises(FileNotFoundError, match='no ImageNet-C in .*gaussian_noise.1'): find_corruptions(tmp_path/'fog')

def test_expected_is_table_13():
    assert paper_table13['imagenet-c']['mae'] == dict(B=51.7, L=41.8, H=33.8, H448=36.8) and paper_table13['imagenet-r']['supervised']['H'] == 50.3
    assert all(len(v['mae']) == 4 and len(v['supervised']) == 3 for v in paper_table13.values())

# -- going on

@pytest.mark.slow
def test_goes_on(model, tmp_path, monkeypatch):
    "Stopped in the middle, gone on with, and the same comes out; nothing is computed twice."
    for c in 'fog', 'snow', 'frost':
        for s in range(1, 6): colour(tmp_path/'c'/c/str(s)/W[HEN]/'0.png', (9, 0, 0))
    real,asked = robustness.evaluate,[]
    def dies(model, dataset, *a, **kw):
        if len(asked) == 7: raise KeyboardInterrupt
        asked.append(f'{dataset.path.parent.name}/{dataset.path.name}')
        return real(model, dataset, *a, **kw)
    monkeypatch.setattr(robustness, 'evaluate', dies)
    out = tmp_path/'c.json'
    cfg = job(tmp_path/'c', 'imagenet-c', output=out)
    with pytest.raises(KeyboardInterrupt): run_eval(cfg, lambda line: None)
    before = json.loads(out.read_text())
    assert list(before['parts']) == asked and before['results'] == {}
    asked.insert(0, 'so that it lives'); lines = []
    got = run_eval(job(tmp_path/'c', 'imagenet-c', output=out, batch_size=7), lines.append)
    assert len(asked) == len(set(asked)) == 16 and sum('skipped' in x for x in lines) == 7
    assert got == run_eval(job(tmp_path/'c', 'imagenet-c'), lambda line: None) and sum(map(sum, got['errors'].values())) == 0 and len(asked) == 31

@pytest.mark.parametrize('change,message', [
    (dict(image_backend='fast'), "image_backend: now 'fast', before 'pil'"), (dict(protocol='imagenet-a'), "protocol: now 'imagenet-a'"), (dict(weights='other'), "weights: now 'other', before 'model'")])
def test_another_evaluations_file_is_refused(model, birds, tmp_path, change, message):
    out = tmp_path/'r.json'
    first = run_eval(job(birds, 'imagenet-r', output=out), lambda line: None)
    was = out.read_bytes()
    with pytest.raises(ValueError, match=message): run_eval(EvalConfig(**dict(weights='model', data=birds, protocol='imagenet-r', device='cpu', output=out) | change))
    assert out.read_bytes() == was and run_eval(job(birds, 'imagenet-r', output=out), lambda line: None) == first

def test_other_weights_are_refused(model, birds, tmp_path):
    cfg = job(birds, 'imagenet-r', output=tmp_path/'r.json')
    run_eval(cfg, lambda line: None)
    with torch.no_grad(): model.cls_token += 1
    with pytest.raises(ValueError, match='weights hash: now [0-9a-f]{16}, before'): run_eval(cfg)

@pytest.mark.parametrize('text,message', [('{"conf', 'r.json is corrupted'), ('[]', 'no results of an evaluation'), ('{"config": {}}', 'no results')])
def test_other_files_are_refused(model, birds, tmp_path, text, message):
    (tmp_path/'r.json').write_text(text)
    with pytest.raises(ValueError, match=message): run_eval(job(birds, 'imagenet-r', output=tmp_path/'r.json'))
    assert (tmp_path/'r.json').read_text() == text

@pytest.mark.parametrize('change,message', [(dict(protocol='imagenet'), 'protocol must be one of'), (dict(weights=None), 'weights is needed'), (dict(image_backend='cv2'), 'image_backend must'),
                                            (dict(crop_pct=1.5), 'crop_pct must be in'), (dict(batch_size=2.5), 'batch_size must be an integer'), (dict(split='val'), 'split must')])
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message): EvalConfig(**dict(weights='m', data='d') | change)

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs gloo as Linux has it')
def test_two_processes(model, birds, tmp_path):
    alone = run_eval(job(birds, 'imagenet-r'), lambda line: None)
    (tmp_path/'both.py').write_text(f'''import sys; sys.path.insert(0, {str(ROOT/"tests")!r})
import test_robustness as t
t.robustness.from_pretrained = lambda path, kind=None, device=None, ema=False: t.Colours()
t.run_eval(t.job({str(birds)!r}, 'imagenet-r', output={str(tmp_path/"r.json")!r}))''')
    r = launch(tmp_path/'both.py', processes=2)
    assert r.returncode == 0, r.said
    both = json.loads((tmp_path/'r.json').read_text())['results']
    assert both.keys() == alone.keys() and all(both[k] == pytest.approx(v) for k,v in alone.items()) and r.said.count('top-1') == 1

# -- order is settled by names and lists, not by the file system

class Shuffled:
    "A directory's entries in another order."
    def __init__(self, entries, seed): self.entries = sorted(entries, key=lambda e: e.name); random.Random(seed).shuffle(self.entries); self.at = iter(self.entries)
    def __enter__(self): return self
    def __exit__(self, *exc): pass
    def __iter__(self): return self
    def __next__(self): return next(self.at)
    def close(self): pass

@pytest.mark.parametrize('seed', range(3))
def test_order_is_not_the_file_systems(tmp_path, monkeypatch, seed):
    names = [f'{W[k]}/{i}.png' for k in (5, 3, 900, 12, 8) for i in (10, 2, 1)]
    random.Random(seed).shuffle(names)
    for n in names: colour(tmp_path/'f'/n, (0, 0, 0))
    for c in 'fog', 'snow', 'frost': colour(tmp_path/'c'/c/'1'/W[1]/'0.png', (0, 0, 0))
    table = dict(categories=[dict(id=k, name=W[k]) for k in (8, 3, 900, 5, 12)], images=[dict(id=i, file_name=n) for i,n in enumerate(names)],
                 annotations=[dict(image_id=i, category_id=W.index(n.split('/')[0])) for i,n in reversed(list(enumerate(names)))])
    (tmp_path/'f'/'val2019.json').write_text(json.dumps(table))
    scandir,listdir = os.scandir,os.listdir
    def shuffled_list(*a): x = sorted(listdir(*a)); random.Random(seed + 1).shuffle(x); return x
    def look():
        folder,listed,(found,_) = FolderImages(tmp_path/'f'),inat(2019, 'test', tmp_path/'f'),find_corruptions(tmp_path/'c')
        return folder.classes, folder.files.tolist(), folder.labels.tolist(), listed.classes, listed.files.tolist(), listed.labels.tolist(), list(found)
    plain = look()
    monkeypatch.setattr(os, 'scandir', lambda *a: Shuffled(scandir(*a), seed)); monkeypatch.setattr(os, 'listdir', shuffled_list)
    assert look() == plain
    assert plain[0] == plain[3] == tuple(W[k] for k in (3, 5, 8, 12, 900)) and plain[6] == ['snow/1', 'frost/1', 'fog/1']
    assert [plain[3][k] for k in plain[5]] == [n.split('/')[0] for n in names] and plain[4] == [n.encode() for n in names]

def test_classes_are_matched_whatever_their_order():
    for seed in range(5):
        there = random.Random(seed).sample(W, 200)
        assert [W[k] for k in match_classes(there, W)] == there

# -- sets that come with lists

def inat_table(**changes):
    return dict(info={}, licenses=[], categories=[dict(id=9, name='Felis catus', supercategory='x'), dict(id=2, name='Homo sapiens', supercategory='x'), dict(id=5, name='Rana', supercategory='x')],
                images=[dict(id=70, file_name='train_val2018/x/9/a.png', width=8), dict(id=3, file_name='train_val2018/x/2/b.png', width=8)],
                annotations=[dict(id=1, image_id=3, category_id=2), dict(id=2, image_id=70, category_id=9)]) | changes

@pytest.fixture
def nature(tmp_path):
    colour(tmp_path/'train_val2018/x/9/a.png', (9, 9, 9)); colour(tmp_path/'train_val2018/x/2/b.png', (2, 2, 2))
    for part in 'train', 'val': (tmp_path/f'{part}2018.json').write_text(json.dumps(inat_table()))
    return tmp_path

@pytest.mark.parametrize('split', ['train', 'test'])
def test_inat(nature, split):
    data = load_images('inat2018', split, nature)
    assert data.classes == ('Homo sapiens', 'Rana', 'Felis catus') and data.labels.tolist() == [2, 0] and data.files.dtype.kind == 'S'
    assert [int(img[0,0,0]) for img,_ in data] == [9, 2] and data.name(0) == str(nature/'train_val2018/x/9/a.png')

def test_inat_numbers_are_those_of_both_parts(nature):
    "A class without an image in one part keeps its number."
    (nature/'val2018.json').write_text(json.dumps(inat_table(images=[dict(id=70, file_name='train_val2018/x/9/a.png')], annotations=[dict(image_id=70, category_id=9)])))
    train,val = (load_images('inat2018', s, nature) for s in ('train', 'test'))
    assert train.classes == val.classes and val.labels.tolist() == [2]

@pytest.mark.parametrize('changes,message', [
    (dict(images=[dict(id=3, file_name='train_val2018/x/2/b.png')]), 'annotation for image 70, which it does not list'),
    (dict(categories=[dict(id=2, name='a')]), 'annotation with category 9, which it does not list'),
    (dict(annotations=[dict(image_id=3, category_id=2)]), '1 images without annotation, like image 70'),
    (dict(annotations=[dict(image_id=3, category_id=k) for k in (2, 9)]), 'gives image 3 two categories'),
    (dict(images=[], annotations=[]), 'no images are listed'), (dict(annotations=None), 'no list in the format of COCO'),
    (dict(categories=[dict(id=2)]), "it lacks 'name'")])
def test_inat_refuses(nature, changes, message):
    (nature/'val2018.json').write_text(json.dumps(inat_table(**changes)))
    with pytest.raises(ValueError, match=message): load_images('inat2018', 'test', nature)

def test_inat_files(nature):
    for text in '{"images": [', '', '\xff':
        (nature/'val2018.json').write_bytes(text.encode('latin-1'))
        with pytest.raises(ValueError, match='val2018.json is corrupt, or no JSON'): load_images('inat2018', 'test', nature)
    with pytest.raises(FileNotFoundError, match='no val2017.json in'): load_images('inat2017', 'test', nature)
    (nature/'train_val2018').rename(nature/'elsewhere')
    with pytest.raises(FileNotFoundError, match='no image train_val2018/x/9/a.png, the first of the list'): load_images('inat2018', 'train', nature)

@pytest.mark.parametrize('name', listed_sets)
def test_listed_sets_ask_for_their_folder(name, tmp_path):
    with pytest.raises(ValueError, match=f'{name} is read by its lists: give data_root'): load_images(name)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"): load_images(name, 'val', tmp_path)
    with pytest.raises(FileNotFoundError, match=f'in {tmp_path}'): load_images(name, 'train', tmp_path)
    with pytest.raises(FileNotFoundError, match=name): load_images('inat2021', 'train', tmp_path)

@pytest.mark.parametrize('folders', [('data_256_standard', 'val_256'), ('data_256', 'val_256'), ('data_large_standard', 'val_large'), ('data_large', 'val_large'), ('.', '.')])
def test_places365(tmp_path, folders):
    colour(tmp_path/folders[0]/'a'/'airfield'/'1.png', (1, 1, 1)); colour(tmp_path/folders[1]/'Places365_val_1.png', (2, 2, 2))
    (tmp_path/'categories_places365.txt').write_text('/b/bar 1\n/a/airfield 0\n/z/zoo/inside 2\n')
    (tmp_path/'places365_train_standard.txt').write_text('/a/airfield/1.png 0\n')
    (tmp_path/'places365_val.txt').write_text('Places365_val_1.png 2\n')
    train,val = (load_images('places365', s, str(tmp_path)) for s in ('train', 'test'))
    assert train.classes == val.classes == ('a/airfield', 'b/bar', 'z/zoo/inside')
    assert [(int(d[0][0][0,0,0]), d[0][1]) for d in (train, val)] == [(1, 0), (2, 2)]

def test_places365_small_before_large(tmp_path):
    for size in '256', 'large': colour(tmp_path/f'val_{size}'/'v.png', (0, 0, 0))
    (tmp_path/'categories_places365.txt').write_text('/a/airfield 0\n'); (tmp_path/'places365_val.txt').write_text('v.png 0\n')
    assert 'val_256' in places365('test', tmp_path).name(0)
    (tmp_path/'places365_val.txt').write_text('v.png 1\n')
    with pytest.raises(ValueError, match='class numbers from 1 to 1 are listed.*there are 1 classes'): places365('test', tmp_path)
    (tmp_path/'categories_places365.txt').write_text('/a/airfield 0\n/b/bar 0')
    with pytest.raises(ValueError, match='two names for class 0'): places365('test', tmp_path)
    (tmp_path/'categories_places365.txt').unlink()
    with pytest.raises(FileNotFoundError, match='no categories_places365.txt in'): places365('test', tmp_path)

@pytest.mark.parametrize('base', ['data/vision/torralba/deeplearning/images256', 'images256', '.'])
@pytest.mark.parametrize('lists', ['trainvalsplit_places205', '.'])
@pytest.mark.parametrize('between', [' ', ','])
def test_places205(tmp_path, base, lists, between):
    colour(tmp_path/base/'b'/'bar'/'x.png', (1, 1, 1)); (tmp_path/lists).mkdir(exist_ok=True)
    (tmp_path/lists/'train_places205.csv').write_text(f'b/bar/x.png{between}1\na/abbey/y.png{between}0\n')
    (tmp_path/lists/'val_places205.csv').write_text(f'b/bar/x.png{between}1\n')
    train,val = (places205(s, tmp_path) for s in ('train', 'test'))
    assert train.classes == val.classes == ('a/abbey', 'b/bar') and (train.labels.tolist(), val.labels.tolist()) == ([1, 0], [1]) and val[0][1] == 1

def test_lists(tmp_path):
    (tmp_path/'l.txt').write_text('/a b/c.jpg 3\r\n\r\nd,e.jpg,4\r\nf.jpg, 5')
    assert read_list(tmp_path/'l.txt') == (['a b/c.jpg', 'd,e.jpg', 'f.jpg'], [3, 4, 5])
    for wrong in b'a.jpg', b'a.jpg x', b'3', b'a.jpg 1.5':
        (tmp_path/'l.txt').write_bytes(b'a.jpg 0\n' + wrong)
        with pytest.raises(ValueError, match="line 2 of .*l.txt is .* should be 'path label'"): read_list(tmp_path/'l.txt')
    (tmp_path/'l.txt').write_bytes(b'\xff\xd8\xff\xe0')
    with pytest.raises(ValueError, match='no text file'): read_list(tmp_path/'l.txt')
