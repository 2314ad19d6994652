"""What somebody tries where people sign in through an OpenID Connect provider: forged and foreign answers, old codes,
names of others, and sessions that say more than the provider did. The provider is Authlib's server, and requires PKCE.
"""

import asyncio
import base64
import hmac
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import trustme
from joserfc.jwk import ECKey, OctKey, RSAKey

from abuse.site import SECRET as OTHER_MODEL
from abuse.site import VISIBLE, Site
from backends import free_port
from holdfast.api import entry
from holdfast.api import openid as oidc
from holdfast.api.sessions import COOKIE
from holdfast.metrics import REGISTRY
from openid_provider import CLIENT, SECRET, OpenIdProvider, unsigned

CONSOLE = "http://localhost:8080"
CALLBACK = f"{CONSOLE}/login/oidc/callback"
PEOPLE: dict[str, dict[str, Any]] = {
    "ann": {"preferred_username": "ann", "groups": ["staff", "ops"]},
    "root": {"preferred_username": "chief@corp.example", "groups": ["ops", "chiefs", "everything"]},
    "eve": {"preferred_username": "eve", "groups": ["staff"]},
    "none": {"preferred_username": "none"},
    "pricer": {"preferred_username": "pricer", "groups": ["ops"], "teams": ["pricing-team"]},
    "holdfast": {"preferred_username": "holdfast", "groups": ["chiefs"]},
    "blank": {"preferred_username": "Holdfast ", "groups": ["chiefs"]},
    "cyrillic": {"preferred_username": "\u0430nn", "groups": ["chiefs"]},
    "token": {"preferred_username": "Admin", "groups": ["chiefs"]},
    "nameless": {"groups": ["chiefs"]},
}
ROLES = {"watchers": "viewer", "ops": "operator", "chiefs": "admin"}


@pytest.fixture(scope="module")
def running() -> Iterator[OpenIdProvider]:
    with OpenIdProvider(PEOPLE, [CALLBACK]) as provider:
        yield provider


@pytest.fixture
def provider(running: OpenIdProvider) -> OpenIdProvider:
    running.forge, running.metadata, running.others, running.people = None, {}, [], dict(PEOPLE)
    running.thin, running.userinfo_of = set(), None
    running.asked.clear()
    return running


def configured(folder: Path, provider: OpenIdProvider, changes: dict[str, Any] | None = None, **api: Any) -> Site:
    url = (changes or {}).pop("console_url", CONSOLE)
    settings = {
        "issuer": provider.issuer,
        "client_id": CLIENT,
        "client_secret": SECRET,
        "roles_claim": "groups",
        "roles": ROLES,
        **(changes or {}),
    }
    return Site(folder, url=url, oidc=settings, **api)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, running: OpenIdProvider) -> Site:
    return configured(tmp_path_factory.mktemp("site"), running)


@pytest.fixture
def site(made: Site, provider: OpenIdProvider) -> Site:
    """One site for all tests, which remembers nothing of the provider."""
    known = made.api.entry
    assert known.provider is not None
    known.provider = oidc.Provider(known.provider.settings, CONSOLE, known.sessions.key)
    return made


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def begin(browser: httpx.AsyncClient, wanted: str = "/") -> str:
    """The address of the provider's page."""
    answer = await browser.get("/login/oidc", params={"next": wanted})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


async def come_back(browser: httpx.AsyncClient, provider: OpenIdProvider, subject: str, wanted: str = "/") -> str:
    """The address at which the provider sends the browser back."""
    return await asyncio.to_thread(provider.answer, await begin(browser, wanted), subject)


async def sign_in(
    browser: httpx.AsyncClient, provider: OpenIdProvider, subject: str, wanted: str = "/"
) -> httpx.Response:
    return await browser.get(await come_back(browser, provider, subject, wanted))


async def refused(browser: httpx.AsyncClient, address: str, reason: str) -> str:
    """Come back at this address, and be refused and counted for this reason; what the page says."""
    before = count("holdfast_access_refused_total", reason=reason), count("holdfast_sign_ins_total", outcome="refused")
    answer = await browser.get(address)
    after = count("holdfast_access_refused_total", reason=reason), count("holdfast_sign_ins_total", outcome="refused")
    assert after == (before[0] + 1, before[1] + 1)
    assert answer.status_code == (503 if reason == "oidc_away" else 403)
    assert COOKIE not in browser.cookies
    assert (await browser.get("/api/v1/routes")).status_code == 401
    return answer.text.partition('role="alert">')[2].partition("</p>")[0]


async def test_a_person_has_the_highest_role_and_acts_in_the_name_that_the_provider_says(
    site: Site, provider: OpenIdProvider
) -> None:
    """The session holds no token of the provider; it lasts for some hours and is not for scripts."""
    before = count("holdfast_sign_ins_total", outcome="accepted")
    async with site.client() as browser:
        page = (await browser.get("/login")).text
        assert "Sign in with localhost" in page
        assert "api token create" in page
        answer = await sign_in(browser, provider, "root", "/?q=pric")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?q=pric")
        kept = next(line for line in answer.headers.get_list("set-cookie") if line.startswith(f"{COOKIE}="))
        assert "HttpOnly" in kept
        assert "SameSite=lax" in kept
        assert "Max-Age=14400" in kept
        assert "chief@corp.example" in (await browser.get("/")).text
        who = site.api.entry.who(None, browser.cookies[COOKIE])
        assert who is not None
        assert (who.name, who.role, who.models) == ("chief@corp.example", "admin", None)
        answer = await sign_in(browser, provider, "ann")
        who = site.api.entry.who(None, browser.cookies[COOKIE])
        assert who is not None
        assert (who.name, who.role) == ("ann", "operator")
        unfence = {"model": VISIBLE, "version": "v1", "reason": "r"}
        answer = await browser.post("/api/v1/commands/unfence", json=unfence)
        assert (answer.status_code, "role operator" in answer.text) == (403, True)
    assert count("holdfast_sign_ins_total", outcome="accepted") == before + 2


async def test_a_session_is_over_after_sign_out_and_is_no_bearer_token(site: Site, provider: OpenIdProvider) -> None:
    async with site.client() as browser:
        await sign_in(browser, provider, "ann")
        stolen = browser.cookies[COOKIE]
        assert (await browser.get("/api/v1/routes")).status_code == 200
        for bearer in (stolen, "ann"):
            answer = await browser.get("/api/v1/routes", headers={"Authorization": f"Bearer {bearer}"})
            assert answer.status_code == 401
        assert (await browser.post("/logout", headers={"Origin": "https://evil.example"})).status_code == 403
        assert (await browser.post("/logout")).status_code == 303
        assert site.api.entry.who(None, stolen) is None


async def test_what_is_posted_from_another_site_does_nothing_in_such_a_session(
    site: Site, provider: OpenIdProvider
) -> None:
    async with site.client() as browser:
        await sign_in(browser, provider, "ann")
        hold = {"model": VISIBLE, "reason": "r"}
        for header in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await browser.post("/api/v1/commands/hold", json=hold, headers=header)).status_code == 403


@pytest.mark.parametrize(
    ("subject", "reason", "says"),
    [
        ("eve", "oidc_role", "eve has no role here"),
        ("none", "oidc_role", "none has no role here"),
        ("holdfast", "oidc_name", "names automatic decisions"),
        ("blank", "oidc_name", "names automatic decisions"),
        ("cyrillic", "oidc_name", "could be taken for another"),
        ("token", "oidc_name", "Admin is the name of a token"),
        ("nameless", "oidc_name", "does not say preferred_username"),
    ],
)
async def test_who_has_no_role_or_no_name_of_their_own_is_refused(
    site: Site, provider: OpenIdProvider, subject: str, reason: str, says: str
) -> None:
    """With a sentence that says who can help; the log says who that was at the provider."""
    async with site.client() as browser:
        assert says in await refused(browser, await come_back(browser, provider, subject), reason)


async def test_a_session_ends_when_a_token_gets_its_name(tmp_path: Path, provider: OpenIdProvider) -> None:
    site = configured(tmp_path, provider)
    async with site.client() as browser:
        await sign_in(browser, provider, "ann")
        assert (await browser.get("/api/v1/routes")).status_code == 200
        site.file.write_text(site.file.read_text().replace("viewer viewer", "ANN viewer"))
        assert (await browser.get("/api/v1/routes")).status_code == 401


async def test_a_person_of_some_models_sees_and_commands_no_other(tmp_path: Path, provider: OpenIdProvider) -> None:
    """Who is mapped to no model is refused; `*` is every model."""
    mapped = {"pricing-team": [VISIBLE], "everything": ["*"]}
    site = configured(tmp_path, provider, {"models": mapped, "models_claim": "teams"})
    async with site.client() as browser:
        await sign_in(browser, provider, "pricer")
        routes = (await browser.get("/api/v1/routes")).text
        assert VISIBLE in routes
        assert OTHER_MODEL not in routes
        assert OTHER_MODEL not in (await browser.get("/")).text
        hold = {"model": OTHER_MODEL, "reason": "r"}
        assert (await browser.post("/api/v1/commands/hold", json=hold)).status_code == 403
    async with site.client() as browser:
        said = await refused(browser, await come_back(browser, provider, "ann"), "oidc_models")
        assert "ann may see no model" in said
    (tmp_path / "2").mkdir()
    site = configured(tmp_path / "2", provider, {"models": mapped})
    async with site.client() as browser:
        await sign_in(browser, provider, "root")
        assert OTHER_MODEL in (await browser.get("/api/v1/routes")).text


async def test_a_session_ends_with_the_rules_that_gave_it(tmp_path: Path, provider: OpenIdProvider) -> None:
    """An instance with the same key and other rules, or without a provider, does not know it."""
    key = tmp_path / "key"
    key.write_text("k" * 32)
    first = configured(tmp_path, provider, session_key_file=str(key))
    async with first.client() as browser:
        await sign_in(browser, provider, "ann")
        cookie = browser.cookies[COOKIE]
    same = configured(tmp_path, provider, session_key_file=str(key))
    stricter = configured(tmp_path, provider, {"roles": {"ops": "viewer"}}, session_key_file=str(key))
    without = Site(tmp_path, session_key_file=str(key))
    known = [site.api.entry.who(None, cookie) is not None for site in (first, same, stricter, without)]
    assert known == [True, True, False, False]


# The answer of the provider


async def test_an_answer_is_taken_once_and_only_by_the_browser_that_began(site: Site, provider: OpenIdProvider) -> None:
    """Neither another browser, nor the same one a second time, nor one that began again; nor an hour later."""
    async with site.client() as browser, site.client() as other:
        address = await come_back(browser, provider, "ann")
        assert "was not begun in this browser" in await refused(other, address, "oidc_state")
        begun = dict(browser.cookies)
        assert (await browser.get(address)).status_code == 303
        async with site.client() as thief:
            thief.cookies.update(begun)
            await refused(thief, address, "oidc_state")
    async with site.client() as browser:
        address = await come_back(browser, provider, "ann")
        await begin(browser)
        await refused(browser, address, "oidc_state")
        address = await come_back(browser, provider, "ann")
        await refused(browser, address.replace("state=", "state=x"), "oidc_state")


async def test_a_code_that_was_used_is_refused_by_the_provider_on_another_instance(
    tmp_path: Path, provider: OpenIdProvider
) -> None:
    """Instances with one key know each other's beginnings, and not yet each other's ends."""
    key = tmp_path / "key"
    key.write_text("k" * 32)
    one, two = (configured(tmp_path, provider, session_key_file=str(key)) for _ in range(2))
    async with one.client() as browser:
        address = await come_back(browser, provider, "ann")
        begun = dict(browser.cookies)
    async with two.client() as browser:
        browser.cookies.update(begun)
        assert (await browser.get(address)).status_code == 303
    async with one.client() as thief:
        thief.cookies.update(begun)
        await refused(thief, address, "oidc_provider")


async def test_a_beginning_is_over_after_ten_minutes(
    site: Site, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.api.entry.provider is not None
    async with site.client() as browser:
        address = await come_back(browser, provider, "ann")
        later = time.time() + oidc.BEGUN_LASTS
        monkeypatch.setattr(site.api.entry.provider, "_clock", lambda: later)
        await refused(browser, address, "oidc_state")


async def test_without_the_verifier_that_was_promised_the_provider_gives_nothing(
    site: Site, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code that somebody caught is of no use without the key of this installation."""
    async with site.client() as browser:
        for verifier in ("", "v" * 43):
            address = await come_back(browser, provider, "ann")
            with monkeypatch.context() as patch:
                made = site.api.entry.provider._made_of  # type: ignore[union-attr]
                patch.setattr(
                    site.api.entry.provider,
                    "_made_of",
                    lambda text, what, made=made, said=verifier: said if what == "verifier" else made(text, what),
                )
                assert "did not let this sign-in through" in await refused(browser, address, "oidc_provider")


async def test_what_the_provider_refuses_is_not_repeated_on_the_page(site: Site, provider: OpenIdProvider) -> None:
    async with site.client() as browser:
        begun = parse_qs(urlsplit(await begin(browser)).query)
        query = {"state": begun["state"][0], "error": "<b>access_denied", "error_description": "<script>"}
        said = await refused(browser, f"{CALLBACK}?{urlencode(query)}", "oidc_provider")
        assert "script" not in said
        assert "access_denied" not in said


async def test_an_answer_in_the_name_of_another_provider_is_refused(site: Site, provider: OpenIdProvider) -> None:
    """RFC 9207: the provider may say who answers."""
    async with site.client() as browser:
        address = await come_back(browser, provider, "ann")
        await refused(browser, f"{address}&{urlencode({'iss': 'https://other.example'})}", "oidc_provider")
        address = await come_back(browser, provider, "ann")
        assert (await browser.get(f"{address}&{urlencode({'iss': provider.issuer})}")).status_code == 303


# The ID token

OTHER_KEY = RSAKey.generate_key(2048, {"kid": "first"})


def hs256(provider: OpenIdProvider, claims: dict[str, Any]) -> str:
    """Signed by the public key, as if it were a shared secret."""
    said = provider.sign(claims, OctKey.generate_key(256), "HS256").rpartition(".")[0]
    mac = hmac.digest(provider.key.as_pem(private=False), said.encode(), "sha256")
    return f"{said}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


FORGERIES: dict[str, Callable[[OpenIdProvider, dict[str, Any]], str]] = {
    "another key": lambda p, c: p.sign(c, OTHER_KEY),
    "an unknown key": lambda p, c: p.sign(c, OTHER_KEY, kid="second"),
    "alg none": lambda p, c: unsigned(c),
    "HS256 by the public key": hs256,
    "another audience": lambda p, c: p.sign({**c, "aud": ["other"]}),
    "several audiences and no azp": lambda p, c: p.sign({**c, "aud": [CLIENT, "other"]}),
    "made for another client": lambda p, c: p.sign({**c, "aud": [CLIENT, "other"], "azp": "other"}),
    "no audience": lambda p, c: p.sign({k: v for k, v in c.items() if k != "aud"}),
    "another issuer": lambda p, c: p.sign({**c, "iss": f"{p.issuer}/"}),
    "expired": lambda p, c: p.sign({**c, "exp": int(time.time()) - oidc.LEEWAY - 1}),
    "an end that is not a number": lambda p, c: p.sign({**c, "exp": float("nan")}),
    "no end": lambda p, c: p.sign({k: v for k, v in c.items() if k != "exp"}),
    "of the future": lambda p, c: p.sign({**c, "iat": int(time.time()) + 3600}),
    "another nonce": lambda p, c: p.sign({**c, "nonce": "n"}),
    "nonces": lambda p, c: p.sign({**c, "nonce": [c["nonce"], "n"]}),
    "no nonce": lambda p, c: p.sign({k: v for k, v in c.items() if k != "nonce"}),
    "no subject": lambda p, c: p.sign({**c, "sub": ""}),
    "another content": lambda p, c: p.sign({**c, "groups": []}).rpartition(".")[0] + "." + p.sign(c).rpartition(".")[2],
    "no token": lambda p, c: "a.b.c",
    "not ASCII": lambda p, c: "\u00e9.\u00e9.\u00e9",
    "a list": lambda p, c: "[]",
    "deep": lambda p, c: p.sign({**c, "deep": json.loads("[" * 900 + "]" * 900)})[:-1],
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_forged_id_token_is_refused(
    site: Site, provider: OpenIdProvider, forgery: Callable[[OpenIdProvider, dict[str, Any]], str]
) -> None:
    """Whatever is wrong with it: key, algorithm, audience, time or nonce. The page does not say what."""
    provider.forge = lambda claims: forgery(provider, claims)
    async with site.client() as browser:
        said = await refused(browser, await come_back(browser, provider, "root"), "oidc_id_token")
        assert "answered with an ID token that is refused" in said


async def test_a_key_set_with_a_shared_secret_lets_nobody_sign_by_it(site: Site, provider: OpenIdProvider) -> None:
    """Keys of other uses and kinds are passed over."""
    shared = OctKey.generate_key(256, {"kid": "shared"})
    provider.others = [shared.as_dict(private=True), {"kty": "new", "kid": "new"}, {"kty": "RSA", "kid": "broken"}]
    provider.forge = lambda claims: provider.sign(claims, shared, "HS256", "shared")
    async with site.client() as browser:
        await refused(browser, await come_back(browser, provider, "root"), "oidc_id_token")
        provider.forge = None
        assert (await sign_in(browser, provider, "root")).status_code == 303


async def test_new_keys_of_the_provider_are_read_and_a_flood_of_unknown_ones_is_not(
    site: Site, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discovery and keys are read once for many sign-ins; a changed key at once, but not at every token."""
    now = time.time()
    assert site.api.entry.provider is not None
    monkeypatch.setattr(site.api.entry.provider, "_clock", lambda: now)
    first = provider.key
    try:
        async with site.client() as browser:
            for _ in range(3):
                assert (await sign_in(browser, provider, "ann")).status_code == 303
            assert (provider.asked["/.well-known/openid-configuration"], provider.asked["/keys"]) == (1, 1)
            now += oidc.AGAIN_AFTER
            provider.key = ECKey.generate_key("P-256", {"kid": "second"})
            assert (await sign_in(browser, provider, "ann")).status_code == 303
            assert provider.asked["/keys"] == 2
            browser.cookies.clear()
            provider.forge = lambda claims: provider.sign(claims, OTHER_KEY, kid="third")
            for _ in range(3):
                await refused(browser, await come_back(browser, provider, "ann"), "oidc_id_token")
            assert provider.asked["/keys"] == 2
    finally:
        provider.key = first


async def test_what_the_id_token_leaves_out_is_asked_of_the_provider_itself(
    site: Site, provider: OpenIdProvider
) -> None:
    """As OpenID Connect allows it; but not of another person, and never over what the ID token says."""
    provider.thin = {"preferred_username", "groups"}
    async with site.client() as browser:
        assert (await sign_in(browser, provider, "ann")).status_code == 303
        assert provider.asked["/userinfo"] == 1
        who = site.api.entry.who(None, browser.cookies[COOKIE])
        assert who is not None
        assert (who.name, who.role) == ("ann", "operator")
        browser.cookies.clear()
        provider.userinfo_of = "root"
        await refused(browser, await come_back(browser, provider, "ann"), "oidc_provider")
        provider.userinfo_of = None
        await refused(browser, await come_back(browser, provider, "none"), "oidc_role")
        provider.thin = {"preferred_username"}
        provider.forge = lambda claims: provider.sign({**claims, "groups": ["watchers"]})
        assert (await sign_in(browser, provider, "root")).status_code == 303
        who = site.api.entry.who(None, browser.cookies[COOKIE])
        assert who is not None
        assert (who.name, who.role) == ("chief@corp.example", "viewer")


# Where the browser goes


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/login",
        "/?q=\\",
        "javascript:alert(1)",
        "/?q=1\r\nX: 1",
        "/@evil.example",
        "x" * 5000,
    ],
)
async def test_nobody_is_sent_to_another_site(site: Site, provider: OpenIdProvider, wanted: str) -> None:
    async with site.client() as browser:
        answer = await sign_in(browser, provider, "ann", wanted)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        page = (await browser.get("/login", params={"next": wanted})).text
        assert "evil.example" not in page


# The provider is away, or strange


async def test_where_the_provider_is_away_the_page_says_so_and_tokens_work(
    tmp_path: Path, provider: OpenIdProvider
) -> None:
    """It is asked again some seconds later, not at every click."""
    site = configured(tmp_path, provider, {"issuer": f"http://localhost:{free_port()}"})
    async with site.client() as browser:
        for _ in range(2):
            answer = await browser.get("/login/oidc")
            assert answer.status_code == 503
            assert (
                "cannot be asked who you are just now. Try again in a moment, or sign in with a token." in answer.text
            )
        assert (await browser.post("/login", data={"token": site.tokens["viewer"]})).status_code == 303
        assert (await browser.get("/api/v1/routes")).status_code == 200


async def test_a_provider_that_hangs_holds_few_of_the_requests_that_are_answered_at_once(
    tmp_path: Path, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of sign-ins meanwhile is told to come again, and everything else is answered."""
    site = configured(tmp_path, provider, requests_at_once=oidc.AT_ONCE + 2)
    hanging = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        await hanging.wait()

    monkeypatch.setattr(site.api.entry.provider, "_ask", hang)
    async with site.client() as browser:
        held = [asyncio.create_task(browser.get("/login/oidc")) for _ in range(oidc.AT_ONCE)]
        while site.app._working < oidc.AT_ONCE:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for _ in range(20):
            assert "Try again in a moment" in (await browser.get("/login/oidc")).text
        assert (await browser.get("/login")).status_code == 200
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "http://localhost:1"},
        {"token_endpoint": None},
        {"token_endpoint": "http://idp.example/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "http://[/"},
        {"filler": "x" * oidc.MAX_BYTES},
    ],
    ids=lambda one: next(iter(one)),
)
async def test_a_provider_that_cannot_be_trusted_is_not_asked_further(
    site: Site, provider: OpenIdProvider, metadata: dict[str, Any]
) -> None:
    """One that calls itself otherwise, has addresses without TLS or of other schemes, or answers without end."""
    provider.metadata = metadata
    async with site.client() as browser:
        assert (await browser.get("/login/oidc")).status_code == 503
    assert set(provider.asked) == {"/.well-known/openid-configuration"}


async def test_a_flood_of_refused_sign_ins_does_not_fill_the_log_which_says_why(
    site: Site, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(entry.log, "warning", lambda event, **facts: told.append(facts))
    monkeypatch.setattr(site.api.entry, "_told_at", 0.0)
    async with site.client() as browser:
        address = await come_back(browser, provider, "eve")
        for _ in range(20):
            await browser.get(address)
    assert told[0]["reason"] == "oidc_role"
    assert "The subject is eve." in told[0]["why"]
    assert len(told) < 20


@pytest.mark.parametrize("method", ["client_secret_post", "none"])
async def test_a_provider_may_take_the_secret_in_the_form_or_none_at_all(tmp_path: Path, method: str) -> None:
    """A public client is protected by PKCE alone."""
    with OpenIdProvider(PEOPLE, [CALLBACK], method) as provider:
        changes = {} if method == "client_secret_post" else {"client_secret": None}
        site = configured(tmp_path, provider, changes)
        async with site.client() as browser:
            assert (await sign_in(browser, provider, "ann")).status_code == 303


async def test_a_provider_proves_who_it_is_and_cookies_stay_within_tls(tmp_path: Path) -> None:
    """By an authority of the configuration, or of the system; any other certificate is a provider that is away."""
    authority, url = trustme.CA(), "https://holdfast.example"
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    with OpenIdProvider(PEOPLE, [f"{url}/login/oidc/callback"], tls=tls) as provider:
        site = configured(tmp_path, provider, {"console_url": url})
        async with site.client() as browser:
            assert (await browser.get("/login/oidc")).status_code == 503
        site = configured(tmp_path, provider, {"console_url": url, "ssl_ca_file": str(tmp_path / "ca.pem")})
        async with site.client() as browser:
            begun = await browser.get("/login/oidc")
            address = await asyncio.to_thread(provider.answer, begun.headers["location"], "ann")
            done = await browser.get(address)
            assert done.status_code == 303
            given = [line for answer in (begun, done) for line in answer.headers.get_list("set-cookie")]
            assert len(given) == 3
            assert all("; Secure" in line for line in given)


async def test_without_a_provider_there_is_no_such_door(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.client() as browser:
        assert (await browser.get("/login/oidc")).status_code == 404
        assert (await browser.get("/login/oidc/callback?state=s&code=c")).status_code == 403
        assert "Sign in with" not in (await browser.get("/login")).text
