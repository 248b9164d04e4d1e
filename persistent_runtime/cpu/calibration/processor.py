"""Which processor this is, as far as the rates of a machine depend on it."""

from __future__ import annotations

from pathlib import Path

import llvmlite.binding

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def processor_name() -> str:
    """The model name that the system gives, or LLVM's name of the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # long where there are many cores
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return str(llvmlite.binding.get_host_cpu_name())


def last_level_cache_bytes() -> int:
    """Of the cache that a core shares with others; 0 where the system does not say. The C library
    is not asked: under a hypervisor it adds up what belongs to other guests."""
    sizes = [0]
    for folder in CACHES.glob("index*"):
        try:
            text = (folder / "size").read_text(encoding="ascii").strip()
            sizes.append(int(text.removesuffix("K")) << 10)
        except (OSError, ValueError):
            continue
    return max(sizes)
