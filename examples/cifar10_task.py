"""CIFAR-10 from your own copy of the data, without torchvision: a small residual net.

Reads the "python version" (cifar-10-batches-py) and the "binary version" (cifar-10-batches-bin) of
https://www.cs.toronto.edu/~kriz/cifar.html, unpacked. Nothing is downloaded, and no code in the files is run. Say where
the folder is with --set folder=..., or put it beside this file:

    landscape sweep cifar10_task.py --set folder=cifar-10-batches-py --loss "cross_entropy,squentropy" \\
                    --schedule warmup_cosine --lr 0.1 --batch-size 128,1024 --seeds 3 --epochs 30 -o runs --workers 4
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from landscape import Task, task

#: Mean and deviation of the training images' channels, in [0, 1].
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PIXELS = 3 * 32 * 32


#: What the pickles of arrays ask for, by old and new NumPy.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip
#: Where this NumPy has what makes arrays: numpy._core.multiarray, numpy.core.multiarray before NumPy 2.
ARRAYS = np.empty(0).__reduce__()[0].__module__


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays and plain values alone: a data file is somebody else's, and a pickle can run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}; a CIFAR-10 batch has no use for it")
        return super().find_class(ARRAYS if name == "_reconstruct" else module, name)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32) uint8 and labels (n,) of one batch file, binary (.bin) or python."""
    data = path.read_bytes()
    if path.suffix == ".bin":
        if not data or len(data) % (1 + PIXELS):
            raise ValueError(f"{path} has {len(data)} bytes, no multiple of {1 + PIXELS}: not a whole binary batch")
        rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + PIXELS)
        return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)
    found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    images, labels = np.asarray(found[b"data"], dtype=np.uint8), np.asarray(found[b"labels"], dtype=np.int64)
    if images.ndim != 2 or images.shape[1] != PIXELS or len(images) != len(labels):
        raise ValueError(f"{path} holds data {images.shape} and {len(labels)} labels; expected (n, {PIXELS}) and n")
    return images.reshape(-1, 3, 32, 32), labels


def read_split(folder: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalized images (n, 3, 32, 32) float32 and labels (n,) of several batches, in order."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; unpack cifar-10-python.tar.gz, and say --set folder=...")
    suffix = ".bin" if any(folder.glob("*.bin")) else ""
    parts = [read_batch(folder / f"{name}{suffix}") for name in names if (folder / f"{name}{suffix}").exists()]
    if not parts:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(n + suffix for n in names)}")
    images = torch.from_numpy(np.concatenate([p[0] for p in parts])).float().div_(255)
    mean, deviation = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(DEVIATION).view(1, 3, 1, 1)
    return images.sub_(mean).div_(deviation), torch.from_numpy(np.concatenate([p[1] for p in parts]))


class Augmented(Dataset[tuple[torch.Tensor, int]]):
    """Random crops with 4 pixels of padding, and mirrored halves of the time (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = nn.functional.pad(images, (4, 4, 4, 4)), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        down, across = (int(v) for v in torch.randint(9, (2,)))
        image = self.images[index, :, down : down + 32, across : across + 32]
        return (image.flip(2) if torch.rand(()) < 0.5 else image), int(self.labels[index])


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, skips: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])
        same = stride == 1 and channels_in == channels
        self.skip = (
            (nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)) if skips else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[1](self.two(torch.relu(self.norms[0](self.one(x)))))
        return torch.relu(y if self.skip is None else y + self.skip(x))


@task
def cifar10(folder: str = "", width: int = 16, blocks: int = 3, skips: bool = True, augment: bool = True) -> Task:
    """A residual net of 6 blocks + 2 layers (blocks=3: ResNet-20); skips=False takes its skip connections away."""
    place = Path(folder) if folder else Path(__file__).resolve().with_name("cifar-10-batches-py")
    train = read_split(place, [f"data_batch_{i}" for i in range(1, 6)])
    test = read_split(place, ["test_batch"])
    stages = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for channels_in, channels, stride in stages:
        layers += [
            Block(channels_in if i == 0 else channels, channels, stride if i == 0 else 1, skips) for i in range(blocks)
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))
    data = Augmented(*train) if augment else train
    return Task(model, nn.CrossEntropyLoss(), data, test, name="CIFAR-10", batch_size=128)
