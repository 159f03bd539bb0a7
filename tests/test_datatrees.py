"Folders as they come: walks, names of splits, columns, unreadable images, the same data elsewhere; and what the plan tells of them."
import io, json, os, random, re, shutil, subprocess, sys, tempfile, unicodedata, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from launch import launch
from mae_nb.cli import mae_data, mae_finetune, mae_knn, mae_linprobe, mae_pretrain, mae_report
from mae_nb.core.files import read_json, read_jsonl
from mae_nb.data.augment import EvalDataset
from mae_nb.data.config import DatasetConfig, PackConfig
from mae_nb.data.datasets import HFImages, channel_stats, hf_images, load_images
from mae_nb.data.memory import TensorImages
from mae_nb.data.filelists import read_list
from mae_nb.data.folders import NoSuchSplit, list_images, split_of
from mae_nb.data.images import CorruptImage, FolderImages, decode, decode_pil, open_image
from mae_nb.data.inventory import data_id, data_plan, look_at
from mae_nb.data.labels import load_labelled_splits
from mae_nb.data.pack import check, pack
from mae_nb.evaluate.accuracy import eval_view
from mae_nb.evaluate.config import KnnConfig
from mae_nb.tasks.config import FinetuneConfig, PretrainConfig
from mae_nb.tasks.finetune import FinetuneTask
from mae_nb.tasks.pretrain import PretrainTask
from mae_nb.weights.hub import from_pretrained

BIN = Path(sys.executable).parent
links = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs symbolic links')
MODEL = ['--img_size', '32', '--epochs', '1', '--batch_size', '4', '--warmup_epochs', '0', '--log_every', '1', '--device', 'cpu']
PRE = ['--model', 'mae_vit_nano_patch4', *MODEL]
FINE = ['--model', 'mae_vit_nano_patch4', '--layer_decay', 'none', *MODEL]

def encoded(mode='RGB', size=(40, 36), kind='PNG', seed=0):
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], len(mode)), dtype=np.uint8)
    Image.frombytes(mode, size, noise.tobytes()).save(out, kind)
    return out.getvalue()
DOT = encoded(size=(1, 1))
PHOTO = encoded()

def put(root, *names, data=PHOTO):
    "Write files; return their folder."
    for n in names:
        path = Path(root)/n
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Path(root)

def photos(root, n=8, classes=('cat', 'dog'), mode='RGB'):
    "A folder of small images, in class folders if there are classes."
    for i in range(n): put(root, f'{classes[i % len(classes)]}/{i}.png' if classes else f'{i}.png', data=encoded(mode, seed=i))
    return Path(root)

def splits(root, train='train', test='val', n=8):
    photos(Path(root)/train, n)
    photos(Path(root)/test, 4)
    return Path(root)

def call(command, *args): return command([str(a) for a in args])
def quiet(line): pass
def names(dataset): return [os.fsdecode(f) for f in dataset.files]

# -- 300 trees

PILLOW = {e for e,k in Image.registered_extensions().items() if k in Image.OPEN} - {'.eps', '.ps', '.mpg', '.mpeg', '.h5', '.hdf', '.grib', '.bufr', '.wmf', '.emf'} | {'.mpo'}
LEFT = {'__macosx', '$recycle.bin', 'lost+found', '@eadir', 'thumbs.db', 'desktop.ini'}
SPLITS = dict(train='train Train TRAINING train2017 train_images Entraînement 训练 Trainset', val='val Val VALID validation Validación dev val2017', test='test Test TESTING test_set テスト')
def left(name): return name.startswith('.') or name.lower() in LEFT

def by_hand(root):
    "Real paths of the images below a folder: a plain walk through links, too, with a memory of inodes; and all other names in the folders that were read."
    key = lambda p: (os.stat(p).st_dev, os.stat(p).st_ino)
    seen,found,others = {key(p) for p in Path(os.path.realpath(root)).parents},[],[]
    todo = [str(root)]
    while todo:
        at = todo.pop()
        if key(at) in seen: continue
        seen.add(key(at))
        for n in os.listdir(at):
            path = os.path.join(at, n)
            if left(n): others.append(n)
            elif os.path.isdir(path): todo.append(path)
            elif os.path.splitext(n)[1].lower() in PILLOW: found.append(os.path.join(os.path.realpath(at), n))
            else: others.append(n)
    return sorted(found), sorted(others)

class Forest:
    "Random data trees; `bad` counts unreadable images by their folder."
    def __init__(self, root, seed): self.root,self.r = Path(root),random.Random(seed)
    def some(self, most, p=0.5): return sum(self.r.random() < p for _ in range(most))
    def image(self, folder):
        n = f'{self.r.randrange(10**6)}{self.r.choice([".jpg", ".JPEG", ".png", ".Tiff", ".jfif", ".jpe", ".avif", ".bmp", ".webp", ".jp2"])}'
        put(folder, n, data=self.r.choice([DOT]*4 + [b"", b"no image", PHOTO[:300]]))
    def noise(self, folder):
        for _ in range(self.some(2)): put(folder, self.r.choice(['notes.txt', 'a.PDF', 'LICENSE', 'x.heif2', '._1.jpg', 'Thumbs.db', '.hidden.png', 'desktop.ini']), data=b'x')
        if self.r.random() < 0.2: put(folder, f'{self.r.choice(["__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "@eaDir"])}/1.jpg')
    def link(self, folder):
        to = self.r.choice(['.', '..', '../..', '../store', '../../store', 'nowhere', *[p.name for p in folder.parent.iterdir() if p.is_dir()]])
        path = folder/f'link{self.r.randrange(99)}'
        if not os.path.lexists(path): path.symlink_to(to, target_is_directory=True)
    def tree(self, folder, classes=True):
        folder.mkdir(parents=True, exist_ok=True)
        self.noise(folder)
        names = self.r.sample(['ant', 'bee', 'Cat', 'dög', 'e f'], self.r.randrange(1, 5)) if classes else ['']
        for c in names:
            (folder/c).mkdir(exist_ok=True)
            for _ in range(self.some(4, 0.7) or len(names) == 1): self.image(folder/c)  # a lone folder of folders alone would be entered
            if self.r.random() < 0.2: self.image(folder/c/'deep')
            self.noise(folder/c)
            for _ in range(self.some(2, 0.25)): self.link(folder/c)
        if self.r.random() < 0.1: self.image(folder)
        for _ in range(self.some(2, 0.2)): self.link(folder)

    def plant(self):
        "Make a data set; return the folder of each split, None where there is none."
        data = self.root/'data'
        put(self.root/'store', '1.jpg', '2.png', 'read.me', data=DOT)
        if self.r.random() < 0.35:
            self.tree(data, self.r.random() < 0.8)
            return data, data, None
        inner = data/self.r.choice(['', '', '', 'once', 'images'])
        if inner.name == 'images': put(data/'annotations', 'train.json', 'val/1.png')
        pick = {k: self.r.choice(v.split()) for k,v in SPLITS.items() if k == 'train' or self.r.random() < 0.6}
        for name in pick.values(): self.tree(inner/name)
        if self.r.random() < 0.3: put(inner, 'README.md')
        test = pick.get('val') or pick.get('test')
        return data, inner/pick['train'], inner/test if test else None

@pytest.mark.slow
@links
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9))
def test_any_tree_is_read_as_by_hand(seed):
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        forest = Forest(home, seed)
        data,train,test = forest.plant()
        for split,folder in ('train', train), ('test', test):
            if folder is None:
                with pytest.raises(NoSuchSplit): load_images(data, split)
                continue
            want,others = by_hand(folder)
            if not want:
                with pytest.raises(ValueError, match='no images under'): load_images(data, split)
                continue
            found = load_images(data, split)
            assert found.path == folder
            assert sorted(os.path.join(os.path.realpath(os.path.dirname(found.name(i))), os.path.basename(found.name(i))) for i in range(len(found))) == want
            assert names(found) == sorted(names(found), key=lambda f: f.split(os.sep))
            listing = list_images(folder)
            assert len(others) == listing.endings.total() + listing.by_products.total() + len(listing.broken)  # all is accounted for,
            told = ' '.join(found.notes)
            for what,there in ('no images to Pillow', listing.endings), ('hidden and system files', listing.by_products), ('read anyway', listing.circles), ('links to nothing', listing.broken), ('through links', listing.linked):
                assert (what in told) == bool(there)                                                           # and told
            assert all(c in told for c in listing.circles[:5])
            tops = [f.split(os.sep)[0] for f in names(found)]
            if any(os.sep not in f for f in names(found)): assert found.classes is None and set(found.labels.tolist()) == {-1}
            else:
                assert [found.classes[k] for k in found.labels] == tops
                assert (f'no images in' in told) == (set(found.classes) != set(tops))
            unreadable = sum(Path(found.name(i)).read_bytes() not in (DOT, PHOTO) for i in range(len(found)))
            assert len(check(found)['corrupt']) == unreadable
            if len(found) > unreadable: assert len(look_at(found, 999)) == unreadable

# -- kinds of faults: data lost or confused

@links
def test_links_in_circles_end(tmp_path):
    photos(tmp_path/'a', 6)
    for n,to in ('latest', '.'), ('cat/all', '..'), ('dog/up', '../..'): (tmp_path/'a'/n).symlink_to(to)
    found = load_images(tmp_path/'a')
    assert len(found) == 6 and found.classes == ('cat', 'dog')
    assert 'latest' in found.notes[0] and 'cat/all' in found.notes[0] and 'dog/up' in found.notes[0]

@links
def test_links_to_other_disks_are_followed(tmp_path):
    photos(tmp_path/'disk1', 4, ('x',)); photos(tmp_path/'disk2', 2, ('y',))
    (tmp_path/'data').mkdir()
    for c,to in ('cat', 'disk1/x'), ('dog', 'disk2/y'): (tmp_path/'data'/c).symlink_to(tmp_path/to)
    found = load_images(tmp_path/'data')
    assert len(found) == 6 and found.classes == ('cat', 'dog') and found.notes == ['read through links: cat, dog']

@links
def test_links_into_the_other_split_are_a_warning(tmp_path):
    (splits(tmp_path)/'train'/'more').symlink_to(tmp_path/'val'/'cat')
    with pytest.warns(UserWarning, match='more of .*train lead into the folder of another split'): load_images(tmp_path)

def test_a_run_among_its_images_is_refused(tmp_path, capsys):
    photos(tmp_path)
    assert call(mae_pretrain, '--data', tmp_path, '--output_dir', tmp_path/'runs'/'a') == 2
    assert 'lies among the images of' in capsys.readouterr().err and not (tmp_path/'runs'/'a').exists()
    part = dict(data=str(tmp_path), model='mae_vit_nano_patch4', img_size=(32, 32), label_fraction=0.5, batch_size=4, device='cpu')
    with pytest.raises(ValueError, match='lies among the images of'): FinetuneTask(FinetuneConfig(**part, output_dir=str(tmp_path/'cat')))

def test_the_plan_tells_a_warning_once(tmp_path, capsys, recwarn):
    (photos(tmp_path/'data')/'bee').mkdir()
    assert call(mae_pretrain, '--data', tmp_path/'data', '--output_dir', tmp_path/'run', *PRE) == 0
    assert capsys.readouterr().out.count("no images in ['bee']") == 1 and not [w for w in recwarn if 'bee' in str(w.message)]

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root opens any folder')
def test_folder_that_cannot_be_opened_is_told(tmp_path):
    (photos(tmp_path)/'cat').chmod(0)
    try:
        with pytest.warns(UserWarning, match='cannot be opened'): load_images(tmp_path)
    finally: (tmp_path/'cat').chmod(0o755)

@pytest.mark.parametrize('train,test', [('training', 'validation'), ('Train', 'Val'), ('TRAIN', 'TEST'), ('train2017', 'val2017'), ('Training Set', 'testing'), ('trn', 'dev'), ('apprentissage', 'validation'), ('训练集', '测试集'), ('Обучение', 'Тест')])
def test_splits_under_other_names(tmp_path, train, test):
    ours,judged,n,classes = load_labelled_splits(str(splits(tmp_path, train, test)))
    assert (len(ours), len(judged), n, classes) == (8, 4, 2, ('cat', 'dog'))

def test_val_comes_before_test_and_the_plan_says_so(tmp_path):
    photos(splits(tmp_path)/'test', 2)
    found = load_images(tmp_path, 'test')
    assert len(found) == 4 and found.notes == ['test images are those of val, not test, train']

@pytest.mark.parametrize('beside', [('annotations',), ('labels',), ('masks', 'Annotations')])
def test_annotations_are_no_images_to_learn_from(tmp_path, beside):
    for d in ('images', *beside): splits(tmp_path/d)
    assert len(load_images(tmp_path)) == 8 and 'images/train' in load_images(tmp_path).name(0)
    for s in 'train', 'valid': photos(tmp_path/'yolo'/s/'images', 4, None); put(tmp_path/'yolo'/s/'labels', '0.png')
    assert [len(load_images(tmp_path/'yolo', s)) for s in ('train', 'test')] == [4, 4]

def test_class_folders_one_level_deeper(tmp_path):
    for d in 'first', 'second': photos(tmp_path/d)
    with pytest.warns(UserWarning, match='first, second are taken for classes, and each holds the same folders, cat, dog'): load_images(tmp_path)

def test_splits_inside_of_folders_are_not_mixed(tmp_path):
    for d in 'bottle', 'cable': splits(tmp_path/d, test='test')
    with pytest.raises(ValueError, match='bottle in .* holds images for training and for tests.*give .*bottle as data'): load_images(tmp_path)
    assert len(load_images(tmp_path/'cable')) == 8

def test_a_class_called_train(tmp_path):
    photos(tmp_path, 9, ('bus', 'car', 'train'))
    with pytest.raises(ValueError, match='is train in .* a class, like bus, car'): load_images(tmp_path)
    assert len(load_images(tmp_path/'train')) == 3

def test_two_folders_for_one_split(tmp_path):
    for d in 'train2014', 'train2017': photos(tmp_path/d)
    with pytest.raises(ValueError, match='several folders for train: train2014, train2017'): load_images(tmp_path)
    photos(tmp_path/'train', 2)
    assert len(load_images(tmp_path)) == 2

def test_test_images_beside_classes_are_not_for_training(tmp_path):
    photos(tmp_path/'test', 2)
    found = load_images(photos(tmp_path, 6))
    assert len(found) == 6 and found.classes == ('cat', 'dog') and 'test are not for training' in found.notes

@pytest.mark.parametrize('name,kind', [('a.jfif', 'JPEG'), ('a.jpe', 'JPEG'), ('a.JP2', 'JPEG2000'), ('a.avif', 'AVIF'), ('a.ppm', 'PPM'), ('a.tga', 'TGA')])
def test_endings_that_pillow_reads(tmp_path, name, kind):
    if not Image.registered_extensions().get(Path(name).suffix.lower()): pytest.skip('not in this Pillow')
    try: data = encoded(kind=kind)
    except (OSError, KeyError): pytest.skip('not in this build of Pillow')
    assert len(load_images(put(tmp_path, name, data=data))) == 1 and load_images(tmp_path)[0][0].shape == (3, 36, 40)

def test_other_endings_are_counted(tmp_path):
    put(photos(tmp_path), 'cat/a.xyz', 'dog/b.xyz', 'dog/c.npz', 'README')
    assert load_images(tmp_path).notes == ['passed over files that are no images to Pillow: 2 .xyz, 1 without ending, 1 .npz']

def test_by_products_are_neither_classes_nor_images(tmp_path):
    put(photos(tmp_path), *[f'{d}/1.png' for d in ('__MACOSX', '.ipynb_checkpoints', '$RECYCLE.BIN', 'lost+found', '@eaDir')], 'Thumbs.db', 'cat/._1.png')
    found = load_images(tmp_path)
    assert len(found) == 8 and found.classes == ('cat', 'dog') and '$RECYCLE.BIN' in found.notes[0] and '(7)' in found.notes[0]

def test_empty_classes_and_stray_images_are_told(tmp_path):
    (photos(tmp_path)/'bee').mkdir()
    with pytest.warns(UserWarning, match=r"no images in \['bee'\]"): assert load_images(tmp_path).classes == ('bee', 'cat', 'dog')
    put(tmp_path, 'stray.png')
    with pytest.warns(UserWarning, match='no classes: 1 images, like stray.png, are next to cat, dog'): assert load_images(tmp_path).classes is None

def hub(**columns):
    import datasets
    pictures = {k: [dict(bytes=PHOTO, path=None)]*3 for k in ('annotation', 'image')}
    kinds = {k: datasets.Image() for k in pictures} | {k: f for k,(_,f) in columns.items()}
    return datasets.Dataset.from_dict(pictures | {k: v for k,(v,_) in columns.items()}, features=datasets.Features(kinds))

@pytest.mark.slow
def test_columns_of_hugging_face_by_name():
    datasets = pytest.importorskip('datasets')
    number,text = datasets.Value('int64'),datasets.Value('string')
    found = HFImages(hub(label=([2, None, 1], number)))
    assert found.column == 'image' and found.labels.tolist() == [2, -1, 1]
    assert found.notes == ['images are those of the column image, classes those of label; not used: annotation']
    named = datasets.ClassLabel(names=['a', 'b'])
    found = HFImages(hub(label=([0, None, 1], named), category=([1, 1, 0], number)))
    assert found.classes == ('a', 'b') and found.labels.tolist() == [0, -1, 1]
    assert HFImages(hub(label=([0, 0, 1], named), category=([1, 1, 0], number)), label_column='category').labels.tolist() == [1, 1, 0]
    found = HFImages(hub(label=(['dog', 'cat', None], text)))
    assert found.classes == ('cat', 'dog') and found.labels.tolist() == [1, 0, -1]
    assert HFImages(hub(), image_column='annotation').column == 'annotation' and HFImages(hub()).labels.tolist() == [-1]*3
    with pytest.raises(ValueError, match="image_column: no column 'mask' of that kind; there are .'image', 'annotation'"): HFImages(hub(), image_column='mask')

@pytest.mark.slow
def test_columns_are_settings(tmp_path, capsys):
    datasets = pytest.importorskip('datasets')
    hub(label=([0, 1, 1], datasets.Value('int64'))).to_parquet(tmp_path/'train.parquet')
    flags = ['--data', f'hf:{tmp_path}', '--data_root', tmp_path/'cache', '--image_column', 'annotation']
    assert call(mae_data, 'check', *flags) == 0
    assert 'images are those of the column annotation, classes those of label; not used: image' in capsys.readouterr().out
    assert call(mae_data, 'check', *flags, '--label_column', 'nosuch') == 2

def test_cmyk_without_adobes_marker():
    "Both decoders have Pillow's pixels."
    data = encoded('CMYK', kind='JPEG')
    at = data.index(b'\xff\xee')
    bare = data[:at] + data[at + 2 + int.from_bytes(data[at+2:at+4], 'big'):]
    for d in data, bare: assert torch.equal(decode(d), torch.from_numpy(np.asarray(decode_pil(d)).copy()).permute(2, 0, 1))

def test_one_class_is_a_warning(tmp_path):
    assert data_plan(load_images(photos(tmp_path, 3, ('cat',))))[:2] == ['classes  1: cat', 'warning  all training images are of one class (cat): any classifier is right']

def test_the_plan_of_a_run(tmp_path, capsys):
    put(splits(tmp_path/'data'), 'train/cat/a.xyz', 'extra/1.png')
    put(tmp_path/'data', 'train/dog/bad.png', 'val/dog/bad.png', data=b'')
    assert call(mae_finetune, '--data', tmp_path/'data', '--output_dir', tmp_path/'run', *FINE) == 0
    out = capsys.readouterr().out
    for line in ('9 images', '5 test images', 'classes  2: cat, dog', 'note     train: training images are those of train, not extra, val', 'note     train: passed over files that are no images to Pillow: 1 .xyz',
                 'note     train: 1 of 9 images decoded to measure mean and std cannot be read: 1 times: it is empty', 'warning  test: 1 images cannot be read: 1 times: it is empty'): assert line in out

# -- runs that die, or can't go on

@pytest.mark.parametrize('lift', ['Pillow', 'environment'])
def test_large_images_have_a_way(monkeypatch, lift):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(CorruptImage, match='exceeds limit of 1000 pixels.*MAE_MAX_IMAGE_PIXELS=none lifts the limit'): decode(PHOTO)
    if lift == 'Pillow': monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    else: monkeypatch.setenv('MAE_MAX_IMAGE_PIXELS', 'none')
    assert decode(PHOTO).shape == (3, 36, 40)
    if lift == 'environment':
        monkeypatch.setenv('MAE_MAX_IMAGE_PIXELS', '500')
        with pytest.raises(CorruptImage, match='exceeds limit of'): decode(PHOTO)

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='names of any bytes')
@pytest.mark.parametrize('encoding,name', [('utf-8:strict', b'caf\xe9.jpg'), ('cp1252:strict', '猫.jpg'.encode())])
def test_names_that_the_terminal_cannot_print(tmp_path, encoding, name):
    photos(tmp_path/'data')
    (tmp_path/'data'/'cat'/os.fsdecode(name)).write_bytes(b'no image')
    env = dict(os.environ, PYTHONIOENCODING=encoding, OMP_NUM_THREADS='1', TQDM_DISABLE='1')
    command = [str(BIN/'mae_pretrain'), '--data', str(tmp_path/'data'), '--output_dir', str(tmp_path/'run'), *PRE, '--batch_size', '9']
    r = subprocess.run(command, env=env, capture_output=True)
    assert r.returncode == 0, r.stderr
    assert b'skipped: cannot read' in r.stdout

def job(tmp_path, data, *flags): return call(mae_pretrain, '--data', data, '--output_dir', tmp_path/'run', *PRE, *flags)

def test_resume_compares_content_not_spelling(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(photos(tmp_path/'i'/'flat', classes=None).parent.parent)
    assert job(tmp_path, 'i/flat', '--max_steps', 1) == 0
    for same in 'i/flat/', './i/flat', tmp_path/'i'/'flat': assert job(tmp_path, same, '--max_steps', 1, '--resume', 'auto') == 0
    shutil.move(tmp_path/'i', tmp_path/'scratch')
    assert job(tmp_path, 'scratch/flat', '--max_steps', 1, '--resume', 'auto') == 0
    assert job(tmp_path, 'scratch/flat', '--max_steps', 1, '--resume', tmp_path/'run', '--overwrite') == 2  # another mistake
    put(tmp_path/'scratch'/'flat', 'more.png')
    capsys.readouterr()
    assert job(tmp_path, 'scratch/flat', '--max_steps', 1, '--resume', 'auto') == 2
    assert "data: now {'images': 9" in capsys.readouterr().err

def test_an_encoder_is_its_weights(tmp_path):
    data = splits(tmp_path/'data')
    assert call(mae_pretrain, '--data', data, '--output_dir', tmp_path/'pre', *PRE) == 0
    flags = ['--data', data, '--layer_decay', 'none', '--output_dir', tmp_path/'run', *MODEL]
    assert call(mae_finetune, '--encoder', tmp_path/'pre', *flags) == 0
    shutil.copytree(tmp_path/'pre', tmp_path/'elsewhere')
    assert call(mae_finetune, '--encoder', tmp_path/'elsewhere', '--resume', 'auto', *flags) == 0
    assert call(mae_pretrain, '--data', data, '--output_dir', tmp_path/'other', '--seed', 1, *PRE) == 0
    assert call(mae_finetune, '--encoder', tmp_path/'other', '--resume', 'auto', *flags) == 2

def test_packing_goes_on_from_a_moved_root(tmp_path):
    how = dict(output_dir=tmp_path/'out', shard_images=4)
    first = pack(PackConfig(data=photos(tmp_path/'a'), **how), quiet)
    first[1].unlink()
    shutil.move(tmp_path/'a', tmp_path/'b')
    assert pack(PackConfig(data=tmp_path/'b', **how), quiet) == first
    put(tmp_path/'b', 'cat/more.png')
    with pytest.raises(ValueError, match='cannot be resumed(.|\n)*digest'): pack(PackConfig(data=tmp_path/'b', **how), quiet)

@pytest.fixture
def spoilt(tmp_path):
    "Eight training and five test images, of which one each can't be read."
    data = splits(tmp_path/'data')
    put(data, 'train/cat/6.png', 'val/dog/bad.png', data=PHOTO[:300])
    return data

@pytest.mark.parametrize('command,flags', [(mae_finetune, FINE), (mae_linprobe, [*MODEL, '--encoder', 'ENCODER']), (mae_linprobe, [*MODEL, '--encoder', 'ENCODER', '--no-cache'])])
def test_one_corrupt_test_image(tmp_path, spoilt, capsys, command, flags):
    assert call(mae_pretrain, '--data', spoilt, '--output_dir', tmp_path/'pre', *PRE) == 0
    flags = [str(tmp_path/'pre') if f == 'ENCODER' else f for f in flags]
    capsys.readouterr()
    assert call(command, '--data', spoilt, '--output_dir', tmp_path/'run', '--num_workers', 1, *flags) == 0
    out = capsys.readouterr().out
    assert 'warning  test: 1 images cannot be read' in out and out.count('skipped: cannot read') == 2 and 'val/dog/bad.png' in out
    assert call(command, '--data', spoilt, '--output_dir', tmp_path/'strict', '--max_bad_images', 0, *flags) == 2
    assert 'test images looked at cannot be read, and max_bad_images=0' in capsys.readouterr().err and not (tmp_path/'strict').exists()
    assert any('top1' in r for r in read_jsonl(tmp_path/'run'/'log.jsonl'))

def test_knn_passes_over_corrupt_images(tmp_path, spoilt, capsys):
    assert call(mae_pretrain, '--data', spoilt, '--output_dir', tmp_path/'pre', *PRE) == 0
    flags = ['--encoder', tmp_path/'pre', '--data', spoilt, '--k', 3, '--device', 'cpu', '--output', tmp_path/'knn.json']
    assert call(mae_knn, *flags) == 0 and read_json(tmp_path/'knn.json')['result']['images'] == 4
    assert capsys.readouterr().out.count('skipped: cannot read') == 3   # one while training, one of each split now
    assert call(mae_knn, *flags, '--max_bad_images', 0) == 2

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs gloo')
def test_one_corrupt_test_image_in_two_processes(tmp_path, spoilt):
    def run(folder, *flags): return launch('mae_finetune', '--data', spoilt, *FINE, '--batch_size', 2, '--output_dir', tmp_path/folder, *flags, processes=2)
    r = run('run')
    assert r.returncode == 0, r.said
    assert [x['test_skipped'] for x in read_jsonl(tmp_path/'run'/'log.jsonl') if 'top1' in x] == [1]
    r = run('strict', '--max_bad_images', '0')
    assert r.returncode and 'max_bad_images=0' in r.said and not (tmp_path/'strict').exists()

def test_why_none_can_be_read(tmp_path):
    for i in range(4): put(tmp_path, f'{i}.png', data=b'')
    for i in range(3): put(tmp_path, f'cut{i}.png', data=PHOTO[:300 + i])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path/'float.tif')
    with pytest.raises(ValueError, match='none of 8 images can be read: 4 times: it is empty; 3 times: image file is truncated.*; 1 times: .*floating-point'): channel_stats(load_images(tmp_path))

@pytest.mark.parametrize('flags,why', [(['--mean', '0.5', '--std', '0.5'], 'images of 3 channels, and mean and std have 1 values; in_chans=1'), (['--fsdp'], 'start with torchrun'), (['--num_workers', '9999'], 'num_workers must be at most'), (['--in_chans', '2'], '1 or 3 channels')])
def test_refused_before_there_is_a_folder(tmp_path, capsys, flags, why):
    photos(tmp_path/'data')
    assert job(tmp_path, tmp_path/'data', *flags) == 2
    assert why in capsys.readouterr().err and not (tmp_path/'run').exists()

def test_grey_images_are_not_normalised_as_colour(tmp_path, capsys):
    assert call(mae_pretrain, '--output_dir', tmp_path/'run', '--mean', '0.5,0.5,0.5', '--std', '0.5,0.5,0.5', '--max_steps', 1, '--device', 'cpu') == 2
    assert 'images of 1 channels, and mean and std have 3 values' in capsys.readouterr().err

def test_a_run_without_a_record_is_replaced(tmp_path, capsys):
    data = photos(tmp_path/'data')
    assert job(tmp_path, data, '--max_steps', 1) == 0
    assert job(tmp_path, data) == 2 and 'already holds' in capsys.readouterr().err
    for p in list((tmp_path/'run').iterdir()):
        if p.name not in ('config.json', 'inputs.json'): shutil.rmtree(p) if p.is_dir() else p.unlink()
    assert job(tmp_path, data, '--max_steps', 1) == 0

def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(photos(tmp_path/'data').parent)
    assert call(mae_pretrain, '--data=~/data', '--output_dir=~/run', *PRE, '--max_steps', 1) == 0
    assert (tmp_path/'run'/'config.json').is_file() and not Path('~').exists()
    for cfg,fields in (FinetuneConfig(encoder='~/e', resume='~/r', data_root='~/d'), ('encoder', 'resume', 'data_root')), (KnnConfig('~/e', features='~/f', output='~/o'), ('encoder', 'features', 'output')), (
            PackConfig('~/d', '~/o', data_root='~/r'), ('data', 'output_dir', 'data_root')), (DatasetConfig('~/d'), ('data',)):
        for f in fields: assert getattr(cfg, f).startswith(str(tmp_path))

def test_only_a_missing_split_means_no_test_set(monkeypatch, tmp_path):
    datasets = pytest.importorskip('datasets')
    def load_dataset(name, split, cache_dir):
        if split == 'train': return hub(label=([0, 1, 0], datasets.Value('int64')))
        raise problem
    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    problem = FileNotFoundError('LocalEntryNotFoundError: the network is down')
    with pytest.raises(FileNotFoundError, match='the network is down'): load_labelled_splits('hf:x')
    problem = ValueError("Unknown split \"validation\". Should be one of ['train'].")
    assert load_labelled_splits('hf:x')[1] is None
    problem = FileNotFoundError
    assert issubclass(NoSuchSplit, FileNotFoundError)
    for data in (photos(tmp_path/'a'), f'{tmp_path}/x.tar'):
        with pytest.raises(NoSuchSplit): load_images(data, 'test')

# -- what images are taken for

def test_M6_an_explicit_crop_is_heeded(tmp_path):
    "The release's rule for files at 224 pixels: resize to 256, crop 224, also for an image of 224x224."
    put(tmp_path, '0.png', data=encoded(size=(224, 224)))
    files,small = load_images(tmp_path),TensorImages(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8), [0])
    im = Image.open(tmp_path/'0.png')
    rule = np.asarray(im.resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240)))
    for crop in None, 0.875: assert np.array_equal(eval_view(files, (224, 224), crop, 'pil')[0][0].permute(1, 2, 0), rule)
    assert torch.equal(eval_view(files, (224, 224), 1.)[0][0], files[0][0])
    assert torch.equal(eval_view(small, (8, 8))[0][0], small[0][0])             # in memory, and nobody asked
    assert torch.equal(eval_view(small, (8, 8), image_backend='pil')[0][0], small[0][0])
    assert not torch.equal(eval_view(small, (8, 8), 0.875)[0][0], small[0][0])  # somebody did
    put(tmp_path/'tiny', '0.png', data=encoded(size=(32, 32)))
    assert torch.equal(eval_view(load_images(tmp_path/'tiny'), (32, 32))[0][0], load_images(tmp_path/'tiny')[0][0])

@pytest.mark.slow
def test_grey_folders_are_one_channel(tmp_path, capsys):
    grey = photos(tmp_path/'grey', mode='L')
    assert job(tmp_path, grey) == 0
    assert 'all of 8 images looked at are grey: read with one channel' in capsys.readouterr().out
    assert from_pretrained(tmp_path/'run').cfg.in_chans == 1
    assert call(mae_pretrain, '--data', grey, '--output_dir', tmp_path/'colour', '--in_chans', 3, *PRE) == 0
    assert from_pretrained(tmp_path/'colour').cfg.in_chans == 3
    photos(tmp_path/'some', 2)
    assert call(mae_pretrain, '--data', photos(tmp_path/'some'), '--output_dir', tmp_path/'forced', '--in_chans', 1, *PRE) == 0
    assert from_pretrained(tmp_path/'forced').cfg.in_chans == 1
    flags = ['--encoder', tmp_path/'run', '--layer_decay', 'none', *MODEL]
    colour = splits(tmp_path/'labelled')
    assert call(mae_finetune, *flags, '--data', colour, '--output_dir', tmp_path/'tuned') == 2 and 'images of 3 channels, and the model takes 1' in capsys.readouterr().err
    assert call(mae_finetune, *flags, '--data', colour, '--output_dir', tmp_path/'tuned', '--in_chans', 1) == 0
    assert call(mae_knn, '--encoder', tmp_path/'run', '--data', colour, '--k', 3, '--device', 'cpu') == 2 and 'in colour, of 3 channels' in capsys.readouterr().err
    for s,n in ('train', 8), ('val', 4): photos(tmp_path/'xrays'/s, n, mode='L')
    assert call(mae_finetune, *flags, '--data', tmp_path/'xrays', '--output_dir', tmp_path/'x') == 0
    assert call(mae_knn, '--encoder', tmp_path/'run', '--data', tmp_path/'xrays', '--k', 3, '--device', 'cpu') == 0
    assert call(mae_report, tmp_path/'forced') == 0

def test_identity_is_content(tmp_path):
    one,two = load_images(photos(tmp_path/'a')),load_images(photos(tmp_path/'b'))
    assert data_id(one) == data_id(two)
    (tmp_path/'b'/'cat'/'0.png').rename(tmp_path/'b'/'dog'/'0.png')
    assert data_id(one) != data_id(load_images(tmp_path/'b'))

# -- the same kinds, other inputs

@pytest.mark.parametrize('inside', ['PetImages', 'train/images', 'archive/photos', 'data/train/train'])
def test_a_lone_folder_around_classes(tmp_path, inside):
    found = load_images(photos(tmp_path/inside) and tmp_path)
    assert found.classes == ('cat', 'dog') and found.path == tmp_path/inside and any(f'read {tmp_path/inside}' == n for n in found.notes)
    alone = photos(tmp_path/'alone', 3, ('cat',))
    put(alone, 'cat/monday/1.png', 'cat/sunday/1.png')
    assert load_images(alone).classes == ('cat',)  # it holds images of its own

@pytest.mark.parametrize('train,test', [('birds_train', 'birds_test'), ('train_small', 'val_small'), ('TrainCrops', 'ValCrops'), ('train.zip_extracted', 'test.zip_extracted')])
def test_split_names_with_a_common_rest(tmp_path, train, test):
    data = splits(tmp_path, train, test)
    assert load_images(data).path == data/train and load_images(data, 'test').path == data/test
    for other in 'train_station', 'test_bench', 'cat': photos(tmp_path/'classes'/other, 2, ())
    assert load_images(tmp_path/'classes').classes == ('cat', 'test_bench', 'train_station')

@links
def test_one_folder_for_both_splits_is_told(tmp_path):
    photos(tmp_path/'train')
    (tmp_path/'val').symlink_to('train')
    for split in 'train', 'test': assert any(n.startswith('warning: ') and 'are one folder: the test images are those for training' in n for n in load_images(tmp_path, split).notes)

def test_class_names_of_a_mac(tmp_path):
    "Decomposed accents are the same names, unless that changes their order."
    try:
        photos(tmp_path/'train', 4, (unicodedata.normalize('NFD', 'café'), 'dog'))
        photos(tmp_path/'val', 4, ('café', 'dog'))
    except OSError: pytest.skip('the file system takes no such names')
    assert load_labelled_splits(tmp_path)[2] == 2
    photos(tmp_path/'train', 1, ('cafz',))
    photos(tmp_path/'val', 1, ('cafz',))
    if sys.platform == 'linux':
        with pytest.raises(ValueError, match='written in two ways, and so in another order'): load_labelled_splits(tmp_path)

def test_numbers_of_classes(monkeypatch):
    "Gaps are told; test images of a class that training lacks, and a million classes, are refused."
    def data(train, test): monkeypatch.setattr('mae_nb.data.labels.load_images', lambda data, split, **how: TensorImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), train if split == 'train' else test))
    data([5, 900], [5, 5])
    assert 'warning  class indices go up to 900, and 2 of them occur: the others count as classes' in data_plan(load_labelled_splits('x')[0])
    for train,test,why in ([0, 1], [0, 7], 'test images of class 7, and the training images are of classes 0 to 1'), ([0, 10**12], [0, 1], 'class index 1000000000000'), ([0, -1], [0, 1], 'without a class, 1 of 2'):
        data(train, test)
        with pytest.raises(ValueError, match=why): load_labelled_splits('x')

@pytest.mark.parametrize('command,flag', [(mae_pretrain, 'data'), (mae_pretrain, 'output_dir'), (mae_pretrain, 'init_from'), (mae_pretrain, 'resume'), (mae_finetune, 'encoder'), (mae_data, 'data')])
def test_empty_values_are_refused(tmp_path, capsys, monkeypatch, command, flag):
    "As `--data \"$DATA\"` gives them, where there is no such variable: the folder that one is in is not a data set, no weights are not random ones."
    monkeypatch.chdir(photos(tmp_path))
    assert call(command, *(['check'] if command is mae_data else PRE), f'--{flag}', '') == 2
    assert f'{flag} is empty' in capsys.readouterr().err and sorted(os.listdir(tmp_path)) == ['cat', 'dog']
    with pytest.raises(ValueError, match='data is empty'): load_images('')

@pytest.mark.parametrize('flags', [['--mean', '123,117,104', '--std', '58,57,57'], ['--mean', 'nan,0,0', '--std', '1,1,1'], ['--blr', 'inf'], ['--seed', str(2**64)]])
def test_numbers_that_cannot_be(tmp_path, capsys, flags):
    assert call(mae_pretrain, '--data', photos(tmp_path/'data'), '--output_dir', tmp_path/'run', *PRE, *flags) == 2
    assert flags[0].strip('-') in capsys.readouterr().err and not (tmp_path/'run').exists()

def test_columns_that_are_asked_for(tmp_path):
    "Under any name; only where there are columns."
    datasets = pytest.importorskip('datasets')
    found = HFImages(hub(species=(['x', 'y', 'x'], datasets.Value('string'))), label_column='species')
    assert found.classes == ('x', 'y') and found.labels.tolist() == [0, 1, 0]
    assert HFImages(hub(label=([True, False, True], datasets.Value('bool')))).labels.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match='has no columns'): load_images(photos(tmp_path), label_column='species')
    with pytest.raises(ValueError, match='names no data set'): load_images('hf:')

@pytest.mark.parametrize('limit', ['abc', '1e9', '0', '-5'])
def test_a_limit_of_pixels_is_a_number(monkeypatch, limit):
    monkeypatch.setenv('MAE_MAX_IMAGE_PIXELS', limit)
    with pytest.raises(ValueError, match='MAE_MAX_IMAGE_PIXELS must be a number of pixels, or none'): open_image(PHOTO)

@links
def test_a_name_of_two_lines_is_one_line_of_the_plan(tmp_path):
    plan = data_plan(load_images(photos(tmp_path, 4, ('a\nb', 'dog'))))
    assert plan == ['classes  2: a\\nb, dog']

def test_a_list_that_begins_with_a_byte_order_mark(tmp_path):
    (tmp_path/'list.txt').write_text('\ufeffa/0.png 0\n', encoding='utf-8')
    assert read_list(tmp_path/'list.txt') == (['a/0.png'], [0])

def test_report_without_readable_test_images(tmp_path, capsys):
    put(splits(tmp_path/'data'), *(f'val/{c}/bad{i}.png' for c in ('cat', 'dog') for i in range(9)), data=b'')
    assert call(mae_pretrain, '--data', tmp_path/'data', '--output_dir', tmp_path/'run', *PRE) == 0
    for p in (tmp_path/'data'/'val').rglob('[0-9].png'): p.write_bytes(b'')
    capsys.readouterr()
    assert call(mae_report, tmp_path/'run') == 2 and 'none of 22 test images of' in capsys.readouterr().err
