"""No secret of a generated address is shown, and addresses without one stay as they are."""

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgan.addresses import masked

MARK = "S3CR3T"
RAW = string.ascii_letters + string.digits + "/:@?#&=%+-._~!$*(),;"
NAMES = st.text("abcdefgh", min_size=1, max_size=6)
HOSTS = st.builds(lambda name, port: f"{name}.org{port}", NAMES, st.sampled_from(["", ":5432"]))
SCHEMES = st.sampled_from(["http", "https", "postgresql", "postgresql+psycopg", "mysql+pymysql", "redis"])
SECRETS = st.builds(lambda before, after: f"{before}{MARK}{after}", *[st.text(RAW, max_size=8)] * 2)
QUOTED = st.builds(lambda secret: quote(secret, safe=""), SECRETS)
FIELDS = st.sampled_from(
    ["password", "Password", "sslpassword", "token", "access_token", "aws_secret_access_key", "pwd"]
)
ADDRESSES = st.one_of(
    st.builds("{}://{}:{}@{}/x".format, SCHEMES, NAMES, SECRETS, HOSTS),
    st.builds("{}://{}:{}@{}/x?a=b".format, SCHEMES, NAMES, QUOTED, HOSTS),
    st.builds("{}://{}@{}".format, SCHEMES, QUOTED, HOSTS),
    st.builds("{}://:{}@{}".format, SCHEMES, SECRETS, HOSTS),
    st.builds("{}://{}/x?user=u&{}={}".format, SCHEMES, HOSTS, FIELDS, QUOTED),
    st.builds("{}://{}/x?{}={}&a=b#/c".format, SCHEMES, HOSTS, FIELDS, QUOTED),
    st.builds("s3://bucket/x?endpoint_override={}:{}@{}&scheme=http".format, NAMES, QUOTED, HOSTS),
    st.builds("s3://bucket/x?scheme=http&endpoint_override={}%3A{}%40{}".format, NAMES, QUOTED, HOSTS),
    st.builds("host={} user=u {}={} dbname=d".format, HOSTS, FIELDS, QUOTED),
)


@given(ADDRESSES, st.sampled_from(["{}", "python a.py --mlflow={} --x 1", "'{}'", 'cannot reach "{}" (refused)']))
def test_the_secret_of_an_address_is_hidden_wherever_it_stands(address: str, text: str):
    shown = masked(text.format(address))
    assert MARK not in shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=ab12",
        "sqlite:////home/me@lab/runs/mlflow.db",
        "postgresql+psycopg:///mlflow?host=/var/run/postgresql",
        "postgresql://db.org:5432/study",
        "s3://bucket/me@lab/runs?endpoint_override=127.0.0.1:9000&scheme=http",
        "python sweeps/ablation.py --store '/a b/c@d' --override gan.image_noise=0.1",
    ],
)
def test_what_holds_no_secret_stays(address: str):
    assert masked(address) == address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://u:p@host:5000", "http://HIDDEN@host:5000"),
        ("postgresql://u:P/W@h/d", "postgresql://HIDDEN@h/d"),
        ("postgresql://h/d?user=u&password=P", "postgresql://h/d?user=u&password=HIDDEN"),
        ("https://h/x?token=T&a=b", "https://h/x?token=HIDDEN&a=b"),
        ("s3://b/f?endpoint_override=KEY:SECRET@h:9000", "s3://b/f?endpoint_override=HIDDEN@h:9000"),
    ],
)
def test_the_rest_of_an_address_can_still_be_read(address: str, shown: str):
    assert masked(address) == shown
