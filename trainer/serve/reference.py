"""The page that describes the server's HTTP interface, made from its OpenAPI description; it needs no script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from shlex import quote
from typing import Any

from trainer.shapes import to_json

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: interface</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="form.css">
<main>
<h1>{title}</h1>
<p class="muted">HTTP interface, {about}, trainer {version}. <a href="./">Try it</a>, or read
<a href="openapi.json">openapi.json</a> with a program.</p>
{paths}
</main>
</html>
"""


def render(document: Mapping[str, Any], address: str) -> str:
    """Return the page.

    Args:
        document: The result of `openapi`.
        address: URL of the server, for examples.
    """
    info = document["info"]
    paths = (
        _operation(path, method, operation, address)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    title, about, version = (escape(info[name]) for name in ("title", "description", "version"))
    return _PAGE.format(title=title, about=about, version=version, paths="\n".join(paths))


def _operation(path: str, method: str, operation: Mapping[str, Any], address: str) -> str:
    """Return the section of a path and a method: the request, an example, the responses."""
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2>", _paragraph(operation["summary"])]
    parts.append(_paragraph(operation.get("description", "")))
    url = quote(address.rstrip("/") + path)
    if body := operation.get("requestBody"):
        [(kind, content)] = body["content"].items()
        parts += [f"<h3>Request: {escape(kind)}</h3>", _fields_table(content["schema"])]
        if "example" in content:
            data = quote(to_json(content["example"], ensure_ascii=False))
            parts.append(_listing(f"curl {url} -H 'Content-Type: {kind}' \\\n  -d {data}"))
    else:
        parts.append(_listing(f"curl {url}"))
    good, *errors = operation["responses"].items()
    parts += _response(*good)
    if errors:
        rows = [(status, response["description"]) for status, response in errors]
        parts += ['<h3>Errors: {"error": ...}</h3>', _table(("status", "reason"), rows)]
    return "\n".join(["<section>", *filter(None, parts), "</section>"])


def _response(status: str, response: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of a response without an error."""
    [(kind, content)] = response["content"].items()
    yield f"<h3>Response {escape(status)}: {escape(kind)}</h3>"
    yield _fields_table(content["schema"])
    if "example" in content:
        yield _listing(to_json(content["example"], ensure_ascii=False, indent=1))


def _fields_table(schema: Mapping[str, Any]) -> str:
    """Return a table of all fields of a schema; nothing if it has none."""
    rows = [field for field in _fields(schema, "", required=False) if field[0]]
    return _table(("field", "type", "note"), rows) if rows else ""


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is code."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(
        f"<tr><td><code>{escape(first)}</code></td>{''.join(f'<td>{_with_code(each)}</td>' for each in others)}</tr>"
        for first, *others in rows
    )
    return f'<div class="wide" tabindex="0" role="region" aria-label="Table"><table><tr>{head}</tr>{body}</table></div>'


def _fields(schema: Mapping[str, Any], name: str, *, required: bool) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the type and a note of a field and of those inside of it: `rows[].text`."""
    choices = [each for each in schema.get("oneOf", ()) if "type" in each] or [schema]
    kinds = [kind for choice in choices for kind in _listed(choice.get("type", "any"))]
    yield name, " or ".join(kinds), "; ".join(_notes(schema, required))
    for choice in choices:
        if "array" in kinds and "items" in choice:
            inner = choice["items"]
            if "properties" in inner or "oneOf" in inner:
                yield from _fields(inner, f"{name}[]", required=False)
        for key, value in choice.get("properties", {}).items():
            yield from _fields(value, f"{name}.{key}" if name else key, required=key in choice.get("required", ()))


def _notes(schema: Mapping[str, Any], required: bool) -> Iterator[str]:
    if required:
        yield "required"
    if "description" in schema:
        yield schema["description"]
    if "maxItems" in schema:
        yield f"{schema.get('minItems', 0)} to {schema['maxItems']} items"
    if "minimum" in schema:
        yield f"at least {schema['minimum']}"
    if "default" in schema:
        yield f"default {to_json(schema['default'])}"
    if "contentEncoding" in schema:
        yield schema["contentEncoding"]
    if "items" in schema and "type" in schema["items"] and "properties" not in schema["items"]:
        yield f"items: {' or '.join(_listed(schema['items']['type']))}"
    if examples := schema.get("examples"):
        shown = ", ".join(map(str, examples[:_SHOWN_EXAMPLES]))
        yield f"such as {shown}{', …' if len(examples) > _SHOWN_EXAMPLES else ''}"


_SHOWN_EXAMPLES = 10


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _paragraph(text: str) -> str:
    return f"<p>{_with_code(text)}</p>" if text else ""


def _with_code(text: str) -> str:
    """Return a text as HTML; what it has between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _listing(text: str) -> str:
    return f'<pre tabindex="0" role="region" aria-label="Example">{escape(text)}</pre>'
