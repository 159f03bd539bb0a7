"Data: sources, bad files, mutated bytes, shards that were killed in the making, loaders that meet trouble."
import hashlib, io, json, multiprocessing, os, random, re, shutil, signal, subprocess, sys, tarfile, threading, time, warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from mae_nb.data import images
from mae_nb.data.images import CorruptImage, FolderImages, decode, decode_pil, read_image, worker_options
from mae_nb.data.shards import ShardImages, expand_shards, index_shard
from mae_nb.data.datasets import TorchvisionImages, channel_stats, hf_images, load_images, torchvision_images
from mae_nb.data.memory import TensorImages
from mae_nb.data.augment import EvalDataset, PretrainDataset, augmentations, draw_crops
from mae_nb.core.rng import SampleRandom
from mae_nb.data.loader import CorruptCounter, train_loader
from mae_nb.data.config import PackConfig
from mae_nb.data.pack import check, index_shards, pack
from mae_nb.data.loader import shard_loader
from mae_nb.bench.loading import make_jpegs, pixel_bounds
from mae_nb.tasks.pretrain import PretrainTask
from mae_nb.tasks.config import PretrainConfig
from mae_nb.cli import mae_data, mae_pretrain

def encoded(im, kind='JPEG', **kw): out = io.BytesIO(); im.save(out, kind, **kw); return out.getvalue()
def smooth(h=90, w=120, seed=0):
    "A picture that JPEG likes."
    x = np.random.default_rng(seed).integers(0, 256, (h//10, w//10, 3), dtype=np.uint8)
    return Image.fromarray(x).resize((w, h), Image.Resampling.BICUBIC)

@pytest.fixture(scope='module')
def jpegs(tmp_path_factory):
    "24 JPEGs like ImageNet's, in two class folders."
    folder = tmp_path_factory.mktemp('jpegs')
    make_jpegs(folder, 24, kilobytes=60)
    return folder

def content(dataset): return sorted((hashlib.sha1(dataset.read(i)).hexdigest(), int(dataset.labels[i])) for i in range(len(dataset)))

# -- decoding

GOOD = dict(
    plain=encoded(smooth()), progressive=encoded(smooth(), progressive=True), full_colour=encoded(smooth(), subsampling=0),
    grey=encoded(smooth().convert('L')), cmyk=encoded(smooth().convert('CMYK')), png=encoded(smooth(), 'PNG'), webp=encoded(smooth(), 'WEBP'),
    palette=encoded(smooth().quantize(16), 'PNG', transparency=3), palette_bytes=encoded(smooth().quantize(16), 'PNG', transparency=bytes(range(16))),
    rgba=encoded(smooth().convert('RGBA'), 'PNG'), grey_alpha=encoded(smooth().convert('LA'), 'PNG'), gif=encoded(smooth(), 'GIF'),
    one_bit=encoded(smooth().convert('1'), 'PNG'))

@pytest.mark.parametrize('name', GOOD)
def test_fast_decoder_has_pillows_pixels(name):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        got = decode(GOOD[name], name)
    want = torch.from_numpy(np.asarray(Image.open(io.BytesIO(GOOD[name])).convert('RGBA' if 'palette' in name else 'RGB').convert('RGB')).copy()).permute(2, 0, 1)
    assert got.dtype == torch.uint8 and torch.equal(got, want)

def test_16_bits_are_scaled():
    ramp = (np.arange(64*64, dtype=np.uint16)*16).reshape(64, 64)
    got = decode(encoded(Image.fromarray(ramp), 'PNG'))
    assert torch.equal(got[0], torch.from_numpy((ramp/257).round().astype(np.uint8))) and got.float().mean() > 100
    with pytest.raises(CorruptImage, match='scan.tif.*floating-point'): decode(encoded(Image.fromarray(ramp.astype(np.float32)), 'TIFF'), 'scan.tif')

@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_exif(kind, orientation):
    "As stored, like ImageFolder, unless it is asked for upright; both decoders agree."
    exif = Image.Exif(); exif[0x0112] = orientation
    data = encoded(smooth(), kind, exif=exif)
    stored,upright = decode(data),decode(data, exif_transpose=True)
    assert torch.equal(stored, decode(encoded(smooth(), kind)))
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    assert torch.equal(upright, torch.rot90(stored, turns, (1, 2)))
    assert np.array_equal(np.asarray(decode_pil(data, exif_transpose=True)), upright.permute(1, 2, 0).numpy())

def test_pillow_gives_the_same_sample(jpegs, monkeypatch):
    if torch.torch_version.TorchVersion(torch.__version__) < '2.11': pytest.skip('today\'s torchcodec needs torch 2.11')
    assert images.torchcodec_decoder()
    view = PretrainDataset(FolderImages(jpegs), (224, 224), 196)
    want = [view[0, i] for i in range(4)]
    monkeypatch.setattr(images, 'torchcodec_decoder', lambda: None)
    assert images.decoder_names() == 'Pillow'
    for i,(img,scores) in enumerate(want): assert torch.equal(view[0, i][0], img) and torch.equal(view[0, i][1], scores)

def test_pixels_near_pillow(jpegs):
    d = pixel_bounds(FolderImages(jpegs))
    assert 0 < d['mean'] < 0.1 and d['max'] <= 16 and d['above_4'] < 1e-3

def test_pil_is_torchvisions(jpegs):
    "The exact way has the very pixels of torchvision's functions on Pillow images."
    from torchvision.transforms import functional as tv
    files,view = FolderImages(jpegs),PretrainDataset(FolderImages(jpegs), (224, 224), 196, image_backend='pil')
    for i in range(4):
        im = Image.open(files.name(i)).convert('RGB')
        boxes,mirrored = draw_crops([(im.height, im.width)], (224, 224), SampleRandom(0, [(0, i)]))
        want = tv.resized_crop(im, *boxes[0].tolist(), [224, 224], tv.InterpolationMode.BICUBIC)
        if mirrored: want = tv.hflip(want)
        assert torch.equal(view[0, i][0], tv.pil_to_tensor(want))

# -- bad files

BAD = dict(
    truncated=(GOOD['plain'][:1500], 'truncated'), truncated_head=(GOOD['plain'][:100], 'no image format'), zero_byte=(b'', 'it is empty'),
    truncated_png=(GOOD['png'][:len(GOOD['png'])//2], 'truncated'), text=(b'this is no image\n'*9, 'no image format'))

@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('reader', [read_image, lambda p: decode_pil(p.read_bytes(), p)])
def test_bad_file(name, reader, tmp_path):
    path = tmp_path/f'{name}.jpg'; path.write_bytes(BAD[name][0])
    with pytest.raises(CorruptImage, match=f'cannot read .*{name}.jpg') as e: reader(path)
    assert BAD[name][1] in str(e.value)

def test_png_named_jpg(tmp_path):
    (tmp_path/'x.jpg').write_bytes(GOOD['png'])
    assert torch.equal(read_image(tmp_path/'x.jpg'), decode(GOOD['png']))

def test_bomb():
    data = bytearray(GOOD['plain']); at = data.index(b'\xff\xc0')
    data[at+5:at+9] = b'\xff\xff\xff\xff'  # 65535 x 65535 pixels
    with pytest.raises(CorruptImage, match='exceeds limit|decompression bomb'): decode(bytes(data))

def test_folder_with_everything(tmp_path):
    "A directory named x.jpg, hidden files, a text file, an empty class folder."
    for c in 'ant', 'bee', 'cat': (tmp_path/c).mkdir()
    for c in 'ant', 'cat': (tmp_path/c/'1.JPEG').write_bytes(GOOD['plain'])
    (tmp_path/'cat'/'x.jpg').mkdir(); (tmp_path/'cat'/'notes.txt').write_text('no image'); (tmp_path/'cat'/'._1.jpg').write_bytes(b'made by a Mac')
    (tmp_path/'.cache').mkdir(); (tmp_path/'.cache'/'1.jpg').write_bytes(GOOD['plain'])
    with pytest.warns(UserWarning, match=r"no images in \['bee'\]"): found = FolderImages(tmp_path)
    assert len(found) == 2 and found.classes == ('ant', 'bee', 'cat') and found.labels.tolist() == [0, 2]  # numbers as in any other split
    (tmp_path/'cat'/'x.jpg'/'2.jpg').write_bytes(GOOD['plain'])
    with pytest.warns(UserWarning): assert len(FolderImages(tmp_path)) == 3  # a folder is searched, whatever its name

def test_folder_without_images(tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match=r'no images under .*: looked for files ending in \.jpg'): FolderImages(tmp_path)
    with pytest.raises(FileNotFoundError, match='no folder'): FolderImages(tmp_path/'nosuch')

def test_flat_folder(tmp_path):
    for i in range(3): (tmp_path/f'{i}.jpg').write_bytes(GOOD['plain'])
    found = FolderImages(tmp_path)
    assert found.classes is None and found.labels.tolist() == [-1]*3 and PretrainTask(PretrainConfig(data=tmp_path, model='mae_vit_tiny_patch16', batch_size=3, device='cpu')).dataset

def test_mutated_jpegs():
    "2 000 damaged JPEGs: each is decoded or counted, by both decoders."
    whole,rng = [encoded(smooth(seed=s), quality=80) for s in range(5)],random.Random(0)
    decoded = counted = 0
    for i in range(2000):
        data = bytearray(rng.choice(whole))
        if i % 4 == 0: data = data[:rng.randrange(len(data))]
        elif i % 4 == 1:
            for _ in range(rng.randrange(1, 20)): data[rng.randrange(len(data))] = rng.randrange(256)
        elif i % 4 == 2:
            for _ in range(rng.randrange(1, 9)): data[rng.randrange(min(700, len(data)))] = rng.randrange(256)
        else: at = rng.randrange(len(data)); del data[at:at+rng.randrange(1, 500)]
        data = bytes(data)
        try:
            img = decode(data, f'number {i}')
            assert img.dtype == torch.uint8 and img.shape[0] == 3
            decoded += 1
        except CorruptImage as e: assert f'number {i}' in str(e); counted += 1
        try: decode_pil(data, f'number {i}')
        except CorruptImage as e: assert f'number {i}' in str(e)
    assert decoded + counted == 2000 and decoded > 300 and counted > 300

# -- shards

@pytest.fixture(scope='module')
def shards(jpegs, tmp_path_factory):
    out = tmp_path_factory.mktemp('shards')/'out'
    pack(PackConfig(jpegs, out, shard_images=10), log=lambda line: None)
    return out

def test_pack_and_read_back(jpegs, shards):
    files,packed = FolderImages(jpegs),load_images(str(shards))
    assert isinstance(packed, ShardImages) and content(packed) == content(files) and packed.classes == files.classes
    assert sorted(p.name for p in shards.glob('*.tar')) == [f'train-{k:06d}.tar' for k in range(3)]
    for p in shards.glob('*.tar'):  # the list beside a shard says what the shard holds
        beside,found = json.loads(Path(f'{p}.json').read_text()),index_shard(p)
        assert found == {k: beside[k] for k in found}
    sources = [s for p in sorted(shards.glob('*.tar.json')) for s in json.loads(p.read_text())['sources']]
    assert sorted(sources) == sorted(map(os.fsdecode, files.files)) and sources != sorted(sources)  # shuffled

def test_webdataset_reads_ours_and_we_read_theirs(jpegs, shards, tmp_path):
    wds = pytest.importorskip('webdataset')
    read = sorted((hashlib.sha1(s['jpg']).hexdigest(), int(s['cls'])) for s in wds.WebDataset([str(p) for p in sorted(shards.glob('*.tar'))], shardshuffle=False))
    files = FolderImages(jpegs)
    assert read == content(files)
    with wds.ShardWriter(str(tmp_path/'w-%03d.tar'), maxcount=9, verbose=0) as w:
        for i in range(len(files)): w.write({'__key__': f'n{i:03d}', 'jpg': files.read(i), 'cls': int(files.labels[i])})
    assert content(ShardImages(tmp_path/'w-{000..002}.tar')) == content(files)

@pytest.mark.parametrize('at', ['half', 'in the last image', 'before the end mark'])
def test_shard_cut_in_the_middle(shards, tmp_path, at):
    data,last = (shards/'train-000000.tar').read_bytes(),index_shard(shards/'train-000000.tar')
    end = last['offsets'][-1] + last['sizes'][-1]
    cut = tmp_path/'x.tar'; cut.write_bytes(data[:{'half': len(data)//2, 'in the last image': end - 1, 'before the end mark': end + -end % 512 + 1024}[at]])
    with pytest.raises(ValueError, match=r'x\.tar is no complete tar file .*truncated\? \d+ images come before that point'): ShardImages(cut)
    (tmp_path/'x.tar.json').write_text((shards/'train-000000.tar.json').read_text())
    with pytest.raises(ValueError, match=r'x\.tar has \d+ bytes, and \d+ when it was indexed'): ShardImages(cut)

@pytest.mark.parametrize('name', ['../outside.jpg', '/etc/outside.jpg', 'a/../../outside.jpg'])
def test_member_that_points_outside(tmp_path, name):
    with tarfile.open(tmp_path/'x.tar', 'w') as tar:
        m = tarfile.TarInfo(name); m.size = len(GOOD['plain']); tar.addfile(m, io.BytesIO(GOOD['plain']))
    with pytest.raises(ValueError, match='outside.jpg.*with an unsafe path'): ShardImages(tmp_path/'x.tar')

def test_strange_shards(tmp_path):
    (tmp_path/'text.tar').write_text('no tar at all'*99)
    with pytest.raises(ValueError, match='text.tar is no complete tar file'): ShardImages(tmp_path/'text.tar')
    with tarfile.open(tmp_path/'none.tar', 'w') as tar: m = tarfile.TarInfo('a.txt'); m.size = 2; tar.addfile(m, io.BytesIO(b'hi'))
    with pytest.raises(ValueError, match='no images in'): ShardImages(tmp_path/'none.tar')
    with tarfile.open(tmp_path/'word.tar', 'w') as tar:
        for n,data in ('a.jpg', GOOD['plain']), ('a.cls', b'cat'): m = tarfile.TarInfo(n); m.size = len(data); tar.addfile(m, io.BytesIO(data))
    with pytest.raises(ValueError, match="word.tar has a .cls member.*'cat'"): ShardImages(tmp_path/'word.tar')
    with pytest.raises(FileNotFoundError, match='no shard .*gone-01.tar'): ShardImages(tmp_path/'gone-{01..02}.tar')
    assert expand_shards('a-{08..11}.tar') == ['a-08.tar', 'a-09.tar', 'a-10.tar', 'a-11.tar']

class Ranges(SimpleHTTPRequestHandler):
    "Serves parts of files, as object stores do; every third request fails."
    seen = 0
    def log_message(self, *args): pass
    def do_GET(self):
        Ranges.seen += 1
        data,r = Path(self.translate_path(self.path)),re.match(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))
        if not data.is_file(): return self.send_error(404)
        if r and Ranges.seen % 3 == 0: return self.send_error(503)
        data = data.read_bytes(); part = data[int(r[1]):int(r[2]) + 1] if r else data
        self.send_response(206 if r else 200)
        self.send_header('Content-Length', str(len(part))); self.send_header('Accept-Ranges', 'bytes')
        if r: self.send_header('Content-Range', f'bytes {r[1]}-{int(r[1]) + len(part) - 1}/{len(data)}')
        self.end_headers(); self.wfile.write(part)

@pytest.mark.slow
def test_shards_from_a_url(jpegs, shards, monkeypatch):
    "The same samples as from the disk, through loading processes, too, and over a network that stumbles."
    pytest.importorskip('aiohttp')
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Ranges, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f'http://127.0.0.1:{server.server_port}'
        far,near = load_images(url + '/train-{000000..000002}.tar'),load_images(str(shards))
        assert content(far) == content(near)
        for workers in 0, 1:
            for a,b in zip(*[train_loader(PretrainDataset(d, (64, 64), 16), 8, 1, workers) for d in (far, near)]): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        with pytest.raises(FileNotFoundError, match='there is no .*train-000009.tar.json: run mae_data index'): load_images(url + '/train-000009.tar')
    finally: server.shutdown()

def test_splits_of_shards(shards, tmp_path):
    "Shards of another split are never taken for training, nor those to train on for testing."
    for p in shards.glob('train-*.tar*'): os.link(p, tmp_path/p.name.replace('train', 'val'))
    with pytest.raises(ValueError, match='no images under'): load_images(tmp_path)
    assert len(load_images(tmp_path, 'test')) == 24
    for name in f'{shards}/train-{{000000..000002}}.tar', f'{shards}/train-000000.tar':
        with pytest.raises(FileNotFoundError, match='there are none to test on'): load_images(name, 'test')
    (tmp_path/'train').mkdir(); os.link(shards/'train-000000.tar', tmp_path/'train'/'val-like.tar')
    assert len(load_images(tmp_path)) == 10  # in train/ all are to train on

def test_pack_refuses(jpegs, shards, tmp_path):
    with pytest.raises(ValueError, match='shard_images: now 5, before 10'): pack(PackConfig(jpegs, shards, shard_images=5))
    with pytest.raises(ValueError, match='fashion is in memory'): pack(PackConfig('fashion', tmp_path/'x'))
    (tmp_path/'train-000000.tar').write_text('mine')
    with pytest.raises(FileExistsError, match='is not from here'): pack(PackConfig(jpegs, tmp_path))
    assert (tmp_path/'train-000000.tar').read_text() == 'mine'
    with pytest.raises(ValueError, match='quality must be at most 100, got 101'): PackConfig('a', 'b', quality=101)

def test_pack_shrinks(jpegs, tmp_path):
    pack(PackConfig(jpegs, tmp_path/'s', short_side=96, quality=80), log=lambda line: None)
    small = load_images(str(tmp_path/'s'))
    assert {tuple(small[i][0].shape[1:]) for i in range(len(small))} == {(96, 128)} and int(small.sizes.max()) < 20_000

def tars(folder): return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).glob('*.tar*')) if 'tmp' not in p.name}

def in_a_fork(do):
    "Do something in another process, which leaves with the status that it returns; its id."
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        for number in signal.SIGINT, signal.SIGTERM: signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.stdout = sys.stderr = open(os.devnull, 'w')
        status = do()
    finally: os._exit(status)

@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_pack_killed(tmp_path, sig):
    "Killed at several moments and begun again: the same shards, to the byte, with another number of processes, too."
    (tmp_path/'in').mkdir()
    for i in range(120): (tmp_path/'in'/f'{i:03d}.jpg').write_bytes(encoded(smooth(300, 400, i), quality=92))
    (tmp_path/'in'/'bad.jpg').write_bytes(GOOD['plain'][:900])
    args = ['--data', str(tmp_path/'in'), '--shard_images', '7', '--short_side', '200']
    assert mae_data(['pack', *args, '--output_dir', str(tmp_path/'whole'), '--num_workers', '2']) == 0
    again = ['pack', *args, '--output_dir', str(tmp_path/'killed')]
    done,kills = lambda: len(list((tmp_path/'killed').glob('*.tar.json'))), 0
    for _ in range(10):
        before,pid = done(),in_a_fork(lambda: mae_data(again))
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and done() < before + 4: time.sleep(0.002)
        if ended == (0, 0):
            os.kill(pid, sig)
            os.waitpid(pid, 0)
        if done() < 18: kills += 1
        else: shutil.rmtree(tmp_path/'killed')  # it was through before it could be killed
        if kills == 3: break
    assert kills >= 2 and 0 < done() < 18
    assert mae_data(again) == 0
    assert tars(tmp_path/'killed') == tars(tmp_path/'whole') and len(tars(tmp_path/'whole')) == 36
    left = [w for p in (tmp_path/'killed').glob('*.tar.json') for w in json.loads(p.read_text())['left_out']]
    assert len(left) == 1 and 'bad.jpg' in left[0] and len(load_images(str(tmp_path/'killed'))) == 120

# -- other sources

@pytest.mark.slow
def test_hugging_face(jpegs, tmp_path):
    datasets = pytest.importorskip('datasets')
    files = FolderImages(jpegs)
    rows = dict(image=[dict(bytes=files.read(i), path=None) for i in range(len(files))], label=files.labels.tolist())
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(files.classes)))
    (tmp_path/'set').mkdir(); datasets.Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path/'set'/'train.parquet')
    found = load_images(f'hf:{tmp_path/"set"}', root=tmp_path/'cache')
    assert content(found) == content(files) and found.classes == files.classes and torch.equal(found[5][0], files[5][0])
    with pytest.raises(FileNotFoundError, match='no split for test'): hf_images(str(tmp_path/'set'), 'test', tmp_path/'cache')
    views = [PretrainDataset(d, (64, 64), 16) for d in (found, files)]
    for a,b in zip(*[train_loader(v, 8, 1, 1) for v in views]): assert torch.equal(a[0], b[0])

def test_torchvision_folder(tmp_path):
    for s in 'train', 'val':
        for k,wnid in enumerate(['n01440764', 'n02102040', 'n02979186', 'n03000684', 'n03028079', 'n03394916', 'n03417042', 'n03425413', 'n03445777', 'n03888257']):
            (tmp_path/'imagenette2'/s/wnid).mkdir(parents=True); (tmp_path/'imagenette2'/s/wnid/f'{k}.JPEG').write_bytes(GOOD['grey' if k == 3 else 'plain'])
    found = torchvision_images('Imagenette', 'test', tmp_path)
    assert len(found) == 10 and sorted(found.labels.tolist()) == list(range(10)) and {tuple(found[i][0].shape) for i in range(10)} == {(3, 90, 120)}
    (tmp_path/'imagenette2'/'val'/'n02102040'/'1.JPEG').write_bytes(b'')
    with pytest.raises(CorruptImage, match='Imagenette, image 1'): found[1]

@pytest.mark.parametrize('shape', [(6, 28, 28), (6, 32, 32, 3), (6, 3, 32, 32), (6, 3, 96, 96)], ids=['MNIST', 'CIFAR', 'SVHN', 'STL10'])
def test_torchvision_sets_in_memory(shape, monkeypatch):
    "Those whose arrays torchvision holds, in the layouts that it has, are the same images in memory."
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    class Held:
        def __init__(self, root, download, **how):
            self.data = pixels if len(shape) == 3 else pixels.numpy()
            self.targets = [0, 1, 2, 2, 1, 0]
            self.classes = ['a', 'b', 'c']
        def __len__(self): return 6
        def __getitem__(self, i):
            x = self.data[i] if len(shape) == 3 or shape[-1] == 3 else self.data[i].transpose(1, 2, 0)
            return Image.fromarray(np.asarray(x)), self.targets[i]
    monkeypatch.setattr('torchvision.datasets.CIFAR10', Held)
    found = torchvision_images('CIFAR10', 'train', 'x')
    assert isinstance(found, TensorImages) and found.classes == ['a', 'b', 'c'] and found.labels.tolist() == [0, 1, 2, 2, 1, 0]
    for (img,label),(other,same) in zip(found, TorchvisionImages(Held('x', False)), strict=True): assert torch.equal(img, other) and label == same
    view = PretrainDataset(found, tuple(found.imgs.shape[-2:]), 16)
    assert view.in_memory and next(iter(train_loader(view, 3, 1)))[0].shape == (3, *found.imgs.shape[1:])

# -- augmentations and crops

@pytest.mark.parametrize('kind', augmentations)
@pytest.mark.parametrize('reader', ['fast', 'pil'])
def test_augmentations(jpegs, kind, reader):
    view = PretrainDataset(FolderImages(jpegs), (64, 96), 24, kind=kind, image_backend=reader, flip=kind != 'none')
    a,b,again = view[0, 3][0],view[1, 3][0],view[0, 3][0]
    assert a.shape == (3, 64, 96) and a.dtype == torch.uint8 and torch.equal(a, again)
    assert torch.equal(a, b) == (kind == 'none')

def test_none_is_the_centre(jpegs):
    files = FolderImages(jpegs)
    a,b = PretrainDataset(files, (224, 224), 196, kind='none', flip=False)[0, 2][0],EvalDataset(files, (224, 224), 0.875)[2][0]
    assert (a.float() - b.float()).abs().mean() < 8 < (a.float() - b.flip(2).float()).abs().mean()  # the crop is resized, or the resized image is cropped: half a pixel apart
    plain = TensorImages(torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4))
    assert torch.equal(PretrainDataset(plain, (4, 4), 1, kind='none', flip=False)[0, 0][0], plain[0][0])

def test_centre_is_the_papers(jpegs):
    "Resize the short side to 256, crop 224, bicubic: as torchvision does it on Pillow images."
    from torchvision import transforms as T
    files = FolderImages(jpegs)
    want = T.Compose([T.Resize(256, T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.PILToTensor()])
    for i in range(3):
        im = Image.open(files.name(i)).convert('RGB')
        assert torch.equal(EvalDataset(files, (224, 224), 0.875, 'pil')[i][0], want(im))
        assert (EvalDataset(files, (224, 224), 0.875)[i][0].float() - want(im).float()).abs().mean() < 0.1

# -- a run that meets trouble

@pytest.fixture
def spoilt(jpegs, tmp_path):
    "A folder in which two of 24 images are damaged."
    for p in jpegs.rglob('*.jpg'): (tmp_path/'in'/p.parent.name).mkdir(parents=True, exist_ok=True); os.link(p, tmp_path/'in'/p.parent.name/p.name)
    for name in 'class0/00004.jpg', 'class1/00007.jpg': q = tmp_path/'in'/name; data = q.read_bytes(); q.unlink(); q.write_bytes(data[:400])
    return tmp_path/'in'

def test_corrupt_images_are_skipped(spoilt):
    "The same samples for any number of processes; each corrupt image is named once."
    files,runs = FolderImages(spoilt),[]
    for workers in 0, 2:
        said = []; loader = train_loader(PretrainDataset(files, (64, 64), 16), 8, 2, workers, CorruptCounter(5, said.append))
        runs.append([torch.cat([imgs.flatten(1).float(), scores], 1) for imgs,scores in loader])
        assert len(said) == 2 and all('00004.jpg' in s or '00007.jpg' in s for s in said)
    assert all(torch.equal(a, b) for a,b in zip(*runs)) and len(runs[0]) == 6

@pytest.mark.slow
def test_too_many_corrupt_images(spoilt, tmp_path, capsys):
    flags = ['--data', spoilt, '--model', 'mae_vit_tiny_patch16', '--batch_size', 8, '--img_size', 64, '--epochs', 1, '--warmup_epochs', 0, '--device', 'cpu', '--mean', '0.5,0.5,0.5', '--std', '0.3,0.3,0.3']
    assert mae_pretrain([str(f) for f in (*flags, '--output_dir', tmp_path/'a', '--max_bad_images', 1)]) == 2
    out,err = capsys.readouterr()
    assert out.count('skipped: cannot read') == 2 and '2 images cannot be read, more than max_bad_images=1' in err
    assert mae_pretrain([str(f) for f in (*flags, '--output_dir', tmp_path/'b', '--log_every', 1, '--num_workers', 1)]) == 0
    assert [json.loads(l).get('skipped') for l in open(tmp_path/'b'/'log.jsonl')][-1] == 2

def test_all_corrupt(tmp_path, capsys):
    for i in range(30): (tmp_path/f'{i}.jpg').write_bytes(b'junk')
    with pytest.raises(ValueError, match='none of 30 images can be read'): channel_stats(FolderImages(tmp_path))
    for workers in 0, 1:
        with pytest.raises(CorruptImage, match='^.{0,60}20 images in a row cannot be read'): next(iter(train_loader(PretrainDataset(FolderImages(tmp_path), (64, 64), 16), 4, 1, workers)))

class Deadly(TensorImages):
    "Kills the process that reads its third image."
    def __init__(self, sig): super().__init__(torch.zeros(16, 3, 8, 8, dtype=torch.uint8)); self.sig = sig
    def __getitem__(self, i):
        if i == 3: os.kill(os.getpid(), self.sig)
        return super().__getitem__(i)

@pytest.mark.slow
@pytest.mark.parametrize('sig,cause', [(signal.SIGKILL, 'lack of memory'), (signal.SIGSEGV, 'a decoder crashed'), (signal.SIGBUS, '/dev/shm')])
def test_dead_loader_is_explained(sig, cause):
    with pytest.raises(ChildProcessError, match=f'a data-loader worker died .*{cause}'):
        for _ in train_loader(PretrainDataset(Deadly(sig), (8, 8), 4), 4, 1, 1): pass

@pytest.mark.slow
@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGSEGV])
def test_loader_dies_during_a_step(sig):
    "The step is finished; the death is told when the next batch is asked for."
    import multiprocessing
    steps,done,others = 0,False,set(multiprocessing.active_children())
    with pytest.raises(ChildProcessError, match='a data-loader worker died .Killed|a data-loader worker died .Segmentation'):
        for _ in train_loader(PretrainDataset(TensorImages(torch.zeros(640, 3, 8, 8, dtype=torch.uint8)), (8, 8), 4), 4, 1, 1).load():
            done = False
            if steps == 5: os.kill((set(multiprocessing.active_children()) - others).pop().pid, sig)
            end = time.time() + 0.1
            while time.time() < end: sum(range(1000))
            steps,done = steps + 1,True
    assert done and steps > 5

def _look(sign):
    while True: sign.is_set()

@pytest.mark.slow
def test_killed_process_leaves_no_lock():
    "A process that is killed while it looks whether all is over does not keep the others waiting; with an event of multiprocessing it often does."
    way = worker_options(1)['multiprocessing_context']
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail('waits for a lock'))
    signal.alarm(60)
    try:
        for k in range(20):
            sign = way.Event()
            p = way.Process(target=_look, args=(sign,)); p.start()
            time.sleep(0.02); p.kill(); p.join()
            assert not sign.is_set()
            sign.set(); assert sign.is_set()
    finally: signal.alarm(0); signal.signal(signal.SIGALRM, before)

def test_loader_has_such_an_event():
    batches = train_loader(PretrainDataset(TensorImages(torch.zeros(64, 3, 8, 8, dtype=torch.uint8)), (8, 8), 4), 4, 1, 1).load()
    next(batches)
    assert type(batches.gi_frame.f_locals['batches']._workers_done_event).__name__ == '_Event'
    batches.close()

@pytest.mark.slow
@pytest.mark.parametrize('what', ['stats', 'check', 'evaluation', 'pack'])
def test_sigterm_leaves_every_loader_alone(what, jpegs, tmp_path, monkeypatch):
    "A cluster's SIGTERM reaches loading processes, too; they go on."
    deadly = Deadly(signal.SIGTERM)
    if what == 'stats': assert channel_stats(deadly, num_workers=1) == ((0.,)*3, (0.0001,)*3)
    elif what == 'check': assert check(deadly, num_workers=1)['images'] == 16
    elif what == 'evaluation': assert [len(y) for _,y in shard_loader(EvalDataset(deadly, (8, 8)), 4, 1)] == [4]*4
    else:
        read = FolderImages.read
        def told(self, i):
            if i == 3 and multiprocessing.parent_process(): os.kill(os.getpid(), signal.SIGTERM)  # a loading process
            return read(self, i)
        monkeypatch.setattr(FolderImages, 'read', told)
        assert len(pack(PackConfig(jpegs, tmp_path/'out', shard_images=10, num_workers=1), log=lambda line: None)) == 3

LEFT_OPEN = '''
import multiprocessing, torch
from mae_nb.data.memory import TensorImages
from mae_nb.data.augment import EvalDataset
from mae_nb.data.loader import shard_loader
def job():
    global batches
    batches = iter(shard_loader(EvalDataset(TensorImages(torch.zeros(64, 3, 8, 8, dtype=torch.uint8)), (8, 8)), 4, 2))
    for _ in range(2): next(batches)  # both have begun
if __name__ == '__main__':
    p = multiprocessing.get_context('HOW').Process(target=job); p.start(); p.join(); print(p.exitcode)
    job()
'''

@pytest.mark.slow
@pytest.mark.parametrize('how', ['fork', 'spawn'])
def test_process_that_ends_does_not_wait_for_its_loader(how, tmp_path):
    "Neither the main process nor one that it has started."
    (tmp_path/'left_open.py').write_text(LEFT_OPEN.replace('HOW', how))
    r = subprocess.run([sys.executable, tmp_path/'left_open.py'], capture_output=True, text=True, timeout=120)
    assert r.returncode == 0 and r.stdout == '0\n', r.stderr

def test_batches_are_the_readers_own(jpegs):
    "A batch that is kept stays as it was, unless its memory was said to be free."
    view = PretrainDataset(FolderImages(jpegs), (64, 64), 16)
    kept = list(train_loader(view, 4, 4, 1))
    fresh = list(train_loader(view, 4, 4, 0))
    assert len(kept) == 24 and all(torch.equal(a[0], b[0]) for a,b in zip(kept, fresh))
    for a,b in zip(train_loader(view, 4, 4, 1, reuse=True), fresh): assert torch.equal(a[0], b[0])

# -- commands

def test_check_and_stats(spoilt, capsys):
    assert mae_data(['check', '--data', str(spoilt), '--num_workers', '1']) == 2
    out,err = capsys.readouterr()
    assert out.count('corrupt  cannot read') == 2 and '2 of 24 images cannot be read' in err and "{'JPEG': 22}" in out
    assert mae_data(['stats', '--data', str(spoilt)]) == 0
    flags = capsys.readouterr().out.split()
    assert flags[0] == '--mean' and len(flags[1].split(',')) == 3 and flags[2] == '--std'
    assert check(TensorImages(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)))['modes'] == {'1 channels': 3}

def test_index(shards, tmp_path):
    for p in shards.glob('*.tar'): os.link(p, tmp_path/p.name)
    assert mae_data(['index', '--shards', str(tmp_path)]) == 0
    assert content(ShardImages(tmp_path/'train-*.tar')) == content(load_images(str(shards))) and len(list(tmp_path.glob('*.json'))) == 3

@pytest.mark.slow
def test_commands_need_no_unix():
    "Modules that only Unix has are looked for where they are needed."
    code = "import sys; sys.modules.update(resource=None, fcntl=None); from mae_nb.cli import mae_data; sys.exit(mae_data(['stats']))"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.startswith('--mean 0.28'), r.stderr
