"""Rebuild the small data that the package carries, in `mae_nb/assets/`.

    apt-get install dataset-fashion-mnist      # or download the four files from the Fashion-MNIST repository
    pip install scikit-image
    python tools/make_assets.py [--fashion FOLDER]

`fashion12k.npz` holds the first 1 000 training and 200 test images of each class, in their original order.
The photographs are scikit-image's, the short side reduced to 300 pixels, saved as JPEG (quality 88).
"""
import argparse, gzip
from pathlib import Path
import numpy as np
from PIL import Image

ASSETS = Path(__file__).parent.parent/'mae_nb'/'assets'
PHOTOS = ['astronaut', 'chelsea', 'coffee', 'rocket', 'hubble_deep_field']

def read_idx(path, header):
    "Read an IDX file's bytes after its `header` bytes."
    with gzip.open(path) as f: return np.frombuffer(f.read(), np.uint8, offset=header)

def balanced(images, labels, per_class):
    "Keep the first `per_class` images of each class, in their original order."
    ids = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))
    return images[ids], labels[ids]

def make_fashion(folder):
    "Write `fashion12k.npz`."
    parts = {}
    for split,name,per_class in ('train','train',1000), ('test','t10k',200):
        images = read_idx(folder/f'{name}-images-idx3-ubyte.gz', 16).reshape(-1, 28, 28)
        labels = read_idx(folder/f'{name}-labels-idx1-ubyte.gz', 8)
        parts[f'{split}_images'],parts[f'{split}_labels'] = balanced(images, labels, per_class)
    np.savez_compressed(ASSETS/'fashion12k.npz', **parts)

def make_photos(short=300):
    "Write the photographs."
    from skimage import data
    for name in PHOTOS:
        im = Image.fromarray(getattr(data, name)()).convert('RGB')
        scale = short/min(im.size)
        im = im.resize([round(s*scale) for s in im.size], Image.Resampling.LANCZOS)
        im.save(ASSETS/f'{name}.jpg', quality=88)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--fashion', type=Path, default=Path('/usr/share/datasets/fashion-mnist'), help='folder of the four .gz files')
    args = p.parse_args()
    ASSETS.mkdir(parents=True, exist_ok=True)
    make_fashion(args.fashion)
    make_photos()
    for f in sorted(ASSETS.glob('*.[nj]p[zg]')): print(f'{f.name:25} {f.stat().st_size/1e3:8.0f} kB')
