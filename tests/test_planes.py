"Shards of decoded images: what is read back, in crops and whole, beside the images they were made from."
import io, json, shutil
import numpy as np, pytest, torch
from PIL import Image
from mae_nb.cli import mae_data, mae_finetune, mae_pretrain
from mae_nb.core.files import read_jsonl
from mae_nb.core.rng import SampleRandom
from mae_nb.data.augment import EvalDataset, PretrainDataset, crop_resize, draw_crops
from mae_nb.data.bundled import photo
from mae_nb.data.config import PackConfig
from mae_nb.data.datasets import load_images
from mae_nb.data.images import CorruptImage, FolderImages, with_channels
from mae_nb.data.labels import FinetuneDataset
from mae_nb.data.pack import check, pack
from mae_nb.data.planes import Planes, encode_planes
from mae_nb.data.shards import ShardImages, index_shard

quiet = lambda line: None
def far(a, b): return (a.float() - b.float()).abs()

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Two classes of photographs: odd and even sides, with chroma at full and at half size, grey, PNG, CMYK, turned."
    home = tmp_path_factory.mktemp('photos')
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [dict(), dict(subsampling=0), dict(mode='L'), dict(kind='PNG'), dict(mode='CMYK'), dict(exif=turned)]
    for k,how in enumerate(kinds):
        for c,name in enumerate(('chelsea', 'coffee')):
            how = dict(kind='JPEG', mode='RGB', quality=92) | how
            if how['kind'] == 'PNG': how.pop('quality')
            im = Image.fromarray(photo(name)[:,:180 + k,:231 - k].permute(1, 2, 0).numpy()).convert(how['mode'])
            (home/name).mkdir(exist_ok=True)
            im.save(home/name/f'{k}.{how["kind"].lower()}', how['kind'], **{a: b for a,b in how.items() if a not in ('kind', 'mode')})
    return home

@pytest.fixture(scope='module')
def packed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('packed')
    pack(PackConfig(folder, out, store='planes', shard_images=7, shuffle=False), quiet)
    return out

def test_whole_images(folder, packed):
    files,planes = FolderImages(folder),load_images(str(packed))
    assert len(planes) == len(files) == 12 and planes.classes == files.classes
    for i in range(12):
        (a,label),(b,same) = files[i],planes[i]
        d = far(a, b)
        assert a.shape == b.shape and label == same and d.mean() < 1.2 and d.max() <= 40, (files.name(i), d.mean(), d.max())
        if (a[0] == a[1]).all(): assert d.max() == 0  # grey: to the bit

def test_crops_of_training(folder, packed):
    "The boxes of the folder's images, begun and ended at even pixels."
    files,planes = FolderImages(folder),load_images(str(packed))
    view = PretrainDataset(planes, (64, 48), 16, seed=3)
    for i in range(12):
        for epoch in range(3):
            random = SampleRandom(3, [(epoch, i)])
            img = files[i][0]
            boxes,mirrored = draw_crops([img.shape[-2:]], (64, 48), random)
            grey = (img[0] == img[1]).all()
            wanted = crop_resize(img, boxes[0].tolist() if grey else [v//2*2 for v in boxes[0].tolist()], (64, 48))
            d = far(view[epoch, i][0], wanted.flip(2) if mirrored[0] else wanted)
            assert d.mean() < 1.2 and d.max() <= 40, (files.name(i), boxes, d.mean(), d.max())

def test_grey_reads_luma(folder, packed):
    files,planes = with_channels(FolderImages(folder), 1),with_channels(load_images(str(packed)), 1)
    for i in range(12): assert far(files[i][0], planes[i][0]).max() <= 8
    a,b = (PretrainDataset(s, (64, 64), 16)[0, 4][0] for s in (files, planes))
    assert a.shape == b.shape == (1, 64, 64) and far(a, b).max() <= 3

def test_exif_orientation(folder, packed):
    files,planes = FolderImages(folder, exif_transpose=True),ShardImages(packed/'train-00000*.tar', exif_transpose=True)
    at = next(i for i in range(12) if files.name(i).endswith('coffee/5.jpeg'))
    a,b = files[at][0],planes[at][0]
    assert a.shape == b.shape == (3, 226, 185) and far(a, b).mean() < 0.8
    view = PretrainDataset(planes, (32, 32), 16, seed=1)
    assert far(view[0, at][0], PretrainDataset(files, (32, 32), 16, seed=1)[0, at][0]).mean() < 1.5

@pytest.mark.parametrize('backend', ['fast', 'pil'])
def test_evaluation(folder, packed, backend):
    files,planes = (EvalDataset(s, (64, 64), image_backend=backend) for s in (FolderImages(folder), load_images(str(packed))))
    for i in range(12): assert files[i][1] == planes[i][1] and far(files[i][0], planes[i][0]).mean() < 1.2

@pytest.mark.parametrize('policy', [None, 'rand-m9-mstd0.5-inc1'])
def test_fine_tuning(folder, packed, policy):
    "Pillow's crops of the same boxes; RandAugment may enlarge the differences, but there are none between grey images."
    how = dict(policy=policy, mean=(0.5,)*3, std=(0.2,)*3, image_backend='pil')
    files,planes = (FinetuneDataset(s, (64, 64), 5, **how) for s in (FolderImages(folder), load_images(str(packed))))
    for i in range(12):
        (a,label),(b,same) = files[0, i],planes[0, i]
        assert label == same and a.shape == b.shape
        if '/2.jpeg' in files.dataset.name(i): assert torch.equal(a, b)
        elif not policy: assert far(a, b).mean() < 1.5

def test_reduced(folder, tmp_path):
    pack(PackConfig(folder, tmp_path/'small', store='planes', short_side=90), quiet)
    planes = load_images(str(tmp_path/'small'))
    assert {min(planes[i][0].shape[1:]) for i in range(12)} == {90}

def test_same_bytes_and_index(folder, packed, tmp_path):
    pack(PackConfig(folder, tmp_path/'again', store='planes', shard_images=7, shuffle=False, num_workers=2), quiet)
    for p in sorted(packed.glob('*.tar')):
        assert (tmp_path/'again'/p.name).read_bytes() == p.read_bytes()
        kept,found = json.loads((packed/f'{p.name}.json').read_text()),index_shard(p)
        assert all(kept[k] == found[k] for k in ('names', 'labels', 'offsets', 'sizes', 'bytes'))
    with pytest.raises(ValueError, match="store: now 'encoded', before 'planes'"):
        pack(PackConfig(folder, packed, shard_images=7, shuffle=False), quiet)

def test_the_command_tells_what_it_costs(folder, tmp_path, capsys):
    assert mae_data(['pack', '--data', str(folder), '--output_dir', str(tmp_path/'out'), '--store', 'planes']) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith('planes   59 kB an image instead of') and '12 images compared: PSNR' in said and '1000 images a second are 0.06 GB' in said
    assert mae_data(['check', '--data', str(tmp_path/'out')]) == 0
    found = check(load_images(str(tmp_path/'out')))
    assert found['formats'] == {'PLANES': 12} and found['modes'] == {'RGB': 10, 'L': 2} and found['turned'] == 2 and not found['corrupt']

def test_more_than_8_bits_is_refused(tmp_path, capsys):
    (tmp_path/'deep').mkdir()
    for i in range(3): Image.fromarray(np.full((9, 9), 1000*i, np.uint16)).save(tmp_path/'deep'/f'{i}.png')
    assert mae_data(['pack', '--data', str(tmp_path/'deep'), '--output_dir', str(tmp_path/'out'), '--store', 'planes']) == 2
    assert 'store=planes holds 8 bits' in capsys.readouterr().err.replace('--store planes', 'store=planes')

def test_spoiled_planes_are_named(packed, tmp_path, capsys):
    "A member cut short, and one with another height in its header, are skipped by training as corrupt images are."
    path = tmp_path/'train-000000.tar'
    data = bytearray((packed/'train-000000.tar').read_bytes())
    index = json.loads((packed/'train-000000.tar.json').read_text())
    data[index['offsets'][2] + 8] += 1
    path.write_bytes(data)
    planes = ShardImages(path)
    with pytest.raises(CorruptImage, match='00000002.yuv as an image: it has .* truncated'): planes[2]
    with pytest.raises(CorruptImage, match='00000002.yuv'): PretrainDataset(planes, (32, 32), 16)[0, 2]
    assert len(check(planes)['corrupt']) == 1

@pytest.mark.parametrize('data', [b'', b'MAEYUV1\n', b'MAEYUV1\n' + bytes(16), encode_planes(Image.new('RGB', (4, 4)))[:-1]])
def test_no_planes(data):
    with pytest.raises(ValueError): Planes(data)
    with pytest.raises(OSError): Image.open(io.BytesIO(data)).load()

@pytest.mark.slow
def test_a_run_on_planes(packed, tmp_path, capsys):
    "Pre-training with workers stops and resumes as from files, and a classifier trains on the same shards."
    flags = ['--data', str(packed), '--img_size', '32', '--patch_size', '8', '--batch_size', '4', '--device', 'cpu', '--log_every', '1', '--mean', '.5,.5,.5', '--std', '.2,.2,.2']
    flags += ['--epochs', '2', '--max_steps', '4', '--save_every', '2', '--keep_checkpoints', '9', '--warmup_epochs', '0', '--num_workers', '1', '--resume', 'auto']
    assert mae_pretrain([*flags, '--output_dir', str(tmp_path/'whole')]) == 0
    assert '12 images, stored as planes' in capsys.readouterr().out
    shutil.copytree(tmp_path/'whole', tmp_path/'parts')
    shutil.rmtree(tmp_path/'parts/checkpoints/step-00000004')  # as if killed after step 2
    assert mae_pretrain([*flags, '--output_dir', str(tmp_path/'parts')]) == 0
    losses = [[r['loss'] for r in read_jsonl(tmp_path/name/'log.jsonl') if 'loss' in r] for name in ('whole', 'parts')]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    both = tmp_path/'both'
    both.mkdir()
    for p in packed.glob('train-*.tar*'):
        for split in 'train', 'val': shutil.copy(p, both/p.name.replace('train', split))
    assert mae_finetune(['--encoder', str(tmp_path/'whole'), '--data', str(both), '--output_dir', str(tmp_path/'tuned'), '--max_steps', '2', '--batch_size', '4',
                         '--device', 'cpu', '--warmup_epochs', '0', '--num_workers', '1']) == 0
    assert 'top1' in read_jsonl(tmp_path/'tuned'/'log.jsonl')[-1]
