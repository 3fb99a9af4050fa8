"""A Lightning callback that logs what unrolling does, every n batches."""

from lightning.pytorch import Callback

from unroll_wrap import diagnose


class LogDiagnosis(Callback):
    """Needs `self.unrolled` in the module.

    At its end `training_step` has to `return {"unrolled": (real, fake)}`.
    """

    def __init__(self, every=100):
        self.every = every

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx % self.every == 0:
            real, fake = outputs["unrolled"]
            found = diagnose(module.unrolled, real, fake.detach().requires_grad_())
            for logger in trainer.loggers:
                logger.log_metrics(found.scalars(), step=trainer.global_step)
