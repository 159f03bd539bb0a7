"Random masking: error messages, and masks that a seed fixes."
from functools import partial
import pytest, torch
from mae_nb.model.masking import block_scores, gather_patches, grid_scores, mask_from_scores, num_keep, random_masking, random_scores, scores_or_random
from mae_nb.model.masks import scores_from_mask

def rand(seed): return partial(torch.rand, generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize('call,says', [
    (lambda: num_keep(196, 1.), 'mask_ratio must be in [0, 1)'), (lambda: num_keep(10, 0.9), 'keeps none of 10'),
    (lambda: mask_from_scores(torch.rand(196)), 'scores must be (B, L), got shape (196,)'),
    (lambda: mask_from_scores(grid_scores(1, (1, 3))), 'keeps none of 3'),
    (lambda: block_scores(1, (14, 14), 1.), 'mask_ratio must be in [0, 1)'),
    (lambda: random_masking(torch.zeros(8, 196, 5), scores=torch.rand(8, 195)), 'need scores (8, 196), got (8, 195)'),
    (lambda: scores_or_random(torch.zeros(2, 4, 3), torch.rand(2, 5)), 'need scores (2, 4), got (2, 5)'),
    (lambda: scores_from_mask(torch.ones(4)), 'mask must be (B, h, w) or (B, L)')])
def test_bad_input_raises(call, says):
    with pytest.raises(ValueError) as e: call()
    assert says in str(e.value)

def test_indices_out_of_range_raise():
    with pytest.raises(RuntimeError, match='out of bounds'): gather_patches(torch.zeros(2, 4, 1), torch.tensor([[4], [0]]))

@pytest.mark.parametrize('scores', [lambda r: random_scores(2, 196, r.keywords['generator']), lambda r: grid_scores(2, (14, 14), r),
                                    lambda r: block_scores(2, (14, 14), 0.75, r)], ids=['random', 'grid', 'block'])
def test_a_seed_fixes_the_scores(scores):
    first,r = scores(rand(0)),rand(0)
    assert torch.equal(scores(r), first) and not torch.equal(scores(r), first)  # the same, then new ones
    assert not torch.equal(first[0], first[1])                                  # for each image its own

def test_official_random_masking():
    "Two images of four patches, by hand."
    x = torch.tensor([[[10.], [20], [30], [40]], [[50.], [60], [70], [80]]])
    scores = torch.tensor([[0.6, 0.2, 0.9, 0.4], [0.1, 0.2, 0.3, 0.4]])
    kept,mask,ids_restore = random_masking(x, 0.5, scores)
    assert kept.flatten(1).tolist() == [[20, 40], [50, 60]] and mask.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]
    assert ids_restore.tolist() == [[2, 0, 3, 1], [0, 1, 2, 3]]
