"""The first program of a box that a warden makes: it holds the box open, and waits in as little memory as one can.

Any program that waits would do, but one of the system's has a loader, a C library and a heap: 180 KiB in every box,
and a millisecond of each start. This one is eight instructions, written down here as bytes, and has 12 KiB.
"""

from __future__ import annotations

import struct

AT = 0x400000
"""Where it lies in its memory."""
PAGE = 0x10000
"""The largest that a kernel of these machines may have."""
R, W, X = 4, 2, 1
PT_LOAD, PT_GNU_STACK = 1, 0x6474E551
EXECUTABLE = 2
HEADER, PROGRAM_HEADER = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")

MACHINES = {
    "x86_64": (
        62,
        bytes.fromhex(
            "b80f010000"  # mov eax, 271   ppoll(
            "31ff"  # xor edi, edi           no descriptors,
            "31f6"  # xor esi, esi           none,
            "31d2"  # xor edx, edx           without end,
            "4531d2"  # xor r10d, r10d       no signal mask)
            "0f05"  # syscall
            "ebee"  # jmp to the first
        ),
    ),
    "aarch64": (
        183,
        struct.pack(
            "<7I",
            0xD2800928,  # mov x8, 73      ppoll(
            0xD2800000,  # mov x0, 0         no descriptors,
            0xD2800001,  # mov x1, 0         none,
            0xD2800002,  # mov x2, 0         without end,
            0xD2800003,  # mov x3, 0         no signal mask)
            0xD4000001,  # svc 0
            0x17FFFFFA,  # b to the first
        ),
    ),
}
"""The number of the architecture in an ELF file, and the program."""


def holder(machine: str) -> bytes:
    """The program's file: ELF's header, one segment to load and one that says that the stack holds no code."""
    number, code = MACHINES[machine]
    start = HEADER.size + 2 * PROGRAM_HEADER.size
    size = start + len(code)
    sizes = (HEADER.size, PROGRAM_HEADER.size, 2, 0, 0, 0)
    head = HEADER.pack(b"\x7fELF", 2, 1, 1, 0, EXECUTABLE, number, 1, AT + start, HEADER.size, 0, 0, *sizes)
    load = PROGRAM_HEADER.pack(PT_LOAD, R | X, 0, AT, AT, size, size, PAGE)
    stack = PROGRAM_HEADER.pack(PT_GNU_STACK, R | W, 0, 0, 0, 0, 0, 16)
    return head + load + stack + code
