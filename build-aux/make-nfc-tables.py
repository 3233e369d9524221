#!/usr/bin/env python3
"""Writes src/model/nfc_apart.h and nfc_joined.h: canonical decompositions, compositions and combining classes of Unicode, from Python's
unicodedata. The version they are of stands in the files."""
import os
import unicodedata

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "src", "model")
CODES = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF and not 0xAC00 <= c <= 0xD7A3]  # Hangul is arithmetic


def canonical(c):
    parts = unicodedata.decomposition(chr(c)).split()
    return [] if not parts or parts[0].startswith("<") else [int(p, 16) for p in parts]


def table(name, what, rows):
    lines, line = [], ""
    for row in rows:
        item = "{" + ", ".join(f"0x{n:x}" for n in row) + "},"
        if len(line) + len(item) + 1 > 106:
            lines.append("    " + line)
            line = ""
        line += (" " if line else "") + item
    lines.append("    " + line)
    return f"/* {what} */\nstatic const uint32_t {name}[][{len(rows[0])}] = {{\n" + "\n".join(lines) + "\n};\n"


def write(name, *tables):
    with open(os.path.join(OUT, name), "w", encoding="ascii") as file:
        file.write(f"/* {name}: Unicode {unicodedata.unidata_version} for nfc.c, written by build-aux/make-nfc-tables.py. "
                   "Do not edit. */\n/* clang-format off */\n#include <stdint.h>\n\n" + "\n".join(tables))


def main():
    apart = [(c, *(canonical(c) + [0])[:2]) for c in CODES if canonical(c)]
    pairs = [(c, *canonical(c)) for c in CODES if len(canonical(c)) == 2]
    joined = sorted((a, b, c) for c, a, b in pairs if unicodedata.normalize("NFC", chr(a) + chr(b)) == chr(c))
    seconds = sorted({b for _, b, _ in joined})
    classes = []
    for c in CODES:
        k = unicodedata.combining(chr(c))
        if k and classes and classes[-1][1] == c - 1 and classes[-1][2] == k:
            classes[-1][1] = c
        elif k:
            classes.append([c, c, k])
    write("nfc_apart.h", table("nfc_apart", "A code and the one or two (else 0) that it is canonically the same as, by code.",
                               apart))
    write("nfc_joined.h", table("nfc_joined", "Two codes and the one that they compose to, by the two.", joined),
          table("nfc_seconds", "The second ones of those pairs.", [(b,) for b in seconds]),
          table("nfc_classes", "First and last code and their combining class, where it is not 0.", classes))


main()
