"""A whole radiograph, with its uncertainty: ours beside MONAI's and med-seg-diff's, in one run.

usage: python bench/segment.py [--size 768x256] [--threads N] [--out bench/results]

Ours: `Segmenter.predict` with the network that travels with the package (10 steps, 5 samples), and
a `VerdiffNet` of as many parameters as MONAI's that works at the full size. MONAI's: the network of
its segmentation tutorial, run by its own DiffusionInferer with its DDPM and DDIM schedulers, image
and noise side by side as there. med-seg-diff-pytorch's, where it is installed: its network, one
evaluation at a time. Nobody waits for 5,000 evaluations: what is marked "extrapolated" is the
measured time of one evaluation multiplied by their number. The weights do not matter for the time;
parameters are those of the network that is evaluated again and again.
Then how ours grows with pixels, steps, samples and images, and MONAI's with pixels. Prints a table
and writes segment.json and segment.png.
"""
import argparse
import json
import warnings
from pathlib import Path

import torch
from common import Cost, cost, machine
from networks import med_seg_diff_network, monai_network, ours_of_size, size_of

from verdiff.data.phantoms import draw_phantom
from verdiff.diffusion.sampling import sample
from verdiff.segmentation.segmenter import Segmenter

STEPS, ENSEMBLE = 10, 5  # ours
TUTORIAL_STEPS = 1000  # MONAI's tutorial samples with all of them, for each of 5 samples


def ours_on_files(segmenter: Segmenter, size: tuple[int, int], repeats: int) -> dict:
    "The command's way: a radiograph of this size through the canvas and back."
    image = draw_phantom(seed=0, image_size=size).image
    got = cost(lambda: segmenter.predict(image, STEPS, ENSEMBLE), str(segmenter.device), repeats)
    canvas = "x".join(map(str, segmenter.model.size))
    return row(f"verdiff, trained, canvas {canvas}", size_of(segmenter.model.diffusion), STEPS,
               ENSEMBLE, got)


def ours(model, size, device, steps=STEPS, ensemble=ENSEMBLE, images=1, repeats=1) -> Cost:
    "A batch of images at the network's own size."
    batch = torch.rand(images, 1, *size, device=device)
    return cost(lambda: sample(model, batch, steps, ensemble), device, repeats)


def monai_sampler(size: tuple[int, int], device: str):
    "A function (scheduler class, steps) -> one sample of MONAI's tutorial network."
    from monai.inferers import DiffusionInferer

    net = monai_network(*size).net.to(device).eval()
    image = torch.rand(1, 1, *size, device=device)

    @torch.no_grad()
    def run(scheduler_class, steps: int) -> torch.Tensor:
        scheduler = scheduler_class(num_train_timesteps=1000)
        scheduler.set_timesteps(steps)
        return DiffusionInferer(scheduler).sample(
            torch.randn_like(image), net, scheduler, conditioning=image, mode="concat",
            verbose=False)

    return run, size_of(net)


def theirs(size: tuple[int, int], device: str) -> list[dict]:
    "MONAI by DDPM and DDIM, and med-seg-diff where it is installed."
    from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

    run, parameters = monai_sampler(size, device)
    rows = []
    for name, scheduler, steps in (("DDPM", DDPMScheduler, TUTORIAL_STEPS),
                                   ("DDIM", DDIMScheduler, STEPS)):
        got = cost(lambda s=scheduler: run(s, 1), device, 1)
        rows.append(row(f"MONAI tutorial, {name}", parameters, steps, ENSEMBLE, got, True))
    try:
        wrapped = med_seg_diff_network(*size).to(device).eval()
    except ImportError:
        print("med-seg-diff-pytorch is not installed: no row")
        return rows
    inputs = [x.to(device) for x in wrapped.inputs(1, *size)]
    got = cost(torch.no_grad()(lambda: wrapped(*inputs)), device, 1)
    return [*rows, row("med-seg-diff-pytorch, dim 16", size_of(wrapped), TUTORIAL_STEPS, ENSEMBLE,
                       got, True)]


def row(name: str, parameters: int, steps: int, samples: int, got: Cost,
        extrapolated: bool = False) -> dict:
    "One line of the table; `got` is of one evaluation where the total is extrapolated."
    evaluations = steps * samples
    return {"method": name, "parameters": parameters, "steps": steps, "samples": samples,
            "evaluations": evaluations, "extrapolated": extrapolated,
            "seconds": got.seconds * (evaluations if extrapolated else 1),
            "seconds_per_evaluation": got.seconds / (1 if extrapolated else evaluations),
            "peak_megabytes": got.megabytes}


def show(rows: list[dict]) -> None:
    "The table, and the ratios to the first row."
    print(f"{'':34s}{'parameters':>11s}{'evaluations':>13s}{'seconds':>11s}{'peak MB':>9s}"
          f"{'times ours':>12s}")
    for r in rows:
        memory = "" if r["peak_megabytes"] is None else f"{r['peak_megabytes']:.0f}"
        print(f"{r['method']:34s}{r['parameters']:11,d}{r['steps']:>7d} x {r['samples']:<3d}"
              f"{r['seconds']:11,.1f}{memory:>9s}{r['seconds'] / rows[0]['seconds']:12,.1f}"
              f"{'  extrapolated from one evaluation' * r['extrapolated']}", flush=True)


def scaling(segmenter: Segmenter, size: tuple[int, int], device: str) -> dict[str, list]:
    "Seconds and megabytes against pixels, steps, samples and images; the others held fixed."
    from monai.networks.schedulers import DDIMScheduler

    model, canvas = segmenter.model, (192, 64)
    sizes = [s for s in ((96, 32), (192, 64), (384, 128), (768, 256)) if s[0] <= size[0]]
    out: dict[str, list] = {"pixels": [], "monai_pixels": [], "steps": [], "samples": [],
                            "images": []}
    for s in sizes:
        out["pixels"].append([s[0] * s[1], *ours(model, s, device, 1, 1)])
        run, _ = monai_sampler(s, device)
        got = cost(lambda run=run: run(DDIMScheduler, 1), device, 1)
        out["monai_pixels"].append([s[0] * s[1], *got])
    for n in (1, 2, 5, 10, 20):
        out["steps"].append([n, *ours(model, canvas, device, n, 1)])
        out["samples"].append([n, *ours(model, canvas, device, 2, n)])
    for n in (1, 2, 4, 8):
        out["images"].append([n, *ours(model, canvas, device, 2, 2, n)])
    return out


def draw(results: dict, path: Path) -> None:
    "Four panels: seconds against pixels, steps, samples and images."
    from matplotlib.figure import Figure

    figure = Figure((9, 2.6), layout="constrained")
    axes = figure.subplots(1, 4)
    titles = {"pixels": "pixels, one evaluation", "steps": "steps", "samples": "samples",
              "images": "images at once"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        x, seconds, _ = zip(*results["scaling"][key], strict=True)
        axis.loglog(x, seconds, "o-", color="#443983", label="verdiff")
        if key == "pixels":
            x, seconds, _ = zip(*results["scaling"]["monai_pixels"], strict=True)
            axis.loglog(x, seconds, "s--", color="darkorange", label="MONAI")
            axis.legend(fontsize=7, frameon=False)
        else:
            axis.set_xticks(x, map(str, x))
        axis.minorticks_off()
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("seconds", fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    "Print the table, write the JSON and the plot."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="768x256", metavar="HxW")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", help="default: the network that travels with the package")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    size, device = tuple(map(int, options.size.split("x"))), options.device

    segmenter = Segmenter.from_pretrained(options.model, device)
    rows = [ours_on_files(segmenter, size, 2)]
    rivals = theirs(size, device)
    full = ours_of_size(rivals[0]["parameters"]).to(device).eval()
    rows.append(row(f"verdiff, untrained, at {options.size}", size_of(full.diffusion), STEPS,
                    ENSEMBLE, ours(full, size, device, repeats=int(device != "cpu"))))
    rows += rivals
    about = machine(options.threads) | {"device": device, "radiograph": options.size}
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    show(rows)
    slow = rows[2]
    print(f"1,000 steps x 5 samples of MONAI's tutorial network: {slow['seconds'] / 3600:.1f} h, "
          f"extrapolated; ours takes {rows[0]['seconds']:.2f} s, "
          f"{slow['seconds'] / rows[0]['seconds']:,.0f} times less"
          f" ({slow['seconds'] / rows[1]['seconds']:,.0f} at the full size)")
    results = {"machine": about, "rows": rows, "scaling": scaling(segmenter, size, device)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "segment.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, options.out / "segment.png")
    print(f"written: {options.out / 'segment.json'}, {options.out / 'segment.png'}")


if __name__ == "__main__":
    main()
