"""What every request passes before a route sees it: whose host it names, where it comes from, whose key it shows, how
large its body is. Pure ASGI: a wrapper that hides disconnects would keep jobs waiting for clients that are gone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import refusal
from .keys import EVERYBODY, Owner
from .server import Server

# Answered without a key. The page's files are what everybody gets; addresses of pictures are signed.
PUBLIC = ("/", "/healthz", "/readyz", "/metrics", "/api/session", "/favicon.ico")
PUBLIC_BELOW = ("/assets/", "/v1/files/images/")
PROBES = ("/healthz", "/readyz", "/metrics")
SAFE = ("GET", "HEAD", "OPTIONS")
BODY_SECONDS = 30.0
DRAIN = 64 * 2**20  # bytes of a body that is too large that are read before it is refused
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
}

log = logging.getLogger("darkroom.serve.access")


class Guard:
    """The application behind its checks."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server
        options = server.options
        public = urlsplit(options.public_url or "")
        self.prefix = public.path.rstrip("/")
        self.hosts = {"localhost", *(host.casefold() for host in options.allow_hosts)}
        self.hosts |= {public.hostname.casefold()} if public.hostname else set()
        self.origins = {f"{public.scheme}://{public.netloc}"} if public.hostname else set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it in one sentence."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if self.prefix and scope["path"].startswith(self.prefix + "/"):  # a proxy that passes the whole path on
            path = scope["path"].removeprefix(self.prefix)
            scope = {**scope, "path": path, "raw_path": path.encode("ascii", "ignore")}
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        state = scope.setdefault("state", {})
        state["request_id"] = id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                told["X-Request-Id"] = id
                for name, value in HEADERS.items():
                    told.setdefault(name, value)
                told.setdefault("Cache-Control", "no-store")
                self._allow(headers, told)
            await send(message)

        try:
            await self._pass(scope, receive, answer, headers)
        finally:
            self.server.awaited.end(state)
            owner: Owner | None = state.get("owner")
            self.server.metrics.requests.labels(f"{status // 100}xx").inc()
            line = {
                "request": id,
                "method": scope["method"],
                "path": scope["path"].encode("ascii", "backslashreplace").decode(),
                "status": status,
                "seconds": round(time.monotonic() - began, 4),
                "key": owner.name if owner else None,
                "job": state.get("job"),
            }
            if scope["path"] not in PROBES:
                log.info(json.dumps(line))

    async def _pass(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        path, method = scope["path"], scope["method"]

        async def refuse(status: int, sentence: str, **told: str) -> None:
            await refusal(path, status, sentence, headers=told)(scope, receive, send)

        if path not in PROBES and not self._host_is_ours(headers.getlist("host")):
            return await refuse(
                421, "this host name is not one that the server answers to; start it with --allow-host NAME"
            )
        if method == "OPTIONS" and self._cors(headers):
            return await _preflight(send)
        if (wrong := self._origin_fault(scope, headers, method)) is not None:
            return await refuse(403, wrong)
        owner, by_cookie = self._owner(headers)
        if owner is None and not _is_public(path):
            return await refuse(401, "an API key is needed: Authorization: Bearer KEY (or as the password of Basic)")
        if by_cookie and method not in SAFE and not (headers.get("origin") or headers.get("sec-fetch-site")):
            return await refuse(403, "a request with the page's cookie must say where it comes from (Origin)")
        if owner is not None:
            scope["state"]["owner"] = owner
            if not _is_public(path) and (seconds := self.server.keys.wait(owner)) > 0:
                wait = {"Retry-After": str(min(120, int(seconds) + 1))}
                return await refuse(429, "this key asks too often; wait a little", **wait)
        if method in SAFE:
            return await self.app(scope, receive, send)
        body = await self._body(receive, headers)
        if isinstance(body, int):
            most = self.server.options.max_body
            sentence = f"the body is larger than {most:,} bytes" if body == 413 else "the body did not arrive in time"
            return await refuse(body, sentence)
        if body is None:
            return  # the client has gone
        await self.app(scope, _replayed(body, receive), send)

    # --- host and origin

    def _host_is_ours(self, hosts: Sequence[str]) -> bool:
        """Addresses pass, since an attack by rebinding needs a name; names must be known."""
        if len(hosts) != 1:
            return False
        try:
            name = urlsplit(f"//{hosts[0]}").hostname or ""
        except ValueError:
            return False
        if name.casefold() in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _origin_fault(self, scope: Scope, headers: Headers, method: str) -> str | None:
        origin = headers.get("origin")
        if origin is not None and not self._origin_is_ours(origin, headers) and origin not in self.server.options.cors:
            return "this origin may not use the server; start it with --cors ORIGIN"
        if method not in SAFE and headers.get("sec-fetch-site") == "cross-site" and not self._cors(headers):
            return "a page of another site may not change anything here"
        return None

    def _origin_is_ours(self, origin: str, headers: Headers) -> bool:
        if origin in self.origins:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc == headers.get("host")

    def _cors(self, headers: Headers) -> bool:
        return headers.get("origin", "") in self.server.options.cors

    def _allow(self, headers: Headers, told: MutableHeaders) -> None:
        if self._cors(headers):
            told["Access-Control-Allow-Origin"] = headers["origin"]
            told["Access-Control-Allow-Headers"] = "authorization, content-type, idempotency-key, x-request-id"
            told["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
            told["Cross-Origin-Resource-Policy"] = "cross-origin"
            told["Vary"] = "Origin"

    # --- keys

    def _owner(self, headers: Headers) -> tuple[Owner | None, bool]:
        """Whose request it is, and whether the page's cookie says so."""
        keys = self.server.keys
        if not keys.needed:
            return EVERYBODY, False
        if key := _shown_key(headers.get("authorization", ""), headers.get("x-api-key", "")):
            return keys.owner(key), False
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.server.cookie)
        except CookieError:
            return None, False
        if cookie is None:
            return None, False
        return self.server.signer.session(cookie.value, keys), True

    # --- bodies

    async def _body(self, receive: Receive, headers: Headers) -> list[bytes] | int | None:
        """A body in pieces; 413 or 408 where it is too large or too slow; None where the client has gone."""
        most, size, parts = self.server.options.max_body, 0, []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    if size <= most:
                        parts.append(message.get("body", b""))
                    elif size > DRAIN:
                        return 413
                    else:
                        parts.clear()
                    if not message.get("more_body", False):
                        return 413 if size > most else parts
        except TimeoutError:
            return 408


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(PUBLIC_BELOW)


def _shown_key(authorization: str, header: str) -> str:
    """The key of `Bearer KEY`, or the password of Basic; "" where there is none."""
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme.casefold() == "bearer":
        return rest.strip()
    if scheme.casefold() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return header.strip()


def _replayed(parts: list[bytes], receive: Receive) -> Receive:
    """What was read already, then what comes."""
    left = [b"".join(parts)]

    async def replay() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replay


async def _preflight(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"access-control-max-age", b"600")]})
    await send({"type": "http.response.body", "body": b""})
