# %% [markdown]
# # 19 · Why more steps lose
# > A perfect network, a mask that noise cannot hide, a walk that training never saw, and what helps

# %% [markdown]
# Lesson [15](15_worth_it.ipynb) found that steps do not help, and [lesson 17](17_paper_checked.ipynb) that no equation is to blame. So why does a sampler do worse the harder it works? There are three reasons, each can be seen in less than a minute, and two can be mended. The mends stand beside the paper's recipe, not in it: all are off by default.
#
# You need the forward process ([06](06_forward.ipynb)), the loss ([12](12_loss.ipynb)) and DDIM ([14](14_sampling.ipynb)); about 45 minutes. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/19_more_steps.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| code-fold: true
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.augment import Augment
from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.phantoms import draw_phantom
from verdiff.diffusion.forward import ShiftedDiffusion, linear_schedule
from verdiff.diffusion.posterior import unshift
from verdiff.diffusion.sampling import ddim_sample, sample
from verdiff.metrics import dice, paired_difference
from verdiff.networks.model import VerdiffNet
from verdiff.training.batches import generator_for, random_times
from verdiff.training.loss import training_loss

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
torch.set_num_threads(1)
process = ShiftedDiffusion(linear_schedule(1000))

# %% [markdown]
# ## 1 · Even a perfect network loses
# One pixel. The image leaves it open: with probability $p$ it is vertebra ($x_0 = 1$), else not ($x_0 = -1$). For this pixel the best network can be written down. In the coordinate without shift $y_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,\epsilon$ is normal around $\pm\sqrt{\bar\alpha_t}$, so by Bayes the logarithm of the odds grows by $2\sqrt{\bar\alpha_t}\,y_t / s_t^2$, and the mean of $x_0$ is
#
# $$ \hat x_0 = \tanh\!\Big(\tfrac12 \log\tfrac{p}{1-p} + \frac{\sqrt{\bar\alpha_t}\; y_t}{1-\bar\alpha_t}\Big). $$

# %%
p = 0.7
f = torch.full((5000, 1, 1, 1), 2 * p - 1)  # 1000 walks for each of 5


# %%
def perfect(x, t):
    "The mean of x_0, given x_t: nothing can know more."
    bar = process.alphas_cumprod[t].float().view(-1, 1, 1, 1)
    y = unshift(process, x, t, f)
    return torch.tanh(f.atanh() + bar.sqrt() * y / (1 - bar))


# %% [markdown]
# Its first answer, from nothing but noise, is $2p - 1$: it says *vertebra* each time and is right with probability $p$. Walk on, and the answer must become one of the two masks. A sample says *vertebra* in a share $p$ of the walks, as it should, and is right with probability $p^2 + (1-p)^2$: it guesses as often as it may, not as well as it can.

# %%
g = torch.Generator().manual_seed(0)
right = lambda yes: (p * yes + (1 - p) * (1 - yes)).mean().item()
one, five, answers = {}, {}, {}
for k in (1, 2, 5, 10, 50, 250):
    x_T = process.prior_sample(f, torch.randn(f.shape, generator=g))
    x_0 = answers[k] = ddim_sample(process, perfect, x_T, f, "sample", k)
    one[k] = right((x_0 > 0).float())
    five[k] = right((x_0.view(-1, 5).mean(1) > 0).float())
    print(f"{k:3d} steps: right {one[k]:.3f}, mean of five {five[k]:.3f}")
print(f"p = {p}, p² + (1 - p)² = {p**2 + (1 - p)**2:.2f}")
assert one[1] > five[10] > one[10] > 0.55

# %%
#| code-fold: true
#| fig-alt: "Left: the answer of a perfect network for one pixel, a single value after one step, two peaks at minus and plus one after fifty. Right: the share of right answers falls from 0.7 with the number of steps towards 0.58, the mean of five falls less."
fig, (left, middle) = plt.subplots(1, 2, figsize=(7, 2.5),
                                   layout="constrained")
for k in (1, 5, 50):
    left.hist(answers[k].flatten(), 41, range=(-1.05, 1.05), histtype="step",
              label=f"{k} step{'s' * (k > 1)}")
left.set(xlabel="answer for the pixel", ylabel="walks", yscale="log")
left.legend(fontsize=8)
for name, line in (("one sample", one), ("mean of five", five)):
    middle.semilogx(list(line), list(line.values()), "o-", label=name)
middle.axhline(p, color="k", lw=1, ls="--", label="p: the best there is")
middle.axhline(p**2 + (1 - p)**2, color="grey", lw=1, ls=":",
               label="p² + (1 − p)²")
middle.set_xticks(list(one), list(one))
middle.minorticks_off()
middle.set(xlabel="steps", ylabel="share right")
middle.legend(fontsize=8);

# %% [markdown]
# Nothing is wrong here: network, sampler and equations are exact. A score that counts pixels wants each pixel's more probable answer, and one step gives just that. Dice is such a score, nearly. **So no amount of training makes many steps win by Dice alone.** What the steps buy is a sample that is *one possible mask*, which matters where pixels hang together (exercise 3), and means of many samples lose less. It also follows how much can be lost: little where the image leaves little open, and at a border of one pixel it always leaves some.

# %% [markdown]
# ## 2 · The noise does not hide the mask
# The linear schedule was made for photographs of 32 × 32 or 256 × 256 pixels. Noise is drawn for each pixel alone; a vertebra has hundreds. Whoever averages over a window sees through. Here no network is trained: blur $x_t$, cut at zero, take the window that works best, and measure the Dice with the mask.

# %%
def seen_through(height, t, scale=1.0):
    "Dice of the best blur of a phantom's x_t, without shift, cut at 0."
    marks = draw_phantom(3, (height, height // 3)).landmarks
    mask = torch.from_numpy(
        landmarks_to_mask(marks, height, height // 3))[None, None]
    noise = torch.randn(mask.shape, generator=g)
    x_t = process.q_sample(scale * (2.0 * mask - 1), torch.tensor([t]), None,
                           noise)
    blurred = (F.avg_pool2d(x_t, w, 1, w // 2, count_include_pad=False)
               for w in (1, 3, 5, 9, 13, 17, 25, 33))
    return max(dice(b > 0, mask).item() for b in blurred)


# %%
times = (100, 300, 500, 700, 900)
for height in (96, 192, 384, 768):
    line = [seen_through(height, t) for t in times]
    print(f"{height} x {height // 3}:", *(f"{v:.2f}" for v in line))
print("768, 0.1 x:", *(f"{seen_through(768, t, 0.1):.2f}" for t in times))
assert seen_through(768, 500) > seen_through(96, 500) + 0.2

# %% [markdown]
# At 768 pixels and $t = 700$ most of the mask is still there for everyone who averages; at 96 pixels it is gone. For much of its training the network is asked to find a mask that it can *read off* $x_t$, and need not look at the radiograph. The remedy is old ([Chen 2023](https://arxiv.org/abs/2301.10972), [Hoogeboom et al. 2023](https://arxiv.org/abs/2301.11093)): the larger the picture, the smaller the signal. Our switch is `input_scale`: the mask in $x_t$ is multiplied by it, the noise stays (last line).

# %% [markdown]
# ## 3 · The walk that training never saw
# In training $x_t$ is made of the *truth*; in sampling, of the network's own last answer. A network that has learned to read the mask off $x_t$ will then read off its own mistakes, and believe them. The literature calls it exposure bias ([Ning et al. 2023](https://arxiv.org/abs/2301.11706)). Two mends: a smaller input scale, as above, and **recycling** ([Fu et al. 2023](https://arxiv.org/abs/2308.16355)): in some rows of each batch $x_t$ is made of the network's own first answer instead of the truth, the loss still asks for the truth.
#
# Three small networks, same seed, same phantoms, some seconds each:

# %%
packed = {
    part: pack(PhantomSet(split=part, size=(96, 32), n_training=48,
                          n_test=16), progress=False)
    for part in ("training", "test")
}

# %%
augment = Augment(rotation=5, elastic=0.01, contrast=0.1)


# %%
def learn(recycle=0.0, process=None, steps=80, **config):
    torch.manual_seed(35)
    net = VerdiffNet(channels=(8, 16, 32), height=96, width=32, nsa=False,
                     prediction_type="sample", **config)
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - k / steps)
        optimizer.zero_grad()
        loss_of(net, generator_for(35, k), recycle, process).backward()
        optimizer.step()
    return net.eval()


# %%
def loss_of(net, g, recycle, process):
    phantoms, index = packed["training"], torch.randint(48, (6,), generator=g)
    image, mask = augment(phantoms.images[index], phantoms.masks[index], g)
    return training_loss(
        net, image, mask, random_times(6, 1000, g),
        torch.randn(mask.shape, generator=g), process=process,
        recycled=torch.rand(6, generator=g) < recycle)["total"]


# %%
ways = {"plain": {}, "scale 0.2": {"input_scale": 0.2},
        "recycling": {"recycle": 0.7}}
nets = {name: learn(**way) for name, way in ways.items()}

# %% [markdown]
# What does each say at time $t$, once with the truth in $x_t$ and once on its own walk?

# %%
image = packed["test"].images.float() / 255
truth = packed["test"].masks


# %%
@torch.no_grad()
def two_views(net):
    "Dice of the answer at each t: {t: from the truth}, {t: on its walk}."
    known, process = net.condition(image), net.process()
    noise = torch.randn(truth.shape, generator=g)
    ask = lambda x, t: net.denoise(x, t, known)
    told, walked = {}, {}

    def watch(t, x, x_0):
        at = torch.full((len(x),), t)
        x_t = process.q_sample(2.0 * truth - 1, at, known.prior, noise)
        told[t] = dice(ask(x_t, at) > 0, truth).mean().item()
        walked[t] = dice(x_0 > 0, truth).mean().item()

    x_T = process.prior_sample(known.prior, noise)
    ddim_sample(process, ask, x_T, known.prior, "sample", 10, callback=watch)
    return told, walked


# %%
views = {name: two_views(net) for name, net in nets.items()}
gap = {name: told[99] - walked[99] for name, (told, walked) in views.items()}
print("too good by, at t = 99:", {n: round(v, 3) for n, v in gap.items()})
assert gap["plain"] > 2 * max(gap["recycling"], gap["scale 0.2"])

# %%
#| code-fold: true
#| fig-alt: "Three panels, Dice of the network's answer against t, from much noise to little. Plain: with the truth in x_t the line climbs steeply, on its own walk it falls a little. Scale 0.2 and recycling: both lines stay together."
fig, axes = plt.subplots(1, 3, figsize=(7.4, 2.5), sharey=True,
                         layout="constrained")
for axis, (name, (told, walked)) in zip(axes, views.items()):
    axis.plot(list(told), list(told.values()), "o-", ms=3,
              label="the truth in x_t")
    axis.plot(list(walked), list(walked.values()), "o-", ms=3,
              label="its own walk")
    axis.set(xlabel="t", title=name, xlim=(1020, 70))
axes[0].set_ylabel("Dice of the answer")
axes[0].legend(fontsize=8);

# %% [markdown]
# The plain network looks better and better on the way down, but only while somebody tells it the truth. Alone it gains nothing, and the mistakes that it reads off stay. With a mend the two lines stay close: what training measures is nearly what sampling does. And the price?

# %%
table = {}
for name, net in nets.items():
    for k in (1, 2, 10):
        drawn = sample(net, image, k, 5)
        table[name, k] = dice(drawn.mean > 0.5, truth)
        alike = dice(drawn.samples[0] > 0.5, drawn.samples[1] > 0.5).mean()
        print(f"{name:10s}{k:3d} steps: mean of five "
              f"{table[name, k].mean():.3f}, two samples alike {alike:.3f}")

# %%
lost = {}
for name in nets:
    gain, low, high = paired_difference(table[name, 10], table[name, 1])
    lost[name] = gain
    print(f"{name:10s}ten steps minus one "
          f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]")
assert lost["plain"] < min(lost["recycling"], lost["scale 0.2"])

# %% [markdown]
# Steps nearly stop hurting. The samples also stop differing: a network that does not listen to $x_t$ says the same whatever the noise was, and then one step would have done. One seed and tiny networks; on [real radiographs with three seeds](lab/why_steps.ipynb) it comes out the same way, and with both mends two samples are nearly one mask. A walk whose steps do not hurt *and* whose samples mean something is the open question of this course. For *how sure are you?* [several measures together](library/uncertainty.ipynb) serve better than a second sample.
#
# So: **draw one step and the mean of several samples** (the default of `verdiff segment`), switch on a mend if you must walk, and do not read the spread as knowledge.

# %% [markdown]
# ## Exercises
# **1 · Predict.** For which $p$ does a full walk lose most against one step? First think, then draw $p - (p^2 + (1-p)^2)$ for $p \ge \frac12$.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# $p - p^2 - (1-p)^2 = (1-p)(2p-1)$ is largest at $p = \frac34$, an eighth. Where nothing is open ($p = 1$) nothing can be lost, and at $p = \frac12$ every answer is as good.

# %%
#| code-fold: true
grid = torch.linspace(0.5, 1, 501)
loss = grid - grid**2 - (1 - grid)**2
print(f"largest loss {loss.max():.3f} at p = {grid[loss.argmax()]:.2f}")
assert abs(loss.max() - 1 / 8) < 1e-4

# %% [markdown]
# </details>
#
# **2 · Change.** Which `input_scale` makes $x_t$ at 768 × 256 as unreadable as it is at 96 × 32 with scale 1? Noise that is averaged over $n$ pixels shrinks by $\sqrt n$. Reason first, then try with `seen_through`.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Eight times as many pixels each way, 64 in all: the mean's noise is 8 times smaller, so a signal 8 times smaller, 0.125, looks alike. Nearly: a mask also has finer borders at 768.

# %%
#| code-fold: true
for t in (300, 500):
    small, large = seen_through(96, t), seen_through(768, t, 1 / 8)
    print(f"t = {t}: 96 pixels {small:.2f}, 768 at scale 1/8 {large:.2f}")
    assert abs(small - large) < 0.15

# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** Two experts disagree about half of the radiographs: the second draws each vertebra half a body lower. A colleague trains Verdiff-Net on both. One step gives a *solid column without discs*, which neither expert would draw, and yet a higher Dice than ten steps. She concludes that one step is better. What happened, and what should she measure?

# %%
rows = torch.arange(96)
first = (rows % 12 < 8).float()  # bodies of 8 rows, discs of 4
second = torch.roll(first, 6, 0)
# your code here: p of each row, its cut, its expected Dice

# %% [markdown]
# <details><summary>Answer</summary>
#
# One step gives $p$ in each row: 1 where both experts mark, ½ where one does. The cut at one half decides all of these ties alike: all in is the column, all out leaves thin stripes. Ten steps choose one expert, and half of the time it is not the one who scores. A pixel score rewards the column. She should ask whether each sample is *a* possible mask, by its Dice with the nearest expert, and whether the samples together hold both experts, as in [lesson 14](14_sampling.ipynb).

# %%
#| code-fold: true
overlap = lambda a, b: (2 * (a * b).sum() / (a.sum() + b.sum())).item()
for name, mask in {"column": first.maximum(second), "stripes": first * second,
                   "a sample": first}.items():
    both = overlap(mask, first), overlap(mask, second)
    print(f"{name:9s}expected Dice {sum(both) / 2:.3f}, "
          f"with the nearest expert {max(both):.3f}")
column = first.maximum(second)
assert (overlap(column, first) > (1 + overlap(first, second)) / 2
        and overlap(column, first) < 1)

# %% [markdown]
# </details>
#
# **4 · Implement.** *Input perturbation* (Ning et al. 2023) is recycling's cheapest cousin: make $x_t$ with noise $\epsilon + \gamma\xi$, $\gamma = 0.3$ here, $\xi$ normal, but ask for the same target. Train a fourth network so and put it into the table.

# %%
# your code here

# %%
#| code-fold: true
#| code-summary: "Answer and check"
class Perturbed(ShiftedDiffusion):
    def q_sample(self, x_0, t, prior, noise):
        more = noise + 0.3 * torch.randn_like(noise)
        return super().q_sample(x_0, t, prior, more)


told, walked = two_views(learn(process=Perturbed(process.betas)))
print(f"too good by, at t = 99: {told[99] - walked[99]:.3f} "
      f"(plain {gap['plain']:.3f})")
assert told[99] - walked[99] > gap["plain"] / 2  # here it mends little

# %% [markdown]
# That was the last lesson. What did the course find? [All answers, with their intervals](found.ipynb).
