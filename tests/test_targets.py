"Targets and loss: error messages, edge cases, and the numbers that alternative texts quote."
import json, re
from pathlib import Path
import pytest, torch
from mae_nb.model.targets import NormPixelTarget, PCATarget, PixelTarget, masked_mse, patch_stats, visible_stats

pred,target,mask = torch.tensor([[[9., 9.], [1., 2.]]]),torch.zeros(1, 2, 2),torch.tensor([[0., 1.]])
patches = torch.randn(3, 6, 12, generator=torch.Generator().manual_seed(0))

@pytest.mark.parametrize('call,says', [
    (lambda: masked_mse(pred, target, mask, 'visible'), "loss_on must be 'masked' or 'all', got 'visible'"),
    (lambda: masked_mse(pred[:,:1], target, mask), 'pred (1, 1, 2) and target (1, 2, 2) differ in shape'),
    (lambda: masked_mse(pred, target, mask[:,:1]), 'mask must be (1, 2), got (1, 1)'),
    (lambda: visible_stats(patches, torch.zeros(3, 6), (3, 3)), '6 patches need a grid of 6, got 3x3'),
    (lambda: visible_stats(patches, torch.zeros(3, 5), (2, 3)), 'mask must be (3, 6), got (3, 5)'),
    (lambda: visible_stats(patches, torch.ones(3, 6), (2, 3)), 'an image without a visible patch'),
    (lambda: PCATarget(16), 'pca_components must be between 1 and 16, the values of a patch, got 96'),
    (lambda: PCATarget(16, 0), 'pca_components must be between 1 and 16')])
def test_bad_input_raises(call, says):
    with pytest.raises(ValueError) as e: call()
    assert says in str(e.value)

def test_no_pixels_without_statistics():
    with pytest.raises(TypeError, match='mean'): NormPixelTarget().to_pixels(patches)

def test_targets_are_values(): assert PixelTarget() == PixelTarget() and NormPixelTarget() == NormPixelTarget(1e-6) != NormPixelTarget(1e-5)

def test_loss_is_float32_under_autocast(): assert masked_mse(pred.bfloat16(), target, mask).dtype == torch.float32

def test_statistics_follow_scale_and_shift():
    (mean,std),(mean2,std2) = patch_stats(patches),patch_stats(3*patches + 5)
    assert torch.allclose(mean2, 3*mean + 5, atol=1e-4) and torch.allclose(std2, 3*std, atol=1e-3)
    assert patch_stats(torch.ones(1, 1, 4))[1].item() == pytest.approx(1e-3)  # a constant patch: only eps is left

def test_one_visible_patch_gives_its_statistics_to_all():
    only = torch.ones(3, 6)
    only[:,4] = 0
    for estimated,true in zip(visible_stats(patches, only, (2, 3)), patch_stats(patches)):
        assert torch.allclose(estimated, true[:,[4]].expand(-1, 6, -1), atol=1e-5)

def test_all_components_lead_back_to_the_pixels():
    pca = PCATarget(12, 12).fit(patches)
    assert torch.allclose(pca.to_pixels(pca(patches)), patches, atol=1e-4)

def test_components_are_the_singular_vectors():
    few = PCATarget(12, 4).fit(patches)
    rows = patches.flatten(0, 1).double()
    _,_,v = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert torch.allclose((few.components.double()*v[:4]).sum(1).abs(), torch.ones(4, dtype=torch.float64), atol=1e-5)
    largest = few.components.gather(1, few.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()

# --- the chapter's alternative texts and captions ---
CHAPTER = Path(__file__).parent.parent/'nbs/1_paper/06_targets.ipynb'
NUMBER = r'(?<![\w.])\d+\.\d+(?!\.?\d)'

def quoted(cells):
    "Decimal numbers in alternative texts and captions."
    lines = re.findall(r'^#\| fig-(?:alt|cap):(.*)$', '\n'.join(''.join(c['source']) for c in cells), re.M)
    return [n for line in lines for n in re.findall(NUMBER, line)]

def printed(cells):
    "Decimal numbers in what cells print or return."
    data = [o.get('data', o) for c in cells for o in c.get('outputs', [])]
    texts = [''.join(d[k]) for d in data for k in ('text', 'text/plain', 'text/markdown') if k in d]
    return [float(n) for text in texts for n in re.findall(NUMBER, text)]

def unknown(cells):
    "Numbers that are quoted, and that no output rounds to."
    outputs = printed(cells)
    return [n for n in quoted(cells) if not any(f'{v:.{len(n.split(".")[1])}f}' == n for v in outputs)]

def test_alternative_texts_quote_the_outputs():
    cells = [c for c in json.loads(CHAPTER.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    assert len(quoted(cells)) > 10 and unknown(cells) == []

def test_a_wrong_number_is_noticed():
    cell = dict(source=['#| fig-alt: Bars of 0.45 and 0.647.\n', 'draw()'], outputs=[dict(data={'text/plain': ['[0.444, 0.647]']})])
    assert unknown([cell]) == ['0.45']
