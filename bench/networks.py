"""Our diffusion U-Net beside other diffusion U-Nets: seconds a step and ratios, in one run.

usage: python bench/networks.py [--full] [--sizes 256x256 ...] [--batches 1 8] [--json FILE] ...

The others: MONAI's `DiffusionModelUNet` with the settings of its segmentation tutorial (channels
64, 64, 64, attention at the lowest level), and, where it is installed
(`pip install med-seg-diff-pytorch`), the network of med-seg-diff-pytorch. Each is compared with a
diffusion U-Net of `VerdiffNet` that has as many parameters as it has (within 1 %; of those that
do the one with the widest first level, which is the slowest). Each network is timed in both
memory formats and gets the faster one; the least disturbed of the repeats counts. A training step
is forward, backward and AdamW; a sampling step is one forward. With a GPU the same there, in
float32 and in bfloat16. With one thread on a CPU the clock is the processor's time of this
process, so that other work on the machine counts little.
"""
import argparse
import json
import platform
import re
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from verdiff.lab.methods import MonaiDiffusion
from verdiff.networks.model import VerdiffNet
from verdiff.settings import load_settings

SMALL, FULL = ["128x64"], ["256x256", "752x256"]
LAYOUTS = torch.contiguous_format, torch.channels_last


def size_of(net: nn.Module) -> int:
    "Number of parameters."
    return sum(p.numel() for p in net.parameters())


def ours_of_size(parameters: int) -> VerdiffNet:
    """Verdiff-Net whose diffusion U-Net has this many parameters within 1 %, the widest such.

    Widths have the form of the profiles: (w, 2w, 4w, last), or (w, 2w, 4w, 6w, last) as in `gpu`.
    """
    heads = [(w, 2 * w, 4 * w, *more) for w in range(16, 57, 8) for more in ((), (6 * w,))]
    shapes = [(*head, last) for head in heads for last in range(head[-1], 8 * head[0] + 1, 8)]

    def distance(channels: tuple[int, ...]) -> float:
        with torch.device("meta"):  # shapes only
            return abs(size_of(VerdiffNet(channels=channels).diffusion) / parameters - 1)

    far = {shape: distance(shape) for shape in shapes}
    near = [shape for shape in shapes if far[shape] < 0.01]
    return VerdiffNet(channels=max(near) if near else min(shapes, key=far.get))


class Ours(nn.Module):
    "The diffusion U-Net with its conditioning given, as at every step of sampling."

    def __init__(self, model: VerdiffNet):
        super().__init__()
        self.net, self.features = model.diffusion, model.config.channels[0]
        self.note = f"channels {model.config.channels}"

    def inputs(self, b: int, h: int, w: int) -> tuple[Tensor, ...]:
        "The fused input, the timesteps, the prior."
        x = torch.randn(b, 2 + self.features, h, w)
        return x, torch.randint(0, 1000, (b,)), torch.rand(b, 1, h, w) * 2 - 1

    def forward(self, x: Tensor, t: Tensor, prior: Tensor) -> Tensor:
        return self.net(x, t, prior=prior)


class Theirs(nn.Module):
    "A network that takes the noisy mask and the image, side by side or one after the other."

    def __init__(self, net: nn.Module, note: str, split: bool = False):
        super().__init__()
        self.net, self.note, self.split = net, note, split

    def inputs(self, b: int, h: int, w: int) -> tuple[Tensor, ...]:
        "Noisy mask and image as two channels, the timesteps."
        return torch.randn(b, 2, h, w), torch.randint(0, 1000, (b,))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x[:, :1], t, x[:, 1:]) if self.split else self.net(x, t)


def monai_network(height: int, width: int) -> Theirs:
    "DiffusionModelUNet as MONAI's tutorial for segmentation by diffusion builds it."
    return Theirs(MonaiDiffusion(load_settings("comparison")).net, "channels (64, 64, 64)")


def med_seg_diff_network(height: int, width: int) -> Theirs:
    """med-seg-diff-pytorch's Unet of 16 channels; ImportError when it is not installed.

    Its Fourier maps are square; these are of the image's shape, so that 752x256 runs at all.
    """
    from med_seg_diff_pytorch import Unet
    from med_seg_diff_pytorch.med_seg_diff_pytorch import Conditioning

    def conditioning(side: int, dim: int, image_size: int) -> nn.Module:
        module = Conditioning(side, dim, dynamic=False)
        module.ff_parser_attn_map = nn.Parameter(torch.ones(dim, side, side * width // height))
        return module

    net = Unet(dim=16, image_size=height, mask_channels=1, input_img_channels=1,
               conditioning_klass=conditioning)
    return Theirs(net, "dim 16, Fourier maps included", split=True)


RIVALS = {"monai": monai_network, "med-seg-diff": med_seg_diff_network}


def pairs_for(height: int, width: int) -> dict[str, tuple[Ours, Theirs]]:
    "Rival -> (ours with as many parameters, it); a rival that is not installed is left out."
    pairs = {}
    for name, build in RIVALS.items():
        try:
            theirs = build(height, width)
        except ImportError as error:
            print(f"{name}: not installed ({error.name}), no rows")
            continue
        pairs[name] = Ours(ours_of_size(size_of(theirs))), theirs
    return pairs


def best_seconds(step, device: str, repeats: int, patience: float) -> float:
    "The shortest of `repeats` after a warm-up; a step longer than `patience` is timed once."
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock, times = time.process_time if alone else time.perf_counter, []
    for _ in range(repeats + 1):
        start = clock()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
        if times[-1] > patience and device == "cpu":
            return min(times)
    return min(times[1:])


def make_step(net: nn.Module, args: list[Tensor], train: bool, device: str, bf16: bool):
    "A function that does one training or one sampling step."
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def step() -> None:
        with torch.set_grad_enabled(train), torch.autocast(device, torch.bfloat16, bf16):
            out = net(*args)
        if train:
            optimizer.zero_grad()
            out.float().square().mean().backward()
            optimizer.step()

    return step


def measure(net: nn.Module, shape: tuple[int, int, int], train: bool, device: str, bf16: bool,
            options: argparse.Namespace) -> float | None:
    "Seconds of a step in the faster memory format; None when memory does not suffice."
    best, kept = None, getattr(net, "layout", {})
    for layout in [kept[train, device]] if (train, device) in kept else LAYOUTS:
        net.to(device, memory_format=layout)
        args = [a.to(device) for a in net.inputs(*shape)]
        args[0] = args[0].contiguous(memory_format=layout)
        try:
            step = make_step(net, args, train, device, bf16)
            seconds = best_seconds(step, device, options.repeats, options.patience)
        except RuntimeError as error:
            if not re.search("out of memory|allocate memory", str(error)):
                raise
            continue
        if best is None or seconds < best:
            best, winner = seconds, layout
    if best is not None and device == "cpu" and best > options.patience:  # no second trial
        net.layout = {**kept, (train, device): winner}
    return best


def rows_of(size: str, options: argparse.Namespace) -> list[dict]:
    "All rows of one image size, printed as they come."
    height, width = map(int, size.split("x"))
    pairs, rows = pairs_for(height, width), []
    for name, both in pairs.items():
        for who, net in zip(("verdiff", name), both, strict=True):
            print(f"{size} {who}: {size_of(net):,} parameters, {net.note}", flush=True)
    places = [("cpu", False)] + [("cuda", False), ("cuda", True)] * torch.cuda.is_available()
    for device, bf16 in places:
        for batch in options.batches:
            for name, (ours, theirs) in pairs.items():
                for train in (False, True):
                    shape = batch, height, width
                    a, b = (measure(net, shape, train, device, bf16, options)
                            for net in (ours, theirs))
                    rows.append(dict(device=device + " bf16" * bf16, size=size, batch=batch,
                                     step="training" if train else "sampling", other=name,
                                     parameters=[size_of(ours), size_of(theirs)],
                                     verdiff_seconds=a, other_seconds=b,
                                     ratio=b / a if a and b else None))
                    show(rows[-1])
    return rows


def show(row: dict) -> None:
    "One line: where, the seconds of both and how many times ours is faster."
    a, b = (f"{s:.3f} s" if s else "no memory"
            for s in (row["verdiff_seconds"], row["other_seconds"]))
    ratio = f", {row['ratio']:.1f} times faster" if row["ratio"] else ""
    print(f"{row['device']:9s} {row['size']:>8s} batch {row['batch']}  {row['step']:8s}  "
          f"{row['other']} {b}, verdiff {a}{ratio}", flush=True)


def main() -> None:
    "Print the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="256x256 and 752x256, batch 1 and 8")
    parser.add_argument("--sizes", nargs="+", metavar="HxW", help="instead of the usual ones")
    parser.add_argument("--batches", nargs="+", type=int, metavar="B")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=10.0, metavar="SECONDS",
                        help="on a CPU, a step that takes longer is timed only once (default: 10)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    options.sizes = options.sizes or (FULL if options.full else SMALL)
    options.batches = options.batches or ([1, 8] if options.full else [1, 4])
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads"
          + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""))
    rows = [row for size in options.sizes for row in rows_of(size, options)]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = dict(torch=torch.__version__, threads=options.threads, rows=rows)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
