"""The colours of digits, and how far two distributions of colours are apart: section 3.3.2."""

import numpy as np
from sklearn.cluster import KMeans
from sklearn.neighbors import KernelDensity
from torch import Tensor


def foreground_colors(images: Tensor) -> np.ndarray:
    """The brighter of the two centres that k-means finds among the pixels of an image.

    It starts from the darkest pixel and the one farthest from it, so that the same image always has the same colour.

    Args:
        images: Shape (n, 3, height, width), in [-1, 1]. The background is near black, -1.

    Returns:
        An array of shape (n, 3).
    """
    colors = []
    for pixels in images.flatten(2).transpose(1, 2).double().cpu().numpy():
        darkest = pixels[pixels.sum(axis=1).argmin()]
        farthest = pixels[((pixels - darkest) ** 2).sum(axis=1).argmax()]
        if np.array_equal(darkest, farthest):
            colors.append(darkest)
            continue
        start = np.stack([darkest, farthest])
        clusters = KMeans(2, init=start, n_init=1).fit(pixels)  # pyright: ignore[reportArgumentType]
        colors.append(max(clusters.cluster_centers_, key=np.sum))
    return np.stack(colors)


def js_divergence(model: np.ndarray, data: np.ndarray, *, seed: int = 0) -> float:
    """JS(p, q) = KL(p ‖ m) / 2 + KL(q ‖ m) / 2 with m = (p + q) / 2, in nats, of two Gaussian kernel densities.

    The bandwidth of both is Scott's rule for `data`: one that followed the model's own spread would have no density
    for a generator of a single colour. The two means are over as many points as there are samples, drawn from the
    densities themselves.

    Args:
        model: Samples of one distribution, shape (n, dimensions).
        data: Samples of the other, shape (m, dimensions).
        seed: Of the points drawn.

    Returns:
        A number from about 0 to log 2. Two sets of samples of the same distribution give a little more than 0.
    """
    bandwidth = float(data.std(axis=0).mean() * len(data) ** (-1 / (data.shape[1] + 4)))
    random = np.random.RandomState(seed)

    def density(samples: np.ndarray) -> KernelDensity:
        return KernelDensity(bandwidth=bandwidth, rtol=1e-4).fit(samples)  # pyright: ignore[reportArgumentType]

    p, q = density(model), density(data)

    def to_middle(one: KernelDensity, size: int) -> float:
        points = one.sample(size, random_state=random)
        middle = np.logaddexp(p.score_samples(points), q.score_samples(points)) - np.log(2)
        return float((one.score_samples(points) - middle).mean())

    return (to_middle(p, len(model)) + to_middle(q, len(data))) / 2
