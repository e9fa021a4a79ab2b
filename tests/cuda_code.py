"""Compile functions for an H100 as torch.compile would, on a machine without one: `python tests/cuda_code.py`.

A function is traced on the CPU, its graph moved to fake CUDA tensors, lowered by Inductor, and each Triton kernel
compiled to machine code. Prints a line for each kernel; the exit status is 1 if one does not compile.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils._triton
import triton
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from fastmim.data.augment import prepare
from fastmim.method.masking import random_mask, visible_positions
from fastmim.method.targets import HOG, Pixels, RandomProjection
from fastmim.randomness import copy_keys

TARGET = GPUTarget("cuda", 90, 32)
H100 = SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    gcnArchName="",
)
KEYS = torch.arange(8)
IMAGES = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
GREY, UNIT = torch.full((3,), 0.5), torch.full((3,), 0.25)

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "masks": (lambda keys: random_mask(keys, (4, 4), 0.75), (KEYS,)),
    "visible positions": (lambda keys: visible_positions(random_mask(keys, (4, 4), 0.75), 4), (KEYS,)),
    "flip and normalise": (
        lambda images, keys: prepare({"images": images, "keys": keys}, GREY, UNIT)["images"],
        (IMAGES, KEYS),
    ),
    "HOG": (lambda images: HOG()(images), (IMAGES / 255,)),
    "pixels": (lambda images: Pixels()(images), (IMAGES / 255,)),
    "projection": (lambda images: RandomProjection(16)(images), (IMAGES / 255,)),
    "keys of copies": (lambda keys: copy_keys(keys, 4), (KEYS,)),
}


class Driver:
    """Triton's driver, as far as a compiler needs one."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0


def pretend() -> None:
    """Let Inductor see an H100."""
    driver._active = Driver()
    torch.utils._triton.triton_hash_with_backend = lambda: ""
    triton_helpers.set_driver_to_gpu = lambda: None
    for name, value in {
        "get_device_properties": lambda *_: H100,
        "get_compute_capability": lambda *_: 90,
        "is_available": lambda *_: True,
        "is_triton_capable": lambda *_: True,
        "raise_if_triton_unavailable": lambda *_: None,
    }.items():
        setattr(CudaInterface, name, staticmethod(value))
    CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: H100)
    torch.cuda.get_device_properties = lambda *_: H100
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    torch.cuda.is_available = lambda: True


def graph(function: Callable[..., Any], args: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """Trace on the CPU, without operations in place; constants become inputs, and everything moves to CUDA."""
    pure = torch.func.functionalize(function, remove="mutations_and_views")
    traced = make_fx(pure, decomposition_table=select_decomp_table())(*args)
    *_, last = (node for node in traced.graph.nodes if node.op == "placeholder")
    constants = []
    for node in list(traced.graph.nodes):
        if "device" in node.kwargs:
            node.kwargs = dict(node.kwargs) | {"device": torch.device("cuda", 0)}
        if node.op == "get_attr":
            constants.append(getattr(traced, node.target))
            with traced.graph.inserting_after(last):
                last = traced.graph.placeholder(f"constant_{node.name}")
            node.replace_all_uses_with(last)
            traced.graph.erase_node(node)
    traced.recompile()
    traced.meta["inputs"] = [*args, *constants]
    return traced


def lowered(traced: torch.fx.GraphModule) -> str:
    """Inductor's code for a graph."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with mode:
        inputs = [
            torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
            for tensor in traced.meta["inputs"]
        ]
        FakeTensorProp(traced, mode=mode).propagate(*inputs)
    lowering = GraphLowering(traced, shape_env=mode.shape_env)
    with (
        V.set_debug_handler(DebugContext()),
        V.set_graph_handler(lowering),
        V.set_fake_mode(mode),
        torch._inductor.config.patch(compile_threads=1),
    ):
        lowering.run(*inputs)
        return str(lowering.codegen()[0].value)


def kernels(code: str, folder: Path) -> dict[str, str]:
    """Compile each Triton kernel of Inductor's code; {kernel: "" or what is wrong}."""
    found = {}
    for number, (name, body) in enumerate(re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)''', ", code, re.S)):
        signature = eval(re.search(r"'signature': (\{.*?\})", body)[1])  # type: ignore[index]
        body = re.sub(r"@triton_heuristics\..*?^\)\n(?=@triton\.jit)", "", body, flags=re.S | re.M)
        file = folder / f"kernel_{len(list(folder.iterdir()))}_{number}.py"
        file.write_text(body)
        scope: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
        exec(compile(body, str(file), "exec"), scope)
        sizes = {key: 8 for key, kind in signature.items() if kind == "constexpr"}
        try:
            triton.compile(ASTSource(scope[name], signature=signature, constexprs=sizes), target=TARGET)
            found[name] = ""
        except Exception as error:
            found[name] = " ".join(str(error).split())[-200:]
    return found


def main() -> int:
    graphs = {name: graph(*what) for name, what in FUNCTIONS.items()}
    pretend()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, traced in graphs.items():
            for kernel, problem in kernels(lowered(traced), Path(folder)).items():
                print(f"{name}: {kernel}: {problem or 'compiles'}")
                failed += bool(problem)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
