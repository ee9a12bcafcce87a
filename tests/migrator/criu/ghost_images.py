# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump with files that were open though deleted, made up."""

from __future__ import annotations

from pathlib import Path

from tests.migrator.criu_images import image, message


def remap(original: int, other: int, type_: int) -> bytes:
    return message((1, original), (2, other), (3, type_))


def regular(id_: int, name: str | bytes, mount: int = 7, mode: int = 0) -> bytes:
    """Without a mount if that is -1, as CRIU leaves it out of the name that it has given itself."""
    on = ([] if mount < 0 else [(7, mount << 1)]) + ([(10, mode)] if mode else [])
    entry = message((1, id_), (2, 0), (3, 0), (5, message((1, 0))), (6, name), *on)
    return message((1, 1), (2, id_), (3, entry))


def mount(type_: int, id_: int, target: str, key: str = "") -> bytes:
    """With all that is required of one."""
    return message((1, type_), (2, id_), (3, 40), (4, 1), (5, 0), (6, "/"), (7, target), (8, "none"), (9, "rw"),
                   (18, key))


def made(folder: Path, remaps: list[bytes], files: list[bytes], kinds: dict[int, int] | None = None) -> Path:
    """A dump with these images, and those of ghosts, by their numbers and kinds."""
    (folder / "remap-fpath.img").write_bytes(image("remap-fpath.img", *remaps))
    (folder / "files.img").write_bytes(image("files.img", message((1, 4), (2, 99), (6, b"x")), *files))
    (folder / "mountpoints-12.img").write_bytes(image(
        "mounts", mount(16, 7, "./", "/"), mount(5, 12, "./tmp"), mount(5, 1, "./")))
    for number, kind in (kinds or {}).items():
        (folder / f"ghost-file-{number:x}.img").write_bytes(
            image("ghost", message((1, 33), (2, 33), (3, kind | 0o644), (5, 1))) + b"contents")
    return folder
