"""Machine code only of what Python calls.

Numba makes machine code of every function. Of those that kernels call nobody runs it: LLVM copies
their code into each kernel, where it is inlined or made into machine code again. A fifth of the
time to compile an alloy's kernels went into what was never run.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary, JITCPUCodegen


class Library(JITCodeLibrary):
    """What Numba has compiled with a function; its machine code is made when it is asked for."""

    _emitted = False

    def _finalize_final_module(self) -> None:
        if self._object_caching_enabled and self._compiled_object:  # loaded
            self._emit()
        else:
            self._finalized = True

    def _emit(self) -> None:
        self._emitted = True
        super()._finalize_final_module()

    def get_pointer_to_function(self, name: str) -> int:
        """Its address; 0 if this library does not define it."""
        self._ensure_finalized()
        if not self._emitted:
            if not any(function.name == name for function in self.get_defined_functions()):
                return 0
            self._emit()
        return int(super().get_pointer_to_function(name))

    def serialize_using_object_code(self) -> Any:
        """For the cache: without machine code what kernels need to compile."""
        self._ensure_finalized()
        if not self._emitted:
            return self.serialize_using_bitcode()
        return super().serialize_using_object_code()


def _set_env(codegen: Any, name: str, env: Any, told: Any = JITCPUCodegen.set_env) -> None:
    """Tell a function where its Python objects are, once there is machine code that could ask."""
    if codegen._engine.is_symbol_defined(name):
        told(codegen, name, env)


def use() -> None:
    """Have Numba compile in this way from now on."""
    JITCPUCodegen._library_class = Library
    JITCPUCodegen.set_env = _set_env  # type: ignore[method-assign]
