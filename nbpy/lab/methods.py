# %% [markdown]
# # The methods
# > The paper's eight ways to find a spine and some more, each from its library

# %% [markdown]
# [The comparison](comparison.ipynb) trains every method on the same batches; here they are built. A method is a function from settings to an untrained network, under a name, and **thirteen are in the registry**: Verdiff-Net, its prior alone, and the paper's rivals, each from the library that its field keeps. Where a library or a weight file is missing, the row says so in one sentence. The page takes half a minute on a laptop and opens on Colab ([![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/methods.ipynb)); their libraries are an extra, `pip install "verdiff[compare]"`.

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic(  # noqa: F821
        "pip", "install -q 'verdiff[notebooks,compare] @ git+https://github.com/verdiff/verdiff'")

# %%
#| default_exp lab.methods

# %%
#| code-fold: true
import warnings

import torch
from IPython.display import Markdown

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.lab.methods import METHODS, Missing, make_network
from verdiff.settings import load_settings

# %%
#| code-fold: true
torch.set_num_threads(1)
small = load_settings("smoke", [
    "height=96", "width=32", "channels=16,32", "timesteps=1000", "batch_size=8",
    "sample_steps=1", "ensemble=2"])

# %% [markdown]
# ## The methods, and which of them can run here
#
# Built for 96×32 pixels with two levels of 16 and 32 channels, where the library lets us choose.

# %%
#| code-fold: true
here, lines = {}, ["| name | method | parameters | remark |", "|---" * 4 + "|"]
for name, entry in METHODS.items():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            here[name] = make_network(name, small)
        said = f"{sum(p.numel() for p in here[name].parameters()):,} | {entry.note}"
    except Missing as error:
        said = f"not run here | {error}"
    lines.append(f"| `{name}` | {entry.label} | {said} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## What "the same" means
#
# Is a network better, or was it tuned for longer? The paper's Table 1 cannot tell. Here all else is held equal:
#
# * the same batches in the same order, with the same random augmentation;
# * the same optimiser, learning rate and steps, and the *last* averaged weights: no weights are chosen by a score (the one step of the diffusions was chosen on [validation images](xray.ipynb));
# * the same masks at the same size, and the same four measures.
#
# Only time cannot be equal: a step of one method costs many times a step of another. So the table of the comparison prints seconds too.
#
# ## The registry

# %%
#| exports
#| code-fold: true
import importlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
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
#| exports
#| code-fold: true
class Missing(VerdiffError):
    "A method cannot run here: a package or its weights are missing. The message says which."


# %%
#| exports
#| code-fold: true
@dataclass(frozen=True)
class Method:
    "One line of the table, before it is trained."

    name: str  # on the command line
    label: str  # in the table
    build: Callable[[Settings], nn.Module]  # an untrained network; raises Missing
    note: str = ""  # what a reader must know to judge it


METHODS: dict[str, Method] = {}


# %%
#| exports
#| code-fold: true
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
# An optional library is imported where a method needs it, by name; what is wrong becomes one sentence.

# %%
#| exports
#| code-fold: true
def need(
    *packages: str,  # modules to import, the first one is returned
    extra: str = "compare",  # the extra of verdiff that brings them
) -> ModuleType:
    """Import what a method needs.

    Missing where a package is not installed, or torchvision was made for another build of torch.
    """
    try:
        return [importlib.import_module(p) for p in packages][0]
    except ImportError as error:
        name = (error.name or packages[0]).split(".")[0]
        raise Missing(f'needs the package {name}: pip install "verdiff[{extra}]"') from None
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        if "torchvision::" not in str(error):
            raise
        raise Missing(f"needs a torchvision made for torch {torch.__version__}; install the two "
                      "together: pip install --force-reinstall torch torchvision") from None


# %% [markdown]
# `Plain` wraps a network that maps an image $(B, 1, H, W)$ in $[0, 1]$ to logits of the same shape. It adds a border where sides must divide by 32, the loss of our own prior (cross entropy plus soft Dice), and the probability. nnU-Net gives several logits, each half as large as the one before and counting half as much ("deep supervision").

# %%
#| exports
#| code-fold: true
def supervised_loss(
    outs: Sequence[Tensor],  # logits, finest first; each coarser one counts half as much
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
) -> Tensor:  # a scalar
    "Cross entropy plus soft Dice, as our prior learns them; a weighted mean over the outputs."
    total = torch.zeros((), device=mask.device)
    for k, logits in enumerate(outs):
        small = F.interpolate(mask, logits.shape[-2:], mode="nearest")
        one = bce_weight * F.binary_cross_entropy_with_logits(logits, small)
        total = total + 0.5 ** k * (one + dice_weight * soft_dice_loss(logits, small))
    return total / sum(0.5 ** k for k in range(len(outs)))


# %%
#| code-fold: true
zeros = torch.zeros(1, 1, 64, 64)
knows_nothing = supervised_loss([zeros, zeros[..., ::2, ::2]], zeros).item()
print(f"loss of knowing nothing: {knows_nothing:.3f} = log 2 + 1")
assert abs(knows_nothing - np.log(2) - 1) < 1e-3
assert pad_to_multiple(torch.zeros(1, 1, 50, 33), 32).shape == zeros.shape


# %%
#| exports
#| code-fold: true
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
        "A scalar. The mask is {0, 1}, (B, 1, H, W); t and noise are for those who need them."
        return supervised_loss(self.logits(image), pad_to_multiple(mask.float(), self.multiple),
                               *self.weights)

    def probability(self, image: Tensor, first_index: int = 0) -> Tensor:
        "(B, 1, H, W) in [0, 1]."
        height, width = image.shape[-2:]
        return torch.sigmoid(self.logits(image)[0][..., :height, :width])


# %% [markdown]
# ## Ours
#
# Verdiff-Net brings its own `loss` and `probability`, from pages [13](../13_training.ipynb) and [14](../14_sampling.ipynb). The *prior* is its conditional U-Net alone. Both U-Nets without shift, MSFM and NSA (pages [06](../06_forward.ipynb), [09](../09_msfm.ipynb), [10](../10_nsa.ipynb)) stand in for MedSegDiff: no Fourier filter, so rather an ablation of ours.

# %%
#| exports
#| code-fold: true
class Diffusion(nn.Module):
    "A `VerdiffNet` as a method: Eq. (10) to train, the sampler's mean to predict."

    def __init__(self, settings: Settings):
        super().__init__()
        self.net, self.settings = VerdiffNet(VerdiffConfig.from_settings(settings)), settings
        self.process = self.net.process()

    def loss(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        "Eq. (10), a scalar: image in [0, 1], mask in {0, 1}, noise normal, (B, 1, H, W); t (B,)."
        s = self.settings
        return training_loss(self.net, image, mask, t, noise, s.bce_weight, s.dice_weight,
                             self.process)["total"]

    def probability(self, image: Tensor, first_index: int = 0) -> Tensor:
        "The mean of the ensemble, (B, 1, H, W) in [0, 1]."
        s = self.settings
        return sample(self.net, image, s.sample_steps, s.ensemble, s.seed, s.sampler,
                      first_index).mean


# %%
#| exports
#| code-fold: true
@method("verdiff", "Verdiff-Net (ours)")
def build_verdiff(settings: Settings) -> nn.Module:
    "Both U-Nets, MSFM, NSA, the shift."
    return Diffusion(settings)


# %%
#| exports
#| code-fold: true
@method("prior", "prior alone (ours)", "the conditional U-Net with MSFM, no diffusion")
def build_prior(settings: Settings) -> nn.Module:
    "Figure 3 without its lower half."
    net = VerdiffNet(VerdiffConfig.from_settings(settings))
    return nn.Sequential(net.features, net.conditional)


# %%
#| exports
#| code-fold: true
@method("medsegdiff", "MedSegDiff (our code: no shift, MSFM, NSA)")
def build_medsegdiff(settings: Settings) -> nn.Module:
    "Plain DDPM with the same two U-Nets."
    return Diffusion(replace(settings, shift=False, msfm=False, nsa=False))


# %% [markdown]
# ## MONAI's U-Net and Swin-U-Net
#
# MONAI's U-Net has two residual units a level and is as wide as ours. Its SwinUNETR in two dimensions has a Swin transformer as encoder. (In the paper's reference the decoder is one too; no library keeps it.)

# %%
#| exports
#| code-fold: true
@method("unet", "U-Net (MONAI)")
def build_unet(settings: Settings) -> nn.Module:
    "MONAI's U-Net with two residual units a level, as wide as ours."
    c = settings.channels
    unet = need("monai.networks.nets").UNet
    return Plain(unet(2, 1, 1, c, (2,) * (len(c) - 1), num_res_units=2), settings,
                 2 ** (len(c) - 1))


# %%
#| exports
#| code-fold: true
@method("swin", "Swin-U-Net (MONAI SwinUNETR)", "Swin encoder, convolutional decoder")
def build_swin(settings: Settings) -> nn.Module:
    "MONAI's SwinUNETR for two dimensions."
    features = 12 * max(1, round(settings.channels[0] / 12))
    swin = need("monai.networks.nets", "einops").SwinUNETR
    return Plain(swin(1, 1, feature_size=features, spatial_dims=2), settings, 32)


# %% [markdown]
# ## FCN and DeepLabv3
#
# They are torchvision's. Their backbones are usually trained on ImageNet first; here they start from nothing, like everybody else. The small backbone is for laptops, the large one for a GPU.

# %%
#| exports
#| code-fold: true
def imagenet(
    image: Tensor,  # grey, (B, 1, H, W) in [0, 1]
) -> Tensor:  # (B, 3, H, W)
    "Three channels in the units of ImageNet."
    mean, sd = (image.new_tensor(v).view(1, 3, 1, 1) for v in
                ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (image - mean) / sd  # b 1 h w - 1 3 1 1 -> b 3 h w


# %%
#| exports
#| code-fold: true
class Colour(nn.Module):
    "Grey to three channels in ImageNet's units, and the entry \"out\" of torchvision's answer."

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        "(B, 1, H, W) in [0, 1] -> logits (B, 1, H, W)."
        return self.net(imagenet(image))["out"]


# %%
#| exports
#| code-fold: true
def torchvision_network(
    settings: Settings,
    name: str,  # a function of torchvision.models.segmentation
    fully_convolutional: bool = False,  # put the head of FCN on that backbone
) -> nn.Module:
    """A segmentation network of torchvision with one class, from nothing.

    Missing without torchvision, and for a batch size of one.
    """
    models = need("torchvision.models.segmentation")
    if settings.batch_size < 2:
        raise Missing("cannot learn from batches of one: batch norm after a global average; "
                      "--set batch_size=2")
    net = getattr(models, name)(weights=None, weights_backbone=None, num_classes=1)
    if fully_convolutional:
        first = next(m for m in net.classifier.modules() if isinstance(m, nn.Conv2d))
        net.classifier = models.fcn.FCNHead(first.in_channels, 1)
    return Plain(Colour(net), settings)


# %%
#| exports
#| code-fold: true
@method("fcn", "FCN (torchvision, MobileNetV3)", "its head on the small backbone, from nothing")
def build_fcn(settings: Settings) -> nn.Module:
    "torchvision's FCN head on MobileNetV3."
    return torchvision_network(settings, "deeplabv3_mobilenet_v3_large", True)


# %%
#| exports
#| code-fold: true
@method("deeplabv3", "DeepLabv3 (torchvision, MobileNetV3)", "from nothing")
def build_deeplabv3(settings: Settings) -> nn.Module:
    "torchvision's DeepLabv3 on MobileNetV3."
    return torchvision_network(settings, "deeplabv3_mobilenet_v3_large")


# %%
#| exports
#| code-fold: true
@method("fcn_resnet50", "FCN (torchvision, ResNet-50)", "for a GPU; from nothing")
def build_fcn_resnet50(settings: Settings) -> nn.Module:
    "torchvision's FCN on ResNet-50."
    return torchvision_network(settings, "fcn_resnet50")


# %%
#| exports
#| code-fold: true
@method("deeplabv3_resnet50", "DeepLabv3 (torchvision, ResNet-50)", "for a GPU; from nothing")
def build_deeplabv3_resnet50(settings: Settings) -> nn.Module:
    "torchvision's DeepLabv3 on ResNet-50."
    return torchvision_network(settings, "deeplabv3_resnet50")


# %% [markdown]
# ## nnU-Net v2
#
# It is less a network than a planner: from the shape and spacing of the images (a "fingerprint") it derives depth, widths and kernels. *Its* planner and *its* function build the network; our loop trains it. That is nnU-Net's architecture at our budget, not nnU-Net; [its own trainer](nnunet.ipynb) joins with masks of its own.

# %%
#| exports
#| code-fold: true
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
#| exports
#| code-fold: true
def nnunet_plan(
    size: tuple[int, int],  # (height, width)
    images: int,  # how many there are
) -> dict[str, Any]:  # "patch_size", "batch_size", "architecture", ...
    "What nnU-Net's own planner says for grey images of that size. Missing without nnunetv2."
    with nnunet_home(size, images) as name:
        package = "nnunetv2.experiment_planning.experiment_planners"
        planner = need(f"{package}.default_experiment_planner").ExperimentPlanner(name)
        voxels = float(images * np.prod(size))
        return planner.get_plans_for_configuration([1.0, 1.0], list(size), "2d", voxels, {})


# %%
#| exports
#| code-fold: true
@method("nnunet", "nnU-Net v2 (its plan, our loop)",
        "planner and network of nnunetv2, deep supervision")
def build_nnunet(settings: Settings) -> nn.Module:
    "The network of nnU-Net's plan, with a loss at every level. Missing without nnunetv2."
    plan = nnunet_plan(settings.size, 432)["architecture"]
    make = need("nnunetv2.utilities.get_network_from_plans").get_network_from_plans
    net = make(plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 1, 1,
               deep_supervision=True)
    strides = np.prod(plan["arch_kwargs"]["strides"], axis=0)
    return Plain(net, settings, int(strides.max()))


# %% [markdown]
# ## SAM
#
# The real model with its weights (375 MB from the Hugging Face Hub). Its encoder is frozen, its prompt is the box of the whole image, and our loop trains the mask decoder.

# %%
#| exports
#| code-fold: true
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
#| exports
#| code-fold: true
@method("sam", "SAM (transformers, ViT-B)",
        "frozen encoder, box of the whole image, decoder trained")
def build_sam(settings: Settings) -> nn.Module:
    "SAM's published weights. Missing without transformers, or where the weights are not to be had."
    sam = need("transformers.models.sam.modeling_sam").SamModel
    name = os.environ.get("VERDIFF_SAM", "facebook/sam-vit-base")  # a Hub id or a folder
    try:
        return PromptedSAM(sam.from_pretrained(name))
    except (OSError, ValueError):
        raise Missing(f"needs the weights {name}, which are not here and could not be downloaded; "
                      "VERDIFF_SAM may name a folder that holds them") from None


# %% [markdown]
# ## Other diffusions
#
# **MedSegDiff** once more, as the public re-implementation `med-seg-diff-pytorch` with its Fourier filter. It takes squares only, so the canvas becomes a square of as many pixels. It is slow: the list `laptop` omits it, the recorded run has it.
#
# **DDPM** is the network of [MONAI](https://monai.io)'s tutorial on segmentation by diffusion, layer for layer: it sees the image beside the noisy mask, and no prior. Like all diffusions here it predicts $x_0$, not the noise, which at one step gives no mask ([the ablation](ablation.ipynb)). `laptop` omits it too.

# %%
#| exports
#| code-fold: true
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
#| exports
#| code-fold: true
@method("medsegdiff_lib", "MedSegDiff (med-seg-diff-pytorch)", "on a square of as many pixels")
def build_medsegdiff_lib(settings: Settings) -> nn.Module:
    "The public re-implementation."
    return LibraryMedSegDiff(settings)


# %%
#| exports
#| code-fold: true
class MonaiDiffusion(nn.Module):
    "MONAI's `DiffusionModelUNet` and its DDIM scheduler as a method."

    def __init__(self, settings: Settings):
        super().__init__()
        unet = need("monai.networks.nets").DiffusionModelUNet
        scheduler = need("monai.networks.schedulers").DDIMScheduler
        self.settings, self.multiple = settings, 4
        self.net = unet(2, 2, 1, num_res_blocks=(1, 1, 1), channels=(64, 64, 64),
                        attention_levels=(False, False, True), num_head_channels=64)
        self.scheduler = scheduler(settings.timesteps, beta_start=settings.beta_start,
                                   beta_end=settings.beta_end, prediction_type="sample")

    def loss(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        "Squared error of x_0; MONAI counts its times from 0, as we do."
        image, noise = (pad_to_multiple(v.float(), self.multiple) for v in (image, noise))
        x_0 = 2 * pad_to_multiple(mask.float(), self.multiple) - 1
        x_t = self.scheduler.add_noise(x_0, noise, t)
        return F.mse_loss(self.net(torch.cat([x_t, image], 1), t).float(), x_0)

    def probability(self, image: Tensor, first_index: int = 0) -> Tensor:
        "The mean of the samples, (B, 1, H, W) in [0, 1]."
        s, (height, width) = self.settings, image.shape[-2:]
        image = pad_to_multiple(image.float(), self.multiple)
        draw = generator_for(s.seed, first_index)
        self.scheduler.set_timesteps(s.sample_steps)  # on the CPU, as MONAI's sampler expects
        inferer, found = need("monai.inferers").DiffusionInferer(self.scheduler), []
        for _ in range(s.ensemble):
            noise = torch.randn(image.shape, generator=draw).to(image.device)
            found.append(inferer.sample(noise, self.net, conditioning=image, mode="concat",
                                        verbose=False))
        return ((torch.stack(found).mean(0) + 1) / 2).clamp(0, 1)[..., :height, :width]


# %%
#| exports
#| code-fold: true
@method("monai_diffusion", "DDPM (MONAI's tutorial)", "x_0 predicted")
def build_monai_diffusion(settings: Settings) -> nn.Module:
    "One network without a prior, as MONAI's tutorial for segmentation by diffusion builds it."
    return MonaiDiffusion(settings)


# %% [markdown]
# ## From a name to a network

# %%
#| exports
#| code-fold: true
def make_network(
    name: str,  # of a method
    settings: Settings,
) -> nn.Module:  # with `loss` and `probability`
    """Build a method's network from the seed; wrapped in `Plain` unless it knows how to learn.

    Missing where its library is missing; VerdiffError where it does not fit channels and size;
    KeyError for a name that is not in METHODS.
    """
    torch.manual_seed(settings.seed)
    try:
        net = METHODS[name].build(settings)
        if 1 < getattr(net, "multiple", 1) >= max(settings.size):  # one pixel has no spread
            raise ValueError(f"it needs more than {net.multiple} pixels in height or width")
    except ValueError as error:
        if isinstance(error, VerdiffError):
            raise
        raise VerdiffError(f"{METHODS[name].label} cannot be built with channels = "
                           f"{','.join(map(str, settings.channels))} at {settings.height}x"
                           f"{settings.width}: {error}") from None
    return net if hasattr(net, "loss") else Plain(net, settings)


# %% [markdown]
# ## Checks
#
# Each gives a probability of the image's shape. In a few steps on four phantoms, the loss of each but the two large ones ends lower than it began. SAM's weights cannot travel with a course; a tiny `SamModel` of random weights stands in, where transformers is installed.

# %%
#| code-fold: true
phantoms = pack(PhantomSet(size=small.size, split="training", n_training=4), progress=False)
b, m = phantoms.images.float() / 255, phantoms.masks.float()
g = torch.Generator().manual_seed(35)
t, noise = torch.randint(1000, (4,), generator=g), torch.randn(m.shape, generator=g)
for name in ("verdiff", "prior", "unet"):
    with torch.no_grad():
        p = here[name].eval().probability(b)
    print(f"{name:8s}", tuple(p.shape), f"between {p.min():.2f} and {p.max():.2f}")
    assert p.shape == b.shape and 0 <= p.min() and p.max() <= 1

# %%
#| code-fold: true
if "nnunet" in here:
    plan = nnunet_plan((192, 64), 432)
    print({k: plan["architecture"]["arch_kwargs"][k]
           for k in ("n_stages", "features_per_stage", "strides")}, "batch", plan["batch_size"])
    outputs = here["nnunet"].logits(b)
    print("deep supervision at", [tuple(o.shape[-2:]) for o in outputs])
    assert outputs[0].shape == b.shape and len(outputs) > 1

# %%
#| code-fold: true
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
    here["tiny SAM"] = Plain(sam, small)
    print("tiny SAM:", tuple(sam(b).shape),
          sum(p.numel() for p in sam.parameters() if p.requires_grad), "weights learn")

# %%
#| code-fold: true
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
