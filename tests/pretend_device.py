"""A device that computes on the host and refuses what a GPU refuses: a plugin for pytest, `-p pretend_device`.

Its name is "pretend". `refuse_waiting(True)` makes every read by the host an error, as
torch.cuda.set_sync_debug_mode("error") does; `refuse_float64(True)` leaves it without float64, as Apple's MPS is.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

NAME = "pretend"
_SOURCE = Path(__file__).with_suffix(".cpp")


def _built(folder: Path, compiler: str = "c++") -> Any:
    """Compile the device (20 s) and load it."""
    made = folder / "pretend_extension.so"
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    libraries = cpp_extension.library_paths()
    subprocess.run(
        [
            *(compiler, "-O1", "-std=c++20", "-shared", "-fPIC", "-DTORCH_EXTENSION_NAME=pretend_extension"),
            *(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", str(_SOURCE), "-o", str(made)),
            *(part for path in includes for part in ("-isystem", path)),
            *(part for path in libraries for part in (f"-L{path}", f"-Wl,-rpath,{path}")),
            *("-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"),
        ],
        check=True,
    )
    spec = importlib.util.spec_from_file_location("pretend_extension", made)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def _module() -> types.ModuleType:
    """Return what torch asks a device's module for."""
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=None: torch.zeros(1, dtype=torch.uint8, device="cpu")
    module.set_rng_state = lambda state, device=None: None
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.synchronize = lambda device=None: None
    return module


torch.utils.rename_privateuse1_backend(NAME)
with tempfile.TemporaryDirectory() as _folder:
    _extension = _built(Path(_folder))
torch._register_device_module(NAME, _module())
torch.utils.generate_methods_for_privateuse1_backend(unsupported_dtype=[torch.quint8])
refuse_waiting = _extension.refuse_waiting
refuse_float64 = _extension.refuse_float64
waits = _extension.waits

if __name__ == "__main__":
    sys.exit(f"{__file__} is a plugin for pytest: -p pretend_device")
