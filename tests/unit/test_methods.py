"""Every method of the metadata service has a number on the data link, and no number a method lacks."""

from __future__ import annotations

from fireflyfs.common.net.methods import service_methods
from fireflyfs.proto import meta_pb2, storage_pb2, storage_wire


def test_meta_methods_match_the_service() -> None:
    names = {method.name for method in meta_pb2.DESCRIPTOR.services_by_name["Meta"].methods}
    assert set(service_methods("META")) == names


def test_storage_protobuf_methods_exist_in_the_service() -> None:
    names = {method.name for method in storage_pb2.DESCRIPTOR.services_by_name["Storage"].methods}
    assert set(service_methods("STORAGE")) - {"Read", "Write", "Update", "SyncRead", "CacheGet", "CacheExists"} <= names


def test_packed_sizes_are_what_the_format_says() -> None:
    sizes = [
        storage_wire.READ_IO.itemsize,
        storage_wire.READ_RESULT.itemsize,
        storage_wire.UPDATE_HEADER.itemsize,
        storage_wire.UPDATE_ITEM.itemsize,
        storage_wire.EXTENT.itemsize,
        storage_wire.UPDATE_RESULT.itemsize,
    ]
    assert sizes == [32, 24, 48, 48, 16, 24]
