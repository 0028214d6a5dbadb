"""Why more steps lose, and what helps: one frozen prior, many ways to train and walk beside it.

    VERDIFF_XRAY=xray.zip python bench/why_steps.py
    python bench/why_steps.py --data phantom --out runs/why_phantom --json why_phantom.json

Each seed trains a prior, then every way trains its diffusion U-Net from the same weights on the
same batches. Scored on validation images only; the test split is not opened. A part that is done
is read, so the same command goes on after a stop; --json joins what is there.
"""
import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import machine
from scipy.ndimage import label
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from verdiff.data.packed import Packed
from verdiff.diffusion.forward import ShiftedDiffusion
from verdiff.diffusion.posterior import reshift, unshift
from verdiff.diffusion.sampling import SeededNoise, timestep_sequence
from verdiff.files import atomic_write, git_revision, write_json
from verdiff.lab.ablation import sweep_data
from verdiff.metrics import dice
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import Conditioning, VerdiffNet
from verdiff.networks.unet import UNet
from verdiff.settings import Settings, load_settings
from verdiff.training.batches import augment_batch, batch_indices, generator_for
from verdiff.training.loss import first_estimate, soft_dice_loss

STEPS = (1, 2, 5, 10, 20, 50)
MEMBERS = 5  # samples an image
EVERY = 3  # 50 steps on every third image only: they cost more than all the others
TIMES = (49, 149, 249, 399, 549, 699, 849, 999)  # of a walk of 20 steps, looked at one by one


@dataclass(frozen=True)
class Way:
    "What a row changes; the defaults are the plain way."

    scale: float = 1.0  # input_scale: signal to noise times its square (Chen 2023)
    recycle: float = 0.0  # share of rows whose x_t comes from an estimate (Fu et al. 2023)
    perturb: float = 0.0  # more noise in x_t than it is told (Ning et al. 2023)
    min_snr: float = 0.0  # weight min(SNR, this) over t (Hang et al. 2023)
    drop: float = 0.0  # share of rows without a prior
    own: float = 0.0  # share of rows that see their own estimate (Chen, Zhang and Hinton 2023)
    divide: float = 1.0  # the noise by this at each step back (Ning et al. 2024); no training
    of: str = ""  # whose weights, where none are trained


WAYS = {
    "plain": Way(),
    "scale": Way(scale=0.2),
    "recycle": Way(recycle=0.7),
    "both": Way(scale=0.2, recycle=0.7),
    "divided": Way(divide=1.05, of="plain"),
    "perturbed": Way(perturb=0.1),
    "weighted": Way(min_snr=5.0),
    "dropped": Way(drop=0.3),
    "own": Way(own=0.5),
}
CORE = ("plain", "scale", "recycle", "both")


# ---------------------------------------------------------------- networks and their training


def make_net(settings: Settings, way: Way) -> VerdiffNet:
    "The project's network; with one more channel where it sees its own estimate."
    config = VerdiffConfig.from_settings(settings)
    net = VerdiffNet(config, input_scale=way.scale)
    if way.own:
        c = net.config
        net.diffusion = UNet(1 + 1 + c.channels[0] // c.stem**2 + 1, 1, c.channels,
                             c.blocks, 4 * c.channels[0], c.norm, zero_output=True, stem=c.stem)
    return net.to(memory_format=torch.contiguous_format)  # the quicker one at these widths


def told(known: Conditioning, estimate: Tensor | None, way: Way) -> Conditioning:
    "What the network is given; its own estimate (zeros: none yet) beside the features."
    if not way.own:
        return known
    last = torch.zeros_like(known.prior) if estimate is None else estimate
    return known._replace(features=torch.cat([known.features, last], 1))


def diffusion_loss(net: VerdiffNet, known: Conditioning, mask: Tensor, t: Tensor, noise: Tensor,
                   way: Way, process: ShiftedDiffusion, chance: torch.Generator) -> Tensor:
    "The diffusion part of `training_loss` with a frozen prior, in one of the ways."
    def rows(share: float) -> Tensor:
        return torch.rand(len(mask), generator=chance) < share

    recycled, without, seeing = rows(way.recycle), rows(way.drop), rows(way.own)
    more = torch.randn(noise.shape, generator=chance)
    if without.any():
        known = known._replace(prior=known.prior * ~without.view(-1, 1, 1, 1))
    x_0 = shown = 2 * mask - 1
    if recycled.any():
        shown = x_0.clone()
        shown[recycled] = first_estimate(net, noise[recycled], known.select(recycled), process)
    x_t = process.q_sample(shown, t, known.prior, noise + way.perturb * more)
    seen = told(known, None, way)
    if seeing.any():
        with torch.no_grad():
            said = net.denoise(x_t, t, seen).clamp(-1, 1) * seeing.view(-1, 1, 1, 1)
        seen = told(known, said, way)
    error = (net.denoise(x_t, t, seen) - x_0).square().mean((1, 2, 3))
    if way.min_snr:
        snr = process.alphas_cumprod / (1 - process.alphas_cumprod)
        weights = snr.clamp(max=way.min_snr).float()
        error = error * (weights / weights.mean())[t]
    return error.mean()


def fit(part: torch.nn.Module, settings: Settings, steps: int,
        loss_of: Callable[[int], Tensor]) -> None:
    "AdamW, warm-up, cosine; the averaged weights stay."
    optimiser = torch.optim.AdamW(part.parameters(), settings.learning_rate,
                                  weight_decay=settings.weight_decay)
    mean = AveragedModel(part, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    for k in range(steps):
        slope = min(1.0, (k + 1) / settings.warmup_steps)
        optimiser.param_groups[0]["lr"] = (
            settings.learning_rate * slope * (0.5 + 0.5 * np.cos(np.pi * k / steps)))
        optimiser.zero_grad()
        loss_of(k).backward()
        torch.nn.utils.clip_grad_norm_(part.parameters(), settings.grad_clip)
        optimiser.step()
        mean.update_parameters(part)
    part.load_state_dict(mean.module.state_dict())


def batch_of(data: Packed, settings: Settings, k: int):
    "Batch k of a run: the same for every way."
    index = batch_indices(len(data), settings.batch_size, k, settings.seed)
    return augment_batch(data.images[index], data.masks[index], settings, k)


def train_prior(settings: Settings, data: Packed, steps: int) -> VerdiffNet:
    "Features and conditional U-Net."
    torch.manual_seed(settings.seed)
    net = make_net(settings, Way()).train()

    def loss_of(k: int) -> Tensor:
        batch = batch_of(data, settings, k)
        logits = net.conditional(net.features(batch.image))
        return F.binary_cross_entropy_with_logits(logits, batch.mask) + soft_dice_loss(
            logits, batch.mask)

    fit(torch.nn.ModuleList([net.features, net.conditional]), settings, steps, loss_of)
    return net.eval()


def conditioned_batches(prior: VerdiffNet, settings: Settings, data: Packed,
                        steps: int) -> list[tuple]:
    "What the frozen part makes of every batch: computed once a seed."
    found = []
    for k in range(steps):
        batch = batch_of(data, settings, 10_000 + k)
        with torch.no_grad():
            known = prior.condition(batch.image)
        found.append((Conditioning(known.image[:, :, :1, :1], known.features.half(),
                                   known.logits[:, :, :1, :1], known.prior.half()),
                      batch.mask.to(torch.uint8), batch.t, batch.noise.half()))
    return found


def train_way(prior: VerdiffNet, settings: Settings, way: Way, batches: list[tuple]) -> VerdiffNet:
    "The diffusion U-Net beside the frozen prior; all ways start from the same weights."
    torch.manual_seed(1000 + settings.seed)
    net = make_net(settings, way)
    for name in ("features", "conditional"):
        getattr(net, name).load_state_dict(getattr(prior, name).state_dict())
    process = net.process()
    net.requires_grad_(False)
    net.diffusion.requires_grad_(True)

    def loss_of(k: int) -> Tensor:
        known, mask, t, noise = batches[k]
        known = Conditioning(*(part.float() for part in known))
        return diffusion_loss(net, known, mask.float(), t, noise.float(), way, process,
                              generator_for(settings.seed, 9, k))

    fit(net.diffusion, settings, len(batches), loss_of)
    return net.eval()


# ---------------------------------------------------------------- walking and measuring


@torch.no_grad()
def walk(net: VerdiffNet, known: Conditioning, noise: Tensor, steps: int, way: Way,
         see: Callable[[int, Tensor], None] = lambda t, x_0: None) -> Tensor:
    "DDIM as `ddim_sample`; where asked, the network sees its last word, or less noise goes back."
    process, f, last = net.process(), known.prior, None
    x = process.prior_sample(f, noise)
    times = timestep_sequence(process.timesteps, steps)
    bars = [*process.alphas_cumprod.tolist(), 1.0]
    for i, after in zip(times, [*times[1:], -1], strict=True):
        t, then = (torch.full((len(x),), k) for k in (i, after))
        last = net.denoise(x, t, told(known, last, way)).clamp(-1, 1)
        see(i, last)
        bar, bar_next = bars[i], bars[after]
        eps = (unshift(process, x, t, f) - bar**0.5 * last) / (1 - bar) ** 0.5
        y = bar_next**0.5 * last + (1 - bar_next) ** 0.5 * eps / way.divide
        x = reshift(process, y, then, f)
    return x


def halves(masks: Tensor) -> Tensor:
    "Share of the pieces of each mask (B, 1, H, W) that are smaller than half its median piece."
    found = []
    for mask in masks[:, 0].numpy():
        areas = np.bincount(label(mask)[0].ravel())[1:]
        found.append(float((areas < np.median(areas) / 2).mean()) if len(areas) else 0.0)
    return torch.tensor(found, dtype=torch.float64)


def scores(samples: Tensor, truth: Tensor) -> dict[str, list[float]]:
    "By image, of masks in [-1, 1], (MEMBERS, B, 1, H, W)."
    cut = samples > 0
    pairs = torch.stack([dice(a, b) for a, b in combinations(cut, 2)])
    return {"one": rounded(torch.stack([dice(m, truth) for m in cut]).mean(0)),
            "mean": rounded(dice(samples.mean(0) > 0, truth)),
            "alike": rounded(pairs.mean(0)),
            "halves": rounded(torch.stack([halves(m) for m in cut]).mean(0))}


def rounded(values: Any) -> list[float]:
    return [round(float(v), 4) for v in values]


def measure(net: VerdiffNet, way: Way, held: Packed, steps: tuple[int, ...] = STEPS) -> dict:
    "Every number by image: {steps: scores}."
    found = {}
    with torch.no_grad():
        known = net.condition(held.images.float() / 255)
    for n in steps:
        index = list(range(0, len(held), EVERY if n >= 50 else 1))
        rows = [(i, e) for i in index for e in range(MEMBERS)]
        part = known.select([i for i, _ in rows])
        x = walk(net, part, SeededNoise(0, rows)(part.prior), n, way)
        samples = x.view(len(index), MEMBERS, *x.shape[1:]).transpose(0, 1)
        found[str(n)] = scores(samples, held.masks[index])
    return found


@torch.no_grad()
def exposure(net: VerdiffNet, way: Way, held: Packed) -> dict[str, list[float]]:
    "Dice of x_0's prediction at each of TIMES, x_t from the truth and from the network's own walk."
    known, process = net.condition(held.images.float() / 255), net.process()
    noise = SeededNoise(1, [(i, 0) for i in range(len(held))])(known.prior)
    x_0, own, true = 2 * held.masks.float() - 1, {}, []
    walk(net, known, noise, 20, way, lambda t, said: own.update({t: said}))
    for t in TIMES:
        at = torch.full((len(held),), t)
        x_t = process.q_sample(x_0, at, known.prior, noise)
        said = net.denoise(x_t, at, told(known, None, way))
        true.append(dice(said > 0, held.masks).mean())
    walked = [dice(own[t] > 0, held.masks).mean() for t in TIMES]
    return {"truth": rounded(true), "walk": rounded(walked)}


def readable(masks: Tensor, process: ShiftedDiffusion, pool: int, seed: int = 0) -> list[float]:
    "Dice of a mask read off its noisy self at each of TIMES by averaging pool x pool and a cut."
    g, share = generator_for(seed, 5), masks.float().mean()
    noise = torch.randn(masks.shape, generator=g)
    small = F.avg_pool2d(masks.float(), pool) > 0.5
    found = []
    for t in TIMES:
        at = torch.full((len(masks),), t)
        y = F.avg_pool2d(process.q_sample(2 * masks.float() - 1, at, None, noise), pool)
        root, spread = process.sqrt_alphas_cumprod[t], process.sigmas[t] / pool
        cut = spread**2 / (2 * root) * torch.log((1 - share) / share)  # Bayes, pixel by pixel
        found.append(dice(y > cut, small).mean())
    return rounded(found)


# ---------------------------------------------------------------- the plan


def settings_of(args: argparse.Namespace, seed: int) -> Settings:
    "The profile with this size, these widths and this seed."
    h, w = args.size
    return load_settings("ablation", [
        f"height={h}", f"width={w}", f"eval_height={h}", f"eval_width={w}", f"seed={seed}",
        f"channels={args.channels}", f"stem={args.stem}", "nsa=off", f"batch_size={args.batch}"])


def once(path: Path, key: str, make: Callable[[], dict]) -> dict:
    "What an earlier call stored for the same plan, or what `make` gives now."
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept
    started, spent = time.perf_counter(), time.process_time()
    kept = {"key": key} | make()
    kept |= {"cpu_seconds": round(time.process_time() - spent, 1),
             "seconds": round(time.perf_counter() - started, 1)}
    write_json(path, kept)
    print(f"{path.stem}: {kept['cpu_seconds']} CPU seconds, {kept['seconds']} in all", flush=True)
    return kept


def save(net: torch.nn.Module, path: Path) -> None:
    with atomic_write(path) as temporary:
        torch.save(net.state_dict(), temporary)


def run_seed(args: argparse.Namespace, seed: int, names: list[str], data: tuple, key: str) -> None:
    "Prior, then each way: weights and numbers of each in the folder."
    settings, (known, held), out = settings_of(args, seed), data, args.out

    def prior_part() -> dict:
        net = train_prior(settings, known, args.prior_steps)
        save(net, out / f"prior-{seed}.pt")
        with torch.no_grad():
            mask = net.condition(held.images.float() / 255).prior > 0
        return {"dice": rounded(dice(mask, held.masks)), "halves": rounded(halves(mask))}

    found = once(out / f"prior-{seed}.json", key, prior_part)
    print(f"prior, seed {seed}: Dice {np.mean(found['dice']):.3f}", flush=True)
    prior = make_net(settings, Way())
    prior.load_state_dict(torch.load(out / f"prior-{seed}.pt", weights_only=True))
    batches: list[tuple] = []

    def way_part(name: str) -> dict:
        way, clock = WAYS[name], time.process_time
        start = clock()
        if way.of:
            net = make_net(settings, way)
            net.load_state_dict(torch.load(out / f"{way.of}-{seed}.pt", weights_only=True))
        else:
            if not batches:
                batches.extend(conditioned_batches(prior.eval(), settings, known, args.steps))
                start = clock()
            net = train_way(prior, settings, way, batches)
            save(net, out / f"{name}-{seed}.pt")
        training = round(clock() - start, 1)
        return {"training_cpu_seconds": training, "scores": measure(net.eval(), way, held),
                "exposure": exposure(net, way, held)}

    for name in names:
        found = once(out / f"{name}-{seed}.json", key, lambda n=name: way_part(n))
        ten = found["scores"]["10"]
        print(f"{name}, seed {seed}: ten steps {np.mean(ten['mean']):.3f}, one sample "
              f"{np.mean(ten['one']):.3f}, alike {np.mean(ten['alike']):.3f}", flush=True)


def gather(args: argparse.Namespace, data: tuple, key: str) -> dict:
    "All parts that are there, as one table."
    def kept(name: str, seed: int) -> dict | None:
        path = args.out / f"{name}-{seed}.json"
        part = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {k: v for k, v in part.items() if k != "key"} if part.get("key") == key else None

    table = {name: {str(s): part for s in args.seeds if (part := kept(name, s))}
             for name in ("prior", *WAYS)}
    minutes = sum(p["cpu_seconds"] for row in table.values() for p in row.values()) / 60
    held = data[1]
    return {"commit": git_revision(), "machine": machine(1), "device": "cpu",
            "cpu_minutes": round(minutes, 1), "data": "phantom" if args.data == "phantom" else
            "radiographs", "training": len(data[0]), "validation": len(held),
            "prior_steps": args.prior_steps, "steps": args.steps,
            "settings": settings_of(args, args.seeds[0]).to_dict(), "times": list(TIMES),
            "truth_halves": rounded(halves(held.masks)),
            "ways": {k: vars(w) for k, w in WAYS.items() if table[k]},
            "readable": {f"{s}, {h}x{w}": readable(masks, make_net(
                settings_of(args, 0), Way(scale=s)).process(), h // args.size[0])
                for s in (1.0, 0.2) for (h, w), masks in big_and_small(args, held)},
            "results": {k: row for k, row in table.items() if row}}


def big_and_small(args: argparse.Namespace, held: Packed) -> list[tuple]:
    "The validation masks at the network's size and drawn eight times as fine."
    h, w = args.size
    return [((h, w), held.masks),
            ((8 * h, 8 * w), held.masks.repeat_interleave(8, 2).repeat_interleave(8, 3))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("VERDIFF_XRAY", "phantom"))
    parser.add_argument("--out", type=Path, default=Path("runs/why_steps"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/why_steps.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[35, 36, 37])
    parser.add_argument("--ways", nargs="+", default=list(CORE), choices=list(WAYS))
    parser.add_argument("--size", type=int, nargs=2, default=(96, 32), metavar=("H", "W"))
    parser.add_argument("--channels", default="8,16,32")
    parser.add_argument("--stem", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prior-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    first = settings_of(args, 0)
    data = sweep_data(first, args.data, args.out / "images", on="validation")
    facts = [first.to_dict(), args.prior_steps, args.steps, list(STEPS), MEMBERS, EVERY]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        run_seed(args, seed, args.ways, data, key)
        with atomic_write(args.json) as temporary:
            table = gather(args, data, key)
            temporary.write_text(json.dumps(table, separators=(",", ":")) + "\n")
    print(f"{args.json}: {args.json.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
