"""Classifiers that the project trains itself, the measure of what a generator draws."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, fold, interpolate, unfold
from torchvision.transforms.v2.functional import crop, horizontal_flip, pad

from common import checkpoint, distributed
from common.cifar import load_images
from common.data import DataError, to_pixels
from common.mnist import load_digits
from common.progress import progress_bar


class Task(NamedTuple):
    """What a classifier is trained on."""

    name: str
    net: Callable[[], nn.Sequential]
    load: Callable[..., tuple[Tensor, Tensor]]
    augment: Callable[[Tensor], Tensor]
    nothing: Callable[[Tensor], Tensor] | None = None  # from a batch, images that belong to none of its classes


def classifier(
    task: Task, path: Path, data: Path, device: torch.device, *, updates: int
) -> tuple[nn.Sequential, float]:
    """The classifier that is cached at `path`, trained and saved there first if there is none.

    Args:
        task: `DIGITS` or `OBJECTS`.
        path: The cache.
        data: The folder of the data set.
        device: Where to train, and where the classifier will be.
        updates: Of the classifier, on 128 images each.

    Returns:
        The network in evaluation mode, from images in [-1, 1] of shape (n, colours, height, width) to ten logits, and
        an eleventh where the task has images of nothing; and its accuracy on the test set.
    """
    net = task.net()
    config = {"classifier_updates": updates, "classes": net[-1].out_features}
    state = checkpoint.load(path, config)
    if state is not None:
        net.load_state_dict(state["parts"]["net"])
        return _ready(net, device), state["progress"]["accuracy"]
    # Like every run it has a seed of its own: who trains it must not change what comes after.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = task.net().to(device)
        _train(task, net, data, device, updates)
    images, labels = task.load(data, train=False)
    right = classify(_ready(net, device), _pixels(images.to(device)))[0] == labels.to(device)
    accuracy = float(right.double().mean())
    checkpoint.save(path, config, {"net": net}, {"accuracy": accuracy})
    return net, accuracy


def prepare(
    task: Task, parser: argparse.ArgumentParser, args: argparse.Namespace, updates: int
) -> tuple[Path, nn.Sequential, float]:
    """The classifier of a whole grid, ready before the first run; ends the program where it cannot be had.

    Args:
        task: `DIGITS` or `OBJECTS`.
        parser: Ends the program.
        args: The command line.
        updates: Of the classifier.

    Returns:
        Where it is cached, the network, and its accuracy on the test set.
    """
    path = args.out / f"{task.name}_classifier.pt"
    try:
        with distributed.in_turn(args.device):
            if args.restart and distributed.first():
                path.unlink(missing_ok=True)
            net, accuracy = classifier(task, path, args.data, args.device, updates=updates)
    except (DataError, checkpoint.CheckpointError) as error:
        parser.error(str(error))
    if distributed.first():
        print(f"Classifier of {task.name}s: {accuracy:.2%} right on the test set.")
    return path, net, accuracy


def classify(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """argmax_c p(c | x) and max_c p(c | x), over the ten classes alone.

    Where the classifier knows an eleventh class for what is nothing, that class takes its share of the probability,
    so that no class is likely for noise; yet every image is read as one of the ten.

    Args:
        net: The classifier.
        images: Shape (n, colours, height, width), in [-1, 1].

    Returns:
        Classes and their probabilities, both of shape (n,).
    """
    with torch.no_grad():
        best = [net(batch).softmax(1)[:, :10].max(1) for batch in images.split(512)]
    return torch.cat([classes for _, classes in best]), torch.cat([probability for probability, _ in best])


def extractor(net: nn.Sequential) -> nn.Module:
    """The classifier without its last layer: from images to what that layer sees, `num_features` of them."""
    body = net[:-1]
    body.num_features = net[-1].in_features  # pyright: ignore[reportArgumentType]
    return body


def features(net: nn.Sequential, images: Tensor) -> Tensor:
    """What the classifier's last layer sees.

    Args:
        net: The classifier.
        images: Shape (n, colours, height, width), in [-1, 1].

    Returns:
        Shape (n, features).
    """
    with torch.no_grad():
        return torch.cat([extractor(net)(batch) for batch in images.split(512)])


def _digit_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5, stride=2, padding=2), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(7 * 7 * 48, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 11)),
    )


def _object_net() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 24), (24, 48), (48, 96)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(96, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def _train(task: Task, net: nn.Module, data: Path, device: torch.device, updates: int) -> None:
    images, labels = (part.to(device) for part in task.load(data, train=True))
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=updates)
    with progress_bar(updates, f"Classifier of {task.name}s") as bar:
        for _ in range(updates):
            chosen = torch.randint(len(images), (128,), device=device)
            batch, classes = task.augment(_pixels(images[chosen])), labels[chosen]
            if task.nothing is not None:
                others = task.nothing(batch)
                batch = torch.cat([batch, others])
                classes = torch.cat([classes, classes.new_full((len(others),), 10)])
            loss = cross_entropy(net(batch), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(1)


def _ready(net: nn.Sequential, device: torch.device) -> nn.Sequential:
    # Channels last, a CPU reads 1.5 times as many images a second.
    return net.to(device, memory_format=torch.channels_last).eval()


def _pixels(images: Tensor) -> Tensor:
    return to_pixels(images).view(len(images), -1, *images.shape[-2:])


def _shifted(images: Tensor, most: int = 2) -> Tensor:
    # Generated digits are not centred as MNIST's are.
    x, y = torch.randint(2 * most + 1, (2,)).tolist()
    height, width = images.shape[-2:]
    return crop(pad(images, [most], fill=-1.0), y, x, height, width)


def _shifted_or_mirrored(images: Tensor) -> Tensor:
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return _shifted(torch.where(mirrored, horizontal_flip(images), images))


def noise_and_blots(count: int, device: torch.device) -> Tensor:
    """Grey noise of every grain, from one grey for the whole image over blots to single pixels.

    Drawn from torch's global generator.

    Args:
        count: Number of images.
        device: Where they are made.

    Returns:
        Shape (count, 1, 28, 28), in [-1, 1].
    """
    grains = (1, 2, 4, 7, 14, 28)  # independent values along each side
    parts = []
    for grain, part in zip(grains, torch.arange(count).chunk(len(grains)), strict=False):
        coarse = torch.randn(len(part), 1, grain, grain, device=device)
        contrast, mean = 3 * torch.rand(2, len(part), 1, 1, 1, device=device)
        fine = interpolate(coarse, size=(28, 28), mode="bilinear", align_corners=False)
        parts.append((contrast * fine - mean).tanh())
    return torch.cat(parts)


def _no_digits(digits: Tensor) -> Tensor:
    """For four digits one image that is none: noise, a blot, or the strokes of a digit in another order."""
    few = digits[: len(digits) // 8]
    tiles = unfold(few, 7, stride=7)  # 4 × 4 of them
    order = torch.rand(len(few), 1, 16, device=few.device).argsort(dim=2).expand_as(tiles)
    torn = fold(tiles.gather(2, order), (28, 28), 7, stride=7)
    return torch.cat([noise_and_blots(len(few), few.device), torn])


# 2,500 updates bring more than 99 % on the test set.
DIGITS = Task("digit", _digit_net, load_digits, _shifted, _no_digits)
OBJECTS = Task("object", _object_net, load_images, _shifted_or_mirrored)
