"""Writes page/src/types.ts: the types of what the server answers, of its own description (/openapi.json).

    python tools/page_types.py [--check]

Needs the extra `serve`. With --check it writes nothing, and exits with 1 where the file isn't what it would write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "page" / "src" / "types.ts"
HEAD = (
    "/* What the server answers. Written by tools/page_types.py from /openapi.json: change serve/views.py instead. */\n"
)
PLAIN = {"integer": "number", "number": "number", "string": "string", "boolean": "boolean", "null": "null"}


def typed(schema: Mapping[str, Any]) -> str:
    """A JSON schema as a TypeScript type."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(value).replace('"', "'") for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " | ".join(typed(one) for one in schema["anyOf"])
    kind = schema.get("type")
    if kind == "array" and "prefixItems" in schema:
        return f"[{', '.join(typed(one) for one in schema['prefixItems'])}]"
    if kind == "array":
        of = typed(schema.get("items", {}))
        return f"({of})[]" if "|" in of else f"{of}[]"
    if kind == "object":
        of = schema.get("additionalProperties", True)
        return f"Record<string, {'unknown' if of is True else typed(of)}>"
    return PLAIN.get(str(kind), "unknown")


def interface(name: str, schema: Mapping[str, Any]) -> str:
    """An object's schema as an interface."""
    lines = [f"/** {schema['description']} */"] if schema.get("description") else []
    lines.append(f"export interface {name} {{")
    for field, one in schema["properties"].items():
        if told := one.get("description"):
            lines.append(f"  /** {told} */")
        lines.append(f"  {field}{'' if field in schema.get('required', ()) else '?'}: {typed(one)}")
    return "\n".join([*lines, "}"])


def written() -> str:
    """The file."""
    from darkroom.serve import views
    from darkroom.serve.app import bare_app

    schemas = bare_app().openapi()["components"]["schemas"]
    ours = [name for name in sorted(schemas) if issubclass(getattr(views, name, object), views.BaseModel)]
    return HEAD + "\n" + "\n\n".join(interface(name, schemas[name]) for name in ours) + "\n"


if __name__ == "__main__":
    text = written()
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif TARGET.read_text() != text:
        sys.exit("page/src/types.ts is not what the server answers; run tools/page_types.py")
