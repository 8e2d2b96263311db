"""Recognize content that stands where a file should be: pointers, web pages, archives."""

_ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z"}


def describe_foreign_file(start: bytes) -> str:
    """Say what a file is and how to get the real one, by its first bytes; "" if they are unknown.

    Args:
        start: the first 100 bytes or more.
    """
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    if not start:
        return "it is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, without the content; type: git lfs pull"
    if start.startswith((b"/annex/objects/", b"../.git/annex/")):
        return "it is a pointer of git-annex, without the content; type: git annex get"
    if text.startswith((b"<!", b"<html", b"<HTML", b"<?xml")):
        shown = text[:40].split(b"\n")[0].decode(errors="replace")
        return f"it is a web page ({shown!r}), perhaps of a login; download the file itself"
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            return f"it is a {name} archive; unpack it first"
    return ""
