# %% [markdown]
# # 15 · Is it worth it?
# > Printed or exact, one step or many, one sample or a crowd: networks that had to learn

# %% [markdown]
# [Lesson 14](14_sampling.ipynb) drew masks with a network that knows everything. Is all this worth it with networks that had to learn: the diffusion, the steps, the samples, the repaired equations? The verdict comes first, then how it was measured, on phantoms, with a plain U-Net beside. The training was recorded and takes ten minutes if you repeat it, without a GPU. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/15_worth_it.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    line = 'install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    get_ipython().run_line_magic("pip", line)  # noqa: F821

# %%
#| code-fold: true
import itertools
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib_inline.backend_inline import set_matplotlib_formats
from scipy.stats import t as student

from verdiff.data.augment import Augment
from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.diffusion.forward import ShiftedDiffusion, linear_schedule
from verdiff.diffusion.sampling import (
    ddpm_sample, ddpm_sample_printed, randn, sample,
)
from verdiff.metrics import (
    dice, expected_calibration_error, hd95, paired_difference, reliability,
    risk_coverage,
)
from verdiff.networks.model import VerdiffNet
from verdiff.networks.unet import ConditionalUNet
from verdiff.training.batches import generator_for, random_times
from verdiff.training.loss import soft_dice_loss, training_loss

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
size = 96, 32

# %% [markdown]
# ## 1 · The verdict
#
# *Recorded run: one CPU core, 2026-11-25, commit aa6ee5c, seeds 0 to 2.* Sixteen unseen phantoms, mean ± half a 95 % interval over three seeds (section 5 prints it; HD95, ECE and AURC: lower is better, [05](05_metrics.ipynb)):
#
# | | Dice | HD95, pixels | ECE | AURC × 1000 |
# |---|---|---|---|---|
# | prior alone | 0.922 ± 0.014 | 1.062 ± 0.243 | 0.005 ± 0.001 | 0.633 ± 0.236 |
# | diffusion, one step | 0.916 ± 0.012 | 1.000 ± 0.000 | 0.020 ± 0.000 | 0.958 ± 0.570 |
# | diffusion, 50 steps | 0.908 ± 0.057 | 1.116 ± 0.452 | 0.012 ± 0.006 | 4.460 ± 8.375 |
# | ensemble, 5 steps × 20 samples | 0.928 ± 0.008 | 1.000 ± 0.000 | 0.018 ± 0.002 | 0.596 ± 0.030 |
# | plain U-Net, as many parameters and seconds | **0.938 ± 0.010** | 1.000 ± 0.000 | 0.004 ± 0.003 | 0.390 ± 0.108 |
#
# **Is it worth it?** On these phantoms, at this size of training: no. The ensemble beats its own prior by little (the interval over phantoms excludes zero) and is the worst calibrated but one: underconfident. The plain U-Net has the best means. Its steps are cheaper, so it gets more of them, and all its parameters work on one task.
#
# **Steps** do not help: the mean Dice falls from one to fifty, with overlapping intervals. One step gives what the network takes for the *mean* of all masks that fit the image, which, cut at one half, suits Dice; a single sharp sample pays for every wrong choice. DPM-Solver++ buys nothing: what is left is the network's error, not the solver's.
#
# **Samples** help, the first few most, because averaging undoes the choosing. At equal cost, many samples of few steps beat one of many.
#
# **Does the uncertainty know the error?** Both lie at the borders. The spread of twenty samples sorts pixels far better than no order at all, but no better than the prior's nearness to one half, which costs no sample. Whether an *image* with much uncertainty has many errors stays open here; on [real radiographs](lab/xray.ipynb#predicted-dice) several such measures together tell more.
#
# **Are the repaired equations?** Yes, but for another reason than one thinks: they give back $\hat x_0$, which can be clipped (section 7).
#
# **Not shown**: readers who truly disagree, as in [14](14_sampling.ipynb), where their mean is nobody's mask and choosing is the point; long training, large networks, [real radiographs](lab/xray.ipynb), [other methods](lab/comparison.ipynb).
#
# ## 2 · What was trained
#
# *Recorded run, as above, to the end of section 6.* Three seeds, each with a Verdiff-Net (predicting the mask, $T = 1000$, with the fusion module of [09](09_msfm.ipynb) but without the adapters of [10](10_nsa.ipynb), which double the time of an evaluation) and a plain U-Net with the prior's loss. Both train on the same 96 phantoms in the same order for as many CPU seconds. Nothing was chosen on the 16 unseen phantoms that measure them. (What was printed then says *film* where the code now says *image*.)

# %%
#| slow
packed = {
    split: pack(
        PhantomSet(split=split, size=size, n_training=96, n_test=16),
        progress=False)
    for split in ("training", "test")
}

# %%
#| slow
looks, answers = packed["test"].images.float() / 255, packed["test"].masks
augment = Augment(rotation=5, elastic=0.01, contrast=0.1)

# %%
#| slow
#| code-fold: true
#| fig-alt: "Eight small phantom radiographs side by side, the true outline of the vertebrae in orange."
fig, axes = plt.subplots(1, 8, figsize=(6.4, 2.4), layout="constrained")
for i, axis in enumerate(axes):
    axis.imshow(looks[i, 0], cmap="gray")
    axis.contour(answers[i, 0], [0.5], colors="orange", linewidths=0.6)
    axis.set_axis_off()


# %%
#| slow
def batch(seed, step):
    g = generator_for(seed, step)
    index = torch.randint(96, (6,), generator=g)
    return g, *augment(
        packed["training"].images[index], packed["training"].masks[index], g)


# %%
#| slow
def fit(module, seed, loss_of, steps=300, seconds=None):
    "Train for so many steps, or CPU seconds; both are given back."
    optimiser, begin = (
        torch.optim.AdamW(module.parameters(), 4e-3), time.process_time())
    for k in itertools.count():
        spent = time.process_time() - begin
        done = spent / seconds if seconds else k / steps
        if done >= 1:
            return k, spent
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - done)
        optimiser.zero_grad()
        loss_of(*batch(seed, k)).backward()
        optimiser.step()


# %%
#| slow
def verdiffnet(seed, **options):
    torch.manual_seed(seed)
    net = VerdiffNet(
        channels=(8, 16, 32), height=96, width=32, nsa=False, **options)

    def loss(g, image, mask):
        times = random_times(len(mask), net.config.timesteps, g)
        return training_loss(
            net, image, mask, times,
            torch.randn(mask.shape, generator=g))["total"]

    _, spent = fit(net, seed, loss)
    return net.eval(), spent


# %%
#| slow
def interval(values):
    "Mean and half a 95 % t-interval over seeds."
    v = np.asarray(values, dtype=float)
    return (v.mean(),
            student.ppf(0.975, len(v) - 1) * v.std(ddof=1) / len(v) ** 0.5)


# %%
#| slow
def count(module):
    return sum(p.numel() for p in module.parameters())


# %%
#| slow
def plain_unet(seed, seconds, parameters):
    "A U-Net of that many parameters, trained for that many CPU seconds."
    torch.manual_seed(seed)
    shapes = [(w, 2 * w, 4 * w + more)
              for w in (12, 14, 16) for more in range(-8, 9, 2)]
    net = min(
        (ConditionalUNet(1, shape) for shape in shapes),
        key=lambda n: abs(count(n) - parameters)
    )

    def loss(g, image, mask):
        logits = net(image)
        return (F.binary_cross_entropy_with_logits(logits, mask)
                + soft_dice_loss(logits, mask))

    steps, _ = fit(net, seed, loss, seconds=seconds)
    return net.eval(), steps


# %%
#| slow
nets, plain = {}, {}
for seed in range(3):
    nets[seed], spent = verdiffnet(seed)
    plain[seed], made = plain_unet(seed, spent, count(nets[seed]))
    print(
        f"seed {seed}: Verdiff-Net {count(nets[seed]):,} parameters, "
        f"300 steps in {spent:.0f} CPU seconds; "
        f"plain U-Net {count(plain[seed]):,}, {made} steps"
    )

# %% [markdown]
# ## 3 · Steps
#
# *Recorded run, as in section 1 (one CPU core, 2026-11-25, commit aa6ee5c).* One sample an image. Open circles: three images only.

# %%
#| slow
steps_of, few = [1, 2, 3, 5, 10, 20, 50, 250, 1000], 3

# %%
#| slow
single = {}  # (seed, sampler, steps): one sample, (b, 1, h, w)
for seed, net in nets.items():
    for k in steps_of:
        single[seed, "ddim", k] = sample(
            net, looks if k <= 50 else looks[:few], k, 1).samples[0]
    for k in (2, 3, 5, 10, 20):
        single[seed, "dpm", k] = sample(
            net, looks, k, 1, sampler="dpm").samples[0]

# %%
#| slow
with torch.no_grad():
    guess = {seed: net.condition(looks).logits.sigmoid()
             for seed, net in nets.items()}
    plainly = {seed: net(looks).sigmoid() for seed, net in plain.items()}

# %%
#| slow
def mean_dice(probs, n=16):
    "One mean a seed, over the first n phantoms."
    return np.array([dice(p[:n] > 0.5, answers[:len(p)][:n]).mean().item()
                     for p in probs])


# %%
#| slow
curve = {
    how: {
        k: mean_dice([single[s, how, k] for s in nets])
        for (s, w, k) in single
        if w == how and s == 0
    }
    for how in ("ddim", "dpm")
}

# %%
#| slow
rows = {"prior": mean_dice(guess.values()),
        "plain U-Net": mean_dice(plainly.values())}

# %%
#| slow
#| code-fold: true
#| fig-alt: "Dice against the number of steps on a logarithmic axis: DDIM and DPM-Solver++ fall slowly from 0.916 at one step to 0.908 at fifty; the prior's line lies above them, the plain U-Net's above that; on three phantoms the fall goes on to a thousand steps."
fig, axis = plt.subplots(figsize=(5.6, 3), layout="constrained")
for how, colour, name in (
    ("ddim", "tab:blue", "DDIM, 1 sample"),
    ("dpm", "tab:green", "DPM-Solver++ 2M, 1 sample"),
):
    many = [k for k in curve[how] if k <= 50]
    axis.semilogx(many, [curve[how][k].mean() for k in many], "o-", ms=4,
                  color=colour, label=name)
few_k = [10, 250, 1000]
axis.plot(
    few_k,
    [mean_dice([single[s, "ddim", k] for s in nets], few).mean()
     for k in few_k],
    "o--", mfc="white", color="tab:blue", lw=0.8,
    label="DDIM, first 3 phantoms",
)
for (name, v), colour in zip(rows.items(), ("orange", "grey")):
    axis.axhline(v.mean(), color=colour, lw=1, label=name)
axis.set(xlabel="steps", ylabel="Dice, mean of 3 seeds")
axis.legend(fontsize=7);

# %%
#| slow
#| code-fold: true
print(
    "prior {:.3f} ± {:.3f}, plain U-Net {:.3f} ± {:.3f}   "
    "(mean ± half a 95 % interval over 3 seeds)".format(
        *interval(rows["prior"]), *interval(rows["plain U-Net"])
    )
)
for how in curve:
    print(
        how, {k: "{:.3f} ± {:.3f}".format(*interval(v))
              for k, v in curve[how].items() if k <= 50}
    )
on_few = {k: mean_dice([single[s, "ddim", k] for s in nets], few)
          for k in (1, 10, 250, 1000)}
print(
    "first 3 phantoms, minus 10 steps:",
    {k: "{:+.3f} ± {:.3f}".format(*interval(v - on_few[10]))
     for k, v in on_few.items() if k != 10},
)

# %% [markdown]
# ## 4 · Samples
#
# *Recorded run, as in section 1 (one CPU core, 2026-11-25, commit aa6ee5c).* On the right, twenty evaluations of the diffusion U-Net are spent in five ways.

# %%
#| slow
crowd = {seed: sample(net, looks, 5, 20) for seed, net in nets.items()}

# %%
#| slow
size_of = [1, 2, 3, 5, 10, 20]
by_size = {e: mean_dice([c.samples[:e].mean(0) for c in crowd.values()])
           for e in size_of}

# %%
#| slow
spend = {"1 × 20": {}, "2 × 10": {}, "5 × 4": {}, "10 × 2": {},
         "20 × 1": {}}  # steps x samples
for name in spend:
    k, e = map(int, name.split(" × "))
    for seed, net in nets.items():
        spend[name][seed] = (
            crowd[seed].samples[:4].mean(0) if k == 5
            else sample(net, looks, k, e).mean
        )
equal = {name: mean_dice(probs.values()) for name, probs in spend.items()}

# %%
#| slow
#| code-fold: true
#| fig-alt: "Left: Dice of the mean of 1 to 20 samples rises for each seed, steeply at first. Right: the same twenty evaluations spent from 1 step times 20 samples to 20 steps times 1 sample; Dice falls towards the right. Dotted lines: each seed's prior."
fig, axes = plt.subplots(1, 2, figsize=(7, 2.7), sharey=True,
                         layout="constrained")
axes[0].semilogx(size_of, list(by_size.values()), "o-", ms=4)
axes[0].set_xticks(size_of, size_of)
axes[0].minorticks_off()
axes[0].set(xlabel="samples, 5 steps each", ylabel="Dice (a line is a seed)")
axes[1].plot(list(equal.values()), "o-", ms=4)
axes[1].set_xticks(range(5), equal)
axes[1].set(xlabel="steps × samples, 20 evaluations")
for seed in nets:
    axes[0].axhline(rows["prior"][seed], color=f"C{seed}", lw=0.8, ls=":")
    axes[1].axhline(rows["prior"][seed], color=f"C{seed}", lw=0.8, ls=":")
fig.suptitle("dotted: the prior of the same seed", fontsize=8)

# %%
#| slow
#| code-fold: true
print(
    "samples:",
    {e: f"{v.mean():.3f}" for e, v in by_size.items()},
    "| equal evaluations:",
    {n: f"{v.mean():.3f}" for n, v in equal.items()},
)


# %% [markdown]
# ## 5 · Borders and calibration
#
# *Recorded run, as in section 1 (one CPU core, 2026-11-25, commit aa6ee5c).* HD95 measures borders, ECE calibration, AURC whether the uncertainty points at errors. "5 × 20": five steps, twenty samples.

# %%
#| slow
def judge(prob, doubt=None):
    "Dice, HD95 in pixels, ECE, AURC x 1000 over pixels, and Dice by image."
    found, doubt = (
        prob > 0.5, 0.5 - (prob - 0.5).abs() if doubt is None else doubt)
    wrong = (found != answers.bool()).float()
    films = dice(found, answers)
    return (
        films.mean().item(),
        hd95(found, answers).clamp(max=96).mean().item(),
        expected_calibration_error(prob, answers.float()),
        1e3 * risk_coverage(wrong.flatten(), doubt.flatten())[2],
    ), films.numpy()


# %%
#| slow
contenders = {
    "prior alone": guess,
    "one step": {s: single[s, "ddim", 1] for s in nets},
    "50 steps": {s: single[s, "ddim", 50] for s in nets},
    "ensemble, 5 × 20": {s: c.mean for s, c in crowd.items()},
    "plain U-Net": plainly,
}

# %%
#| slow
verdicts = {name: [judge(probs[s]) for s in nets]
            for name, probs in contenders.items()}

# %%
#| slow
#| code-fold: true
print(
    f"mean ± half a 95 % interval over 3 "
    f"seeds\n{'':18s}{'Dice':>17s}{'HD95, pixels':>17s}{'ECE':>17s}"
    f"{'AURC × 1000':>17s}"
)
for name, rows_ in verdicts.items():
    cells = ["{:.3f} ± {:.3f}".format(*interval(v))
             for v in zip(*(r for r, _ in rows_))]
    print(f"{name:18s}" + "".join(f"{c:>17s}" for c in cells))

# %%
#| slow
#| code-fold: true
print("Dice by image, mean over seeds, minus the prior's "
      "(95 % bootstrap over the 16 phantoms):")
films = {name: np.mean([f for _, f in rows_], 0)
         for name, rows_ in verdicts.items()}
for name in list(films)[1:]:
    print(
        "{:18s}{:+.4f} [{:+.4f}, {:+.4f}]".format(
            name, *paired_difference(films[name], films["prior alone"])
        )
    )

# %%
#| slow
#| code-fold: true
#| fig-alt: "Left: calibration curves of the five contenders around the diagonal; one step and ensemble are steeper than it, too shy. Right: the share of wrong pixels among those kept, surest first; that of 50 steps lies far above the others, the plain U-Net's lowest."
fig, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for name in contenders:
    prob = torch.cat(list(contenders[name].values()))
    x, y, _ = reliability(prob, answers.float().repeat(3, 1, 1, 1), 10)
    axes[0].plot(x, y, "o-", ms=3, lw=1, label=name)
    wrong = ((prob > 0.5) != answers.bool().repeat(3, 1, 1, 1)).float()
    coverage, risk, _ = risk_coverage(
        wrong.flatten(), (0.5 - (prob - 0.5).abs()).flatten())
    axes[1].plot(coverage[2000::500], risk[2000::500], lw=1)
axes[0].plot([0, 1], [0, 1], "k:", lw=1)
axes[0].set(xlabel="probability", ylabel="share that is vertebra")
axes[0].legend(fontsize=7)
axes[1].set(
    xlabel="share of pixels kept, surest first",
    ylabel="share of them wrong", xlim=(0.5, 1)
);

# %% [markdown]
# ## 6 · Where the uncertainty lies
#
# *Recorded run, as in section 1 (one CPU core, 2026-11-25, commit aa6ee5c).* The phantom with the most errors, and three ways to be unsure.

# %%
#| slow
worst = int(dice(crowd[0].mean > 0.5, answers).argmin())
missed = ((crowd[0].mean > 0.5) != answers.bool()).float()

# %%
#| slow
#| code-fold: true
#| fig-alt: "Five pictures of one phantom: the radiograph, the mean of twenty samples, twice their spread, the errors and the true mask; spread and errors both trace the borders of the vertebrae."
fig, axes = plt.subplots(1, 5, figsize=(5.6, 3), layout="constrained")
shown = {
    "image": looks,
    "mean": crowd[0].mean,
    "spread × 2": 2 * crowd[0].std,
    "errors": missed,
    "truth": answers.float(),
}
for axis, (name, picture) in zip(axes, shown.items()):
    axis.imshow(picture[worst, 0],
                cmap="gray" if name == "image" else "magma", vmin=0, vmax=1)
    axis.set_axis_off()
    axis.set_title(name, fontsize=8)

# %%
#| slow
border = (
    F.max_pool2d(answers.float(), 3, 1, 1)
    + F.max_pool2d(1 - answers.float(), 3, 1, 1) > 1.5
)  # within a pixel of a border

# %%
#| slow
#| code-fold: true
print(
    f"within one pixel of a border lie {border.float().mean():.0%} "
    f"of the pixels, "
    f"{crowd[0].std[border].sum() / crowd[0].std.sum():.0%} of the spread, "
    f"{missed[border].sum() / missed.sum():.0%} of the errors"
)

# %%
#| slow
doubts = {
    "spread of 20 samples": lambda s: crowd[s].std,
    "their mean near 1/2": lambda s: 0.5 - (crowd[s].mean - 0.5).abs(),
    "the prior near 1/2": lambda s: 0.5 - (guess[s] - 0.5).abs(),
}

# %%
#| slow
#| code-fold: true
for name, doubt in doubts.items():
    areas, links = [], []
    for s in nets:
        wrong = ((crowd[s].mean > 0.5) != answers.bool()).float()
        areas.append(
            1e3 * risk_coverage(wrong.flatten(), doubt(s).flatten())[2])
        links.append(
            np.corrcoef(doubt(s).mean((1, 2, 3)),
                        1 - dice(crowd[s].mean > 0.5, answers))[0, 1]
        )
    print(
        "{:22s} AURC × 1000 {:.2f} ± {:.2f}; by image, "
        "correlation with the error {:+.2f} ± {:.2f}".format(
            name, *interval(areas), *interval(links)
        )
    )

# %%
#| slow
#| code-fold: true
wrongs = [((c.mean > 0.5) != answers.bool()).float() for c in crowd.values()]
best = 1e3 * np.mean(
    [risk_coverage(w.flatten(), w.flatten())[2] for w in wrongs])
none = 1e3 * np.mean([w.mean() for w in wrongs])
print(f"{'a perfect order':22s} AURC × 1000 {best:.2f}; "
      f"no order at all {none:.2f}")

# %% [markdown]
# ## 7 · Printed or exact: clipping decides
#
# *Recorded run: one CPU core, 2026-11-25, commit aa6ee5c, seeds 0 to 4.* Does the difference between the printed and the exact sampler reach the mask of a trained network? Five small networks, one a seed, learn to predict *noise* as Eq. (8) asks (with $T = 50$ and $\beta$ enlarged to match: the paper gives neither $T$ nor $\beta$). Each samples the same twelve unseen phantoms from the same noise in the three ways of [14](14_sampling.ipynb), and once more with $\hat x_0$ clipped to $[-1, 1]$. At every step we also keep the size of the noise, the root mean square of $(x_t - \sqrt{\bar\alpha_t}\,x_0 - s_t f)/s_t$; by Eq. (3) it is 1.

# %%
#| slow
@torch.no_grad()
def four_ways(net, seed):
    """Dice of each image, and the size of the noise at each t, for each way
    to sample."""
    road, seen, true = net.process(), net.condition(looks[:12]), answers[:12]
    z, wanted = (
        randn(torch.Generator().manual_seed(seed))(seen.prior),
        2 * true.float() - 1)
    found, sizes = {}, {}

    def see(i, x, _):
        gap = (x - road.alphas_cumprod[i].sqrt() * wanted
               - road.sigmas[i] * seen.prior)
        sizes[way].append((gap / road.sigmas[i]).square().mean().sqrt().item())

    for way in ("exact", "exact, clipped", "Eq. (7)", "Algorithm 2"):
        sizes[way] = []
        share = dict(noise=randn(torch.Generator().manual_seed(100 + seed)),
                     callback=see)
        ask = lambda x, t: net.denoise(x.float(), t, seen)
        if way.startswith("exact"):
            x = ddpm_sample(
                road, ask, road.prior_sample(seen.prior, z), seen.prior,
                "epsilon", clip="clipped" in way, **share,
            )
        else:
            x = ddpm_sample_printed(road, ask, z, bar=way == "Eq. (7)", **share)
        found[way] = dice(x > 0, true).numpy()
    return found, sizes


# %%
#| slow
options = dict(prediction_type="epsilon", timesteps=50,
               beta_start=2e-3, beta_end=0.4)
noisy = {seed: verdiffnet(seed, **options)[0] for seed in range(5)}
outcomes = {seed: four_ways(net, seed) for seed, net in noisy.items()}
by_way = {way: np.array([outcomes[s][0][way].mean() for s in outcomes])
          for way in outcomes[0][0]}

# %%
#| slow
#| code-fold: true
for way, d in by_way.items():
    gap, half = interval(d - by_way["exact"])
    print(
        f"{way:15s} Dice by seed {np.round(d, 3)}, mean {d.mean():.3f}; "
        f"minus exact: "
        f"{gap:+.3f} ± {half:.3f}"
    )

# %%
#| slow
#| code-fold: true
#| fig-alt: "Left: Dice of four ways to sample, a line a seed; exact scatters between 0.2 and 0.8, exact and clipped is high for all, Eq. (7) lies between, Algorithm 2 is at zero. Right: the noise left of Eq. (3) on a logarithmic axis; all ways leave the wanted 1 as the walk ends, the clipped one least and latest."
fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained")
for k, (way, d) in enumerate(by_way.items()):
    axes[0].plot([k] * len(d), d, "o", ms=4, alpha=0.7)
    axes[1].semilogy(
        np.arange(50)[::-1],
        np.mean([outcomes[s][1][way] for s in outcomes], 0), label=way
    )
axes[0].plot(np.stack(list(by_way.values())), color="grey", lw=0.5)
axes[0].set_xticks(
    range(4), [w.replace(", ", ",\n") for w in by_way], fontsize=8)
axes[0].set(ylabel="Dice (a line is a seed)", ylim=(0, 1))
axes[1].axhline(1, color="k", lw=0.6, ls=":")
axes[1].set(xlabel="t (the walk goes left)",
            ylabel="noise left of Eq. (3), should be 1")
axes[1].legend(fontsize=7);


# %% [markdown]
# **Algorithm 2 to the letter finds next to nothing.** The oracle of [14](14_sampling.ipynb) hid the misprint. Here too the noise is at first too small (right, below 1); then the network, asked about pictures it never saw, errs, and its errors are multiplied at every step.
#
# **The missing shift alone does not decide**: exact 0.399, Eq. (7) 0.651. The exact form stays nearer to Eq. (3), yet has the lower Dice for most seeds. **Clipping decides**: 0.850, best for every seed. Why? A network that says *noise* says the mask only through
#
# $$\hat x_0 = \frac{y_t - s_t\,\hat\varepsilon}{\sqrt{\bar\alpha_t}},$$
#
# so an error $\delta$ of $\hat\varepsilon$ is an error $\delta\,s_t/\sqrt{\bar\alpha_t}$ of $\hat x_0$.

# %%
road = ShiftedDiffusion(linear_schedule(50, 2e-3, 0.4))
louder = road.sigmas / road.alphas_cumprod.sqrt()
print(f"an error of 0.1 in the noise is one of {0.1 * louder[49]:.0f} in the "
      f"mask at t = 49, of {0.1 * louder[25]:.1f} at 25, "
      f"of {0.1 * louder[0]:.3f} at 0")
assert louder[49] > 100 > 1 > louder[0]

# %%
#| code-fold: true
#| fig-alt: "How many times an error of the noise is larger in the mask, against t on a logarithmic axis: from below a tenth at t = 0 over one near t = 13 to hundreds at t = 49."
fig, axis = plt.subplots(figsize=(4.2, 2.4), layout="constrained")
axis.semilogy(louder, "k")
axis.axhline(1, color="k", lw=0.6, ls=":")
axis.set(xlabel="t", ylabel="error of mask / error of noise");

# %% [markdown]
# At the start of a walk the guess of the mask is wrong by many times its size, in the exact form as in Eq. (7), and beside that a missing shift of at most 1 is a trifle. But masks lie in $[-1, 1]$: clipped, the guess can be wrong by 2 at most. Only the exact form can clip, since it computes $\hat x_0$; Eq. (7) has no place for it, because the shift must be taken off first. That is what the repair is worth. (Our default, a network that says the *mask*, never has the problem.)
#
# ## 8 · What a radiograph costs
#
# `bench/segment.py` times a radiograph of 768×256 with its uncertainty: ours on its own canvas, with the ten steps of the lessons (`verdiff segment` takes one); ours at full size, with as many parameters as MONAI's tutorial network; that network; and med-seg-diff-pytorch. Rows marked ~ multiply the time of one evaluation; "times" compares with the first row.

# %%
#| code-fold: true
record = Path("../bench/results/segment.json")  # `make bench` in a clone
bench = json.loads(record.read_text()) if record.exists() else {}
rows = bench.get("rows", [])
for r in rows:
    about = " ~"[r["extrapolated"]]
    print(f"{r['method']:33s}{r['steps']:5,d} steps × {r['samples']} {about}"
          f"{r['seconds']:8,.1f} s, {r['seconds'] / rows[0]['seconds']:7,.0f} "
          f"times, {r['peak_megabytes']:5,.0f} MB")
print(bench.get("machine", "no record here: run `make bench` in a clone"))

# %% [markdown]
# The factor comes from fewer steps (open to everybody: MONAI's DDIM row), a cheaper network, and a smaller canvas with a smaller network. [The comparison](lab/comparison.ipynb) trains the tutorial network beside ours.

# %%
#| code-fold: true
#| fig-alt: "Four panels of seconds: against pixels ours grows in proportion and MONAI's network faster; against steps, samples and number of images ours grows in proportion."
titles = {"pixels": "pixels, 1 evaluation", "steps": "steps",
          "samples": "samples", "images": "radiographs"}
fig, axes = plt.subplots(1, 4, figsize=(9, 2.3), layout="constrained")
for ax, (key, title) in zip(axes, titles.items() if rows else ()):
    x, seconds, _ = zip(*bench["scaling"][key])
    ax.plot(x, seconds, "o-", ms=4, color="tab:purple", label="verdiff")
    ax.plot([0, x[-1]], [0, seconds[-1]], ":", color="0.6",
            label="proportional")
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=7)
if rows:
    x, seconds, _ = zip(*bench["scaling"]["monai_pixels"])
    axes[0].plot(x, seconds, "s--", ms=4, color="darkorange", label="MONAI")
    axes[0].set(xscale="log", yscale="log", ylabel="seconds")
    axes[0].legend(fontsize=6);

# %% [markdown]
# ## Exercises
#
# **1 · Predict.** Eight readers draw the same spine, each shifted a little. You hand in either a copy of one reader's mask or the readers' mean cut at one half, and are scored by Dice against each reader in turn. Which is better, and by how much? Guess, compute.

# %%
spine = pack(PhantomSet(size=size, n_training=1, n_test=1),
             progress=False).masks[0, 0].bool()
shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (2, 0)]
readers = torch.stack([spine.roll(by, (0, 1)) for by in shifts])[:, None]
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The mean. A copy is right for one reader and wrong twice at each other's borders; the mean is half wrong at all of them. That is why one step, which gives a mean, beats the sharp sample of fifty.

# %%
#| code-fold: true
centre = (readers.float().mean(0) > 0.5).expand_as(readers)
by_mean = dice(centre, readers).mean()
by_copy = torch.stack([dice(r.expand_as(readers), readers) for r in readers])
others = by_copy[~torch.eye(8, dtype=torch.bool)].mean()
print(f"mean {by_mean:.3f}, a copy of another reader's {others:.3f}")
assert by_mean > others + 0.05

# %% [markdown]
# </details>
#
# **2 · Change.** Section 7 prints five Dice values for "exact" and for "Eq. (7)". Is the second really better? Compute a 95 % interval of the paired difference, then find the fewest seeds (with the same mean and spread of differences) that would settle it.

# %%
exact = np.array([0.185, 0.287, 0.785, 0.524, 0.214])
eq_7 = np.array([0.548, 0.770, 0.743, 0.853, 0.342])
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The interval just includes zero, so five seeds do not tell. One more would do, if the spread stays. (And then one has looked until it was significant; better decide on the number first.)

# %%
#| code-fold: true
def half(n):
    spread = (eq_7 - exact).std(ddof=1)
    return student.ppf(0.975, n - 1) * spread / n ** 0.5


mean = (eq_7 - exact).mean()
enough = next(n for n in range(2, 100) if half(n) < mean)
print(f"{mean:+.3f} ± {half(5):.3f} with five; {enough} would do")
assert half(5) > mean and enough == 6

# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** The table of section 1 says of 50 steps: ECE 0.012, better than one step's 0.020, but an AURC of 4.46 against 0.96, the worst of all. How can a probability be better calibrated and yet know less about its errors? Build the simplest forecast with a small ECE and the worst possible AURC.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# A sharp sample says 0 or 1 everywhere. Its ECE is then just its share of wrong pixels, which is small when most of the image is background, and its distance from one half is the same everywhere, so it orders nothing: the AURC is that of no order at all. ECE rewards being right; AURC asks whether you know where you are not.

# %%
#| code-fold: true
g = torch.Generator().manual_seed(0)
truth = torch.rand(20_000, generator=g) < 0.1
error = torch.rand(20_000, generator=g) < 0.012
sharp = (truth ^ error).float()  # says 0 or 1, wrong in 1.2 % of the pixels
shy = torch.where(error, 0.5 + 0.1 * (sharp - 0.5), 0.5 + 0.7 * (sharp - 0.5))
for name, p in (("sharp", sharp), ("shy, but knows", shy)):
    ece = expected_calibration_error(p, truth.float())
    wrong = ((p > 0.5) != truth).float()
    aurc = 1e3 * risk_coverage(wrong, 0.5 - (p - 0.5).abs())[2]
    print(f"{name:15s} ECE {ece:.3f}   AURC × 1000 {aurc:.2f}")

# %% [markdown]
# </details>
#
# So the diffusion earns little on phantoms, and its honest use is an ensemble of short walks. What remains is the question a reader brings: does it work on *my* file? Next: [16 · One radiograph in, a mask out](16_segment.ipynb).
