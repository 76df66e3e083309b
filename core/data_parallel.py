"""Data-parallel training: the gradients of several processes are averaged while the backward pass computes them.

    parallel = DataParallel(world, network)
    for number, part in enumerate(parts, 1):
        with parallel.no_sync(on=number < len(parts)):
            parallel.backward(parallel.forward(loss_function, part))
    optimizer.step()

PyTorch's DistributedDataParallel (Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel
Training") divides the gradients into buckets and averages a bucket as soon as it is complete. With one process, both
passes are those of PyTorch alone.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from zerokara.core.compute import find_device
from zerokara.core.config import UserError
from zerokara.core.distributed import World, reporting_lost_processes

if TYPE_CHECKING:
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    from zerokara.core.choices import GradientCompression
    from zerokara.core.run_options import BatchNormOptions

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ResultT = TypeVar("ResultT")

POWERSGD_RANK = 2  # of the matrices that are exchanged; Vogels et al. 2019, section 5.1, for ResNet-18
POWERSGD_START = 0.1, 1000  # compression starts after this fraction of the updates, at most after this number
ONE_BUCKET_MB = 1 << 20


class DataParallel:
    """Forward and backward passes of a network that several processes train.

    The network does not change: its parameters keep their names, and it can be used without this object. Buffers are
    not exchanged: the statistics of BatchNorm are those of the images of the process.

    Attributes:
        synchronizes: False inside `no_sync`.
    """

    def __init__(
        self, world: World, network: nn.Module, compression: GradientCompression = "none", updates: int = 0
    ) -> None:
        """Create the passes. Processes connect their gradients in the first forward pass.

        Args:
            world: processes that train together.
            network: has equal weights in all processes. Its parameters that require gradients must do so from the first
                forward pass on.
            compression: of the gradients that are exchanged.
            updates: in the run, of which PowerSGD begins after a tenth.
        """
        self.world, self.network, self.synchronizes = world, network, True
        self._compression = compression
        self._ddp: DistributedDataParallel | None = None
        self._powersgd: PowerSGDState | None = None
        if compression == "powersgd" and world.size > 1:
            self._powersgd = _powersgd_state(updates)

    def forward(self, function: Callable[..., ResultT], *args: Any) -> ResultT:
        """Return function(*args), whose loss is to be given to `backward`.

        Args:
            function: uses the network, perhaps several times; may be compiled.
            args: its arguments.

        Raises:
            ProcessLost: another process has ended, or does not answer.
        """
        if self.world.size == 1 or not torch.is_grad_enabled():
            return function(*args)
        with reporting_lost_processes():
            if self._ddp is None:
                self._ddp = self._connect()
            with contextlib.nullcontext() if self.synchronizes else self._ddp.no_sync():
                result: ResultT = self._ddp(function, *args)
                return result

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss (scalar) to those of the network, and average the sums over the processes.

        The loss must depend on a result of `forward`, to which parameters of the network that it does not depend on
        are no exception: they get no gradient if that is so in all processes.

        Raises:
            ProcessLost: another process has ended, or does not answer.
        """
        if self._ddp is None:
            loss.backward()
            return
        used = _parameters_of(loss)
        unused = [p for p in self.network.parameters() if p.requires_grad and p not in used]
        for parameter in unused:  # DistributedDataParallel waits for the gradients of all
            loss = loss + 0 * parameter.sum()
        with reporting_lost_processes():
            loss.backward()
        for parameter in unused:
            if parameter.grad is not None and not parameter.grad.any():
                parameter.grad = None

    @contextlib.contextmanager
    def no_sync(self, *, on: bool = True) -> Iterator[None]:
        """Inside the block, both passes leave the gradients in this process; with on=False they do not.

        For gradient accumulation, in all parts but the last.
        """
        before, self.synchronizes = self.synchronizes, not on
        try:
            yield
        finally:
            self.synchronizes = before

    def _connect(self) -> DistributedDataParallel:
        """Let the gradients of the network be averaged in buckets."""
        # PowerSGD does several operations on a bucket, each after the one before. With Gloo, those of two buckets would
        # be done in another order in each process.
        one_bucket = self._powersgd is not None and dist.get_backend() == "gloo"
        ddp = DistributedDataParallel(
            _Pass(self.network),
            init_sync=False,  # World.broadcast has done it
            gradient_as_bucket_view=True,
            bucket_cap_mb=ONE_BUCKET_MB if one_bucket else None,
        )
        ddp.broadcast_buffers = False  # in the argument of this name, PyTorch 2.13 warns of a new one, which 2.11 lacks
        if self._compression == "bfloat16":
            ddp.register_comm_hook(None, _compress_to_bfloat16)
        if self._powersgd is not None:
            from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import powerSGD_hook

            ddp.register_comm_hook(self._powersgd, powerSGD_hook)
        with self._without_powersgd():
            _fix_buckets(ddp, self.network)
        # Of gradients of 1x1 filters or one channel, where the strides of a dimension with one element have no meaning.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return ddp

    @contextlib.contextmanager
    def _without_powersgd(self) -> Iterator[None]:
        """Inside the block, PowerSGD averages gradients without compression, and its state does not change."""
        iterations = 0 if self._powersgd is None else self._powersgd.iter
        if self._powersgd is not None:
            self._powersgd.iter = 0
        yield
        if self._powersgd is not None:
            self._powersgd.iter = iterations

    def state_dict(self) -> dict[str, Any]:
        """Return the state of PowerSGD as tensors and plain values, for a checkpoint; empty without it."""
        state = self._powersgd
        if state is None:
            return {}
        return {
            "processes": self.world.size,
            "iterations": state.iter,
            "errors": dict(state.error_dict),
            "p": dict(state.p_memory_dict),
            "q": dict(state.q_memory_dict),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. The errors of another number of processes are dropped."""
        state = self._powersgd
        if state is None or not saved:
            return
        device = next(self.network.parameters()).device
        errors, p, q = (
            {bucket: tensor.to(device) for bucket, tensor in saved[name].items()} for name in ("errors", "p", "q")
        )
        state.iter = saved["iterations"]
        state.error_dict = errors if saved["processes"] == self.world.size else {}
        state.p_memory_dict, state.q_memory_dict = p, q


class _Pass(nn.Module):
    """Module whose forward pass is that of a function that uses the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def _fix_buckets(ddp: DistributedDataParallel, network: nn.Module) -> None:
    """Let PyTorch divide the gradients into buckets now: the last parameter first.

    It does so after the first backward pass, in the order in which the gradients arrived. The rounding of a sum over
    three or more processes depends on the place in a bucket, so that a resumed run, whose first backward pass is
    another one, would differ from a run that was not stopped.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]

    def zero() -> Tensor:
        total = torch.zeros((), device=parameters[0].device)
        for parameter in parameters:
            total = total + 0 * parameter.sum()
        return total

    ddp(zero).backward()
    for parameter in parameters:
        parameter.grad = None


def _compress_to_bfloat16(group: Any, bucket: Any) -> Any:
    """Average a bucket of gradients in bfloat16.

    PyTorch refuses its hook by its name where there is no NCCL, but Gloo can average in bfloat16, too.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    return bf16_compress_hook(group, bucket)


_compress_to_bfloat16.__annotations__.clear()  # PyTorch compares them with classes, and here they are texts


def _parameters_of(loss: Tensor) -> set[Tensor]:
    """Return the parameters on which a loss depends."""
    found, seen, waiting = set[Tensor](), set[Any](), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found


def _powersgd_state(updates: int) -> PowerSGDState:
    """Return the initial state of PowerSGD (Vogels et al. 2019) for a run of this length."""
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    fraction, most = POWERSGD_START
    return PowerSGDState(
        process_group=None,
        matrix_approximation_rank=POWERSGD_RANK,
        start_powerSGD_iter=max(2, min(most, round(fraction * updates))),
        orthogonalization_epsilon=1e-8,  # gradients of unused weights are 0
    )


def check_sync_batch_norm(config: BatchNormOptions, world: World) -> None:
    """Check that PyTorch can synchronize BatchNorm layers, if the config asks for it and there are several processes.

    Raises:
        UserError: it cannot: not on this device.
    """
    if config.sync_batch_norm and world.size > 1 and not find_device(config.device).startswith("cuda"):
        raise UserError(
            "PyTorch's synchronized BatchNorm computes on CUDA only: leave --sync-batch-norm out, or train on GPUs."
        )


def synchronize_batch_norm(network: ModuleT, world: World) -> ModuleT:
    """Let BatchNorm layers normalize by mean and variance over the images of all processes (`nn.SyncBatchNorm`)."""
    if world.size == 1:
        return network
    synchronized: ModuleT = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return synchronized
