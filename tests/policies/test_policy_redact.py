import json
import time
from email.message import Message

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stageflow.policies.redact import MASK, redact, secrets_of

CANARY = "sk-canary-0123456789abcdef"


def test_the_secrets_of_an_environment():
    environment = {
        "OPENAI_API_KEY": "sk-0123456789",
        "hf_token": " hf_abcdefgh\n",
        "DB_PASSWORD": "correct horse",
        "CLIENT_SECRET_2": "12345678",
        "SHORT_KEY": "1234567",
        "EMPTY_TOKEN": "",
        "PATH": "/usr/local/bin:/usr/bin",
        "HOME": "/home/somebody",
    }
    found = secrets_of(environment)
    assert {"sk-0123456789", "hf_abcdefgh", "correct horse", "12345678"} <= found
    assert "correct%20horse" in found
    assert not found & {"1234567", "", "/home/somebody"}


def test_a_secret_is_masked_wherever_and_however_it_is_spelt():
    secret = 'p"ss\\word/ü\n'
    secrets = secrets_of({"A_KEY": secret})
    spelt = [secret.strip(), json.dumps(secret.strip()), repr(secret.strip()), "p%22ss%5Cword%2F%C3%BC"]
    for text in spelt:
        assert "ss" not in redact(f"before {text} after", secrets)


def test_odd_values_are_no_second_failure():
    secrets = secrets_of({"A_KEY": "\udcff" * 9, "B_KEY": "x" * 100_000})
    assert redact("\udcff" * 9, secrets) == MASK
    assert redact("\ud800 is kept", secrets) == "\ud800 is kept"
    assert redact("text", {""}) == "text"


HEADERS = ["Authorization", "authorization", "Proxy-Authorization", "api-key", "X-API-Key", "Cookie", "Set-Cookie"]


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("value", [CANARY, f"Bearer {CANARY}", f"Basic {CANARY}"])
@pytest.mark.parametrize(
    "form",
    [
        lambda name, value: repr({"a": "b", name: value, "c": "d"}),
        lambda name, value: json.dumps({"a": "b", name: value, "c": "d"}),
        lambda name, value: json.dumps({name: [value]}),
        lambda name, value: json.dumps(json.dumps({name: value})),
        lambda name, value: repr([(name.encode(), value.encode())]),
        lambda name, value: repr(((name, value),)),
        lambda name, value: f"sent: {name}='{value}' to the server",
        lambda name, value: f'{{"{name}" : "{value}',
    ],
)
def test_a_headers_value_is_masked_in_every_form(name, value, form):
    masked = redact(form(name, value), ())
    assert CANARY not in masked
    assert name in masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"Authorization: Bearer {CANARY}, status 401", "Authorization: ***, status 401"),
        (f"Authorization: Bearer {CANARY}\r\nHost: a", "Authorization: ***\r\nHost: a"),
        (f"Authorization: Digest a=b, response={CANARY}\nHost: a", "Authorization: ***\nHost: a"),
        (f"authorization={CANARY}\n", "authorization=***\n"),
        (f"Cookie: a=b; session={CANARY}\nHost: a", "Cookie: ***\nHost: a"),
        (f"x-api-key: {CANARY} was refused", "x-api-key: *** was refused"),
        (f"api_key={CANARY})", "api_key=***)"),
        (f"{{'Authorization': 'Bearer {CANARY}', 'Host': 'a'}}", "{'Authorization': '***', 'Host': 'a'}"),
        (f"sent bearer {CANARY} in vain", "sent bearer *** in vain"),
        (f"https://me:{CANARY}@host/a", "https://***@host/a"),
        (f"postgresql+psycopg://me:p@{CANARY}@host:5432/a", "postgresql+psycopg://***@host:5432/a"),
        (f"GET https://h/a?b=c&api_key={CANARY}&d=e#f", "GET https://h/a?b=c&api_key=***&d=e#f"),
        (f"https://h/?key={CANARY}", "https://h/?key=***"),
        (f"https://h/?sig={CANARY}' for url", "https://h/?sig=***' for url"),
        (f"https://h/?X-Amz-Signature={CANARY}&a=b", "https://h/?X-Amz-Signature=***&a=b"),
        (f"https://h/?a=b&amp;client_secret={CANARY}", "https://h/?a=b&amp;client_secret=***"),
    ],
)
def test_what_is_masked_and_what_is_left(text, masked):
    assert redact(text, ()) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "invalid authorization header",
        "3 cookies were set, the key is missing",
        "https://host/path?keyword=a&design=b",
        "mail to a@b.example, see https://host/@somebody",
        "Bearer authentication is required",
        "KeyError: 'token'",
        "the api key was refused",
    ],
)
def test_harmless_texts_are_left_as_they_are(text):
    assert redact(text, {CANARY}) == text


def test_a_real_message_keeps_its_harmless_headers():
    message = Message()
    message["Content-Type"] = "text/plain"
    message["Set-Cookie"] = f"session={CANARY}"
    message["Retry-After"] = "7"
    masked = redact(str(message), ())
    assert CANARY not in masked
    assert "Content-Type: text/plain" in masked
    assert "Retry-After: 7" in masked


WORDS = st.text(st.characters(exclude_characters="*"), min_size=8, max_size=20)


@given(st.lists(st.one_of(WORDS, st.text(max_size=30)), max_size=20), st.sets(WORDS, max_size=4), st.data())
def test_no_secret_is_left(pieces, secrets, data):
    order = data.draw(st.permutations([*pieces, *secrets, *secrets]))
    masked = redact("".join(order), secrets)
    assert not any(secret in masked for secret in secrets)


@given(st.text("Authorization: '\"\\,=b[({", max_size=200) | st.text("api_key=&?;sig:/@ \n", max_size=200))
@example("Authorization: '\\")
def test_no_text_crashes_it_and_twice_is_once(text):
    once = redact(text, ())
    assert redact(once, ()) == once


@given(
    st.integers(0, 300),
    st.integers(16_000, 17_000),
    st.booleans(),
    st.integers(0, 5000),
    st.sampled_from(["x", "x\n", " "]),
)
def test_at_the_cut_no_piece_of_a_secret_is_left(limit, before, tail, after, filler):
    secret = "".join(chr(0x4E00 + number) for number in range(100))
    parts = (filler * before)[:before], (filler * after)[:after]
    text = secret.join(reversed(parts) if tail else parts)
    masked = redact(text, {secret}, limit=limit, tail=tail)
    assert len(masked) <= limit
    assert not set(secret) & set(masked)


@pytest.mark.parametrize("tail", [False, True])
def test_masks_that_shorten_a_text_bring_no_piece_of_a_secret_into_view(tail):
    secret = "".join(chr(0x4E00 + number) for number in range(100))
    for offset in range(0, 100, 7):
        parts = ["x" * offset, secret * 400]
        masked = redact("".join(reversed(parts) if tail else parts), {secret}, limit=1000, tail=tail)
        assert not set(secret) & set(masked)


def test_a_long_text_keeps_its_head_or_its_tail():
    text = "first line\n" + "x" * 200_000 + "\nlast line"
    assert redact(text, ()).startswith("first line\n")
    assert redact(text, (), tail=True).endswith("\nlast line")
    assert len(redact(text, ())) > 60_000


def test_a_text_within_the_limit_is_not_cut():
    text = "x" * 1000 + CANARY
    assert redact(text, {CANARY}, limit=len(text)) == "x" * 1000 + MASK
    assert redact(text, {CANARY}, limit=1001) == "x" * 1000 + "*"


LONG = [
    "a",
    "authorization",
    "authorization'",
    "authorization: '",
    "authorization' : [(b\\\\",
    "api-key=",
    "cookie: \\",
    "://a",
    "://",
    "&key",
    "&keykeykeysigtoken",
    "?" + "a" * 64,
    "bearer ",
    "bearer  \t",
    '"\\',
    " " * 7 + "authorization",
]


@pytest.mark.parametrize("piece", LONG, ids=lambda piece: piece[:20])
def test_ten_megabytes_of_the_worst_take_no_time(piece):
    secrets = {f"secret-{number:05}" for number in range(100)}
    text = piece * (10_000_000 // len(piece))
    before = time.process_time()
    for tail in (False, True):
        redact(text, secrets, tail=tail)
    assert time.process_time() - before < 2.0


def test_of_two_secrets_the_longer_is_masked_first():
    assert redact("abcdefgh12345678", {"abcdefgh", "abcdefgh12345678"}) == MASK
