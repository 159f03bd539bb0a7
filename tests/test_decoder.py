"The decoder: plain and for training, their errors, and activation checkpointing."
import pytest, torch
from torch import nn
from timm.models.vision_transformer import Block
from mae_nb.model.config import ViTConfig
from mae_nb.model.decoder import DecoderMixin
from mae_nb.model.decoder_blocks import DecoderBlock, MaskedDecoderMixin
from mae_nb.model.encoder import MAEEncoder
from mae_nb.model.masking import mask_from_scores

SIZES = dict(embed_dim=8, grid=(2, 2), patch_dim=16, decoder_embed_dim=12, decoder_depth=2, decoder_num_heads=3)
MASK = mask_from_scores(torch.tensor([[.9, .1, .7, .3]]), 0.5)

def make(mixin, **changes):
    "A decoder on its own, with weights of seed 0."
    torch.manual_seed(0)
    dec = type('Decoder', (mixin, nn.Module), {})()
    dec.build_decoder(**SIZES | changes)
    return dec

def test_both_decoders_are_identical():
    "The same names, initial weights and predictions; timm's own block in one of them."
    plain,masked = make(DecoderMixin),make(MaskedDecoderMixin)
    assert list(plain.state_dict()) == list(masked.state_dict())
    assert all(torch.equal(a, b) for a,b in zip(plain.state_dict().values(), masked.state_dict().values()))
    assert {type(b) for b in plain.decoder_blocks} == {Block} and {type(b) for b in masked.decoder_blocks} == {DecoderBlock}
    latent = torch.randn(1, 1+2, 8)
    assert torch.equal(plain.forward_decoder(latent, MASK.ids_restore), masked.forward_decoder(latent, MASK.ids_restore))

@pytest.mark.parametrize('mixin', [DecoderMixin, MaskedDecoderMixin])
def test_heads_divide_the_width(mixin):
    with pytest.raises(ValueError, match='decoder_num_heads=5'): make(mixin, decoder_num_heads=5)

def test_wrong_shapes():
    dec = make(MaskedDecoderMixin)
    with pytest.raises(ValueError, match='3 tokens after CLS: they must be as many as visible patches, 2, or all, 4'): dec.decode_masked(torch.randn(1, 1+3, 8), MASK)
    dec.decoder_cross = True
    with pytest.raises(ValueError, match='4 tokens after CLS: they must be as many as visible patches, 2'): dec.decode_masked(torch.randn(1, 1+4, 8), MASK)
    with pytest.raises(RuntimeError, match='normalized_shape'): dec.decoder_blocks[0](torch.randn(2, 7, 8), 5)

def test_activation_checkpointing_changes_no_prediction():
    dec,latent = make(DecoderMixin),torch.randn(1, 1+2, 8)
    pred = dec.forward_decoder(latent, MASK.ids_restore)
    dec.grad_checkpointing = True
    torch.testing.assert_close(dec.forward_decoder(latent, MASK.ids_restore), pred)

@pytest.mark.parametrize('mixin', [DecoderMixin, MaskedDecoderMixin])
def test_timms_switch_reaches_the_decoder(mixin):
    "timm's `set_grad_checkpointing` sets the flag of this model, not of the class."
    both = type('Both', (mixin, MAEEncoder), {})(ViTConfig(img_size=28, patch_size=4, in_chans=1, embed_dim=32, depth=1, num_heads=2))
    assert not both.grad_checkpointing
    both.set_grad_checkpointing()
    assert both.grad_checkpointing and not mixin.grad_checkpointing
