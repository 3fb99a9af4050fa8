"""FID with torchmetrics.

`pip install torchmetrics torch-fidelity` brings the Inception network of `feature=2048`.
"""

import torch
from torchmetrics.image.fid import FrechetInceptionDistance


@torch.no_grad()
def fid(G, noise, loader, feature=2048, device="cpu"):
    """Between a loader's images, in [-1, 1], and as many of G's; G takes `noise(n)`.

    For images that are not photographs, pass a network trained on them as `feature`. It
    takes images in [0, 1] and returns a row of features for each.
    """
    metric = FrechetInceptionDistance(feature=feature, normalize=True).to(device)
    training = G.training
    G.eval()
    for real in loader:
        metric.update((real.to(device) + 1) / 2, real=True)
        metric.update((G(noise(len(real))) + 1) / 2, real=False)
    G.train(training)
    return metric.compute().item()
