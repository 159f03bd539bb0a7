"The whole model: official names, the short way to the loss, presets, and their errors."
from dataclasses import replace
import pytest, torch
from mae_nb.model.config import MAEConfig, mae_configs
from mae_nb.model import mae
from mae_nb.model.mae import MAEOutput, MaskedAutoencoderViT, mae_model

TINY = MAEConfig(img_size=28, patch_size=4, in_chans=1, embed_dim=32, depth=2, num_heads=4,
                 decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)

def names(prefix, parts): return [f'{prefix}{p}.{w}' for p in parts for w in ('weight', 'bias')]

def block_names(prefix, depth):
    parts = 'norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'
    return [n for i in range(depth) for n in names(f'{prefix}.{i}.', parts)]

def test_names_of_the_release():
    encoder = ['cls_token', 'pos_embed', *names('', ['patch_embed.proj', 'norm']), *block_names('blocks', 2)]
    decoder = ['mask_token', 'decoder_pos_embed', *names('', ['decoder_embed', 'decoder_norm', 'decoder_pred']), *block_names('decoder_blocks', 1)]
    assert set(MaskedAutoencoderViT(TINY).state_dict()) == {*encoder, *decoder}

def test_output_is_a_tuple_with_names():
    out = MaskedAutoencoderViT(TINY)(torch.randn(1, 1, 28, 28))
    loss,pred,mask,ids_restore = out
    assert MAEOutput._fields == ('loss', 'pred', 'mask', 'ids_restore') and out.loss is loss and out[1] is pred

@pytest.mark.parametrize('change', [{}, dict(norm_pix_loss=True), dict(loss_on='all')])
def test_loss_only(change):
    "The same loss and gradients; a loss on all patches needs all predictions."
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(replace(TINY, **change))
    imgs,scores = torch.randn(2, 1, 28, 28),torch.rand(2, 49)
    full,short = (model(imgs, scores=scores, loss_only=only) for only in (False, True))
    assert short.loss.item() == pytest.approx(full.loss.item(), rel=1e-5)
    weights = [p for p in model.parameters() if p.requires_grad]
    for g,h in zip(*(torch.autograd.grad(o.loss, weights) for o in (full, short)), strict=True): assert torch.allclose(g, h, atol=1e-6)
    assert torch.equal(short.mask, full.mask) and (short.pred is None) == (model.cfg.loss_on == 'masked')

@pytest.mark.parametrize('loss_only', [False, True])
def test_nothing_to_predict(loss_only):
    model,imgs = MaskedAutoencoderViT(TINY),torch.randn(1, 1, 28, 28)
    with pytest.raises(ValueError, match="masks none of 49 patches: use encode"): model(imgs, mask_ratio=0., loss_only=loss_only)

def test_presets_are_functions():
    for name,cfg in mae_configs.items():
        with torch.device('meta'): assert getattr(mae, name)().cfg == cfg
    with pytest.raises(ValueError, match='mae_vit_micro_patch4'): mae_model('micro')
