# %% [markdown]
# # The methods
# > The paper's eight ways to find a spine and some more, each from its library

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/methods.ipynb)

# %%
#| default_exp lab.methods

# %%
#| export
import importlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verdiff.diffusion.sampling import sample
from verdiff.files import VerdiffError
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.networks.unet import pad_to_multiple
from verdiff.settings import Settings
from verdiff.training.batches import generator_for
from verdiff.training.loss import soft_dice_loss, training_loss

# %%
import warnings

from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.settings import load_settings

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)


# %% [markdown]
# ## 1 · What "the same" means
#
# Is a network better, or was it tuned for longer? The paper's Table 1 cannot tell. Here all else is held equal:
#
# * the same batches in the same order, with the same random augmentation;
# * the same optimiser, learning rate and steps, and the *last* averaged weights: no weights are chosen by a score (the one step of the diffusions is: page [real radiographs](xray.ipynb) saw test films);
# * the same masks at the same size, and the same four measures.
#
# Only time cannot be equal: a step of one method costs many times a step of another. So the table prints seconds too. A method is a function from settings to an untrained network, under a name:

# %%
#| export
class Missing(VerdiffError):
    "A method cannot run here: a package or its weights are missing. The message says which."


# %%
#| export
@dataclass(frozen=True)
class Method:
    "One line of the table, before it is trained."

    name: str  # on the command line
    label: str  # in the table
    build: Callable[[Settings], nn.Module]  # an untrained network; raises Missing
    note: str = ""  # what a reader must know to judge it


METHODS: dict[str, Method] = {}


# %%
#| export
def method(
    name: str,  # on the command line; a second one of that name replaces the first
    label: str,  # in the table
    note: str = "",
) -> Callable[[Callable[[Settings], nn.Module]], Callable[[Settings], nn.Module]]:
    "Decorator: enter a function `settings -> network` into the registry."
    def enter(build: Callable[[Settings], nn.Module]) -> Callable[[Settings], nn.Module]:
        METHODS[name] = Method(name, label, build, note)
        return build

    return enter


# %% [markdown]
# `Plain` wraps a network that maps an image $(B, 1, H, W)$ in $[0, 1]$ to logits of the same shape. It adds a border where sides must divide by 32, the loss of our own prior (cross entropy plus soft Dice), and the probability. nnU-Net gives several logits, each half as large as the one before and counting half as much ("deep supervision").

# %%
#| export
def supervised_loss(
    outs: Sequence[Tensor],  # logits, finest first; each coarser one counts half as much
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
) -> Tensor:  # a scalar
    "Cross entropy plus soft Dice, as our prior learns them; a mean over several outputs."
    total = torch.zeros((), device=mask.device)
    for k, logits in enumerate(outs):
        small = F.interpolate(mask, logits.shape[-2:], mode="nearest")
        one = bce_weight * F.binary_cross_entropy_with_logits(logits, small)
        total = total + 0.5 ** k * (one + dice_weight * soft_dice_loss(logits, small))
    return total / sum(0.5 ** k for k in range(len(outs)))


# %%
square, wish = torch.zeros(1, 1, 50, 33), torch.zeros(1, 1, 64, 64)
assert pad_to_multiple(square, 32).shape == wish.shape
print("loss of knowing nothing:", round(supervised_loss([wish, wish[..., ::2, ::2]], wish).item(),
                                        3), "= log 2 + 1:", round(np.log(2) + 1, 3))


# %%
#| export
class Plain(nn.Module):
    "A network image -> logits (or a list of them, finest first), with loss and probability."

    def __init__(self, net: nn.Module, settings: Settings, multiple: int = 1):
        super().__init__()
        self.net, self.multiple = net, multiple  # height and width must divide by it
        self.weights = settings.bce_weight, settings.dice_weight

    def logits(self, image: Tensor) -> list[Tensor]:
        "All outputs for an image, padded to the multiple, finest first."
        out = self.net(pad_to_multiple(image.float(), self.multiple))
        return [x.float() for x in (out if isinstance(out, (list, tuple)) else [out])]

    def loss(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        "Of the mask; t and noise are for those who need them."
        return supervised_loss(self.logits(image), pad_to_multiple(mask.float(), self.multiple),
                               *self.weights)

    def probability(self, image: Tensor, first_index: int = 0) -> Tensor:
        "(B, 1, H, W) in [0, 1]."
        height, width = image.shape[-2:]
        return torch.sigmoid(self.logits(image)[0][..., :height, :width])


# %% [markdown]
# Three methods to begin with: MONAI's U-Net, Verdiff-Net, and its conditional U-Net alone (the *prior*). Verdiff-Net brings its own `loss` and `probability`, from pages [13](../13_training.ipynb) and [14](../14_sampling.ipynb).

# %%
#| export
class Diffusion(nn.Module):
    "A `VerdiffNet` as a method: Eq. (10) to train, the sampler's mean to predict."

    def __init__(self, settings: Settings):
        super().__init__()
        self.net, self.settings = VerdiffNet(VerdiffConfig.from_settings(settings)), settings
        self.process = self.net.process()

    def loss(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        "Eq. (10)."
        s = self.settings
        return training_loss(self.net, image, mask, t, noise, s.bce_weight, s.dice_weight,
                             self.process)["total"]

    def probability(self, image: Tensor, first_index: int = 0) -> Tensor:
        "The mean of the ensemble, (B, 1, H, W) in [0, 1]."
        s = self.settings
        return sample(self.net, image, s.sample_steps, s.ensemble, s.seed, s.sampler,
                      first_index).mean


# %%
#| export
@method("verdiff", "Verdiff-Net (ours)")
def build_verdiff(settings: Settings) -> nn.Module:
    "Both U-Nets, MSFM, NSA, the shift."
    return Diffusion(settings)


# %%
#| export
@method("prior", "prior alone (ours)", "the conditional U-Net with MSFM, no diffusion")
def build_prior(settings: Settings) -> nn.Module:
    "Figure 3 without its lower half."
    net = VerdiffNet(VerdiffConfig.from_settings(settings))
    return nn.Sequential(net.features, net.conditional)


# %%
#| export
@method("unet", "U-Net (MONAI)")
def build_unet(settings: Settings) -> nn.Module:
    "MONAI's U-Net with two residual units a level, as wide as ours."
    from monai.networks.nets import UNet

    c = settings.channels
    return Plain(UNet(2, 1, 1, c, (2,) * (len(c) - 1), num_res_units=2), settings,
                 2 ** (len(c) - 1))


# %%
#| export
def make_network(
    name: str,  # of a method
    settings: Settings,
) -> nn.Module:  # with `loss` and `probability`
    "Build a method's network from the seed; wrapped in `Plain` unless it knows how to learn."
    torch.manual_seed(settings.seed)
    try:
        net = METHODS[name].build(settings)
    except ValueError as error:
        if isinstance(error, VerdiffError):
            raise
        raise VerdiffError(f"{METHODS[name].label} cannot be built with channels = "
                           f"{','.join(map(str, settings.channels))} at {settings.height}x"
                           f"{settings.width}: {error}") from None
    return net if hasattr(net, "loss") else Plain(net, settings)


# %%
tiny = load_settings("smoke", ["height=96", "width=32", "channels=8,16,32", "timesteps=1000",
                               "max_steps=60", "batch_size=8",
                               "learning_rate=0.004", "warmup_steps=5", "rotation=10",
                               "fit=letterbox", "checkpoint_every=30",
                               "ema_decay=0.9", "sample_steps=1", "ensemble=2"])
films = pack(PhantomSet(size=tiny.size, split="training", n_training=48), progress=False)
test = pack(PhantomSet(size=(192, 64), split="test", n_test=16), progress=False)
b, m = films.images[:4].float() / 255, films.masks[:4].float()
g = torch.Generator().manual_seed(35)
t, noise = torch.randint(1000, (4,), generator=g), torch.randn(m.shape, generator=g)
for name in METHODS:
    net = make_network(name, tiny)
    with torch.no_grad():
        p = net.eval().probability(b)
        size = sum(q.numel() for q in net.parameters())
        loss = net.loss(b, m, t, noise).item()
        print(f"{name:8s} {size:8,} parameters, loss {loss:.3f}", tuple(p.shape))
    assert p.shape == b.shape and 0 <= p.min() and p.max() <= 1


# %% [markdown]
# Where an interval excludes zero, a method is "significantly" better than itself. The arithmetic is right: an interval over *films* says whether these weights would win on other films. It does not know that another seed gives other weights. **Read every interval on this page with the spread over seeds beside it.** A bold number in a table has neither.
#
# ## 5 · The others, from their libraries
#
# Now the others join; their libraries are an extra (`pip install "verdiff[compare]"`). Where a library or a weight file is missing, the row says so.

# %%
#| export
def need(
    *packages: str,  # names to import, the first one is returned
) -> ModuleType:
    "Import what a method needs; Missing says how to get it."
    try:
        return [importlib.import_module(p) for p in packages][0]
    except ImportError as error:
        name = (error.name or packages[0]).split(".")[0]
        raise Missing(f"needs the package {name}: pip install \"verdiff[compare]\"") from None


# %%
#| export
def need_torchvision() -> ModuleType:
    "torchvision's segmentation models, also where its wheel was made for another build of torch."
    try:
        return need("torchvision.models.segmentation")
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        if "does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):  # declared, not implemented: segmentation uses neither
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    need_torchvision.library = library  # an operator lives as long as its library
    return need("torchvision.models.segmentation")


# %% [markdown]
# **FCN and DeepLabv3** are torchvision's. Their backbones are usually trained on ImageNet first; here they start from nothing, like everybody else. The small backbone is for laptops, the large one for a GPU.

# %%
#| export
def imagenet(
    image: Tensor,  # grey, (B, 1, H, W) in [0, 1]
) -> Tensor:  # (B, 3, H, W)
    "Three channels in the units of ImageNet."
    mean, sd = (image.new_tensor(v).view(1, 3, 1, 1) for v in
                ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (image - mean) / sd  # b 1 h w - 1 3 1 1 -> b 3 h w


# %%
#| export
class Colour(nn.Module):
    "Grey to three channels in ImageNet's units, and the entry \"out\" of torchvision's answer."

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        "(B, 1, H, W) in [0, 1] -> logits (B, 1, H, W)."
        return self.net(imagenet(image))["out"]


# %%
#| export
def torchvision_network(
    settings: Settings,
    name: str,  # a function of torchvision.models.segmentation
    fully_convolutional: bool = False,  # put the head of FCN on that backbone
) -> nn.Module:
    "A segmentation network of torchvision with one class, from nothing."
    models = need_torchvision()
    if settings.batch_size < 2:
        raise Missing("cannot learn from batches of one: batch norm after a global average; "
                      "--set batch_size=2")
    net = getattr(models, name)(weights=None, weights_backbone=None, num_classes=1)
    if fully_convolutional:
        first = next(m for m in net.classifier.modules() if isinstance(m, nn.Conv2d))
        net.classifier = models.fcn.FCNHead(first.in_channels, 1)
    return Plain(Colour(net), settings)


# %%
#| export
@method("fcn", "FCN (torchvision, MobileNetV3)", "its head on the small backbone, from nothing")
def build_fcn(settings: Settings) -> nn.Module:
    "torchvision's FCN head on MobileNetV3."
    return torchvision_network(settings, "deeplabv3_mobilenet_v3_large", True)


# %%
#| export
@method("deeplabv3", "DeepLabv3 (torchvision, MobileNetV3)", "from nothing")
def build_deeplabv3(settings: Settings) -> nn.Module:
    "torchvision's DeepLabv3 on MobileNetV3."
    return torchvision_network(settings, "deeplabv3_mobilenet_v3_large")


# %%
#| export
@method("fcn_resnet50", "FCN (torchvision, ResNet-50)", "for a GPU; from nothing")
def build_fcn_resnet50(settings: Settings) -> nn.Module:
    "torchvision's FCN on ResNet-50."
    return torchvision_network(settings, "fcn_resnet50")


# %%
#| export
@method("deeplabv3_resnet50", "DeepLabv3 (torchvision, ResNet-50)", "for a GPU; from nothing")
def build_deeplabv3_resnet50(settings: Settings) -> nn.Module:
    "torchvision's DeepLabv3 on ResNet-50."
    return torchvision_network(settings, "deeplabv3_resnet50")


# %% [markdown]
# **nnU-Net v2** is less a network than a planner: from the shape and spacing of the images (a "fingerprint") it derives depth, widths and kernels. *Its* planner and *its* function build the network; our loop trains it. That is nnU-Net's architecture at our budget, not nnU-Net; section 6 shows how its trainer joins.

# %%
#| export
@contextmanager
def nnunet_home(
    size: tuple[int, int],  # (height, width)
    images: int,  # how many there are
) -> Iterator[str]:  # name of the data set
    "A passing folder with all that nnU-Net's planner wants to know: words and a fingerprint."
    words = {"channel_names": {"0": "xray"}, "labels": {"background": 0, "vertebra": 1},
             "numTraining": images, "file_ending": ".png", "dataset": {}}
    numbers = {"spacings": [[999.0, 1.0, 1.0]], "shapes_after_crop": [[1, *size]],
               "median_relative_size_after_cropping": 1.0}
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    with tempfile.TemporaryDirectory() as tmp, patch.dict(os.environ, dict.fromkeys(names, tmp)):
        home = Path(tmp) / "Dataset001_Spine"
        home.mkdir()
        (home / "dataset.json").write_text(json.dumps(words))
        (home / "dataset_fingerprint.json").write_text(json.dumps(numbers))
        yield home.name


# %%
#| export
def nnunet_plan(
    size: tuple[int, int],  # (height, width)
    images: int,  # how many there are
) -> dict[str, Any]:  # "patch_size", "batch_size", "architecture", ...
    "What nnU-Net's own planner says for grey images of that size."
    with nnunet_home(size, images) as name:
        package = "nnunetv2.experiment_planning.experiment_planners"
        planner = need(f"{package}.default_experiment_planner").ExperimentPlanner(name)
        voxels = float(images * np.prod(size))
        return planner.get_plans_for_configuration([1.0, 1.0], list(size), "2d", voxels, {})


# %%
#| export
@method("nnunet", "nnU-Net v2 (its plan, our loop)",
        "planner and network of nnunetv2, deep supervision")
def build_nnunet(settings: Settings) -> nn.Module:
    "The network of nnU-Net's plan."
    plan = nnunet_plan(settings.size, 432)["architecture"]
    make = need("nnunetv2.utilities.get_network_from_plans").get_network_from_plans
    net = make(plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 1, 1,
               deep_supervision=True)
    strides = np.prod(plan["arch_kwargs"]["strides"], axis=0)
    return Plain(net, settings, int(strides.max()))


# %% [markdown]
# **Swin-U-Net** is MONAI's SwinUNETR in two dimensions, with a Swin transformer as encoder. (In the paper's reference the decoder is one too; no library keeps it.)
#
# **SAM** is the real model with its weights (375 MB from the Hugging Face Hub). Its encoder is frozen, its prompt is the box of the whole image, and our loop trains the mask decoder.

# %%
#| export
@method("swin", "Swin-U-Net (MONAI SwinUNETR)", "Swin encoder, convolutional decoder")
def build_swin(settings: Settings) -> nn.Module:
    "MONAI's SwinUNETR for two dimensions."
    from monai.networks.nets import SwinUNETR

    features = 12 * max(1, round(settings.channels[0] / 12))
    return Plain(SwinUNETR(1, 1, feature_size=features, spatial_dims=2), settings, 32)


# %%
#| export
class PromptedSAM(nn.Module):
    "A `transformers.SamModel` as a map from image to logits; only its mask decoder learns."

    def __init__(self, sam: nn.Module):
        super().__init__()
        self.sam = sam
        for name, weight in sam.named_parameters():
            weight.requires_grad_(name.startswith("mask_decoder"))

    def forward(self, image: Tensor) -> Tensor:
        "(B, 1, H, W) in [0, 1] -> logits (B, 1, H, W)."
        (height, width), side = image.shape[-2:], self.sam.config.vision_config.image_size
        h, w = (round(n * side / max(height, width)) for n in (height, width))
        large = F.interpolate(image, (h, w), mode="bilinear", align_corners=False)
        pixels = F.pad(imagenet(large), (0, side - w, 0, side - h))
        box = image.new_tensor([[[0, 0, w, h]]]).expand(len(image), -1, -1)  # the whole image
        masks = self.sam(pixel_values=pixels, input_boxes=box, multimask_output=False).pred_masks
        full = F.interpolate(masks[:, 0], (side, side), mode="bilinear", align_corners=False)
        return F.interpolate(full[..., :h, :w], (height, width), mode="bilinear",
                             align_corners=False)


# %%
#| export
@method("sam", "SAM (transformers, ViT-B)",
        "frozen encoder, box of the whole image, decoder trained")
def build_sam(settings: Settings) -> nn.Module:
    "SAM's published weights."
    with suppress(Missing):  # transformers has no SAM beside a torchvision of another build
        need_torchvision()
    models = need("transformers")
    name = os.environ.get("VERDIFF_SAM", "facebook/sam-vit-base")  # a Hub id or a folder
    try:
        return PromptedSAM(models.SamModel.from_pretrained(name))
    except (OSError, ValueError):
        raise Missing(f"needs the weights {name}, which are not here and could not be downloaded; "
                      "VERDIFF_SAM may name a folder that holds them") from None


# %% [markdown]
# **MedSegDiff** comes twice: as a stand-in, our own code without shift, MSFM and NSA, which has no Fourier filter and is rather an ablation of ours (pages [06](../06_forward.ipynb), [09](../09_msfm.ipynb), [10](../10_nsa.ipynb)), and as the public re-implementation `med-seg-diff-pytorch` with its Fourier filter. That one takes squares only, so the canvas becomes a square of as many pixels. It is slow: the list `laptop` omits it, the recorded run has it.

# %%
#| export
@method("medsegdiff", "MedSegDiff (our code: no shift, MSFM, NSA)")
def build_medsegdiff(settings: Settings) -> nn.Module:
    "Plain DDPM with the same two U-Nets."
    return Diffusion(replace(settings, shift=False, msfm=False, nsa=False))


# %%
#| export
class LibraryMedSegDiff(nn.Module):
    "`med_seg_diff_pytorch` as a method, on a square of about as many pixels as the canvas."

    def __init__(self, settings: Settings):
        super().__init__()
        library, s = need("med_seg_diff_pytorch", "einops"), settings
        self.side, self.ensemble = 16 * round((s.height * s.width) ** 0.5 / 16), s.ensemble
        self.seed = s.seed
        unet = library.Unet(s.channels[0], self.side, input_img_channels=1, dim_mults=(1, 2, 4, 8),
                            full_self_attn=(False, False, False, True), resnet_block_groups=4)
        self.process = library.MedSegDiff(unet, timesteps=s.timesteps, objective="pred_x0",
                                          beta_schedule="linear", sampling_timesteps=s.sample_steps)

    def square(self, x: Tensor) -> Tensor:
        "Any shape to the square."
        return F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)

    def loss(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        "The library's loss, at our times and our noise."
        mask = (self.square(mask) > 0.5).float()
        noise = noise.flatten(1).repeat(1, 2)[:, :self.side ** 2].reshape(mask.shape)  # rearranged
        return self.process.p_losses(2 * mask - 1, t, self.square(image), noise)

    def probability(self, image: Tensor, first_index: int = 0) -> Tensor:
        "The mean of the library's samples, (B, 1, H, W) in [0, 1]."
        with torch.random.fork_rng(), redirect_stderr(io.StringIO()):
            torch.manual_seed(generator_for(self.seed, first_index).initial_seed())
            square = self.square(image)
            p = torch.stack([self.process.sample(square) for _ in range(self.ensemble)]).mean(0)
        return F.interpolate(p.clamp(0, 1), image.shape[-2:], mode="bilinear", align_corners=False)


# %%
#| export
@method("medsegdiff_lib", "MedSegDiff (med-seg-diff-pytorch)", "on a square of as many pixels")
def build_medsegdiff_lib(settings: Settings) -> nn.Module:
    "The public re-implementation."
    return LibraryMedSegDiff(settings)


# %% [markdown]
# **DDPM** is the network of [MONAI](https://monai.io)'s tutorial on segmentation by diffusion, layer for layer: it sees the image beside the noisy mask, and no prior. Like all diffusions here it predicts $x_0$, not the noise, which at one step gives no mask (page [the ablation](ablation.ipynb)). `laptop` omits it too.

# %%
#| export
class MonaiDiffusion(nn.Module):
    "MONAI's `DiffusionModelUNet` and its DDIM scheduler as a method."

    def __init__(self, settings: Settings):
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet
        from monai.networks.schedulers import DDIMScheduler

        self.settings, self.multiple = settings, 4
        self.net = DiffusionModelUNet(2, 2, 1, num_res_blocks=(1, 1, 1), channels=(64, 64, 64),
                                      attention_levels=(False, False, True), num_head_channels=64)
        self.scheduler = DDIMScheduler(settings.timesteps, beta_start=settings.beta_start,
                                       beta_end=settings.beta_end,
                                       prediction_type="sample")

    def loss(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        "Squared error of x_0; MONAI counts its times from 0, as we do."
        image, noise = (pad_to_multiple(v.float(), self.multiple) for v in (image, noise))
        x_0 = 2 * pad_to_multiple(mask.float(), self.multiple) - 1
        x_t = self.scheduler.add_noise(x_0, noise, t)
        return F.mse_loss(self.net(torch.cat([x_t, image], 1), t).float(), x_0)

    def probability(self, image: Tensor, first_index: int = 0) -> Tensor:
        "The mean of the samples, (B, 1, H, W) in [0, 1]."
        from monai.inferers import DiffusionInferer

        s, (height, width) = self.settings, image.shape[-2:]
        image = pad_to_multiple(image.float(), self.multiple)
        draw = generator_for(s.seed, first_index)
        self.scheduler.set_timesteps(s.sample_steps)  # on the CPU, as MONAI's sampler expects
        inferer, found = DiffusionInferer(self.scheduler), []
        for _ in range(s.ensemble):
            noise = torch.randn(image.shape, generator=draw).to(image.device)
            found.append(inferer.sample(noise, self.net, conditioning=image, mode="concat",
                                        verbose=False))
        return ((torch.stack(found).mean(0) + 1) / 2).clamp(0, 1)[..., :height, :width]


# %%
#| export
@method("monai_diffusion", "DDPM (MONAI's tutorial)", "x_0 predicted")
def build_monai_diffusion(settings: Settings) -> nn.Module:
    "One network without a prior, as MONAI's tutorial for segmentation by diffusion builds it."
    return MonaiDiffusion(settings)


# %% [markdown]
# Which of them can run here, and what does nnU-Net plan?

# %%
here = {}
for name, entry in METHODS.items():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            here[name] = make_network(name, replace(tiny, channels=(16, 32)))
        print(f"{entry.label:44s} {sum(p.numel() for p in here[name].parameters()):12,} parameters")
    except Missing as error:
        print(f"{entry.label:44s} not run: {error}")

# %%
if "nnunet" in here:
    plan = nnunet_plan((192, 64), 432)
    print({k: plan["architecture"]["arch_kwargs"][k]
           for k in ("n_stages", "features_per_stage", "strides")}, "batch", plan["batch_size"])
    outputs = here["nnunet"].logits(b)
    print("deep supervision at", [tuple(o.shape[-2:]) for o in outputs])
    assert outputs[0].shape == b.shape and len(outputs) > 1

# %% [markdown]
# In a few steps on four films, the loss of each but the two large ones must end lower than it began. SAM's weights cannot travel with a course; a tiny `SamModel` of random weights stands in, whose loss falls in the last printed digit only.

# %%
try:
    transformers = need("transformers")
except Missing as error:
    print("SAM: not run:", error)
else:
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64,
                 patch_size=8, output_channels=16, num_pos_feats=8,
                 global_attn_indexes=[1], mlp_dim=64)
    prompts = dict(hidden_size=16, image_size=64, patch_size=8)
    decoder = dict(hidden_size=16, num_attention_heads=2, mlp_dim=32, iou_head_hidden_dim=16)
    config = transformers.SamConfig(vision_config=sizes,
                                    prompt_encoder_config=prompts,
                                    mask_decoder_config=decoder)
    sam = PromptedSAM(transformers.SamModel(config))
    here["tiny SAM"] = Plain(sam, tiny)
    print("tiny SAM:", tuple(sam(b).shape),
          sum(p.numel() for p in sam.parameters() if p.requires_grad), "weights learn")

# %%
for name, net in here.items():
    if name.endswith("resnet50"):
        continue  # large: left to the GPU
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 2e-3)
    falls = []
    for _ in range(4):
        loss = net.train().loss(b, m, t, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        falls.append(loss.item())
    print(f"{name:20s}", " -> ".join(f"{v:.3f}" for v in falls))
    assert falls[-1] < falls[0] and all(np.isfinite(falls))
del here
