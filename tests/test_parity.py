"The same noise gives the same masks as the paper's shuffle, and the same loss as another implementation with the same weights."
import pytest, torch
from mae_nb.model.config import MAEConfig, mae_configs
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.model.masking import mask_from_scores

RATIOS = [0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.9]

def shuffle_by_the_paper(noise, ratio):
    "Section 3, 'Simple implementation', patch by patch: shuffle the list, keep its head, note where each came from."
    keep,restore,mask = [],[],[]
    for row in noise.tolist():
        order = sorted(range(len(row)), key=row.__getitem__)
        visible = order[:int(len(row)*(1 - ratio))]
        keep.append(visible)
        restore.append([order.index(i) for i in range(len(row))])
        mask.append([0. if i in visible else 1. for i in range(len(row))])
    return torch.tensor(keep), torch.tensor(restore), torch.tensor(mask)

@pytest.mark.parametrize('ratio', RATIOS)
@pytest.mark.parametrize('num_patches', [49, 196])
def test_masks(ratio, num_patches):
    noise = torch.rand(4, num_patches, generator=torch.Generator().manual_seed(num_patches))
    for ours,theirs in zip(mask_from_scores(noise, ratio), shuffle_by_the_paper(noise, ratio)): assert torch.equal(ours, theirs)

def hf_state(state, depth, decoder_depth):
    "Our tensors under the names that transformers' `ViTMAEForPreTraining` has in memory."
    out,D = {},state['cls_token'].shape[-1]
    top = {'cls_token': 'vit.embeddings.cls_token', 'pos_embed': 'vit.embeddings.position_embeddings', 'norm.': 'vit.layernorm.',
           'patch_embed.proj.': 'vit.embeddings.patch_embeddings.projection.', 'mask_token': 'decoder.mask_token',
           'decoder_pos_embed': 'decoder.decoder_pos_embed', 'decoder_embed.': 'decoder.decoder_embed.',
           'decoder_norm.': 'decoder.decoder_norm.', 'decoder_pred.': 'decoder.decoder_pred.'}
    leaf = {'norm1.': 'layernorm_before.', 'norm2.': 'layernorm_after.', 'attn.proj.': 'attention.o_proj.', 'mlp.': 'mlp.'}
    for k,v in state.items():
        if 'blocks.' in k:
            side,rest = k.split('blocks.'); i,rest = rest.split('.', 1)
            base = f'decoder.decoder_layers.{i}.' if side else f'vit.layers.{i}.'
            if rest.startswith('attn.qkv.'):
                for part,name in zip(v.chunk(3), 'qkv'): out[f'{base}attention.{name}_proj.{rest.rsplit(".", 1)[1]}'] = part
            else:
                old = next(o for o in leaf if rest.startswith(o))
                out[base + leaf[old] + rest[len(old):]] = v
        else:
            old = next(o for o in top if k == o or (o.endswith('.') and k.startswith(o)))
            out[top[old] + k[len(old):]] = v
    return out

@pytest.fixture(scope='module', params=[False, True], ids=['pixels', 'normalised'])
def pair(request):
    hf = pytest.importorskip('transformers', minversion='5')  # whose names in memory `hf_state` knows
    torch.manual_seed(0)
    cfg = MAEConfig(img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=3, decoder_embed_dim=32, decoder_depth=2,
                    decoder_num_heads=4, norm_pix_loss=request.param)
    ours = MaskedAutoencoderViT(cfg).eval()
    for p in ours.parameters(): p.data += 0.05*torch.randn_like(p)
    theirs = hf.ViTMAEForPreTraining(hf.ViTMAEConfig(image_size=64, patch_size=16, hidden_size=48, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=192, decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=128,
        layer_norm_eps=1e-6, norm_pix_loss=request.param, attn_implementation='sdpa')).eval()
    theirs.load_state_dict(hf_state(ours.state_dict(), 3, 2), strict=True)
    return ours, theirs

@pytest.mark.parametrize('ratio', [0.5, 0.75])
@torch.no_grad()
def test_loss_of_transformers(pair, ratio):
    ours,theirs = pair
    theirs.config.mask_ratio = ratio; theirs.vit.embeddings.config.mask_ratio = ratio
    imgs,noise = torch.randn(3, 3, 64, 64), torch.rand(3, 16)
    a,b = ours(imgs, ratio, noise), theirs(imgs, noise=noise)
    assert torch.equal(a.mask, b.mask) and torch.equal(a.ids_restore, b.ids_restore)
    torch.testing.assert_close(a.pred, b.logits, atol=1e-5, rtol=1e-5)
    assert abs(a.loss - b.loss) < 1e-6

@pytest.mark.parametrize('name,params,keys', [('mae_vit_base_patch16', 111_907_840, 254), ('mae_vit_large_patch16', 329_541_888, 398),
                                              ('mae_vit_huge_patch14', 657_074_508, 494)])
def test_counts(name, params, keys):
    with torch.device('meta'): model = MaskedAutoencoderViT(mae_configs[name])
    assert sum(p.numel() for p in model.parameters()) == params
    assert len(model.state_dict()) == keys

def test_official_names():
    names = MaskedAutoencoderViT(MAEConfig(img_size=32, embed_dim=12, depth=1, num_heads=1, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=1)).state_dict().keys()
    block = [f'{m}.{t}' for m in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2') for t in ('weight', 'bias')]
    assert set(names) == {'cls_token', 'pos_embed', 'mask_token', 'decoder_pos_embed'} | {
        f'{m}.{t}' for m in ('patch_embed.proj', 'norm', 'decoder_embed', 'decoder_norm', 'decoder_pred') for t in ('weight', 'bias')} | {
        f'{side}blocks.0.{b}' for side in ('', 'decoder_') for b in block}
