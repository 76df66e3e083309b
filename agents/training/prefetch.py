"""Updates whose batches are prepared ahead of time by a second thread (`--prefetch-targets`).

Sampling a batch, converting its images and the target network's forward pass do not depend on earlier updates until the
target network changes. They are a third of an update of a small network, which is hardly faster on two cores because
its kernels are too short to be divided among them. A second core therefore does this part of the updates that follow.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.learner import Learner
from zerokara.agents.qlearning.replay import Batch, Replay
from zerokara.agents.training.session import Session

MAX_PREPARED = 4  # updates, each with the images of a batch
Prepared = tuple[Batch, Tensor]  # images in place of pixels, and outputs of the target network (B, X, A)


class PrefetchedUpdates:
    """Updates of a run on the CPU: the same batches, targets and order as without a second thread.

    No update is prepared when an iteration of the training loop ends, so that checkpoints and evaluations are the same.

    Args:
        config: config of the run, without what `agents.configs.dqn.check_prefetching` refuses.
        training: state of the run.
        learner: its learner.
        replay: its replay buffer.
        gradient_step: does a gradient step of the learner on a batch, given `next_z_BXA`.
    """

    def __init__(
        self,
        config: Config,
        training: Session,
        learner: Learner,
        replay: Replay,
        gradient_step: Callable[..., object],
    ) -> None:
        self.config, self.training, self.learner, self.replay = config, training, learner, replay
        self._gradient_step = gradient_step
        one_thread = dataclasses.replace(training.compute, threads=1)
        self._executor = ThreadPoolExecutor(1, "prefetch", initializer=one_thread.apply)
        self._prepared: deque[Future[Prepared]] = deque()  # the next updates
        self._is_compiled = False  # before that, one thread at a time compiles

    def start(self) -> None:
        """Start to prepare the updates that are due at this step, as long as the target network stays as it is."""
        due = schedules.updates_due(self.config, self.training.step) if self._is_compiled else 0
        while len(self._prepared) < MAX_PREPARED:
            updates = self.training.updates + len(self._prepared)
            if updates >= due or (self._prepared and self._changes_target(updates)):
                return
            self._prepared.append(self._executor.submit(self._prepare))

    def update(self) -> None:
        """Do the next update. Raises what the second thread has raised."""
        self.start()
        prepared = self._prepared.popleft() if self._prepared else self._executor.submit(self._prepare)
        batch, next_z_BXA = prepared.result()
        self._gradient_step(self.learner, batch, next_z_BXA=next_z_BXA)
        self._is_compiled = True

    def _changes_target(self, updates: int) -> bool:
        """Return True if the target network changes after this many updates."""
        return schedules.is_target_update_due(self.config, updates) or schedules.is_reset_due(self.config, updates)

    def _prepare(self) -> Prepared:
        batch = self.replay.sample(self.config.batch_size // self.training.world.size)
        images, next_images, next_z_BXA = self.learner.prepare(batch.obs, batch.next_obs)
        return batch._replace(obs=images, next_obs=next_images), next_z_BXA
