# %% [markdown]
# # Glossary
# > Each symbol of the paper, what it means, what it is called in the code, and the lesson that explains it

# %% [markdown]
# The paper counts time from 1, the code from 0: its $t$ is our $t + 1$. Masks live in $[-1, 1]$ inside the process and in $\{0, 1\}$ outside of it. $x_0$ is always the clean
# mask, never an entry of the chain. Shapes are written `b c h w`: images in the batch, channels, height, width.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/glossary.ipynb).

# %% [markdown]
# ## The process
#
# | paper | code | meaning | lesson |
# |---|---|---|---|
# | $b$ | `image` | the radiograph, one channel, in $[0, 1]$ | [01](01_radiograph.ipynb) |
# | $x_0$ | `x_0` | the mask, 1 where there is a vertebra and $-1$ elsewhere | [06](06_forward.ipynb) |
# | $f$, $f(b)$ | `prior` | the conditional U-Net's first guess of the mask, on the same scale | [08](08_unet.ipynb) |
# | $T$ | `timesteps` | number of steps of the chain, 1,000 here | [06](06_forward.ipynb) |
# | $t$ | `t` | place on the chain, 0 (hardly any noise) to $T - 1$ | [06](06_forward.ipynb) |
# | $\beta_t$ | `betas[t]` | variance that step $t$ adds | [06](06_forward.ipynb) |
# | $\alpha_t = 1 - \beta_t$ | `alphas[t]` | share of the signal's power that survives step $t$ | [06](06_forward.ipynb) |
# | $\bar\alpha_t = \prod_{r \le t} \alpha_r$ | `alphas_cumprod[t]` | share that survives all steps up to $t$ | [06](06_forward.ipynb) |
# | $s_t = \sqrt{1 - \bar\alpha_t}$ | `sigmas[t]` | amplitude of the noise, and of the shift, at $t$ | [06](06_forward.ipynb) |
# | $\varepsilon$ | `noise` | standard normal noise | [06](06_forward.ipynb) |
# | $x_t$ | `x_t` | the mask at time $t$: $\sqrt{\bar\alpha_t}\,x_0 + s_t f + s_t \varepsilon$, Eq. (3) | [06](06_forward.ipynb) |
# | $y_t = x_t - s_t f$ | `unshift` | the same without its shift: plain DDPM | [06](06_forward.ipynb) |
# | $q(x_{t-1} \mid x_t, x_0, f)$ | `q_posterior` | where the mask came from, given where it is and where it began | [07](07_posterior.ipynb) |
# | $\Phi$ | `UNet` | the network that predicts the noise (or the mask, or $v$) | [08](08_unet.ipynb) |
# | $v_t = \sqrt{\bar\alpha_t}\,\varepsilon - s_t x_0$ | `prediction_type="v_prediction"` | a target between noise and mask | [07](07_posterior.ipynb) |

# %% [markdown]
# ## The networks
#
# | word | code | meaning | lesson |
# |---|---|---|---|
# | conditional U-Net | `ConditionalUNet` | sees the radiograph only and gives the prior | [08](08_unet.ipynb) |
# | diffusion U-Net | `UNet` | sees $x_t$, the time and the image's features, and predicts | [08](08_unet.ipynb) |
# | skip connection | `levels` | an encoder level handed to the decoder level of the same size | [08](08_unet.ipynb) |
# | MSFM | `MultiScaleFusion` | multi-scale fusion module: kernels of 3, 5 and 7 that compete, Eq. (11)–(14) | [09](09_msfm.ipynb) |
# | NSA | `NoiseSemanticAdapter` | noise semantic adapter: large-kernel attention that looks at the mask, Eq. (15)–(16) | [10](10_nsa.ipynb) |
# | stem | `stem` | neighbouring pixels as the channels of one, to save work at full size | [08](08_unet.ipynb) |
# | detached prior | `detach_prior` | the diffusion loss does not train the conditional U-Net | [11](11_model.ipynb) |
# | recycling | `first_estimate` | training on $x_t$ made of the network's own estimate | [12](12_loss.ipynb) |
# | EMA | `ema_update` | exponential moving average of the weights; what is saved and used | [13](13_training.ipynb) |

# %% [markdown]
# ## Use and measure
#
# | word | code | meaning | lesson |
# |---|---|---|---|
# | Dice | `dice` | twice the overlap over the sum of both areas, 0 to 1 | [05](05_metrics.ipynb) |
# | IoU | `iou` | overlap over union; for one image Dice / (2 − Dice) | [05](05_metrics.ipynb) |
# | HD95 | `hd95` | distance within which 95 % of the borders lie, in pixels | [05](05_metrics.ipynb) |
# | ECE | `expected_calibration_error` | mean gap between probability and frequency | [05](05_metrics.ipynb) |
# | AURC | `risk_coverage` | mean error as the least certain are left out: small where the uncertainty knows | [05](05_metrics.ipynb) |
# | interval | `bootstrap_interval` | a range, so made that in 95 of 100 such studies it holds the true mean | [05](05_metrics.ipynb) |
# | DDIM | `sampler="ddim"` | a sampler without new noise, which may leave steps out | [14](14_sampling.ipynb) |
# | ensemble | `ensemble` | several samples of one radiograph; their mean is the probability | [14](14_sampling.ipynb) |
# | uncertainty | `uncertainty` | the standard deviation of these samples, pixel by pixel | [16](16_segment.ipynb) |
# | phantom | `draw_phantom` | a radiograph and its mask, drawn by a program | [02](02_phantoms.ipynb) |
# | twin | `find_duplicates` | two files that show the same radiograph | [03](03_xray_set.ipynb) |
# | letterbox | `fit_image` | scaling an image into a size without stretching it | [01](01_radiograph.ipynb) |
# | profile | `load_settings` | a named section of `settings.ini`: all numbers of a run | [library](library/settings.ipynb) |
#
# ## Letters that the paper uses twice
#
# | letter | nearly everywhere | but |
# |---|---|---|
# | $A, B, C$ | weights of $x_0$, $x_t$ and $f$ in the posterior ([07](07_posterior.ipynb)) | the three branches of the MSFM, $a, b, c$ their weights ([09](09_msfm.ipynb)); $C$ alone: number of channels |
# | $f$, $F$ | the prior | $F$: the fine branch of the NSA ([10](10_nsa.ipynb)); `F` in code: `torch.nn.functional` |
# | $T$ | number of steps | the gate of the NSA ([10](10_nsa.ipynb)) |
# | $s$, $z$ | $s_t$: amplitude of the noise; $z$: fresh noise ([14](14_sampling.ipynb)) | descriptor of the MSFM and its squeezed form ([09](09_msfm.ipynb)) |
# | $\sigma$ | $\sigma_t$: the posterior's standard deviation ([07](07_posterior.ipynb)) | `sigmas` in code holds $s_t$ |
# | $b$ | the radiograph | $b_n$: a weight of the MSFM ([09](09_msfm.ipynb)) |
# | `sample` | the function that draws masks ([14](14_sampling.ipynb)) | as `prediction_type`: the network says $x_0$ ([07](07_posterior.ipynb)) |
#
# Whatever a name above does not say, its page in the library does. The papers behind the names are in the [references](references.qmd).
