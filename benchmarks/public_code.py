"""`verify` in the training code of well-known repositories, with the few lines that unrolling takes there.

git clone https://github.com/eriklindernoren/PyTorch-GAN clones/PyTorch-GAN
python benchmarks/public_code.py clones acgan              # float32, as it comes
python benchmarks/public_code.py clones acgan --double

None of their code is here: a change is new lines for a range of line numbers, at a named commit. They train on random
images of their size; the third call of the loss is verified.
"""

import argparse
import itertools
import linecache
import os
import subprocess
import sys
import tempfile
import time
import types
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision

from unroll_wrap import UnrolledGeneratorLoss, Verification, verify

IMPORT = "from unroll_wrap import UnrolledGeneratorLoss"


class Edit(NamedTuple):
    """Lines that take the place of others, from the first to the last; none if that lies before the first."""

    first: int
    last: int
    lines: str


class Target(NamedTuple):
    """A file of a repository, and what changes in it.

    Attributes:
        repository: its folder's name, as cloned.
        commit: that the line numbers are of.
        path: of the file.
        edits: in it.
        run: trains with the changed source.
        elsewhere: further new lines, in another file.
    """

    repository: str
    commit: str
    path: str
    edits: list[Edit]
    run: Callable[[Path, str], None]
    elsewhere: int = 0

    def changed(self) -> int:
        """Lines that come or, if these are more, lines that go; blank ones do not count."""
        new = sum(1 for edit in self.edits for line in edit.lines.splitlines() if line.strip())
        return max(new + self.elsewhere, sum(edit.last - edit.first + 1 for edit in self.edits))

    def source(self, clone: Path) -> str:
        """The file with the changes."""
        head = subprocess.check_output(["git", "-C", str(clone), "rev-parse", "HEAD"], text=True)
        if not head.startswith(self.commit):
            raise SystemExit(f"{clone} is at {head:.7}. The line numbers are those of {self.commit}: git checkout it.")
        lines = (clone / self.path).read_text(encoding="utf-8-sig").splitlines()
        for edit in sorted(self.edits, reverse=True):
            lines[edit.first - 1 : edit.last] = edit.lines.strip("\n").splitlines()
        return "\n".join(lines) + "\n"


class Enough(Exception):
    """The call that was asked for has been verified."""


class Images(torch.utils.data.Dataset[Any]):
    """Random ones, with labels, whatever data set is asked for."""

    def __init__(self, *args: Any, channels: int = 1, size: int = 28, transform: Any = None, **options: Any) -> None:
        resize = [t.size for t in getattr(transform, "transforms", []) if hasattr(t, "size")]
        self.channels, self.size = channels, resize[0] if resize and isinstance(resize[0], int) else size

    def __len__(self) -> int:
        return 96

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        drawn = torch.Generator().manual_seed(i)
        return torch.rand(self.channels, self.size, self.size, generator=drawn) * 2 - 1, i % 10


def script(*arguments: str) -> Callable[[Path, str], None]:
    """A script with a command line."""

    def run(path: Path, source: str) -> None:
        torchvision.datasets.MNIST = Images  # type: ignore[misc]
        mnistm = types.ModuleType("mnistm")
        mnistm.MNISTM = lambda *a, **o: Images(*a, channels=3, **o)  # type: ignore[attr-defined]
        sys.modules["mnistm"] = mnistm
        sys.argv = [path.name, *arguments]
        module(path, source, "__main__")

    return run


def module(path: Path, source: str, name: str, package: str = "") -> dict[str, Any]:
    """The names that a changed source defines."""
    names: dict[str, Any] = {"__name__": name, "__file__": str(path), "__package__": package}
    # verify shows the lines of cuts as they are here.
    linecache.cache[str(path)] = len(source), None, source.splitlines(keepends=True), str(path)
    exec(compile(source, str(path), "exec"), names)
    return names


def lightning_template(path: Path, source: str) -> None:
    """With the package's own trainer."""
    import lightning

    model = module(path, source, "template")["GAN"](img_shape=(1, 8, 8))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=2, **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(Images(size=8), batch_size=8))


def cycle_gan(path: Path, source: str) -> None:
    """The model class with a namespace of options, images one by one."""
    for name in ("visdom", "dominate", "GPUtil"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.path.insert(0, str(path.parents[1]))
    options = Namespace(
        isTrain=True, gpu_ids=[], checkpoints_dir="run", name="x", preprocess="none", input_nc=3, output_nc=3, ngf=4,
        ndf=4, netG="resnet_4blocks", netD="basic", n_layers_D=3, normG="instance", normD="instance", no_dropout=True,
        init_type="xavier", init_gain=0.02, no_antialias=False, no_antialias_up=False, lambda_identity=0.5,
        lambda_A=10.0, lambda_B=10.0, pool_size=50, gan_mode="lsgan", lr=2e-4, beta1=0.5, direction="AtoB", amp=False,
    )  # fmt: skip
    model = module(path, source, "models.cycle_gan_model", "models")["CycleGANModel"](options)
    for _ in range(4):
        images = (torch.rand(1, 3, 64, 64) * 2 - 1 for _ in range(2))
        model.set_input({**dict(zip("AB", images, strict=True)), "A_paths": "", "B_paths": ""})
        model.optimize_parameters()


def big_gan(path: Path, source: str) -> None:
    """Its training function, with toggled gradients, two steps of D, and two accumulations for G."""
    for name in ("datasets", "h5py"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["datasets"].__getattr__ = lambda name: None  # type: ignore[method-assign]
    sys.path.insert(0, str(path.parent))
    import BigGAN  # type: ignore[import-not-found]
    import utils  # type: ignore[import-not-found]

    same: dict[str, Any] = {"resolution": 32, "n_classes": 5}
    G = BigGAN.Generator(
        G_ch=4, dim_z=20, hier=True, shared_dim=8, G_shared=True, G_attn="0", G_lr=2e-4, cross_replica=False, **same
    )
    D = BigGAN.Discriminator(D_ch=4, D_attn="0", D_lr=2e-4, **same)
    z, y = utils.prepare_z_y(4, G.dim_z, 5, device="cpu")
    z.data = z.data.type(torch.get_default_dtype())
    config = {"batch_size": 4, "toggle_grads": True, "num_D_steps": 2, "num_D_accumulations": 1, "split_D": False}
    config |= {"num_G_accumulations": 2, "D_ortho": 0.0, "G_ortho": 0.0, "ema": False}
    made = module(path, source, "train_fns")["GAN_training_function"]
    train = made(G, D, BigGAN.G_D(G, D), z, y, None, {"itr": 0}, config)
    for _ in range(3):
        train(torch.rand(8, 3, 32, 32) * 2 - 1, torch.randint(0, 5, (8,)))


def style_gan(path: Path, source: str) -> None:
    """Its nets and its loss in the four phases, the last two in every other iteration."""
    sys.path.insert(0, str(path.parents[1]))
    from torch_utils import training_stats  # type: ignore[import-not-found]
    from training.networks import Discriminator, Generator  # type: ignore[import-not-found]

    training_stats.report = lambda *args, **options: None
    both: dict[str, Any] = {"c_dim": 3, "img_resolution": 16, "img_channels": 3}
    narrow = {"channel_base": 128, "channel_max": 16, "num_fp16_res": 0}
    G = Generator(8, w_dim=8, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=narrow, **both).requires_grad_(False)
    D = Discriminator(epilogue_kwargs={"mbstd_group_size": 4}, **narrow, **both).requires_grad_(False)
    of_G, of_D = (torch.optim.Adam(net.parameters(), lr=0.002, betas=(0.0, 0.99), eps=1e-8) for net in (G, D))
    loss = module(path, source, "training.loss", "training")["StyleGAN2Loss"]("cpu", G.mapping, G.synthesis, D)
    # In the repository this line and the import stand in training_loop.py.
    loss.unrolled = UnrolledGeneratorLoss(D, of_D, steps=3)
    for i in itertools.count():
        real, c = torch.rand(4, 3, 16, 16) * 2 - 1, torch.eye(3)[torch.randint(3, (4,))]
        for phase, net, optimizer in (("Gmain", G, of_G), ("Greg", G, of_G), ("Dmain", D, of_D), ("Dreg", D, of_D)):
            if "reg" in phase and i % 2:
                continue
            z, of_z = torch.randn(4, 8), torch.eye(3)[torch.randint(3, (4,))]
            optimizer.zero_grad(set_to_none=True)
            net.requires_grad_(True)
            loss.accumulate_gradients(phase, real, c, z, of_z, sync=True, gain=1)
            net.requires_grad_(False)
            optimizer.step()


def pytorch_gan(name: str, imports: int, made: int, first: int, last: int, loss: str, **options: str) -> Target:
    """One of the scripts of PyTorch-GAN: where the import goes, the constructor, and the generator's loss."""
    D = options.get("D", "discriminator")
    built = f"unrolled = UnrolledGeneratorLoss({D}, optimizer_D, steps=3{options.get('more', '')})"
    edits = [Edit(imports + 1, imports, IMPORT), Edit(made, made - 1, built), Edit(first, last, loss)]
    path = f"implementations/{name}/{name}.py"
    return Target("PyTorch-GAN", "36d3c77", path, edits, script("--n_epochs", "9", "--batch_size", "8"))


PLAIN = """
        g_loss = unrolled(
            d_loss=lambda D: (adversarial_loss(D(real_imgs), valid) + adversarial_loss(D(gen_imgs), fake)) / 2,
            g_loss=lambda D: adversarial_loss(D(gen_imgs), valid))
"""
CLIPPED = ", param_transform=lambda p: p.clamp(-opt.clip_value, opt.clip_value)"
TARGETS = {
    "gan": pytorch_gan("gan", 13, 117, 144, 144, PLAIN),
    "dcgan": pytorch_gan("dcgan", 13, 139, 166, 166, PLAIN),
    "cgan": pytorch_gan("cgan", 13, 140, 171, 172, """
        g_loss = unrolled(
            d_loss=lambda D: (adversarial_loss(D(real_imgs, labels), valid)
                + adversarial_loss(D(gen_imgs, gen_labels), fake)) / 2,
            g_loss=lambda D: adversarial_loss(D(gen_imgs, gen_labels), valid))
"""),
    "acgan": pytorch_gan("acgan", 13, 163, 194, 195, """
        side = lambda out, truth, classes: (adversarial_loss(out[0], truth) + auxiliary_loss(out[1], classes)) / 2
        g_loss = unrolled(
            d_loss=lambda D: (side(D(real_imgs), valid, labels) + side(D(gen_imgs), fake, gen_labels)) / 2,
            g_loss=lambda D: side(D(gen_imgs), valid, gen_labels))
"""),
    "cogan": pytorch_gan("cogan", 17, 179, 208, 210, """
        both = lambda outs, truth: sum(adversarial_loss(out, truth) for out in outs) / 2
        g_loss = unrolled(
            d_loss=lambda D: (both(D(imgs1, imgs2), valid) + both(D(gen_imgs1, gen_imgs2), fake)) / 2,
            g_loss=lambda D: both(D(gen_imgs1, gen_imgs2), valid))
""", D="coupled_discriminators"),
    "wgan": pytorch_gan("wgan", 14, 110, 155, 155, """
            loss_G = unrolled(
                d_loss=lambda D: -torch.mean(D(real_imgs)) + torch.mean(D(gen_imgs)),
                g_loss=lambda D: -torch.mean(D(gen_imgs)))
""", more=CLIPPED),
    "wgan_gp": pytorch_gan("wgan_gp", 14, 141, 189, 190, """
            penalty = lambda D: lambda_gp * compute_gradient_penalty(D, real_imgs, fake_imgs)
            g_loss = unrolled(
                d_loss=lambda D: D(fake_imgs).mean() - D(real_imgs).mean() + penalty(D),
                g_loss=lambda D: -D(fake_imgs).mean())
"""),
    "pytorch/examples dcgan": Target("examples", "77f55b9", "dcgan/main.py", [
        Edit(11, 10, IMPORT),
        Edit(221, 220, """
one, zero = (lambda out: criterion(out, torch.ones_like(out))), (lambda out: criterion(out, torch.zeros_like(out)))
unrolled = UnrolledGeneratorLoss(netD, optimizerD, steps=3,
    d_loss=lambda D, real, fake: one(D(real)) + zero(D(fake)), g_loss=lambda D, real, fake: one(D(fake)))
"""),
        Edit(254, 256, "        errG = unrolled(real_cpu, fake)"),
    ], script(
        "--dataset", "fake", "--batchSize", "8", "--ngf", "8", "--ndf", "8", "--workers", "0", "--outf", ".",
        "--manualSeed", "1",
    )),
    "Lightning": Target(
        "pytorch-lightning", "7f0c343", "examples/pytorch/domain_templates/generative_adversarial_net.py", [
        Edit(27, 26, IMPORT),
        Edit(153, 153, """
        sides = [torch.ones_like(valid), torch.zeros_like(valid)]
        g_loss = UnrolledGeneratorLoss(self.discriminator, opt_d, steps=3,
            d_loss=lambda D, real, fake: sum(self.adversarial_loss(D(x), y) for x, y in zip((real, fake), sides)) / 2,
            g_loss=lambda D, real, fake: self.adversarial_loss(D(fake), valid))(imgs, self(z))
"""),
    ], lightning_template),
    "CycleGAN": Target("contrastive-unpaired-translation", "b3ac297", "models/cycle_gan_model.py", [
        Edit(2, 1, IMPORT),
        Edit(103, 102, """
            self.unrolled = UnrolledGeneratorLoss([self.netD_A, self.netD_B], self.optimizer_D, steps=3)
"""),
        Edit(178, 180, """
        d = lambda net, real, fake: (self.criterionGAN(net(real), True) + self.criterionGAN(net(fake), False)) * 0.5
        self.loss_G_A, self.loss_G_B = 0, self.unrolled(
            d_loss=lambda D: d(self.netD_A, self.real_B, self.fake_B) + d(self.netD_B, self.real_A, self.fake_A),
            g_loss=lambda D: self.criterionGAN(D[0](self.fake_B), True) + self.criterionGAN(D[1](self.fake_A), True))
"""),
    ], cycle_gan),
    "BigGAN": Target("BigGAN-PyTorch", "9845943", "train_fns.py", [
        Edit(8, 7, IMPORT),
        Edit(21, 20, "  unrolled = UnrolledGeneratorLoss(D, D.optim, steps=3)"),
        Edit(71, 72, """
      G_loss = unrolled(
        d_loss=lambda D: sum(losses.discriminator_loss(*GD(z_, y_, x[-1], y[-1], train_G=True))),
        g_loss=lambda D: losses.generator_loss(GD(z_, y_, train_G=True))) / float(config['num_G_accumulations'])
"""),
    ], big_gan),
    "StyleGAN2-ADA": Target("stylegan2-ada-pytorch", "d72cc7d", "training/loss.py", [
        Edit(68, 71, """
                real, fake = (real_img, real_c, False), (gen_img, gen_c, False)
                sp = lambda sign, images: torch.nn.functional.softplus(sign * self.run_D(*images)).mean()
                loss_Gmain = self.unrolled(d_loss=lambda D: sp(1, fake) + sp(-1, real), g_loss=lambda D: sp(-1, fake))
"""),
    ], style_gan, elsewhere=2),
}  # fmt: skip


@contextmanager
def verified(at: int) -> Iterator[list[str]]:
    """The call of that number, of any loss, is verified, and ends the training; what was found is put into a list."""
    plain, calls, found = UnrolledGeneratorLoss.__call__, itertools.count(1), list[str]()

    def called(self: UnrolledGeneratorLoss, *batch: Any, **options: Any) -> torch.Tensor:
        if next(calls) < at:
            return plain(self, *batch, **options)
        UnrolledGeneratorLoss.__call__ = plain
        began = time.process_time()
        plain(self, *batch, **options).backward(retain_graph=True)
        call = time.process_time() - began
        began = time.process_time()
        report = verify(self, *batch, **options)
        seconds = time.process_time() - began
        found.append(f"{row(report)} | {seconds / call:.0f} | {seconds:.1f}")
        raise Enough

    UnrolledGeneratorLoss.__call__ = called  # type: ignore[method-assign]
    try:
        yield found
    finally:
        UnrolledGeneratorLoss.__call__ = plain


def row(report: Verification) -> str:
    """The verdict, how far the derivatives are apart, and how uncertain the differences are."""
    if not report.slopes:
        return "FAILED | |"
    apart = max(abs(s.surrogate / s.difference - 1) for s in report.slopes)
    unsure = max(s.uncertainty / abs(s.difference) for s in report.slopes)
    return f"{'passed' if report.passed else 'FAILED'} | {apart:.0e} | {unsure:.0e}"


def train(target: Target, clone: Path) -> str:
    """Until the third call has been verified, in a folder that goes away."""
    source = target.source(clone)
    with tempfile.TemporaryDirectory() as folder, verified(at=3) as found:
        # Some write to ../../data.
        below = Path(folder, "a", "b")
        below.mkdir(parents=True)
        os.chdir(below)
        with suppress(Enough):
            target.run(clone / target.path, source)
        os.chdir(folder)
    return found[0] if found else "FAILED: the loss was called less than three times | | | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clones", type=Path, help="a folder with the repositories' clones")
    parser.add_argument("target", choices=list(TARGETS), help="one; each takes a process of its own")
    parser.add_argument("--double", action="store_true", help="float64 by default, and for torch.FloatTensor")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    if args.double:
        torch.set_default_dtype(torch.float64)
        torch.FloatTensor = torch.DoubleTensor
    torchvision.utils.save_image = lambda *args, **options: None
    target = TARGETS[args.target]
    found = train(target, (args.clones / target.repository).resolve())
    print("target | lines | verify | apart | uncertain | in plain calls | seconds")
    print(f"{args.target} | {target.changed()} | {found}")
    raise SystemExit("FAILED" in found)


if __name__ == "__main__":
    main()
