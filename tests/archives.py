"""Archives built in memory, for the tests of downloads."""

import gzip
import io
import tarfile
import zipfile


def tar_of(*members, compress=gzip.compress):
    """members: (name, bytes) or (name, dict of TarInfo's attributes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(info, key, value)
                content = b""
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return compress(file.getvalue())


def zip_of(*members, compression=zipfile.ZIP_DEFLATED):
    """members: (name, bytes) or (name, Unix mode)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            if isinstance(content, int):
                info.create_system, info.external_attr = 3, content << 16
                content = b"target"
            zipped.writestr(info, content)
    return file.getvalue()
