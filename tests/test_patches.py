"Patches and positional embeddings: error messages, round trips on all bundled images, and dtypes."
import pytest, torch
from mae_nb.data.bundled import fashion, photo, photo_names
from mae_nb.model.config import grid_size
from mae_nb.model.patches import conv_as_linear, patchify, positions_for, sincos_1d, sincos_2d, unpatchify

@pytest.mark.parametrize('call,says', [
    (lambda: grid_size(8, 16), 'patch_size=16'),  # a patch larger than the image
    (lambda: grid_size(224, 0), 'patch_size=0'),
    (lambda: patchify(torch.zeros(3, 32, 32), 16), 'imgs must be (B, C, H, W), got shape (3, 32, 32)'),
    (lambda: patchify(torch.zeros(1, 3, 32, 32), 15), 'patch_size=15 does not divide an image of 32x32'),
    (lambda: unpatchify(torch.zeros(6, 20), 2), 'patches must be (B, L, p*p*C), got shape (6, 20)'),
    (lambda: unpatchify(torch.zeros(2, 6, 20), 2), 'a grid of 2x2 has 4 patches, got 6: pass grid=(h, w)'),
    (lambda: unpatchify(torch.zeros(2, 6, 20), 2, (2, 4)), 'a grid of 2x4 has 8 patches, got 6'),
    (lambda: unpatchify(torch.zeros(2, 6, 20), 3, (2, 3)), 'patches of 20 numbers do not hold whole channels of 3x3 pixels'),
    (lambda: sincos_1d(5, torch.arange(4)), 'dim must be even and positive, got 5'),
    (lambda: sincos_1d(0, torch.arange(4)), 'dim must be even and positive, got 0'),
    (lambda: sincos_2d(6, (2, 2)), 'dim must be a multiple of 4 (sine and cosine, for w and for h), got 6'),
    (lambda: positions_for(torch.zeros(1, 5, 6), (2, 2), (3, 3)), 'dim must be a multiple of 4')])
def test_bad_input_raises(call, says):
    with pytest.raises(ValueError) as e: call()
    assert says in str(e.value)

def test_a_linear_weight_has_no_sides_to_reorder():
    with pytest.raises(RuntimeError): conv_as_linear(torch.zeros(4, 12))

@pytest.mark.parametrize('size,p,grid', [((4, 6), 2, (2, 3)), (224, 16, (14, 14)), (224, 14, (16, 16)), ((288, 448), 16, (18, 28))])
def test_grid_size(size, p, grid): assert grid_size(size, p) == grid

@pytest.mark.parametrize('name', photo_names)
def test_photographs_survive_the_round_trip(name):
    h,w = (s//16 for s in photo(name).shape[1:])
    imgs = photo(name)[None,:,:16*h,:16*w]  # as they are stored: uint8, not square
    patches = patchify(imgs, 16)
    assert patches.dtype == torch.uint8 and patches.shape == (1, h*w, 768)
    assert torch.equal(unpatchify(patches, 16, (h, w)), imgs)

def test_fashion_mnist_survives_the_round_trip():
    imgs = fashion('test').imgs[:8]
    assert patchify(imgs, 4).shape == (8, 49, 16) and torch.equal(unpatchify(patchify(imgs, 4), 4), imgs)

def test_a_wrong_square_grid_raises_no_error():
    assert unpatchify(patchify(torch.zeros(1, 3, 112, 448), 16), 16).shape == (1, 3, 224, 224)  # 7 x 28 = 14 x 14

def test_table_of_the_base_model():
    table = sincos_2d(768, (14, 14))
    assert table.shape == (197, 768) and table.dtype == torch.float32
    assert table[0].abs().sum() == 0 and table[1].sum() == 768/2  # CLS; position (0, 0): sines 0, cosines 1

def test_positions_keep_dtype():
    stored = sincos_2d(8, (2, 2))[None].double()
    assert positions_for(stored, (2, 2), (2, 2)) is stored
    assert positions_for(stored, (2, 2), (3, 5)).dtype == torch.float64 and positions_for(stored, [2, 2], (2, 2)) is stored
