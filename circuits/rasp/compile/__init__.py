"""From an s-op to the weights of a transformer, over a finite vocabulary and up to a length."""

from circuits.rasp.compile.build import Compiled, compile_program, compile_sop
from circuits.rasp.compile.verify import Verdict, verify

__all__ = ["Compiled", "Verdict", "compile_program", "compile_sop", "verify"]
