"""Makes torchvision importable for the processors that need it.

Its compiled operators fit only the build of PyTorch they were made with (CUDA or not). No processor calls one, but
``import torchvision`` describes them to PyTorch and fails where they are missing: here they are declared without body.
Importing this file is enough; it comes before transformers, which looks for torchvision when it is imported.
"""

import contextlib
import importlib.util
import re
import sys
from pathlib import Path

import torch

_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")

FOLDER = Path(sys.prefix) / "families"
"""Where ``make setup`` puts torchvision: out of the way of everything but the tests."""


def make_importable() -> None:
    """Puts torchvision on the path, if it is anywhere, with operators declared where its own do not load."""
    if importlib.util.find_spec("torchvision") is None and FOLDER.is_dir():
        sys.path.append(str(FOLDER))
    if importlib.util.find_spec("torchvision") is None:
        return
    with contextlib.suppress(RuntimeError):
        import torchvision

        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    described = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    names = re.findall(r'@register_meta\("(\w+)"\)|register_fake\("torchvision::(\w+)"\)', described)
    for name in sorted({one or other for one, other in names}):
        _OPERATORS.define(f"{name}(Tensor x) -> Tensor")
    import torchvision  # noqa: F401


make_importable()
