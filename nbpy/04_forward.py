# %% [markdown]
# # 04 · The forward process
# > Noise whose mean is pulled towards a first guess (draft: the code is here, the lesson is still to be written)

# %%
#| default_exp forward

# %%
#| export
import torch
from torch import Tensor


# %%
#| export
def linear_schedule(
    timesteps: int = 1000,  # T
    beta_start: float = 1e-4,  # first beta
    beta_end: float = 0.02,  # last beta
) -> Tensor:  # betas, float64, shape (T,)
    """Betas that grow linearly (Ho et al. 2020)."""
    return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)


# %%
#| export
class ShiftedDiffusion:
    """Eq. (3) and (5): x_t = sqrt(abar_t) x_0 + s_t f + s_t noise, with s_t = sqrt(1 - abar_t)."""

    def __init__(
        self,
        betas: Tensor,  # shape (T,), each in (0, 1)
        shift: bool = True,  # False: plain DDPM
    ):
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be one row of numbers strictly between 0 and 1")
        self.betas, self.alphas, self.shift = betas, 1 - betas, shift
        self.timesteps = len(betas)
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.alphas_cumprod_prev = torch.cat([torch.ones(1).double(), self.alphas_cumprod[:-1]])
        self.sigmas = (1 - self.alphas_cumprod).sqrt()

    def coefficient(self, values: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """values[t], shaped to multiply `like` (B, ...); cast before it moves to the device."""
        if t.is_floating_point() or ((t < 0) | (t >= self.timesteps)).any():
            raise ValueError(f"t must be whole numbers from 0 to {self.timesteps - 1}")
        values = values.to(like.dtype).to(like.device)[t.to(like.device)]
        return values.view(-1, *[1] * (like.ndim - 1))

    def _prior(self, x: Tensor, prior: Tensor | None) -> Tensor:
        if prior is None or not self.shift:
            return torch.zeros_like(x)
        if prior.shape != x.shape:
            raise ValueError(f"prior has shape {tuple(prior.shape)}, x has {tuple(x.shape)}")
        return prior

    def q_sample(self, x_0: Tensor, t: Tensor, prior: Tensor | None, noise: Tensor) -> Tensor:
        """Eq. (3)."""
        s = self.coefficient(self.sigmas, t, x_0)
        root = self.coefficient(self.alphas_cumprod.sqrt(), t, x_0)
        return root * x_0 + s * (self._prior(x_0, prior) + noise)

    def q_step(self, x_prev: Tensor, t: Tensor, prior: Tensor | None, noise: Tensor) -> Tensor:
        """The one-step kernel whose iteration gives Eq. (3); Eq. (2) as printed does not."""
        before = (1 - self.alphas_cumprod_prev).sqrt()
        pull = self.coefficient(self.sigmas - self.alphas.sqrt() * before, t, x_prev)
        a, b = (self.coefficient(v.sqrt(), t, x_prev) for v in (self.alphas, self.betas))
        return a * x_prev + pull * self._prior(x_prev, prior) + b * noise


# %% [markdown]
# Iterating the kernel without noise must give the mean of Eq. (3):

# %%
process = ShiftedDiffusion(linear_schedule())
x_0, f = torch.full((1, 1), -1.0).double(), torch.full((1, 1), 0.8).double()
x = x_0
for t in range(process.timesteps):
    x = process.q_step(x, torch.tensor([t]), f, torch.zeros_like(x))
torch.testing.assert_close(x, process.q_sample(x_0, torch.tensor([999]), f, torch.zeros_like(x)))
x
