import torch

from darkroom.diffusion.regions import Known


def test_the_known_part_is_put_back_and_the_rest_left_alone() -> None:
    latent, denoised = torch.randn(4, 3, 3), torch.randn(4, 3, 3)
    mask = torch.tensor([[[0.0, 1.0, 0.25]]]).expand(1, 3, 3)
    restored = Known(latent, mask).restore(denoised)
    assert torch.equal(restored[..., 0], latent[..., 0])
    assert torch.equal(restored[..., 1], denoised[..., 1])
    assert torch.allclose(restored[..., 2], 0.75 * latent[..., 2] + 0.25 * denoised[..., 2])
