"""The built pages must be readable without a network: no script, style or image of another host."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

REMOTE = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"'](?:https?:)?//[^>]*>"
    r"|<link\b[^>]*stylesheet[^>]*(?:https?:)?//[^>]*>"
)
REMOTE_STYLE = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\s)]*")


def check(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None:
        return
    found = [
        f"{path.relative_to(app.outdir)}: {match[0][:100]}"
        for pattern, ending in ((REMOTE, "html"), (REMOTE_STYLE, "css"))
        for path in Path(app.outdir).rglob(f"*.{ending}")
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    if found:
        raise ExtensionError("These pages load something from the network:\n" + "\n".join(found))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
