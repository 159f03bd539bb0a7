"Images that are no photographs: 12, 14 and 16 bits, floating-point numbers, many bands; from PNG, TIFF and .npy, through every command."
import io, struct, sys, zlib
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from mae_nb.cli import mae_data, mae_finetune, mae_knn, mae_pretrain, mae_report
from mae_nb.core.files import read_json
from mae_nb.data.datasets import channel_stats, load_images
from mae_nb.data.images import CorruptImage, decode_array
from mae_nb.data.inventory import settle_channels
from mae_nb.evaluate.report import reconstruction_picture
from mae_nb.tasks.config import FinetuneConfig, PretrainConfig
from mae_nb.tasks.pretrain import PretrainTask
from mae_nb.weights.export import hf_processor
from mae_nb.weights.hub import from_pretrained
tifffile = pytest.importorskip('tifffile')

MODEL = '--img_size 32 --epochs 1 --batch_size 4 --warmup_epochs 0 --log_every 1 --device cpu'.split()
PRE = ['--model', 'mae_vit_nano_patch4', *MODEL]

def call(command, *args): return command([str(a) for a in args])

def scene(seed, bands=1):
    "Smooth random pictures in [0, 1], `(bands, 40, 36)`."
    noise = torch.rand(1, bands, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (40, 36), mode='bilinear')[0].numpy()

def write(path, x):
    "Write numbers `(C, H, W)` in the way of the ending."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npy': np.save(path, x)
    elif path.suffix == '.png': Image.fromarray(x[0]).save(path)
    elif len(x) == 1: tifffile.imwrite(path, x[0])
    else: tifffile.imwrite(path, x, photometric='minisblack', planarconfig='separate')

def folder(root, make, ending, n=8):
    "Class folders in train and val."
    for i in range(n):
        for split in 'train', 'val': write(Path(root)/split/'ab'[i % 2]/f'{i}{ending}', make(i + (split == 'val')*100))
    return Path(root)

def satellite(seed): return (scene(seed, 13)*np.linspace(.05, .6, 13)[:,None,None]).astype(np.float32)
def bits(n): return lambda seed: (scene(seed)*(2**n - 1)).astype(np.uint16)

KINDS = dict(satellite=(satellite, '.tif', 13, (0, .6)), satellite_npy=(satellite, '.npy', 13, (0, .6)), sensor=(bits(12), '.png', 1, (0, 4095)),
             sensor_tiff=(bits(14), '.tif', 1, (0, 16383)), film=(bits(16), '.tif', 1, (0, 65535)), rows_last=(lambda s: satellite(s).transpose(1, 2, 0), '.npy', 13, (0, .6)))

@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_every_command_reads_arrays(tmp_path, capsys, kind):
    make,ending,channels,(low,high) = KINDS[kind]
    data = folder(tmp_path/'data', make, ending)
    assert call(mae_pretrain, '--data', data, '--output_dir', tmp_path/'pre', *PRE) == 0
    told = read_json(tmp_path/'pre'/'model.json')
    assert told['in_chans'] == channels and np.allclose(told['value_range'], (low, high), atol=.03)
    assert all(0 < m < 1 for m in told['mean']) and len(told['std']) == channels
    out = capsys.readouterr().out
    assert f'{channels} band' in out and 'value_range=' in out and 'values of 8 images' in out and 'read as numbers' in out
    assert call(mae_pretrain, '--data', data, '--output_dir', tmp_path/'pre', *PRE, '--epochs', 2, '--resume', 'auto') == 0  # prolonged
    assert call(mae_pretrain, '--data', data, '--output_dir', tmp_path/'more', '--init_from', tmp_path/'pre', *MODEL) == 0
    assert [read_json(tmp_path/run/'model.json')['value_range'] for run in ('pre', 'more')] == [told['value_range']]*2
    assert call(mae_finetune, '--data', data, '--encoder', tmp_path/'pre', '--output_dir', tmp_path/'fine', '--layer_decay', 'none', *MODEL) == 0
    assert read_json(tmp_path/'fine'/'model.json')['value_range'] == told['value_range']
    assert call(mae_knn, '--data', data, '--encoder', tmp_path/'pre', '--k', 3, '--device', 'cpu') == 0
    assert call(mae_report, tmp_path/'pre', '--device', 'cpu') == 0
    assert 'cannot be read' not in capsys.readouterr().out
    titles = [ax.get_title() for ax in reconstruction_picture(tmp_path/'pre').axes[:4]]
    assert titles[0] == ('image\nbands 1, 2, 3' if channels > 3 else 'image')
    picture = np.asarray(Image.open(tmp_path/'pre'/'reconstruction.png').convert('RGB'))[24:174, 4:174]
    assert picture.min() < 20 and picture.max() > 235  # neither black nor flat: stretched for the eye
    assert call(mae_data, 'check', '--data', data) == 0 and call(mae_data, 'stats', '--data', data) == 0
    assert '--value_range=' in capsys.readouterr().out

def settled(root, *asked, **how):
    images = load_images(root)
    settle_channels(images, *asked, **how)
    return images

def test_twelve_bits_keep_their_levels(tmp_path):
    images = settled(folder(tmp_path, bits(12), '.png'))
    assert images.value_range == (0, 4095) and images[0][0].dtype == torch.float32
    assert len(images[0][0].unique()) > 500  # 17 of 256, if the container were the measure
    assert torch.equal(images[0][0], torch.from_numpy(bits(12)(0).astype(np.float32)/4095))

def test_int32_with_bytes_in_it(tmp_path):
    for i in range(4): tifffile.imwrite(tmp_path/f'{i}.tif', (scene(i)[0]*255).astype(np.int32))
    images = settled(tmp_path)
    assert images.value_range == (0, 255) and len(images[0][0].unique()) > 100

def test_a_given_range_goes_first_and_a_bad_one_is_told(tmp_path):
    folder(tmp_path, bits(12), '.png')
    assert settled(tmp_path, value_range=(0, 8000)).value_range == (0, 8000)
    assert any(n.startswith('warning: ') and 'outside' in n for n in settled(tmp_path, value_range=(0, 1000)).notes)
    assert any(n.startswith('warning: ') and 'small part' in n for n in settled(tmp_path, value_range=(0, 1e6)).notes)
    with pytest.raises(ValueError, match='value_range must be two numbers'): PretrainConfig(value_range=(5, 5))
    with pytest.raises(ValueError, match='in memory'): PretrainTask(PretrainConfig(value_range=(0, 9), device='cpu'))

def test_one_band_as_three_equal_ones(tmp_path):
    img = settled(folder(tmp_path, bits(12), '.png'), 3)[0][0]
    assert img.shape == (3, 40, 36) and torch.equal(img[0], img[2])

def test_pixels_without_a_value_are_filled_and_told(tmp_path):
    for i in range(4):
        x = satellite(i)
        x[:,:4] = np.nan
        write(tmp_path/f'{i}.tif', x)
    tifffile.imwrite(tmp_path/'4.tif', np.full((13, 40, 36), np.nan, np.float32), photometric='minisblack', planarconfig='separate')
    images = settled(tmp_path)
    assert images[0][0].isfinite().all() and any('have pixels without a value' in n for n in images.notes)
    with pytest.raises(CorruptImage, match='4.tif as an image: none of its pixels has a value'): images[4]
    assert all(np.isfinite(channel_stats(images)).flatten())

def test_what_does_not_fit_is_refused(tmp_path):
    folder(tmp_path, satellite, '.tif')
    with pytest.raises(ValueError, match='13 bands of float32, and 3 channels are wanted'): settled(tmp_path, 3)
    how = dict(data=str(tmp_path), output_dir=str(tmp_path/'run'), model='mae_vit_nano_patch4', img_size=(32, 32), batch_size=4, device='cpu')
    with pytest.raises(ValueError, match='color_jitter is for 1 or 3 channels'): PretrainTask(PretrainConfig(**how, augment='color_jitter'))
    with pytest.raises(ValueError, match='image_backend=pil reads 8 bits'): PretrainTask(PretrainConfig(**how, image_backend='pil'))
    from mae_nb.tasks.finetune import FinetuneTask
    with pytest.raises(ValueError, match='RandAugment'): FinetuneTask(FinetuneConfig(**how, rand_augment='rand-m9-mstd0.5-inc1'))

def test_different_bands_are_refused(tmp_path):
    write(tmp_path/'a.tif', satellite(0))
    write(tmp_path/'b.tif', satellite(1)[:5])
    with pytest.raises(ValueError, match='different numbers of bands: 5, 13'): settled(tmp_path)

def test_a_few_deep_images_among_photographs(tmp_path):
    for i in range(3): Image.fromarray((scene(i)[0]*255).astype(np.uint8)).save(tmp_path/f'{i}.png')
    write(tmp_path/'deep.png', bits(16)(5))
    images = settled(tmp_path)
    assert images.value_range is None and images[0][0].dtype == torch.uint8
    assert any('1 of 4 images looked at have more than 8 bits' in n for n in images.notes)

def test_what_pillow_leaves_out_is_told(tmp_path):
    deep = cut_png(16, 16)
    pages = [Image.fromarray(np.full((16, 16), v, np.uint8)) for v in (0, 255)]
    for i in range(3): (tmp_path/f'{i}.png').write_bytes(deep)
    pages[0].save(tmp_path/'a.tif', save_all=True, append_images=pages[1:])
    found = load_images(tmp_path)
    assert settle_channels(found) == 3
    told = ' '.join(found.notes)
    assert '3 of 4 images looked at are read in part, without the lower 8 of 16 bits' in told
    assert '1 of 4 images looked at are read in part, without the frames or pages after the first' in told

def cut_png(width, height):
    "A PNG with 16 bits a colour, which Pillow reads, but does not write."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = (b'\0' + bytes(6*width))*height
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))

def test_npy_beside_photographs_is_passed_over(tmp_path):
    Image.fromarray((scene(0)[0]*255).astype(np.uint8)).save(tmp_path/'0.png')
    np.save(tmp_path/'0.npy', scene(0))
    images = load_images(tmp_path)
    assert len(images) == 1 and any('1 .npy' in n for n in images.notes)

def test_without_tifffile_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path/'a.tif', satellite(0))
    monkeypatch.setitem(sys.modules, 'tifffile', None)
    with pytest.raises(ValueError, match=r"a.tif is a TIFF that Pillow can't read: pip install 'mae_nb\[arrays\]'"): settled(tmp_path)

def test_a_model_without_a_range_tells_what_it_takes(tmp_path):
    folder(tmp_path, satellite, '.tif')
    assert call(mae_knn, '--data', tmp_path, '--encoder', 'fashion_nano', '--device', 'cpu') == 2
    with pytest.warns(UserWarning, match='value_range=0,4095'): assert call(mae_knn, '--data', folder(tmp_path/'grey', bits(12), '.png'), '--encoder', 'fashion_nano', '--k', 3, '--device', 'cpu') == 0

def test_one_unreadable_test_image_is_left_out(tmp_path):
    data = folder(tmp_path/'data', bits(12), '.png')
    (data/'val'/'a'/'bad.png').write_bytes(b'\x89PNG broken')
    assert call(mae_pretrain, '--data', data, '--output_dir', tmp_path/'pre', *PRE) == 0
    assert call(mae_knn, '--data', data, '--encoder', tmp_path/'pre', '--k', 3, '--device', 'cpu') == 0

def test_transformers_is_told_the_range():
    s = dict(img_size=(32, 32), mean=(.4,), std=(.2,), value_range=(100., 1100.))
    p = hf_processor(s)
    x = 600.
    assert abs((x*p['rescale_factor'] - p['image_mean'][0])/p['image_std'][0] - ((x - 100)/1000 - .4)/.2) < 1e-9

@pytest.mark.parametrize('ending', ['.tif', '.npy'])
def test_loader_workers_crops_and_shards(tmp_path, ending):
    data = folder(tmp_path/'data', satellite, ending)
    assert call(mae_data, 'pack', '--data', data, '--output_dir', tmp_path/'shards') == 0
    assert call(mae_pretrain, '--data', tmp_path/'shards', '--output_dir', tmp_path/'run', '--num_workers', 1, *PRE) == 0
    packed,source = load_images(tmp_path/'shards'),load_images(data)
    assert (settle_channels(packed), settle_channels(source)) == (13, 13)
    assert sorted(x.sum().item() for x,_ in packed) == sorted(x.sum().item() for x,_ in source)
    assert read_json(tmp_path/'run'/'model.json')['in_chans'] == 13
    assert from_pretrained(tmp_path/'run', 'encoder').cfg.value_range[0] >= 0
    assert call(mae_data, 'pack', '--data', data, '--output_dir', tmp_path/'small', '--short_side', 20) == 2
