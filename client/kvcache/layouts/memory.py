"""The memory behind numpy arrays and torch tensors, without a copy and without importing torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Geometry(NamedTuple):
    """Where a tensor's elements lie."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    itemsize: int  # bytes
    dtype: str  # as numpy or torch call it, without the "torch."

    @property
    def span(self) -> int:
        """Bytes from the first element to the end of the last one."""
        if 0 in self.shape:
            return 0
        return sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)) + self.itemsize


class _Span:
    """Lends memory as an array; keeps the tensor alive whose memory it is."""

    def __init__(self, owner: Any, address: int, length: int, readonly: bool) -> None:
        self.owner = owner
        self.__array_interface__ = {"data": (address, readonly), "shape": (length,), "typestr": "|u1", "version": 3}


def is_torch(tensor: Any) -> bool:
    """Whether `tensor` is one of torch's."""
    return hasattr(tensor, "data_ptr") and hasattr(tensor, "untyped_storage")


def geometry_of(tensor: Any) -> Geometry:
    """Raises TypeError for what is neither an array nor a tensor, ValueError for one that runs backwards."""
    if is_torch(tensor):
        size = tensor.element_size()
        strides = tuple(stride * size for stride in tensor.stride())
        return Geometry(tuple(tensor.shape), strides, size, str(tensor.dtype).removeprefix("torch."))
    if not isinstance(tensor, np.ndarray):
        raise TypeError(f"a numpy array or a torch tensor is wanted, not {type(tensor).__name__}")
    if any(stride < 0 for stride in tensor.strides):
        raise ValueError("an array with negative strides has no pages")
    return Geometry(tensor.shape, tensor.strides, tensor.itemsize, tensor.dtype.name)


def bytes_of(tensor: Any) -> memoryview:
    """All bytes from the tensor's first element to its last one, those between strided elements included.

    The view keeps the tensor alive, and is writable if the tensor is. Raises ValueError for memory of a device.
    """
    if is_torch(tensor) and tensor.device.type != "cpu":
        raise ValueError(f"a tensor on {tensor.device} has no memory that a program can read: copy it to the host")
    geometry = geometry_of(tensor)
    if geometry.span == 0:
        return memoryview(bytearray())
    if is_torch(tensor):
        address, readonly = tensor.data_ptr(), False
    else:
        address, readonly = tensor.__array_interface__["data"]
    return lend(tensor, address, geometry.span, readonly=readonly)


def lend(owner: Any, address: int, length: int, *, readonly: bool = False) -> memoryview:
    """Memory at an address that `owner` has: it lives as long as the view. Nothing is checked."""
    lent: npt.NDArray[np.uint8] = np.asarray(_Span(owner, address, length, readonly))
    return lent.data
