"""A classifier of MNIST digits, the measure of what a generator draws."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from common import checkpoint
from common.data import to_pixels
from common.mnist import DataError, load_digits
from common.progress import progress_bar


def digit_classifier(path: Path, data: Path, device: torch.device, *, updates: int) -> tuple[nn.Module, float]:
    """The classifier that is cached at `path`, trained and saved there first if there is none.

    Args:
        path: The cache.
        data: The folder of MNIST.
        device: Where to train, and where the classifier will be.
        updates: Of the classifier, on 128 digits each; 2,500 bring more than 99 % on the test set.

    Returns:
        The network in evaluation mode, from images in [-1, 1] of shape (n, 1, 28, 28) to ten logits; and its
        accuracy on the test set.
    """
    net = _net()
    config = {"classifier_updates": updates}
    state = checkpoint.load(path, config)
    if state is not None:
        net.load_state_dict(state["parts"]["net"])
        return _ready(net, device), state["progress"]["accuracy"]
    # Like every run it has a seed of its own: who trains it must not change what comes after.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _net().to(device)
        _train(net, data, device, updates)
    test = load_digits(data, train=False)
    right = classify(_ready(net, device), to_pixels(test.images.to(device)))[0] == test.labels.to(device)
    accuracy = float(right.double().mean())
    checkpoint.save(path, config, {"net": net}, {"accuracy": accuracy})
    return net, accuracy


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace, updates: int) -> tuple[Path, nn.Module, float]:
    """The classifier of a whole grid, ready before the first run; ends the program where it cannot be had.

    Args:
        parser: Ends the program.
        args: The command line.
        updates: Of the classifier.

    Returns:
        Where it is cached, the network, and its accuracy on the test set.
    """
    path = args.out / "digit_classifier.pt"
    if args.restart:
        path.unlink(missing_ok=True)
    try:
        net, accuracy = digit_classifier(path, args.data, args.device, updates=updates)
    except (DataError, checkpoint.CheckpointError) as error:
        parser.error(str(error))
    print(f"Classifier of digits: {accuracy:.2%} right on the test set.")
    return path, net, accuracy


def classify(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """argmax_c p(c | x) and max_c p(c | x).

    Args:
        net: The classifier.
        images: Single digits, shape (n, 28, 28), in [-1, 1].

    Returns:
        Classes and their probabilities, both of shape (n,).
    """
    with torch.no_grad():
        best = [net(batch.unsqueeze(1)).softmax(1).max(1) for batch in images.split(512)]
    return torch.cat([classes for _, classes in best]), torch.cat([probability for probability, _ in best])


def _ready(net: nn.Module, device: torch.device) -> nn.Module:
    # Channels last, a CPU reads 1.5 times as many digits a second.
    return net.to(device, memory_format=torch.channels_last).eval()


def _net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5, stride=2, padding=2), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(7 * 7 * 48, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 10)),
    )


def _train(net: nn.Module, data: Path, device: torch.device, updates: int) -> None:
    digits = load_digits(data, train=True)
    images, labels = to_pixels(digits.images.to(device)).unsqueeze(1), digits.labels.to(device)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=updates)
    with progress_bar(updates, "Classifier of digits") as bar:
        for _ in range(updates):
            chosen = torch.randint(len(images), (128,), device=device)
            loss = cross_entropy(net(_shifted(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(1)


def _shifted(images: Tensor, most: int = 2) -> Tensor:
    # Generated digits are not centred as MNIST's are.
    x, y = torch.randint(2 * most + 1, (2,)).tolist()
    return pad(images, (most, most, most, most), value=-1.0)[..., y : y + 28, x : x + 28]
