# %% [markdown]
# # The command line
# > The only place that knows all commands

# %% [markdown]
# Each command is two functions: one declares its words, one calls the library and prints what came out. What takes seconds to
# import (torch) is imported when a command runs, so that `verdiff --help` answers at once. Every `VerdiffError` becomes one
# sentence on stderr and exit code 2; `python -m verdiff` is the same command, also under `accelerate launch -m`.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/cli.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp cli

# %%
#| export
import argparse
import errno
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import verdiff
from verdiff.files import VerdiffError, is_device_lost, is_memory_short, output_folder
from verdiff.settings import load_settings
from verdiff.words import (
    natural, next_commands, positive, seed_list, size_pair, steps_list, whole_number,
)

# %%
import os
import shutil
import tempfile
from contextlib import redirect_stderr

from PIL import Image

from verdiff.data.phantoms import draw_phantom

# %% [markdown]
# ## Words
# Words that several commands share:

# %%
#| export
def settings_options(parser: argparse.ArgumentParser, profile: str) -> None:
    "What train and demo share."
    add = parser.add_argument
    add("--profile", default=profile, help=f"section of settings.ini (default: {profile})")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a key; may be repeated")


LABELS = "of masks that are vertebrae: 1-24,28, or a scheme as verse (default: all but 0)"


def labels_option(parser: argparse.ArgumentParser) -> None:
    "What train, ablate and compare share: a shorter word for a setting."
    parser.add_argument("--labels", dest="set", action="append", metavar="LIST",
                        type="labels={}".format, help=LABELS)


# %%
#| export
def sampling_options(parser: argparse.ArgumentParser, ensemble: int | None = 5) -> None:
    "What segment and evaluate share."
    add = parser.add_argument
    add("--model", metavar="PATH", help="folder of a model or run, or Hub id (default: bundled)")
    add("--ensemble", type=partial(whole_number, most=10**4), default=ensemble, metavar="N",
        help=f"samples an image (default: {ensemble or 'as the model was calibrated, else 5'})")
    add("--seed", type=natural, default=0, help="of the noise (default: 0)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the first GPU, else the CPU)")


# %%
#| export
def phantom_options(parser: argparse.ArgumentParser, training: int, test: int) -> None:
    "How many phantoms."
    add = parser.add_argument
    some = partial(whole_number, most=10**6)
    add("--training", type=some, default=training, metavar="N",
        help=f"phantoms to train on (default: {training})")
    add("--test", type=some, default=test, metavar="N",
        help=f"phantoms to test on (default: {test})")

# %% [markdown]
# ## Commands

# %%
#| export
def segment_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff segment`."
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, TIFF, DICOM, NIfTI, MHA, or folders")
    add("-o", "--out", required=True, metavar="DIR", help="where the results go")
    add("--steps", type=positive, metavar="N", help="of the sampler (default: calibrated, else 1)")
    sampling_options(parser, ensemble=None)
    add("--window", metavar="W", help="of DICOM: which, from 0, or CENTRE,WIDTH (default: first)")
    add("--nifti", action="store_true", help="masks of DICOM as NIfTI, not DICOM segmentation")
    add("--no-zoom", action="store_true", help="never zoom to a small spine in a larger image")
    add("--fresh", action="store_true", help="segment again what is there already")
    add("-q", "--quiet", action="store_true", help="no bar")


def run_segment(args: argparse.Namespace) -> int:
    "The command `verdiff segment`."
    out = output_folder(args.out)
    from verdiff.segmentation.folder import segment_files
    from verdiff.segmentation.results import list_images
    from verdiff.segmentation.segmenter import Segmenter

    list_images(args.images, out)  # complains before seconds go into the model
    count = segment_files(
        Segmenter.from_pretrained(args.model, args.device), args.images, out, args.steps,
        args.ensemble, args.seed, args.fresh, args.model or "bundled", not args.quiet, args.window,
        not args.no_zoom, args.nifti)
    total, failed = count.pop("images"), count["could not be done"]
    more = (f"; {n} {what}" for what, n in count.items() if n)
    print(f"{total - failed} of {total} images segmented, results in {out}", *more, sep="")
    return 2 if failed else 0


# %%
#| export
def train_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff train`."
    add = parser.add_argument
    add("--data", required=True, metavar="PATH",
        help="zip or folder of the published layout, folder of images/ and masks/, or phantom")
    settings_options(parser, "laptop")
    labels_option(parser)
    add("--out", metavar="DIR", help="default: runs/PROFILE")
    add("--start-from", metavar="MODEL", help="fine-tune this model, run, Hub id, or bundled")
    add("--fresh", action="store_true", help="start over instead of resuming")


def run_train(args: argparse.Namespace) -> int:
    "The command `verdiff train`, alone or as one of accelerate's processes."
    settings = load_settings(args.profile, args.set)
    out = output_folder(args.out or f"runs/{args.profile}")
    from accelerate import Accelerator

    from verdiff.data.datasets import held_for_test, tell_held, training_data
    from verdiff.networks.model import VerdiffNet
    from verdiff.segmentation.models import find_model
    from verdiff.training.run import group_timeout, train

    trained = None
    if args.start_from:
        trained = VerdiffNet.from_pretrained(find_model(args.start_from))
    accelerator = Accelerator(kwargs_handlers=[group_timeout()])
    with accelerator.main_process_first():  # the others find the images decoded
        train_data, val_data = training_data(args.data, settings, out / "images.npz")
    held = held_for_test(args.data)
    accelerator.print(
        f"{len(train_data)} images to train on, {len(val_data)} to validate on"
        f"{tell_held(held)}; profile {args.profile}, {settings.height}x{settings.width}, "
        f"{settings.max_steps} steps")
    train(settings, train_data, val_data, out, resume=not args.fresh, trained=trained)
    after = next_commands(args.data, str(out), settings.labels, held, len(val_data))
    accelerator.print(f"the model is in {out / 'model'}; next:\n{after}")
    return 0


# %%
#| export
def evaluate_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff evaluate`."
    add = parser.add_argument
    add("--data", required=True, metavar="PATH", help="as for train")
    add("--split", default="test", choices=("training", "test", "all"), help="default: test")
    add("--steps", type=steps_list, default=[1, 5, 10], metavar="LIST", help="default: 1,5,10")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add("--labels", default="auto", metavar="LIST", help=LABELS)
    add("--size", type=size_pair, metavar="HxW",
        help="score at this size (default: the network's, enlarged to about 768 rows)")
    add("-o", "--out", metavar="DIR", help="write evaluation.json, evaluation.csv and scores.csv")
    sampling_options(parser)


def run_evaluate(args: argparse.Namespace) -> int:
    "The command `verdiff evaluate`."
    from verdiff.data.datasets import open_dataset
    from verdiff.data.packed import pack
    from verdiff.segmentation.evaluation import evaluate
    from verdiff.segmentation.segmenter import Segmenter, check_steps

    out = output_folder(args.out) if args.out else None
    segmenter = Segmenter.from_pretrained(args.model, args.device)
    model = segmenter.model
    check_steps(model, args.steps)
    factor = max(1, round(768 / model.size[0]))
    size = args.size or (model.size[0] * factor, model.size[1] * factor)
    data = pack(open_dataset(args.data, args.split, size, model.config.fit, labels=args.labels))
    if args.limit:
        data = data.subset(list(range(min(args.limit, len(data)))))
    result = evaluate(model, data, args.steps, args.ensemble, args.seed)
    print(f"scored at {size[0]}x{size[1]}; mean ± sd [95 % interval]\n{result}")
    if out:
        written = result.save(
            out, model=str(args.model or "bundled"), data=Path(args.data).name,
            split=args.split, seed=args.seed, device=str(segmenter.device))
        print("written:", *written)
    return 0


# %%
#| export
def calibrate_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff calibrate`."
    add = parser.add_argument
    films = parser.add_mutually_exclusive_group(required=True)
    films.add_argument("--data", metavar="PATH", help="what the model was trained on, as for "
                       "train: its validation part is used, with its masks for a predicted Dice")
    films.add_argument("--images", nargs="+", metavar="IMAGE", help="usual radiographs that it was "
                       "not trained on, files or folders, 8 or more; no masks, no predicted Dice")
    add("--model", metavar="PATH", help="model or run folder (default: bundled)")
    add("-o", "--out", metavar="DIR", help="write a copy of the model with the calibration there "
        "(default: beside the model)")
    add("--steps", type=positive, default=1, metavar="N", help="of the sampler (default: 1)")
    add("--ensemble", type=partial(whole_number, most=10**4), default=5, metavar="N",
        help="samples an image (default: 5)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the first GPU, else the CPU)")


def run_calibrate(args: argparse.Namespace) -> int:
    "The command `verdiff calibrate`; VerdiffError for a model that cannot keep its calibration."
    from dataclasses import replace

    from verdiff.segmentation.confidence import calibrate, save_reference, sha256_of_weights
    from verdiff.segmentation.evaluation import predictor_from, validation_images
    from verdiff.segmentation.models import find_model
    from verdiff.segmentation.results import list_images
    from verdiff.segmentation.segmenter import Segmenter

    if not (folder := Path(find_model(args.model))).is_dir():
        raise VerdiffError(f"{folder}: a model on the Hub; download it to a folder first")
    if args.out is None and args.model in (None, "bundled"):
        raise VerdiffError("the bundled model keeps its own calibration; name a folder with --out, "
                           "for a copy of the model with the new one")
    segmenter = Segmenter.from_pretrained(folder, args.device)
    films = ([path for path, _ in list_images(args.images, args.out or folder)] if args.images
             else validation_images(args.data, segmenter, folder))
    out = output_folder(args.out or str(folder))
    share = calibrate(segmenter, films, steps=args.steps, ensemble=args.ensemble)
    dice = None if args.images else predictor_from(args.data, segmenter, folder)
    if args.out:
        segmenter.model.save_pretrained(out)
    about = {"weights": sha256_of_weights(out), "dice": dice}
    path = save_reference(replace(segmenter.reference, **about), out)
    print(f"written: {path}, from {len(films)} radiographs; of those {share:.1%} would be flagged "
          f"if the others set the limits; {'with' if dice else 'without'} a predicted Dice")
    return 0


# %%
#| export
def data_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff data`."
    parser.add_argument("what", choices=("xray", "phantom"))
    parser.add_argument("--out", metavar="DIR", help="default: data/xray or data/phantom")
    phantom_options(parser, 64, 24)
    parser.add_argument("--seed", type=natural, default=0, help="of the phantoms (default: 0)")


def run_data(args: argparse.Namespace) -> int:
    "The command `verdiff data`."
    from verdiff.data.phantom_set import write_phantoms
    from verdiff.io.download import download_xray

    out = Path(args.out or f"data/{args.what}")
    if args.what == "xray":
        download_xray(out)
    else:
        write_phantoms(out, args.training, args.test, args.seed)
    data = f"./{out}" if str(out) == "phantom" else str(out)  # the bare word means the built-in set
    print(f"ready: verdiff train --data {shlex.quote(data)} --profile laptop")
    return 0


# %%
#| export
def demo_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff demo`."
    settings_options(parser, "demo")
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="default: runs/demo")
    phantom_options(parser, 96, 24)
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming")


def run_demo(args: argparse.Namespace) -> int:
    "The command `verdiff demo`."
    from verdiff.lab.demo import demo

    settings, out = load_settings(args.profile, args.set), output_folder(args.out)
    result, seconds = demo(settings, out, args.training, args.test, args.fresh)
    print(f"{len(result.names)} held-out phantoms, {seconds:.0f} s; mean ± sd [95 % interval]\n"
          f"{result}")
    print(f"picture: {out / 'result.png'}; numbers: {out / 'metrics.json'}")
    return 0


# %%
#| export
def ablate_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff ablate`."
    add = parser.add_argument
    add("--data", default="phantom", metavar="PATH", help="as for train (default: phantom)")
    settings_options(parser, "ablation")
    labels_option(parser)
    add("--rows", metavar="LIST", help="names with commas (default: all)")
    add("--add", action="append", default=[], metavar="ROW",
        help="one more row, 'NAME: key=value key=value'; may be repeated")
    add("--reference", metavar="ROW", help="row to compare with (default: both, or the first row)")
    add("--seeds", type=seed_list, default=[35, 36, 37], metavar="LIST", help="default: 35,36,37")
    add("--out", default="runs/ablation", metavar="DIR", help="default: runs/ablation")
    add("--on", choices=("test", "validation"), default="test",
        help="films to score: test, or a part of the training films to choose by (default: test)")
    phantom_options(parser, 96, 24)
    add("--fresh", action="store_true", help="start over instead of resuming")


def run_ablate(args: argparse.Namespace) -> int:
    "The command `verdiff ablate`; VerdiffError for a row whose setting does not exist."
    from verdiff.lab.ablation import ROWS, choose, parse_row, row_settings, sweep
    from verdiff.lab.tables import format_table, save_tables

    more = dict(parse_row(text) for text in args.add)
    load_settings(args.profile, args.set)
    for name, row in more.items():
        try:
            row_settings(row, 0, args.profile, args.set)
        except VerdiffError as error:  # not of --set, then
            raise VerdiffError(f"--add {name}: {str(error).removeprefix('--set ')}") from None
    names = [name.strip() for name in args.rows.split(",")] if args.rows else list(ROWS)
    rows = choose([*names, *more], {**ROWS, **more})
    reference = args.reference or ("both" if "both" in rows else next(iter(rows)))
    choose([reference], rows)
    out = output_folder(args.out)
    runs = sweep(args.data, rows, args.seeds, out, args.profile, args.set,
                 args.training, args.test, args.fresh, on=args.on)
    print(format_table(runs, reference))
    print("written:", *save_tables(runs, out, reference))
    return 0


# %%
#| export
def compare_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff compare`."
    add = parser.add_argument
    add("--data", required=True, metavar="PATH", help="as for train")
    add("--methods", default="laptop", metavar="LIST", help="names; laptop (default) or all")
    settings_options(parser, "comparison")
    labels_option(parser)
    add("--masks", action="append", default=[], metavar="NAME=DIR",
        help="score a folder of masks that another program made; may be repeated")
    add("--limit", type=positive, metavar="N", help="only the first N test images")
    add("--minutes", type=float, help="train each so long (of CPU time), not max_steps")
    add("--out", default="runs/comparison", metavar="DIR", help="default: runs/comparison")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the first GPU, else the CPU)")
    add("--fresh", action="store_true", help="start over instead of keeping what is finished")


def run_compare(args: argparse.Namespace) -> int:
    "The command `verdiff compare`."
    from verdiff.lab.comparison import chosen, compare_data, named_folders
    from verdiff.segmentation.segmenter import pick_device

    settings, names = load_settings(args.profile, args.set), chosen(args.methods)
    out, masks = output_folder(args.out), named_folders(args.masks)
    print(compare_data(args.data, names, settings, out, masks, args.limit,
                       pick_device(args.device), args.fresh, args.minutes))
    return 0


# %% [markdown]
# ## All of them

# %%
#| export
class Command(NamedTuple):
    "One command."

    name: str
    run: Callable[[argparse.Namespace], int]
    options: Callable[[argparse.ArgumentParser], None]
    about: str
    example: str


COMMANDS = (
    Command("demo", run_demo, demo_options,
     "train on phantom spines, segment unseen ones, draw results", "verdiff demo"),
    Command("data", run_data, data_options,
     "fetch the public X-ray set, or draw phantoms in its layout",
     "verdiff data phantom --out data/phantom"),
    Command("train", run_train, train_options, "train a network; the same command again resumes",
     "verdiff train --data phantom --profile laptop --set max_steps=500"),
    Command("segment", run_segment, segment_options,
     "write mask, probability, uncertainty and overlay",
     "verdiff segment scan.png more_scans/ -o results --model runs/demo"),
    Command("evaluate", run_evaluate, evaluate_options,
     "Dice and IoU of prior and diffusion, with intervals",
     "verdiff evaluate --data phantom --model runs/demo --steps 1,5,10 -o results"),
    Command("calibrate", run_calibrate, calibrate_options,
     "learn which masks are usual for a model: a confidence and a predicted Dice for each",
     "verdiff calibrate --data phantom --model runs/demo"),
    Command("ablate", run_ablate, ablate_options,
     "train rows of an ablation, each with several seeds",
     "verdiff ablate --data phantom --rows both,neither --seeds 35,36,37"),
    Command("compare", run_compare, compare_options,
     "train the methods of the paper's table on the same images, and score them",
     "verdiff compare --data phantom --methods verdiff,prior,unet --out runs/comparison"),
)


# %%
#| export
class Parser(argparse.ArgumentParser):
    "One whose complaint is one sentence."

    def error(self, message: str) -> NoReturn:
        "What is wrong, and where the right words stand; exit code 2."
        self.exit(2, f"verdiff: error: {message}; see {self.prog} --help\n")


def make_parser() -> Parser:
    "The whole command line."
    parser = Parser(
        prog="verdiff", description="Segment vertebrae in spine radiographs with a diffusion "
        "model. For research and teaching, not for diagnosis.",
        epilog="verdiff COMMAND --help shows the words that a command takes.")
    parser.add_argument("--version", action="version", version=f"verdiff {verdiff.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, options, about, example in COMMANDS:
        sub = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.",
                                  epilog=f"example: {example}")
        options(sub)
        sub.set_defaults(run=run)
    return parser


# %%
#| export
LESS = {"data": "close other programs",  # what takes less memory
        "train": "take a smaller batch or size, for example --set batch_size=2",
        **dict.fromkeys(("segment", "evaluate", "calibrate"),
                        "give smaller images, or --ensemble 1")}
GOES_ON = ("segment", "train", "demo", "ablate", "compare")  # when it is given again


def _sentence(error: Exception, command: str) -> str | None:
    "What to tell of an error; None for a fault of ours, which keeps its traceback."
    if isinstance(error, VerdiffError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"{where}{error.strerror}; free some space and give the same command again"
        return f"{where}{error.strerror or error}"
    if is_memory_short(error):
        return f"not enough memory; {LESS.get(command, LESS['train'])}"
    if is_device_lost(error):
        kept = "; what is done is kept, the same command again goes on"
        return (f"the device stopped working ({str(error).splitlines()[0][:200]})"
                f"{kept if command in GOES_ON else '; give the same command again'}")
    return None


def main(
    argv: Sequence[str] | None = None,  # words of the command line; None: those of the process
) -> int:  # 0: well; 2: an error that a sentence explains; 130: interrupted
    "The command `verdiff`. What is no error of the input is raised as it is."
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except (VerdiffError, OSError, MemoryError, RuntimeError) as error:
        if (sentence := _sentence(error, args.command)) is None:
            raise
        print(f"verdiff: error: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("verdiff: interrupted; the same command again goes on"
              if args.command in GOES_ON
              else "verdiff: interrupted", file=sys.stderr)
        return 130


# %% [markdown]
# ## Use
# In a terminal one types `verdiff segment scans -o results`.

# %%
folder = Path(tempfile.mkdtemp())
(folder / "scans").mkdir()
Image.fromarray(draw_phantom(7).image).save(folder / "scans/spine.png")
(folder / "scans/letter.png").write_text("Dear colleague,")
here = os.getcwd()
os.chdir(folder)
with redirect_stderr(sys.stdout):
    code = main("segment scans -o results --quiet".split())
print(*sorted(p.name for p in Path("results").iterdir()), sep="\n")
assert code == 2  # one of the two files was no image

# %% [markdown]
# A typing error gets one sentence, with the nearest right word:

# %%
with redirect_stderr(sys.stdout):
    assert main("train --data phantom --profile latpop".split()) == 2
    assert main("train --data phantom --set chanels=8".split()) == 2
    assert main("train --data nowhere.zip --profile smoke".split()) == 2

# %%
print(make_parser().format_help())

# %%
#| hide
os.chdir(here)
shutil.rmtree(folder)
