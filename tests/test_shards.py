"Shards from anywhere: of 200 random archives the index equals a plain reading with tarfile, or the difference is told."
import io, json, os, random, re, tarfile
import numpy as np, pytest
from PIL import Image
from mae_nb.cli import mae_data, mae_pretrain
from mae_nb.data.folders import image_endings
from mae_nb.data.shards import ShardImages, index_shard

def jpeg(seed=0, kind='JPEG'):
    out = io.BytesIO()
    Image.new('RGB', (40, 36), (seed % 256, 90, 30)).save(out, kind)
    return out.getvalue()

def tar_of(path, *members):
    "A tar file of names, or of pairs of a name and its content."
    with tarfile.open(path, 'w') as tar:
        for n in members:
            name,data = n if isinstance(n, tuple) else (n, jpeg(len(n)))
            m = tarfile.TarInfo(name)
            m.size = len(data)
            tar.addfile(m, io.BytesIO(data))
    return path

def names(path): return index_shard(path)['names']

def test_numbered_images_of_one_key_are_all_read(tmp_path, capsys):
    members = [f'scan_1.{k:03d}.jpg' for k in range(8)]
    path = tar_of(tmp_path/'train-0.tar', *members)
    assert names(path) == members
    assert mae_data(['index', '--shards', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'listed   8 images' in out and '8 images of the shards are samples of their own by a number' in out

def test_the_plain_ending_stands_for_the_sample_and_the_rest_is_told(tmp_path, capsys):
    members = [f'{k:03d}{e}' for k in range(8) for e in ('.depth.png', '.jpg', '.json')]
    path = tar_of(tmp_path/'train-0.tar', *members)
    assert names(path) == [f'{k:03d}.jpg' for k in range(8)]
    told = 'passed over members of the shards: 8 .json, 8 .depth.png'
    assert ShardImages(path).notes == [told]
    assert mae_data(['index', '--shards', str(path)]) == 0 and told in capsys.readouterr().out
    args = f'--data {path} --output_dir {tmp_path}/run --model mae_vit_nano_patch4 --img_size 32 --epochs 1 --batch_size 4 --warmup_epochs 0 --device cpu'
    assert mae_pretrain(args.split()) == 0 and told in capsys.readouterr().out  # from the list beside the shard, in the plan

@pytest.mark.parametrize('members', [('000.left.jpg', '000.right.jpg'), ('000.jpg', '000.png'), ('1.2.a.jpg', '1.2.b.jpg')])
def test_a_doubtful_sample_is_refused_by_name(tmp_path, members):
    with pytest.raises(ValueError, match=', '.join(map(re.escape, members))): index_shard(tar_of(tmp_path/'x.tar', *members))

def test_joined_archives_are_refused(tmp_path):
    with pytest.raises(ValueError, match='two members 000.jpg'): index_shard(tar_of(tmp_path/'x.tar', '000.jpg', '000.cls', '000.jpg'))

def test_a_list_of_another_version_or_program_is_refused(tmp_path):
    path = tar_of(tmp_path/'x.tar', 'scan.0.jpg', 'scan.1.jpg')
    found = index_shard(path)
    old = dict(bytes=found['bytes'], names=found['names'][:1], labels=[-1], offsets=found['offsets'][:1], sizes=found['sizes'][:1])
    for other in old, {'shardlist': []}, [1]:
        (tmp_path/'x.tar.json').write_text(json.dumps(other))
        with pytest.raises(ValueError, match='x.tar.json is no index of a shard.*Run mae_data index again'): ShardImages(path)
    assert mae_data(['index', '--shards', str(path)]) == 0 and len(ShardImages(path)) == 2

def test_arrays_in_shards_are_images_where_there_are_no_others(tmp_path):
    array = io.BytesIO()
    np.save(array, np.zeros((4, 5), np.float32))
    assert names(tar_of(tmp_path/'a.tar', ('0.npy', array.getvalue()), ('1.npy', array.getvalue()))) == ['0.npy', '1.npy']
    both = index_shard(tar_of(tmp_path/'b.tar', '0.jpg', '0.npy'))
    assert both['names'] == ['0.jpg'] and both['passed_over'] == {'.npy': 1}

def random_shard(path, seed):
    "Members of a random archive: keys with dots and numbers, usual and unusual endings, labels, by-products, links."
    chance = random.Random(seed)
    keys = [chance.choice(['', './', 'a/', 'b.c/', '__MACOSX/', '.x/']) + stem for stem in
            chance.sample([f'{i:03d}' for i in range(5)] + [f'scan_1.{i:03d}' for i in range(5)] + ['pic.v2', 'pic.v3', 'IMG 1', 'x.2024-01-01', '._000', 'é'], 6)]
    endings = ['.jpg', '.JPEG', '.png', '.jfif', '.webp', '.tif', '.depth.png', '.left.jpg', '.seg.PNG', '.cls', '.json', '.txt', '.npy', '']
    members = list(dict.fromkeys(k + e for k in keys for e in chance.choices(endings, [9, .4, .3, .3, .2, .2, 2, .2, 1, 4, 1, 1, 1, .5], k=chance.randint(1, 3))))
    chance.shuffle(members)
    with tarfile.open(path, 'w', format=chance.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
        for n in members:
            m = tarfile.TarInfo(n)
            kind = chance.random()
            if kind < .05: m.type,m.linkname = tarfile.SYMTYPE,'nowhere'
            elif kind < .08: m.type = tarfile.DIRTYPE
            data = b'7' if n.endswith('.cls') else chance.randbytes(chance.randint(0, 1500))
            m.size = len(data) if m.isfile() else 0
            tar.addfile(m, io.BytesIO(data))
    return path

@pytest.mark.parametrize('part', range(4))
def test_200_random_shards(tmp_path, part):
    refused = 0
    for seed in range(50*part, 50*part + 50):
        path = random_shard(tmp_path/'x.tar', seed)
        with tarfile.open(path) as tar: content = {m.name: tar.extractfile(m).read() if m.isfile() else None for m in tar if not m.isdir()}
        hidden = {n for n in content if any(p[:1] == '.' and p != '.' or p == '__MACOSX' for p in n.split('/'))}
        images = {n for n,data in content.items() if data is not None and n not in hidden and os.path.splitext(n)[1].lower() in image_endings()}
        stem = {n: n[:len(n) - len(n.rpartition('/')[2])] + n.rpartition('/')[2].split('.')[0] for n in content}
        try: found = index_shard(path)
        except ValueError as e:  # told, and rightly: images of one stem, named
            named = [n for n in images if n in str(e).partition(': leave')[0].partition(' images, ')[2].split(', ')]
            assert len(named) > 1 and len({stem[n] for n in named}) == 1, str(e)
            refused += 1
            continue
        data = path.read_bytes()
        for n,label,at,size in zip(*(found[k] for k in ('names', 'labels', 'offsets', 'sizes'))):
            assert n in images and data[at:at+size] == content[n]
            assert label == 7 or not any(content[c] == b'7' and c.endswith('.cls') and c not in hidden and n.startswith(c[:-3]) for c in content)
        labels = {n for n,d in content.items() if n.endswith('.cls') and d is not None and n not in hidden}
        assert len(found['names']) + sum(found['passed_over'].values()) + len(labels) == len(content)  # all is accounted for
        for n in images - set(found['names']):  # an image that is left out has a dotted ending, and a plain one stands for it
            assert any(n.startswith(m.rpartition('.')[0] + '.') for m in found['names'])
    assert refused < 25
