"""An Ignite handler that puts what unrolling does among the metrics, for every logger.

trainer.add_event_handler(Events.ITERATION_COMPLETED(every=100), LogDiagnosis(unrolled))
"""

from unroll_wrap import diagnose


class LogDiagnosis:
    """Needs `"unrolled": (real, fake)` in what the process function returns."""

    def __init__(self, unrolled):
        self.unrolled = unrolled

    def __call__(self, engine):
        real, fake = engine.state.output["unrolled"]
        found = diagnose(self.unrolled, real, fake.detach().requires_grad_())
        engine.state.metrics.update(found.scalars())
