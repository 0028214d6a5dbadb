"""Our diffusion U-Net beside MONAI's DiffusionModelUNet: seconds a step, ratios, in one run.

usage: python bench/networks.py [--full] [--threads N] [--json FILE]

MONAI's network is that of its segmentation tutorial (channels 64, 64, 64, attention at the lowest
level); ours is the diffusion U-Net of `VerdiffNet` with the widths whose number of parameters
comes closest. Each network is timed in both memory formats and gets the faster one; the least
disturbed of the repeats counts. A training step is forward, backward and AdamW; a sampling step
is one forward. With a GPU the same there, in float32 and bfloat16. Where `med_seg_diff_pytorch`
is installed, it gets rows too.
"""
import argparse
import contextlib
import json
import platform
import time
import warnings

import torch
from torch import Tensor, nn

from verdiff.model import VerdiffNet

SMALL, FULL = [(128, 64)], [(256, 256), (752, 256)]


def size_of(net: nn.Module) -> int:
    "Number of parameters."
    return sum(p.numel() for p in net.parameters())


def ours_of_size(parameters: int) -> VerdiffNet:
    "Verdiff-Net with widths (w, 2w, 4w, last), its diffusion U-Net closest to `parameters`."
    widths = [(w, 2 * w, 4 * w, last) for w in (16, 24, 32) for last in range(4 * w, 8 * w + 1, 8)]

    def distance(channels: tuple[int, ...]) -> int:
        with torch.device("meta"):  # shapes only
            return abs(size_of(VerdiffNet(channels=channels).diffusion) - parameters)

    return VerdiffNet(channels=min(widths, key=distance))


class Ours(nn.Module):
    "The diffusion U-Net with its conditioning given, as at every step of sampling."

    def __init__(self, model: VerdiffNet):
        super().__init__()
        self.net, self.features = model.diffusion, model.config.channels[0]
        self.note = f"channels {model.config.channels}"

    def inputs(self, b: int, h: int, w: int) -> tuple[Tensor, ...]:
        x = torch.randn(b, 2 + self.features, h, w)
        return x, torch.randint(0, 1000, (b,)), torch.rand(b, 1, h, w) * 2 - 1

    def forward(self, x: Tensor, t: Tensor, prior: Tensor) -> Tensor:
        return self.net(x, t, prior=prior)


class Theirs(nn.Module):
    "A network that takes the image and the noisy mask side by side."

    def __init__(self, net: nn.Module, split: bool = False):
        super().__init__()
        self.net, self.split, self.note = net, split, ""

    def inputs(self, b: int, h: int, w: int) -> tuple[Tensor, ...]:
        return torch.randn(b, 2, h, w), torch.randint(0, 1000, (b,))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x[:, :1], t, x[:, 1:]) if self.split else self.net(x, t)


def networks() -> dict[str, nn.Module]:
    "Name -> network; ours is made to the size of each other one."
    from monai.networks.nets import DiffusionModelUNet

    monai = DiffusionModelUNet(
        spatial_dims=2, in_channels=2, out_channels=1, channels=(64, 64, 64),
        attention_levels=(False, False, True), num_res_blocks=1, num_head_channels=64)
    nets = {"verdiff": Ours(ours_of_size(size_of(monai))), "monai": Theirs(monai)}
    with contextlib.suppress(ImportError):
        from med_seg_diff_pytorch import Unet

        nets["med-seg-diff"] = Theirs(Unet(dim=16, image_size=128, mask_channels=1,
                                           input_img_channels=1), split=True)
    return nets


def best_seconds(step, device: str, repeats: int) -> float:
    "The shortest of `repeats` after one warm-up: other work on the machine only ever adds."
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(net: nn.Module, b: int, h: int, w: int, train: bool, device: str, bf16: bool,
            repeats: int) -> float | None:
    "Seconds of a step in the faster memory format; None when memory does not suffice."
    best = None
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(device, memory_format=layout)
        args = [a.to(device) for a in net.inputs(b, h, w)]
        args[0] = args[0].contiguous(memory_format=layout)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

        def step(args=args, optimizer=optimizer):
            with torch.set_grad_enabled(train), torch.autocast(device, torch.bfloat16, bf16):
                out = net(*args)
            if train:
                optimizer.zero_grad()
                out.float().square().mean().backward()
                optimizer.step()

        try:
            seconds = best_seconds(step, device, repeats)
        except torch.cuda.OutOfMemoryError:
            continue
        best = seconds if best is None else min(best, seconds)
    return best


def main() -> None:
    "Print the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="256x256 and 752x256, batch 1 and 8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    nets = networks()
    print(f"torch {torch.__version__}, {platform.machine()}, {args.threads} threads"
          + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""))
    for name, net in nets.items():
        print(f"{name}: {size_of(net):,} parameters", net.note)
    if "med-seg-diff" not in nets:
        print("med-seg-diff: not installed (pip install med-seg-diff-pytorch), no rows")
    places = [("cpu", False)] + ([("cuda", False), ("cuda", True)] * torch.cuda.is_available())
    rows = []
    for device, bf16 in places:
        for h, w in FULL if args.full else SMALL:
            for b in (1, 8) if args.full else (1, 4):
                for train in (True, False):
                    row = dict(device=device + (" bf16" if bf16 else ""), size=f"{h}x{w}",
                               batch=b, step="training" if train else "sampling")
                    for name, net in nets.items():
                        row[name] = measure(net, b, h, w, train, device, bf16, args.repeats)
                    rows.append(row)
                    show(row, nets)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


def show(row: dict, nets: dict[str, nn.Module]) -> None:
    "One line: where, the seconds of each and how many times ours is faster."
    text = f"{row['device']:9s} {row['size']:>8s} batch {row['batch']}  {row['step']:8s}"
    for name in nets:
        seconds = row[name]
        text += f"  {name} " + ("no memory" if seconds is None else f"{seconds:.3f} s")
        if name != "verdiff" and seconds and row["verdiff"]:
            text += f" ({seconds / row['verdiff']:.1f}x ours)"
    print(text, flush=True)


if __name__ == "__main__":
    main()
