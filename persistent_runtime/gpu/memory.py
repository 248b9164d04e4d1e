"""Device memory behind tensors, and control tensors that host and device both see."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from event_tensor.errors import UserError
from event_tensor.tensors import TensorSpec
from persistent_runtime.formats import format_of
from persistent_runtime.gpu.worker.sync import globaltimer
from persistent_runtime.storage import as_tensor, torch_dtype

# Roles of tensors that the host writes before a launch, and of those that the device writes back.
HOST_WRITTEN, HOST_READ = ("control", "input"), "control"


class DeviceMemory:
    """Uploads, downloads, and pairs of a host array and its device twin, on one stream.

    The stream is apart from the kernel's, so that copies pass a running kernel.
    """

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device)
        self._pairs: list[tuple[TensorSpec, torch.Tensor, torch.Tensor]] = []  # pinned, device
        # allocated now: an allocation of pinned memory may wait for a kernel that is running
        self._word = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        self.clock_offset_ns = self._measure_clock_offset()

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
        with torch.cuda.stream(self.stream):
            return torch.zeros(shape, dtype=_torch_dtype(dtype), device=self.device)

    def upload(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """A copy on the device; an empty array becomes one element, for an address."""
        source = torch.from_numpy(np.ascontiguousarray(array if array.size else
                                                       np.zeros(1, array.dtype)))
        with torch.cuda.stream(self.stream):
            return source.pin_memory().to(self.device)  # waits for the copy

    def download(self, tensor: torch.Tensor) -> npt.NDArray[Any]:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._copy(host, tensor)
        return host.numpy()

    def address(self, tensor: torch.Tensor) -> int:
        return int(tensor.data_ptr())

    def write(self, tensor: torch.Tensor, index: int, value: int) -> None:
        """Sets an element of an int32 tensor while a kernel may be running."""
        self._word[0] = value
        self._copy(tensor[index:index + 1], self._word)

    def pair(self, tensor: TensorSpec, shape: tuple[int, ...]
             ) -> tuple[npt.NDArray[Any], torch.Tensor]:
        """A control tensor: its host side, and its device side that kernels address."""
        host = torch.zeros(shape, dtype=torch_dtype(tensor.dtype), pin_memory=True)
        device = self.zeros(shape, host.numpy().dtype)
        self._pairs.append((tensor, host, device))
        return host.numpy(), device

    def device_side(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """The device's twin of the control tensor whose host side this is."""
        for _, host, device in self._pairs:
            if host.data_ptr() == array.ctypes.data:
                return device
        raise UserError("this array is not the host side of a control tensor; allocate it with "
                        "DeviceBuffers")

    def push_control(self) -> None:
        """What the host has written goes to the device; not while a kernel runs."""
        with torch.cuda.stream(self.stream):
            for tensor, host, device in self._pairs:
                if tensor.host_reads != "as a clock":
                    device.copy_(host, non_blocking=True)
        self.stream.synchronize()

    def pull_control(self) -> None:
        """What the device has written so far comes to the host. What is read first was published
        last: everything it promises is in the later copies. Times become those of
        CLOCK_MONOTONIC."""
        ordered = sorted((pair for pair in self._pairs if pair[0].role == HOST_READ),
                         key=lambda pair: pair[0].host_reads != "first")
        with torch.cuda.stream(self.stream):
            for _, host, device in ordered:
                host.copy_(device, non_blocking=True)
        self.stream.synchronize()
        for tensor, host, _ in self._pairs:
            if tensor.host_reads == "as a clock":
                times = host.numpy()
                np.add(times, self.clock_offset_ns, out=times, where=times != 0)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        self.stream.synchronize()

    def _measure_clock_offset(self) -> int:
        """CLOCK_MONOTONIC minus the device's clock, from the tightest of a few readings."""
        now = torch.zeros(1, dtype=torch.int64, device=self.device)
        best: tuple[int, int] | None = None
        for _ in range(8):
            begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            with torch.cuda.device(self.device):
                read_clock[(1,)](now)
            device_ns = int(now.item())
            end = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            if best is None or end - begin < best[0]:
                best = end - begin, (begin + end) // 2 - device_ns
        return best[1] if best else 0


@triton.jit
def read_clock(out):
    """out[0] = the device's clock in ns."""
    tl.store(out, globaltimer(False))


class DeviceBuffers:
    """Tensor → device address: the counterpart of `persistent_runtime.launch.memory.Buffers`.

    Control tensors have a host side, which `array` returns; launches copy it to and fro. Other
    tensors live on the device alone, as torch tensors.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self.addresses: dict[TensorSpec, int] = {}
        self._owners: dict[TensorSpec, Any] = {}
        self._arrays: dict[TensorSpec, Any] = {}

    def allocate(self, tensor: TensorSpec, shape: tuple[int, ...]) -> Any:
        """Fresh zeroed memory for a tensor; a host array for control, else a device tensor."""
        array: Any
        owner: Any
        if tensor.role in HOST_WRITTEN:
            array, owner = self.memory.pair(tensor, shape)
        else:
            items = format_of(tensor.dtype).stored_shape(shape)
            array = owner = torch.zeros(items, dtype=torch_dtype(tensor.dtype),
                                        device=self.memory.device)
        self._keep(tensor, array, owner)
        return array

    def bind(self, tensor: TensorSpec, memory: Any) -> None:
        """Copies host memory (numpy array in storage elements, or torch tensor) of a tensor to the
        device.

        Raises UserError when its dtype is another.
        """
        is_array = isinstance(memory, np.ndarray)
        wanted = format_of(tensor.dtype).storage if is_array else torch_dtype(tensor.dtype)
        if memory.dtype != wanted:
            raise UserError(f"tensor {tensor.name!r} is {tensor.dtype}, the memory given for it is "
                            f"{memory.dtype}; convert it first")
        source = as_tensor(memory, tensor.dtype) if is_array else memory
        owner = source.contiguous().to(self.memory.device)
        self._keep(tensor, owner, owner)

    def _keep(self, tensor: TensorSpec, array: Any, owner: torch.Tensor) -> None:
        self.addresses[tensor] = owner.data_ptr()
        self._owners[tensor], self._arrays[tensor] = owner, array

    def array(self, tensor: TensorSpec) -> Any:
        """The host side of a control tensor; a copy on the host of any other."""
        memory = self._arrays[tensor]
        return self.memory.download(memory) if isinstance(memory, torch.Tensor) else memory

    def owners(self) -> Mapping[TensorSpec, Any]:
        return self._owners


def _torch_dtype(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, dtype)).dtype
