"""What ptxas makes of the kernels, without a card: no spills, wide loads, tensor cores, shared memory that is there.

All of the table, and every option: `python -m vidlose.kernels.build`.
"""

import platform
import sys

import pytest

from tests.marks import slow
from vidlose.kernels.build import EXTRAS, NORM, TABLE, Case, report

triton = pytest.importorskip("triton")
SHARED = 99 * 1024  # of compute capability 8.6, the least
NEW = tuple(int(x) for x in triton.__version__.split(".")[:2]) >= (3, 9)
ALSO = ((32, 160), (64, 40), (64, 160)) if NEW else ()  # where registers are scarce


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="compilers for Linux on x86 only")
@pytest.mark.parametrize(("arch", "widths"), [(90, (40,)), slow(90, (64, 80, 160)), slow(80, (40, 160))])
def test_resources(arch, widths):
    cases = [case for case in TABLE if case.arch == arch and case.frames == 16 and case.width in widths]
    if 160 in widths:
        cases += [Case("backward", frames, width, arch) for frames, width in ALSO]
    if 40 in widths:  # at 32 frames an older Triton spills 96 bytes of tables' backward on sm_80
        cases += [case for case in EXTRAS if case.arch == arch and (NEW or case.frames < 32)]
    for found in report(cases):
        name = " ".join(str(found[x]) for x in ("kernel", "frames", "width", "options"))
        assert found["stack"] == found["LDL"] == found["STL"] == 0, f"{name} spills"
        assert found["smem"] <= SHARED, name
        attends = found["kernel"] in ("forward", "backward")
        assert (found["HMMA"] + found["HGMMA"] > 0) == attends, name
        if found["kernel"] in NORM:  # images 16 bytes at a time; of the norm's own there is little
            assert found["LDG.128"], name
            assert found["STG"] == found["STG.128"] or found["kernel"] in ("moments", "sums"), name
        if attends and not {"mask", "bias"} & set(found["options"]):  # masks are bytes
            assert found["LDG"] == found["LDG.128"], f"{name} loads by less than 16 bytes"
            assert found["STG"] - found["STG.128"] <= ("entropy" in found["options"]), name
