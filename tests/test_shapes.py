"Any image that the patch divides, any number of channels: a training step, features, a picture."
import pytest, torch
from mae_nb.model.config import MAEConfig
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.train.optim import adamw
from mae_nb.plots.images import show_reconstruction

SMALL = dict(embed_dim=24, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)

@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('size,p', [((224, 160), 16), ((28, 28), 4), ((96, 96), 8)])
@pytest.mark.parametrize('norm_pix', [False, True])
def test_step_encode_show(size, p, channels, norm_pix):
    torch.manual_seed(0)
    L = size[0]//p * (size[1]//p)
    model = MaskedAutoencoderViT(MAEConfig(img_size=size, patch_size=p, in_chans=channels, norm_pix_loss=norm_pix, **SMALL))
    imgs,scores,opt = torch.rand(2, channels, *size), torch.rand(2, L), adamw(model, 1e-2)
    before = model(imgs, 0.75, scores)
    assert before.pred.shape == (2, L, p*p*channels) and before.mask.sum(1).tolist() == [L - int(L*0.25)]*2
    before.loss.backward(); opt.step()
    assert model(imgs, 0.75, scores).loss < before.loss
    enc = model.encode(imgs, return_intermediates=['blocks.0', 'attn.1'])
    assert enc.tokens.shape == (2, 1 + L, 24) and enc.maps.shape == (2, 24, *enc.grid)
    assert torch.equal(enc.tokens, model.encode(imgs).tokens)
    assert len(show_reconstruction(model, imgs).axes) == 8

def test_other_grid_than_the_stored():
    "Positions follow the formula, so a model built for one size equals one built for another."
    torch.manual_seed(0)
    one = MaskedAutoencoderViT(MAEConfig(img_size=64, patch_size=8, **SMALL))
    two = MaskedAutoencoderViT(MAEConfig(img_size=(40, 96), patch_size=8, **SMALL))
    two.load_state_dict({k: v for k,v in one.state_dict().items() if 'pos_embed' not in k}, strict=False)
    imgs,scores = torch.rand(2, 3, 40, 96), torch.rand(2, 60)
    torch.testing.assert_close(one(imgs, scores=scores).pred, two(imgs, scores=scores).pred)

@pytest.mark.parametrize('call,said', [
    (lambda m: m(torch.rand(1, 3, 30, 32)), 'patch_size=8 does not divide an image of 30x32'),
    (lambda m: m(torch.rand(1, 1, 32, 32)), '3 channels'),
    (lambda m: m(torch.rand(3, 32, 32)), 'imgs must be (B, C, H, W)'),
    (lambda m: m(torch.rand(1, 3, 32, 32), mask_ratio=1.), 'mask_ratio must be in [0, 1), got 1.0'),
    (lambda m: m(torch.rand(1, 3, 32, 32), mask_ratio=-.1), 'got -0.1'),
    (lambda m: m(torch.rand(1, 3, 32, 32), mask_ratio=0.95), 'keeps none of 16 patches'),
    (lambda m: m(torch.rand(1, 3, 32, 32), mask_ratio=0.), 'masks none of 16 patches'),
    (lambda m: m(torch.rand(1, 3, 32, 32), scores=torch.rand(1, 15)), 'need scores (1, 16), got (1, 15)'),
    (lambda m: m.encode(torch.rand(1, 3, 32, 32), return_intermediates=['blocks.7']), "no intermediates ['blocks.7']")])
def test_refusals(call, said):
    model = MaskedAutoencoderViT(MAEConfig(img_size=32, patch_size=8, **SMALL))
    with pytest.raises(ValueError) as e: call(model)
    assert said in str(e.value)

def test_wrong_patches_and_grids_are_noticed():
    model = MaskedAutoencoderViT(MAEConfig(img_size=32, patch_size=8, **SMALL))
    patches,grid = model.to_patches(torch.rand(1, 3, 32, 32))
    with pytest.raises(RuntimeError, match='shapes'): model.embed(patches[...,:3], grid)
    with pytest.raises(RuntimeError, match='multiply up'): model.encode(torch.rand(1, 3, 32, 32))._replace(grid=(3, 3)).maps
