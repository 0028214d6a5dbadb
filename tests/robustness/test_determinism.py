"The same seed gives the same numbers, in another process too; the batch, the workers and the company of others change nothing."
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from robustness.inputs import TINY, pairs, published
from robustness.worker import write

from verdiff.cli import main
from verdiff.data.augment import Augment
from verdiff.data.datasets import open_dataset, training_data
from verdiff.data.packed import Packed, pack
from verdiff.data.phantom_set import write_phantoms
from verdiff.diffusion.sampling import sample
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.segmenter import Segmenter
from verdiff.settings import load_settings
from verdiff.training.batches import batches, generator_for
from verdiff.training.loop import train_loop

IMAGE = torch.arange(3 * 32 * 16).reshape(3, 1, 32, 16) * 7 % 256


def digest(*parts):
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.contiguous().numpy().tobytes())
    return found.hexdigest()


def settings(seed, *more):
    return load_settings("smoke", [*TINY, "max_steps=3", f"seed={seed}", *more])


def network(seed=0):
    torch.manual_seed(seed)
    net = VerdiffNet(VerdiffConfig.from_settings(settings(0))).eval()
    torch.nn.init.normal_(net.diffusion.out[-1].weight, std=0.3)  # an untrained one says nothing
    return net


def data(seed, folder):
    root = write_phantoms(folder / str(seed), 3, 1, seed, image_size=(96, 32))
    packed = pack(open_dataset(root, "training", (32, 16)))
    return digest(*(p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()), packed.images, packed.masks)


def augmentation(seed, folder):
    return digest(*Augment()(IMAGE.to(torch.uint8), (IMAGE > 99).to(torch.uint8), [generator_for(seed, i) for i in range(3)]))


def training(seed, folder):
    films = Packed(IMAGE.to(torch.uint8), (IMAGE > 99).to(torch.uint8), ["a", "b", "c"])
    torch.manual_seed(seed)
    return digest(*train_loop(VerdiffNet(VerdiffConfig.from_settings(settings(seed))), films, settings(seed)).state_dict().values())


def sampling(seed, folder):
    return digest(*(sample(network(), IMAGE / 255, 3, 2, seed, way).samples for way in ("ddim", "ddpm", "dpm")))


PARTS = {part.__name__: part for part in (data, augmentation, training, sampling)}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    "What a process gives whose sets and dictionaries hash in another way, and whose own chance is another."
    done = subprocess.run([sys.executable, __file__, tmp_path_factory.mktemp("elsewhere")], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": str(torch.get_num_threads())})
    return dict(line.split() for line in done.stdout.splitlines()[-len(PARTS):])


@pytest.mark.parametrize("name", PARTS)
def test_the_seed_decides(name, tmp_path, elsewhere):
    part, found = PARTS[name], []
    for k, seed in enumerate((5, 5, 6)):
        torch.manual_seed(k)  # chance of somebody else's
        np.random.seed(k)
        found.append(part(seed, tmp_path / str(k)))
    assert found[0] == found[1] == elsewhere[name] != found[2]


# ---------------------------------------------------------------- batches, workers, company


@pytest.mark.parametrize("files", [pairs, published])
def test_any_number_of_workers_gives_the_same_batches(files, tmp_path):
    root = write(tmp_path / "set", files())
    kept, _ = training_data(root, settings(0, "stream=false", "val_fraction=0.25"))
    wanted = list(batches(kept, settings(0)))
    streamed, _ = training_data(root, settings(0, "stream=true", "val_fraction=0.25"))
    assert len(wanted) == 3 and type(streamed) is not type(kept)
    for workers in (0, 1, 2):
        for a, b in zip(wanted, batches(streamed, settings(0), workers=workers), strict=True):
            assert all(map(torch.equal, a, b)), workers


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm"])
def test_any_batch_size_gives_the_same_samples(sampler):
    whole, *parts = (sample(network(), IMAGE / 255, 4, 5, 0, sampler, batch_size=n).samples for n in (None, 1, 2, 7))
    assert whole.std() > 0.1
    for part in parts:
        torch.testing.assert_close(part, whole, atol=1e-4, rtol=0)  # of rounding: 2.3e-6 was measured


@pytest.fixture
def films(tmp_path):
    "A model and six radiographs of noise."
    network().save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 20 + i), np.uint8)).save(tmp_path / f"in/{i}.png")
    return tmp_path


def words(root, *sources, out="out"):
    return ["segment", *map(str, sources or [root / "in"]), "-o", str(root / out), "--model", str(root / "model"), "-q"]


def contents(out):
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def test_a_folder_gives_what_each_alone_gives_in_any_order(films):
    assert main(words(films)) == 0
    whole = contents(films / "out")
    assert len(whole) == 30
    for path in sorted((films / "in").iterdir(), reverse=True):
        assert main(words(films, path, out="alone")) == 0
    assert contents(films / "alone") == whole
    segmenter = Segmenter.from_pretrained(films / "model")
    mask = np.asarray(Image.open(films / "out/3_mask.png"))
    assert np.array_equal(segmenter.predict(films / "in/3.png").mask * 255, mask) and mask.any()


def test_two_processes_share_a_folder_of_results(films):
    assert main(words(films, out="calm")) == 0
    command = [sys.executable, "-m", "verdiff", *words(films)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in "ab"]
    for process in both:
        said, complaints = process.communicate(timeout=300)
        assert process.returncode == 0 and said.startswith("6 of 6 images segmented") and "error" not in complaints, complaints
    assert contents(films / "out") == contents(films / "calm")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for name, part in PARTS.items():
        print(name, part(5, Path(sys.argv[1]) / name))
