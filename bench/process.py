"""Eq. (3) and one exact step back: coefficients kept where the images are, against looked up anew.

usage: process.py [--device cuda] [--json FILE]

"Anew" is what verdiff did until 2026-11-27: each coefficient copied t to the CPU, checked it there
and copied its values back; the step back computed all rows of the posterior twice. Both ways must
give the same numbers. The shortest of many interleaved runs counts.
"""
import argparse
import json
import time
from pathlib import Path

import torch
from common import machine
from torch import Tensor

from verdiff.diffusion.forward import ShiftedDiffusion, linear_schedule
from verdiff.diffusion.posterior import PosteriorCoefficients, q_posterior

SHAPES = ((6, 1, 96, 32), (4, 1, 384, 128), (2, 1, 768, 256))


class Anew(ShiftedDiffusion):
    "Each coefficient by way of the CPU, each row computed when it is asked for."

    def coefficient(self, row: Tensor, t: Tensor, like: Tensor) -> Tensor:
        if t.ndim != 1 or len(t) not in (1, len(like)):
            raise ValueError("t")
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise ValueError("t")
        index = t.cpu().long()
        if int(index.min()) < 0 or int(index.max()) >= self.timesteps:
            raise ValueError("t")
        return row[index].to(like.dtype).to(like.device).view(-1, *[1] * (like.ndim - 1))

    def q_sample(self, x_0: Tensor, t: Tensor, prior: Tensor | None, noise: Tensor) -> Tensor:
        s = self.coefficient(self.sigmas, t, x_0)
        root = self.coefficient(self.alphas_cumprod.sqrt(), t, x_0)
        return root * x_0 + s * (self.prior_or_zero(prior, x_0) + noise)

    def rows(self) -> PosteriorCoefficients:
        bar, bar_prev = self.alphas_cumprod, self.alphas_cumprod_prev
        a = bar_prev.sqrt() * self.betas / (1 - bar)
        b = self.alphas.sqrt() * (1 - bar_prev) / (1 - bar)
        c = self.sigmas_prev - b * self.sigmas
        return PosteriorCoefficients(a, b, c, (1 - bar_prev) / (1 - bar) * self.betas)

    def step_back(self, x_0: Tensor, t: Tensor, prior: Tensor | None, x_t: Tensor) -> tuple:
        c, k = self.rows().prior, self.rows()
        a, b, c, variance = (self.coefficient(row, t, x_t) for row in (k.x_0, k.x_t, c, k.variance))
        return a * x_0 + b * x_t + c * self.prior_or_zero(prior, x_t), variance


KEPT, ANEW = (kind(linear_schedule()) for kind in (ShiftedDiffusion, Anew))
CALLS = {  # x, t, f, another x
    "eq_3": (lambda *a: ANEW.q_sample(*a), lambda *a: KEPT.q_sample(*a)),
    "step_back": (lambda x, t, f, x_t: ANEW.step_back(x, t, f, x_t)[0],
                  lambda x, t, f, x_t: q_posterior(KEPT, x, x_t, t, f)[0]),
}


def compare(anew, kept, shape: tuple[int, ...], device: str, repeats: int = 300) -> dict:
    "Microseconds of both and their ratio."
    g = torch.Generator().manual_seed(0)
    x, f, noise = (torch.randn(shape, generator=g).to(device) for _ in range(3))
    t = torch.randint(KEPT.timesteps, shape[:1], generator=g).to(device)
    torch.testing.assert_close(kept(x, t, f, noise), anew(x, t, f, noise), rtol=0, atol=0)
    best = {anew: float("inf"), kept: float("inf")}
    for _ in range(repeats):
        for call in best:
            start = time.perf_counter()
            call(x, t, f, noise)
            if device != "cpu":
                torch.cuda.synchronize()
            best[call] = min(best[call], time.perf_counter() - start)
    return {"shape": list(shape), "anew_us": round(1e6 * best[anew], 1),
            "kept_us": round(1e6 * best[kept], 1), "ratio": round(best[anew] / best[kept], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {"machine": machine(1), "device": args.device}
    for name, pair in CALLS.items():
        found[name] = [compare(*pair, shape, args.device) for shape in SHAPES]
        for row in found[name]:
            print(f"{name:10s} {'×'.join(map(str, row['shape'])):14s} anew {row['anew_us']:7.1f},"
                  f" kept {row['kept_us']:7.1f} µs: {row['ratio']} times")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
